"""Laws of the Reptile phase: its formula, its scope, its budget, and that it goes on where it was killed."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tiny import TOKENS, killed_at, logged, same, tables, train
from torch import Tensor

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config, load, override
from golfcore.data.stream import TokenStream
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import Banks, Weights, flat, tree_map
from golfcore.optim import schedule
from golfcore.optim.inner import Loss
from golfcore.train import loop, reptile
from golfcore.train.step import Diverged

TINY = override(
    tiny.TINY, {"run.val_every": 0, "reptile.share": 0.25, "reptile.freeze_blocks": 1}, "the tiny model with Reptile"
)


def with_(**sections: dict) -> Config:
    return tiny.with_(TINY, **sections)


@pytest.fixture(scope="module")
def done(stream: TokenStream, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights, list]:
    """The whole training of TINY: its folder, its weights, and the batches of all inner steps."""
    folder, real, seen = tmp_path_factory.mktemp("reptile") / "run", reptile.meta_step, []

    def watched(cfg: Config, loss: Loss, weights: Weights, batches: list) -> tuple[Weights, Tensor]:
        seen.extend(batches)
        return real(cfg, loss, weights, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reptile, "meta_step", watched)
        return folder, train(TINY, folder, stream), seen


@pytest.fixture(scope="module")
def nothing(stream: TokenStream, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """The same with the phase left out: the arm "nothing"."""
    folder = tmp_path_factory.mktemp("nothing") / "run"
    return folder, train(with_(reptile={"outer_lr": 0.0}), folder, stream)


def text(start: int, rows: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of the `rows` rows of text from token `start` on."""
    ids = torch.from_numpy(TOKENS[start : start + rows * 64 + 1].astype(np.int64))
    return ids[:-1].view(rows, 64), ids[1:].view(rows, 64)


# -- one meta-step


@pytest.mark.parametrize("freeze", [0, 1])
def test_a_meta_step_on_a_quadratic_by_hand(freeze: int) -> None:
    """Each inner step goes lr of the way from where the one before led to that step's own target."""
    cfg = with_(reptile={"freeze_blocks": freeze, "inner_lr": 0.25, "outer_lr": 0.5})
    theta = tree_map(torch.randn_like, params.init(cfg.model, 0))
    targets = [1.0, -3.0, 2.0]

    def loss(w: Weights, x: Tensor, y: Tensor) -> Tensor:
        return sum(((m - x) ** 2).sum() / 2 for bank in w.banks for m in bank)  # type: ignore[return-value]

    batches = [(torch.tensor(t), torch.tensor(0)) for t in targets]
    found, losses = reptile.meta_step(cfg, loss, theta, batches)
    for name in Banks._fields:
        before = getattr(theta.banks, name)
        adapted = before
        for t in targets:
            adapted = adapted - 0.25 * (adapted - t)
        want = before + 0.5 * (adapted - before)
        moves = torch.tensor([name in ("up", "down") and block >= freeze for block in range(len(before))])
        torch.testing.assert_close(getattr(found.banks, name)[moves], want[moves])
        assert torch.equal(getattr(found.banks, name)[~moves], before[~moves])
    assert all(torch.equal(t, found.rest[name]) for name, t in theta.rest.items())
    assert float(losses[0]) == pytest.approx(float(loss(theta, torch.tensor(1.0), torch.tensor(0))), rel=1e-5)


def test_one_meta_step_of_one_inner_step_is_sgd_at_both_rates(stream: TokenStream, tmp_path: Path) -> None:
    """On the first rows of the text, from the averaged weights, for the MLPs of the blocks that are not frozen."""
    one = {"inner_steps": 1, "batch_seqs": 8, "share": 0.125}  # one step of 512 tokens is one meta-step
    one |= {"inner_lr": 2.0, "outer_lr": 0.5}  # large: published, the step is a few units in the last place of float32
    found = train(with_(reptile=one), tmp_path / "a", stream)
    theta = train(with_(reptile=one | {"outer_lr": 0.0}), tmp_path / "b", stream)
    leaves = tree_map(lambda t: t.clone().requires_grad_(), theta)
    loss = nll(forward(Net(TINY.model, tables()), leaves, text(0, 8)[0]), text(0, 8)[1]).mean()
    loss.backward()
    for name in ("up", "down"):
        before, after, leaf = (getattr(w.banks, name) for w in (theta, found, leaves))
        step, want = (after - before)[1], -2.0 * 0.5 * leaf.grad[1]
        assert float((step - want).norm()) < 1e-3 * float(want.norm())
    (row,) = RunFolder(tmp_path / "a").metrics("reptile")
    assert row["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert (row["step"], row["meta_step"], row["tokens"]) == (7, 1, 513)


def test_only_the_mlps_of_unfrozen_blocks_move_and_the_run_says_how_much(done, nothing) -> None:
    found, theta = done[1], nothing[1]
    moved = {name: (a != b) for (name, a), b in zip(flat(found).items(), flat(theta).values(), strict=True)}
    assert {name for name, m in moved.items() if m.any()} == {"up", "down"}
    assert all(not moved[name][0].any() and moved[name][1].float().mean() > 0.5 for name in ("up", "down"))
    with_phase, without = (RunFolder(folder).coverage()["reptile"] for folder in (done[0], nothing[0]))
    assert with_phase["done"] == sum(int(moved[name].sum()) for name in ("up", "down"))
    assert with_phase["of"] == without["of"] == theta.banks.up.numel() + theta.banks.down.numel()
    assert without["done"] == 0 and "left unused" in without["note"]
    values, plain = tensors.load(done[0] / reptile.CHECKPOINT, "a checkpoint")
    assert values.keys() == {"up", "down"} and plain["meta_steps"] == 5 and torch.equal(values["up"], found.banks.up)


def test_a_phase_that_moves_nothing_fails_the_run(stream: TokenStream, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="reptile is switched on but touched 0 of"):
        train(with_(reptile={"outer_lr": 1e-30}), tmp_path / "run", stream)


def test_each_inner_step_reads_the_text_after_the_last_and_from_its_first_token(done) -> None:
    assert len(done[2]) == 3 * (2 * 512 // (3 * 64))
    for i, batch in enumerate(done[2]):
        assert all(torch.equal(found, want) for found, want in zip(batch, text(65 * i, 1), strict=True))


# -- the budget


def test_the_budget_is_shared_out_without_rest() -> None:
    cfg = load("smoke", {"schedule.iterations": 1001, "reptile.share": 0.2, "schedule.max_seconds": 600.0})
    before, phase = schedule.ordinary(cfg), reptile.budget(cfg)
    assert (before.iterations, before.max_seconds) == (801, 480.0)
    assert phase.seconds == pytest.approx(120.0)
    assert phase.meta_steps == 200 * 1024 // (3 * 1 * 64)
    wall = replace(cfg, schedule=replace(cfg.schedule, clock="wall"))
    assert reptile.budget(wall).meta_steps == math.inf and reptile.budget(wall).seconds == pytest.approx(120.0)
    assert schedule.ordinary(replace(cfg, reptile=replace(cfg.reptile, share=0.0))) == cfg.schedule


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_one_side_nothing_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=f"reptile.share {share}: expected room for a step of training and one of"):
        loop.check(with_(reptile={"share": share}), 1)


def test_without_the_phase_its_share_is_so_many_fewer_steps(nothing, stream: TokenStream, tmp_path: Path) -> None:
    """The same warmdown, six steps instead of eight, and the weights as they then are."""
    shorter = train(with_(reptile={"share": 0.0}, schedule={"iterations": 6}), tmp_path, stream)
    assert same(flat(nothing[1]), flat(shorter)) and "reptile" not in RunFolder(tmp_path).coverage()
    scales = [r["lr_multiplier"] for r in RunFolder(nothing[0]).metrics("train")]
    assert scales == pytest.approx([1, 1, 1, 0.5 + 2**0.5 / 4, 0.5, 0.5 - 2**0.5 / 4])


def test_by_the_wall_clock_both_sides_end_with_their_seconds(stream: TokenStream, tmp_path: Path) -> None:
    """Seconds so few that the first step, and the first meta-step, use them up."""
    cfg = with_(schedule={"clock": "wall", "max_seconds": 1e-9, "warmdown_steps": 0})
    train(cfg, tmp_path / "run", stream)
    run = RunFolder(tmp_path / "run")
    assert [r["event"] for r in run.metrics("event")] == ["cap"] and len(run.metrics("train")) == 1
    assert [(r["step"], r["meta_step"]) for r in run.metrics("reptile")] == [(1, 1)]


# -- killed


@pytest.mark.parametrize(("every", "spared"), [(0.0, 3), (1e9, 0)], ids=["saved", "not saved"])
def test_a_phase_killed_at_any_meta_step_ends_in_the_same_bits(
    every: float, spared: int, done, stream: TokenStream, tmp_path: Path, monkeypatch
) -> None:
    calls = killed_at(4, monkeypatch, reptile, "meta_step")
    monkeypatch.setattr(reptile, "SAVE_EVERY_SECONDS", every)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path, stream)
    trained = (tmp_path / loop.CHECKPOINT).read_bytes()
    monkeypatch.setattr(loop, "train_step", None)  # ordinary training is over and is not done again
    for _ in range(2):  # the second time all is done, but the result was not safe yet
        assert same(flat(done[1]), flat(train(TINY, tmp_path, stream)))
        assert len(calls) == 4 + 5 - spared and (tmp_path / loop.CHECKPOINT).read_bytes() == trained
    assert logged(done[0]) == logged(tmp_path)


def test_not_a_number_stops_the_phase(stream: TokenStream, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="reptile, meta-step 0: expected finite losses"):
        train(with_(reptile={"inner_lr": 1e30}), tmp_path / "run", stream)
