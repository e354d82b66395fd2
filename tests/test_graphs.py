"""Laws of torch's compiler: how many graphs a run makes, and that they compute what the eager program does."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny import lively, tables
from torch._dynamo.testing import CompileCounterWithBackend

from golfcore.base.errors import UserError
from golfcore.config import load
from golfcore.model import forward
from golfcore.model.attention import Compute, attend_blocks
from golfcore.model.forward import Net
from golfcore.optim.inner import loss_function
from golfcore.runs import pipeline
from golfcore.train.step import Plan

CHANGES = {"run.dtype": "float32", "run.val_every": 4, "meta.enabled": True, "meta.every": 2, "schedule.iterations": 6}
CHANGES |= {"schedule.warmdown_steps": 2, "model.vocab_size": 320, "data.reserve_tokens": 300, "data.val_tokens": 1400}
CHANGES |= {"ttt.chunk_tokens": 256, "ttt.batch_seqs": 2, "ttt.lr_candidates": [], "ttt.lr": 0.01, "eval.batch_seqs": 8}


@pytest.fixture
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs made: "aot_eager" traces and differentiates as for a GPU, "eager" only traces."""
    counter = CompileCounterWithBackend(request.param)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    for clear in (torch._dynamo.reset, forward.graph.cache_clear):
        clear()
    yield counter
    for clear in (torch._dynamo.reset, forward.graph.cache_clear):
        clear()


@pytest.mark.parametrize("made", ["eager"], indirect=True)
def test_a_run_makes_four_graphs_and_the_eager_numbers(
    made: CompileCounterWithBackend, small_run: Path, tmp_path: Path
) -> None:
    """One each of training, meta-learning, sliding windows and adaptation, whatever weights they are given."""
    found = {}
    for graphs in ("never", "always"):
        cfg = load("smoke", CHANGES | {"data.path": str(small_run.parent / "built"), "run.graphs": graphs})
        run = pipeline.run(cfg, tmp_path / graphs)
        found[graphs] = [r["bpb"] for r in run.results()["measures"].values()]
        assert made.frame_count == (4 if graphs == "always" else 0)
    assert found["always"] == pytest.approx(found["never"], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "made"),
    [("exp101", "aot_eager"), ("exp106", "eager"), ("pr294-recurrent", "eager"), ("pr398", "eager")],
    indirect=["made"],
)
def test_every_system_trains_in_one_graph(name: str, made: CompileCounterWithBackend) -> None:
    cfg = load(name, {}, "smoke")
    x, y = torch.randint(cfg.model.vocab_size, (2, 1, 16))
    losses = []
    for compiled in (False, True):
        weights, net = lively(cfg), Net(cfg.model, tables(cfg), Compute(torch.bfloat16, attend_blocks, compiled))
        losses.append(loss_function(net, cfg.optim.z_loss)(weights, x, y))
        losses[-1].backward()
    assert made.frame_count == 1
    torch.testing.assert_close(losses[1], losses[0], rtol=0.01, atol=0)


def test_micro_batches_that_do_not_fit_are_cut_by_rows() -> None:
    """A device with room for a third of 12 rows; one without room for a row is said to have too little."""
    tried = []

    def attempt(rows: int, shared: Plan) -> None:
        tried.append(shared.rows // shared.parts)
        if tried[-1] > rows:
            raise torch.OutOfMemoryError

    whole = Plan(micro=2, rows=12, parts=1, seq_len=64, world=1)
    assert whole.fitted(partial(attempt, 4)) == whole._replace(parts=4)
    assert tried == [12, 6, 3]
    with pytest.raises(UserError, match="data.seq_len 64: expected room for one row on the device"):
        whole.fitted(partial(attempt, 0))
