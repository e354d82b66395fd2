"""Laws of the examination of a machine: facts are facts, and a path that computes something else is seen."""

from pathlib import Path

import pytest
import torch

from golfcore import cli
from golfcore.config import load
from golfcore.model import params
from golfcore.model.forward import Net
from golfcore.model.weights import flat
from golfcore.optim.inner import loss_function
from golfcore.runs import doctor
from golfcore.train.state import start


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


@pytest.mark.parametrize("changes", [{}, {"optim.matrix_optimizer": "adamw", "average.kind": "none"}])
def test_the_forecast_of_memory_is_what_training_keeps_and_about_what_it_saves(changes: dict) -> None:
    cfg = load("demo", {"optim.batch_tokens": 2048, "run.dtype": "float32", **changes})
    state = start(cfg, params.init(cfg.model, 0), torch.float32, torch.device("cpu"))
    held = sum(t.numel() * t.element_size() for t in state.named().values())
    kept, saved = doctor.training_bytes(cfg)
    assert kept == pytest.approx(held + 4 * params.summary(cfg.model)["total"], rel=0.01)  # with the gradients
    storages: dict[int, int] = {}

    def seen(t: torch.Tensor) -> torch.Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x = torch.randint(1024, (8, 256))
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda t: t):
        loss = loss_function(Net(cfg.model))(state.weights, x, x)
    weights = {t.untyped_storage().data_ptr() for t in flat(state.weights).values()}
    measured = sum(n for place, n in storages.items() if place not in weights)
    assert loss.isfinite() and measured / 2 < saved < 2 * measured
