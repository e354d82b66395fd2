"""The competition's FineWeb export from the Hugging Face hub: only whole, verified files get their final names."""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from golfcore.base.errors import UserError
from golfcore.base.files import read_json, sha256_file
from golfcore.data.contents import MANIFEST, read_manifest, write_manifest
from golfcore.data.shards import shard_tokens

REPO = "willdepueoai/parameter-golf"
DATASET = "fineweb10B_sp1024"
REMOTE_ROOT = "datasets"  # the export's folder in the repository
STAGING = ".download"
ATTEMPTS = 3
EXPORT = {
    "datasets": [{"name": str, "tokenizer_name": str, "stats": {"files_train": int, "files_val": int}}],
    "tokenizers": [{"name": str}],
}


def download(out: Path, train_shards: int, endpoint: str | None = None) -> str:
    """Download all validation shards, the first `train_shards` training shards and the tokenizer; return the commit.

    The export's own manifest says what there is, and all files come from one commit. Each is fetched into a staging
    folder, checked against the hub's hash and the shard format, and renamed into `out/datasets/` or
    `out/tokenizers/`. A file already there is hashed and kept if it is right, so calling again finishes an
    interrupted download or adds shards. Our `manifest.json` comes last.
    UserError: huggingface_hub is missing; fewer shards; the network fails; a file does not match its hash; `out`
    holds somebody else's manifest.
    """
    if (out / MANIFEST).exists() and not read_manifest(out):
        raise UserError(f"{out / MANIFEST}: expected a manifest that golfcore wrote, found another one")
    staging = out / STAGING
    source = _Source(staging, endpoint)
    source.fetch(MANIFEST, staging / "export.json")
    export = read_json(staging / "export.json", "the export's manifest", EXPORT)
    present = {path.name for path in (out / "datasets" / DATASET).glob("fineweb_train_*.bin")}
    hashes: dict[str, str] = {}
    for name in tqdm(_export_files(export, train_shards, present), desc="files", unit="file", disable=None):
        source.fetch(name, out / name)
        hashes[name] = sha256_file(out / name)
    commit = source.where["revision"]
    write_manifest(out, hashes, sources={"corpus": "download", "repo": REPO, "commit": commit, "dataset": DATASET})
    shutil.rmtree(staging)
    return commit


def _export_files(export: dict, train_shards: int, present: set[str]) -> list[str]:
    """Paths in the export of the tokenizer, the wanted shards and the training shards already `present`."""
    entry = next(entry for entry in export["datasets"] if entry["name"] == DATASET)
    model = next(found["model_path"] for found in export["tokenizers"] if found["name"] == entry["tokenizer_name"])
    most = entry["stats"]["files_train"]
    if not 1 <= train_shards <= most:
        raise UserError(f"train_shards: expected 1 to {most} for {DATASET}, found {train_shards}")
    names = [f"fineweb_val_{i:06d}.bin" for i in range(entry["stats"]["files_val"])]
    names += sorted({f"fineweb_train_{i:06d}.bin" for i in range(train_shards)} | present)
    return [model, *(f"datasets/{DATASET}/{name}" for name in names)]


class _Source:
    """The export as one commit has it (the newest when this was made); `endpoint` None is the public hub."""

    def __init__(self, staging: Path, endpoint: str | None) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.errors
        except ImportError:
            raise UserError("huggingface_hub: expected it installed (pip install golfcore[hub]), found none") from None
        self.hub, self.staging = huggingface_hub, staging
        # The root of the errors of the HTTP library underneath, which differs between versions of the hub's client.
        self.transport_error: type[Exception] = huggingface_hub.errors.HfHubHTTPError.__bases__[0]
        self.where: dict[str, Any] = {"repo_type": "dataset", "revision": "main", "endpoint": endpoint}
        self.where["revision"] = self._metadata(MANIFEST).commit_hash

    def fetch(self, name: str, path: Path) -> None:
        """Make `path` the verified content of a file. UserError: it cannot be had whole and right.

        The hub's client continues a transfer that ends early; after a reset connection we start the file again.
        """
        expected, staged = self._metadata(name).etag, self.staging / REMOTE_ROOT / name
        if path.is_file() and _has_hash(path, expected):
            return
        with self._failures(name):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    self.hub.hf_hub_download(REPO, f"{REMOTE_ROOT}/{name}", **self.where, local_dir=self.staging)
                    break
                except self.transport_error as e:
                    if attempt == ATTEMPTS or isinstance(e, self.hub.errors.HfHubHTTPError):
                        raise
        if not _has_hash(staged, expected):
            staged.unlink()
            raise UserError(f"{REPO}/{name}: expected content of hash {expected}, found a damaged download")
        if staged.suffix == ".bin":
            shard_tokens(staged)
        path.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(path)

    def _metadata(self, name: str) -> Any:
        """The commit_hash and the etag, a hash of the content, of a file."""
        with self._failures(name):
            return self.hub.get_hf_file_metadata(self.hub.hf_hub_url(REPO, f"{REMOTE_ROOT}/{name}", **self.where))

    @contextmanager
    def _failures(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, self.transport_error) as e:
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise UserError(f"{REPO}/{name}: expected to download it, found {reason}") from None


def _has_hash(path: Path, etag: str) -> bool:
    """Whether a file has the hash that the hub gives as its etag: SHA-256 for large files, git's for small ones."""
    if len(etag) == 64:
        return sha256_file(path) == etag
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == etag
