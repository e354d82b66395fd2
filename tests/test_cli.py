"""The command line as a user meets it: answers, and one sentence with exit code 2 for what they got wrong."""

import contextlib
import errno
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import SentencePieceTrainer
from small_text import WORDS, dataset

import golfcore as gc
from golfcore import cli, config
from golfcore.base import files
from golfcore.base.errors import USERS, UserError
from golfcore.data.shards import write_shard


def golf(*args: object) -> int:
    return cli.main([str(a) for a in args])


def refused(capsys: pytest.CaptureFixture, *args: object) -> str:
    """The sentence of a command that must be refused."""
    assert golf(*args) == 2
    out = capsys.readouterr()
    lines = [line for line in out.err.splitlines() if line.startswith("golfcore: ")]
    assert len(lines) == 1 and "Traceback" not in out.err
    return lines[0]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset made by `golfcore data build`."""
    return dataset(tmp_path_factory.mktemp("made"))


def smoke(corpus: Path, *more: object) -> list[object]:
    changes = ["model.vocab_size=320", "schedule.iterations=4", "schedule.warmdown_steps=2", "data.reserve_tokens=0"]
    changes += ["ttt.lr_candidates=[]", "data.val_tokens=512"]
    return ["run", "smoke", *(x for c in changes for x in ("--set", c)), "--data", corpus, *more]


def test_a_study_is_a_table(small_run: Path, capsys: pytest.CaptureFixture) -> None:
    """Of the run's own scores, without measuring them again."""
    assert golf("study", small_run, "--cells", "abc", "--json") == 0
    measures = gc.open_run(small_run).folder.results()["measures"]
    rows = {row["label"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["bpb"] for name, row in rows.items()} == {
        label: measures[name]["bpb"] for label, name in zip("abc", ("static", "sliding", "ttt"), strict=True)
    }
    assert golf("study", small_run, "--cells", "abc") == 0 and "score-first" in capsys.readouterr().out


def test_counts_are_the_published_ones(capsys: pytest.CaptureFixture) -> None:
    for preset in ("exp101", "exp105a"):
        assert golf("params", preset, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["total"] == found["exported"] == 26_960_991
        assert found["groups"]["matrix"] == 25_952_256


def test_every_command_has_help_with_its_defaults(capsys: pytest.CaptureFixture) -> None:
    said = {}
    for words in (*cli.COMMANDS, *cli.GROUPS, ""):
        with contextlib.suppress(SystemExit):
            assert golf(*words.split(), "--help") == 0
        said[words] = " ".join(capsys.readouterr().out.split())
        assert said[words].startswith(f"usage: golfcore {words}".rstrip())
    assert "one of full, demo, smoke (default: full)" in said["run"] and "exp101" in said["run"]
    assert "(default: static)" in said["eval"] and "(default: 1024)" in said["data build"]
    assert not [words for words, text in said.items() if "None" in text or "[]" in text or "False" in text]


def test_help_of_a_notebook_lists_its_parameters(tmp_path, capsys, monkeypatch) -> None:
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}}
    cell["source"] = ['seeds: str = "1, 2"  # of all arms\nmost = 3\n']
    files.write_json(tmp_path / "notebooks" / "05_x.ipynb", {"cells": [cell]})
    files.write_text(tmp_path / "papermill_runs" / "README.md", "")
    monkeypatch.chdir(tmp_path / "notebooks")
    assert golf("notebook", "05_x", "--help") == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert lines[-2][1:] == ["seeds: str = '1, 2'", "of all arms"] and lines[-1][1] == "most: int = 3"
    assert "05_x, most: expected int, found 'all'" in refused(capsys, "notebook", "05_x", "-p", "most", "all")


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


@pytest.mark.parametrize("words", ["config exp101", "--help"])
def test_a_pipe_that_closes_ends_a_command_quietly(words: str) -> None:
    command = [sys.executable, "-m", "golfcore", *words.split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 141)  # help is printed by a library that keeps quiet itself


@pytest.mark.parametrize(("words", "code"), [("config smoke", 0), ("config nonsense", 2), ("nonsense", 2)])
def test_streams_that_are_closed_change_nothing(words: str, code: int) -> None:
    command = f'"{sys.executable}" -m golfcore {words} <&- >&- 2>&-'
    assert subprocess.run(command, shell=True, env=ENVIRONMENT).returncode == code


WRONG = """
run smoke --out file; run smoke --out file/below; run smoke --data file; run smoke --data=; run smoke --seed 4294967296
run smoke --seed many; run smoke --set average.decay=2; run smoke --set 'optim.matrix_lr=1' extra; config folder.toml
config file.toml; config file; sweep folder.toml; sweep file.toml; eval folder; eval file; audit nowhere; audit file
runs file; runs nowhere; compare file; compare folder nowhere; figures nowhere; figures --out folder
figures --out file; artifact info folder; artifact info file; data info file; data info folder; data build file --out x
data build folder --out x; data build folder --out x --vocab-size 0; notebook nowhere; notebook; nonsense
"""


@pytest.mark.parametrize("words", [*re.split("; |\n", WRONG.strip()), ""])
def test_what_is_of_another_kind_is_one_sentence(words: str, tmp_path, capsys, monkeypatch) -> None:
    """Files where folders are meant and the reverse, values that cannot be, words that are no command."""
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.toml"):
        Path(folder).mkdir()
    for file in ("file", "file.toml"):
        Path(file).write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert len(refused(capsys, *shlex.split(words))) < 600
    assert before == sorted(tmp_path.rglob("*"))


def raising(error: Exception, monkeypatch) -> None:
    """Make `golfcore params` raise it."""

    def broken(args: object) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "params", (broken, *cli.CONFIGURED))


def test_errors_of_the_system_are_worded_once(monkeypatch, capsys) -> None:
    for number in USERS:
        raising(OSError(number, os.strerror(number), "some/file"), monkeypatch)
        said = refused(capsys, "params", "smoke")
        assert said.startswith("golfcore: some/file: expected to be able to use it, found")


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor")], ids=repr)
def test_internal_failures_keep_their_traceback(error: Exception, monkeypatch) -> None:
    raising(error, monkeypatch)
    with pytest.raises(type(error)):
        golf("params", "exp101")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["params", "exp1o1"], "unknown preset 'exp1o1'; did you mean 'exp101'?"),
        (["params", "exp101", "--set", "model.dimm=3"], "unknown key 'dimm'; did you mean 'dim'?"),
        (["params", "exp101", "--set", "model.dim"], "--set model.dim: expected section.key=value, found 'model.dim'"),
        (["run", "smoke", "--data", "absent"], "absent: expected a dataset folder, found no such folder"),
        (
            ["eval", "absent"],
            "absent: expected a run folder or a file of this name, or the id of one run, found neither",
        ),
        (["artifact", "info", "absent"], "absent: expected a golfcore artifact"),
        (["notebook", "01_one_rum"], "01_one_run"),
    ],
)
def test_what_is_not_there_is_refused(args: list[str], sentence: str, capsys: pytest.CaptureFixture) -> None:
    assert sentence in refused(capsys, *args)


def wrong_tokenizer(path: Path) -> None:
    model, text = io.BytesIO(), [" ".join(WORDS)] * 50
    options = {"vocab_size": 290, "byte_fallback": True, "minloglevel": 2}
    SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=model, **options)
    path.write_bytes(model.getvalue())


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("train*.bin", Path.unlink, "expected train shards"),
        ("train*.bin", lambda p: p.write_bytes(p.read_bytes()[:-2]), "train_000000.bin: expected"),
        ("train*.bin", lambda p: p.write_bytes(b"\0\0\0\0" + p.read_bytes()[4:]), "train_000000.bin: expected"),
        ("val*.bin", lambda p: write_shard(p, np.array([5, 6, 999, 7] * 50, np.uint16)), "found 999"),
        ("*.model", wrong_tokenizer, "expected token ids below 290, found 319"),
        ("*.model", lambda p: p.write_bytes(b"no model"), "expected a SentencePiece model, found a file that is none"),
    ],
    ids=["missing shard", "truncated shard", "wrong magic", "token >= vocab", "wrong tokenizer", "no tokenizer"],
)
def test_damaged_data_is_refused(corpus, tmp_path, capsys, name, change, sentence) -> None:
    """Also without a manifest, which would notice first."""
    copy, out = shutil.copytree(corpus, tmp_path / "copy"), tmp_path / "run"
    (copy / "manifest.json").unlink()
    change(next(copy.glob(name)))
    assert sentence in refused(capsys, *smoke(copy, "--out", out))
    assert not (out / "weights.safetensors").exists()


def test_another_configuration_is_not_mixed_in(small_run: Path) -> None:
    before = {p: p.read_bytes() for p in small_run.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match="run.seed 42 -> 7.*choose another --out"):
        gc.run(config.override(gc.open_run(small_run).config, {"run.seed": 7}, "here"), small_run)
    assert before == {p: p.read_bytes() for p in small_run.rglob("*") if p.is_file()}


def test_a_full_disk_is_a_sentence_and_leaves_nothing_half_written(corpus, tmp_path, capsys, monkeypatch) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        if os.fstat(descriptor).st_size > 20_000:  # the small records fit, the checkpoint does not
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        assert "no space left on device" in refused(capsys, *smoke(corpus, "--out", tmp_path / "run"))
    assert not [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".part", ".safetensors")]
    assert golf(*smoke(corpus, "--out", tmp_path / "run")) == 0


def test_a_corrupt_artifact_is_refused(small_run, tmp_path, capsys) -> None:
    path = tmp_path / "artifact.golf"
    whole = (small_run / path.name).read_bytes()
    for broken in (whole[:100], whole[:-1], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], b"zip"):
        path.write_bytes(broken)
        assert f"{path}: expected" in refused(capsys, "eval", path)
