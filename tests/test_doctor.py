"""Laws of the examination of a machine: facts are facts, and a path that computes something else is seen."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from golfcore import cli
from golfcore.config import load
from golfcore.runs import doctor

MEASURE = """
import resource
from golfcore.config import load
from golfcore.runs import doctor, submission
cfg = load("demo", {"data.packages": ["numpy"], "run.dtype": "float32"})
list(submission.first_losses(load("smoke"), 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
list(submission.first_losses(cfg, 2))
grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
said = next(found.said for found in doctor.needs(cfg) if "memory" in found.name)
print(grown / 2**30, said.split()[1])
"""


def test_this_machine_computes_what_it_should() -> None:
    found = {one.name: one for one in doctor.examine(load("smoke"))}
    assert {"compute", "attention", "bfloat16", "entropy coder", "two ranks", "smoke: memory", "data"} <= found.keys()
    assert not [one for one in found.values() if one.ok is False]
    assert "every file read" in found["data"].said and "they meet over" in found["two ranks"].said


def test_what_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "attend_blocks", lambda q, k, v: 1.1 * doctor.attend_reference(q, k, v))
    monkeypatch.setattr(doctor.codec, "decode", lambda stream, kind: torch.zeros(100_000).numpy())
    monkeypatch.setattr(doctor, "newton_schulz", lambda m, dtype: 3 * torch.ones_like(m))
    monkeypatch.setattr(doctor, "RANK", "import sys; sys.exit('no network')")
    checks = (doctor.attention, doctor.coder, doctor.orthogonal, doctor.ranks)
    bad = [doctor._tried(check.__name__, check) for check in checks]
    assert all(one.ok is False for one in bad)
    assert "expected blocks within" in bad[0].said and "no network" in bad[3].said


def test_too_little_memory_and_missing_data_are_said_with_exit_code_1(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "free_memory", lambda: 1000)
    monkeypatch.setattr(doctor, "ranks", lambda: "not tried")
    assert cli.main(["doctor", "smoke", "--data", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "!!  smoke: memory" in said and "optim.pieces" in said and "!!  data" in said and str(tmp_path) in said


def test_the_forecast_of_memory_is_of_the_order_of_what_a_run_takes() -> None:
    grown, said = map(float, subprocess.check_output([sys.executable, "-c", MEASURE], text=True).split())
    assert grown / 3 < said < 4 * grown
