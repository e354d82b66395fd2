"""Laws of the download, against a server on this machine that speaks as much of the hub's protocol as is used."""

import hashlib
import json
import random
import socket
import struct
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from golfcore.base.errors import UserError
from golfcore.data.datasets import open_dataset
from golfcore.data.download import REPO, download
from golfcore.data.shards import write_shard
from golfcore.data.text import train_tokenizer

COMMIT = "c" * 40
ROOT = f"/datasets/{REPO}/resolve"
FOLDER = "datasets/fineweb10B_sp1024"
MANIFEST = {
    "datasets": [
        {"name": "fineweb10B_sp1024", "tokenizer_name": "sp_bpe_1024", "stats": {"files_train": 3, "files_val": 1}},
        {"name": "fineweb10B_byte260", "tokenizer_name": "bytes", "stats": {"files_train": 9, "files_val": 9}},
    ],
    "tokenizers": [
        {"name": "sp_bpe_1024", "model_path": "tokenizers/fineweb_1024_bpe.model"},
        {"name": "bytes", "path": "tokenizers/bytes.json"},
    ],
}


class Hub(ThreadingHTTPServer):
    """Files by their path in the repository, what to do wrong once or always, and a log of the transfers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cut_once: dict[str, str] = {}  # path -> "end" or "reset": the connection breaks half-way
        self.corrupt: set[str] = set()  # the content is not what its hash says
        self.log: list[tuple[str, str]] = []  # path, range asked for

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def transfers(self) -> Counter:
        return Counter(path.rsplit("/", 1)[-1] for path, _ in self.log)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        revision, _, name = self.path.removeprefix(f"{ROOT}/").partition("/")
        data = self.server.files.get(name)
        if data is None or revision not in ("main", COMMIT):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if data is None else "RevisionNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        is_large = name.endswith((".bin", ".model"))
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{git}"')
        if is_large:
            self.send_header("X-Linked-Etag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(data)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.server.log.append((name, wanted))
            self.send_content(name, data[start:])

    def send_content(self, name: str, content: bytes) -> None:
        if name in self.server.corrupt:
            content = bytes(byte ^ 1 for byte in content)
        how = self.server.cut_once.pop(name, None)
        self.wfile.write(content[: len(content) // 2] if how else content)
        self.wfile.flush()
        if how == "reset":  # closing with zero linger drops the connection instead of ending it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = how is not None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def tokenizer() -> bytes:
    rng = random.Random(0)
    return train_tokenizer(["".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=2000)) for _ in range(40)], 1024)


@pytest.fixture
def hub(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Hub()
    rng = np.random.default_rng(0)
    for name in ["fineweb_val_000000.bin", *(f"fineweb_train_{i:06d}.bin" for i in range(3))]:
        write_shard(tmp_path / "remote.bin", rng.integers(0, 1024, 40_000))
        server.files[f"datasets/{FOLDER}/{name}"] = (tmp_path / "remote.bin").read_bytes()
    server.files["datasets/tokenizers/fineweb_1024_bpe.model"] = tokenizer
    server.files["datasets/manifest.json"] = json.dumps(MANIFEST).encode()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def shard(hub: Hub, name: str) -> bytes:
    return hub.files[f"datasets/{FOLDER}/{name}"]


def test_what_is_asked_for_lands_as_a_dataset(hub, tmp_path):
    out = tmp_path / "out"
    assert download(out, 2, endpoint=hub.url) == COMMIT
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    names = ["fineweb_train_000000.bin", "fineweb_train_000001.bin", "fineweb_val_000000.bin"]
    assert found == {"manifest.json", "tokenizers/fineweb_1024_bpe.model", *(f"{FOLDER}/{name}" for name in names)}
    assert all((out / FOLDER / name).read_bytes() == shard(hub, name) for name in names)
    dataset = open_dataset(out)
    assert len(dataset.train) == 2 and dataset.manifest["sources"]["commit"] == COMMIT
    assert dataset.data_hash == dataset.manifest["data_hash"]


def test_a_second_call_transfers_only_what_is_missing_or_wrong(hub, tmp_path):
    out = tmp_path / "out"
    download(out, 2, endpoint=hub.url)
    first = open_dataset(out).data_hash
    (out / FOLDER / "fineweb_train_000000.bin").write_bytes(b"damaged later")
    hub.log.clear()
    download(out, 1, endpoint=hub.url)
    assert hub.transfers() == {"manifest.json": 1, "fineweb_train_000000.bin": 1}
    assert open_dataset(out).data_hash == first  # asking for fewer shards takes none away
    hub.log.clear()
    download(out, 3, endpoint=hub.url)
    assert hub.transfers() == {"manifest.json": 1, "fineweb_train_000002.bin": 1}
    assert len(open_dataset(out).train) == 3 and open_dataset(out).data_hash != first


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_connection_cut_in_the_middle_of_a_shard_costs_nothing_but_time(hub, tmp_path, monkeypatch, how):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 12)  # 10 MB: more than our shards
    name = "fineweb_train_000000.bin"
    hub.cut_once[f"datasets/{FOLDER}/{name}"] = how
    download(tmp_path / "out", 1, endpoint=hub.url)
    assert (tmp_path / "out" / FOLDER / name).read_bytes() == shard(hub, name)
    first, second = [asked for path, asked in hub.log if path.endswith(name)]
    kept = len(shard(hub, name)) // 2 // (1 << 12) * (1 << 12)
    assert (first, second) == ("", f"bytes={kept}-" if how == "end" else "")


@pytest.mark.parametrize("name", [f"{FOLDER}/fineweb_train_000001.bin", "tokenizers/fineweb_1024_bpe.model"])
def test_a_file_that_does_not_match_its_hash_never_gets_its_name(hub, tmp_path, name):
    out = tmp_path / "out"
    hub.corrupt.add(f"datasets/{name}")
    with pytest.raises(UserError, match=f"{name}: expected content of hash [0-9a-f]{{64}}, found a damaged download"):
        download(out, 2, endpoint=hub.url)
    assert not list(out.rglob(Path(name).name)) and not (out / "manifest.json").exists()
    hub.corrupt.clear()
    download(out, 2, endpoint=hub.url)
    assert open_dataset(out).manifest


def test_a_right_hash_does_not_make_a_shard(hub, tmp_path):
    name = f"{FOLDER}/fineweb_val_000000.bin"
    hub.files[f"datasets/{name}"] = b"an error page" * 200
    with pytest.raises(UserError, match="expected the magic number"):
        download(tmp_path / "out", 1, endpoint=hub.url)
    assert not (tmp_path / "out" / name).exists()


def test_what_cannot_be_had_is_said_in_a_sentence(hub, tmp_path):
    for shards in (0, 4):
        with pytest.raises(UserError, match=f"train_shards: expected 1 to 3 for fineweb10B_sp1024, found {shards}"):
            download(tmp_path / "out", shards, hub.url)
    del hub.files["datasets/manifest.json"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    for endpoint, reason in ((hub.url, "404"), (dead, ".*refused")):
        with pytest.raises(UserError, match=f"manifest.json: expected to download it, found {reason}"):
            download(tmp_path / "out", 1, endpoint)


def test_somebody_elses_manifest_is_kept(hub, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="expected a manifest that golfcore wrote, found another one"):
        download(tmp_path, 1, endpoint=hub.url)
    assert (tmp_path / "manifest.json").read_text() == "{}"


def test_without_the_client_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install golfcore\[hub\]"):
        download(tmp_path / "out", 1)
