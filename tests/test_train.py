"""Laws of training: resume is bit for bit, a switch does what it says, and NaN stops with the last good state."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_optim import three_steps
from tiny import BELONGS, RUNTIME, TINY, TOKENS, killed_at, lively, logged, same, steps, tables, train

from golfcore.base import files, runtime, tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.base.signals import Stopped, stoppable
from golfcore.config import Config, override, preset_names
from golfcore.config import load as preset
from golfcore.data.stream import TokenStream
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import Weights, flat, matrices, tree_map
from golfcore.optim import build
from golfcore.quant import allocate
from golfcore.quant.quantize import quantize_weights
from golfcore.quant.stored import dequantize_weights
from golfcore.train import loop, sensitivity, state
from golfcore.train.state import TrainingData
from golfcore.train.step import Diverged, fake_quantized, plan

SHORT = {"iterations": 3, "warmdown_steps": 1}


def with_(**sections: dict) -> Config:
    return tiny.with_(TINY, **sections)


def load(path: Path, cfg: Config = TINY, belongs: dict[str, str] = BELONGS) -> state.TrainState:
    fresh = state.start(cfg, params.init(cfg.model, 99), torch.float32, torch.device("cpu"))
    return state.load(fresh, cfg, path, belongs)


def timeless(reports: list) -> list:
    return [r._replace(meta=r.meta and {k: v for k, v in r.meta.items() if "seconds" not in k}) for r in reports]


@pytest.fixture(scope="module")
def finished(stream: TokenStream, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """The whole training of TINY: its folder and its weights."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, train(TINY, folder, stream)


KINDS = {
    "ema": {},
    "swa": {"average": {"kind": "swa", "start_scale": 1.1, "every": 2}},
    "lawa": {"average": {"kind": "lawa", "every": 1, "keep": 3}},
    "qat": {"optim": {"qat": "matrices", "qat_scale": 0.9}},
    "exp106": {
        "model": {"meta_sgd": True},
        "meta": {"enabled": True, "every": 2, "split": "batch", "delta_weight": 0.3, "min_scale": 0.0},
    },
    "next-chunk": {"meta": {"enabled": True, "split": "next-chunk", "min_scale": 0.0}},
    "guided": {"quant": {"guided_high": 0.1, "guided_scale": 2.0}},
    "adaptive": {"schedule": {"adaptive": True, "adaptive_min_steps": 1, "adaptive_every": 1}},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_steps_saved_and_as_many_more_are_all_steps(changes: dict, stream: TokenStream, tmp_path: Path) -> None:
    cfg = with_(**changes)
    whole, all_reports = steps(cfg, stream, 5)
    half, first = steps(cfg, stream, 2)
    state.save(half, tmp_path / "s.safetensors", BELONGS)
    resumed, second = steps(cfg, stream, 3, load(tmp_path / "s.safetensors", cfg))
    assert same(whole.named(), resumed.named()) and timeless(first + second) == timeless(all_reports)
    assert any(r.meta is not None for r in second) == ("meta" in changes)
    for name in (*state.PLAIN, "adaptive"):
        assert name == "elapsed" or getattr(whole, name) == getattr(resumed, name)
    assert whole.averaged.taken == resumed.averaged.taken and whole.sensitivity.steps == resumed.sensitivity.steps
    assert whole.position == 5 * 514


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_killed_between_checkpoints_ends_the_same(dtype, stream, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "whole"
    whole = train(TINY, folder, stream, dtype)
    calls = killed_at(6, monkeypatch, loop, "train_step")  # steps 0..4 are done, the last checkpoint is of step 4
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "cut", stream, dtype)
    resumed = train(TINY, tmp_path / "cut", stream, dtype)
    assert len(calls) == 6 + 8 - 4 and same(flat(whole), flat(resumed))
    assert logged(folder) == logged(tmp_path / "cut")
    assert [r["step"] for r in RunFolder(tmp_path / "cut").metrics("val")] == [0, 4, 8]
    losses = [r["loss"] for r in RunFolder(folder).metrics("train")]
    assert losses[-1] < losses[0] - 0.5


def test_a_signal_within_a_step_waits_for_its_end_and_the_step_is_saved(stream, tmp_path: Path, monkeypatch) -> None:
    whole, real, calls = train(TINY, tmp_path / "whole", stream), loop.train_step, []

    def asked(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(loop, "train_step", asked)
    with pytest.raises(Stopped, match="SIGTERM"), stoppable():
        train(TINY, tmp_path / "cut", stream)
    _, plain = tensors.load(tmp_path / "cut" / loop.CHECKPOINT, "a checkpoint")
    assert plain["step"] == 3 == len(calls)  # no checkpoint was due: they are of every second step
    assert same(flat(train(TINY, tmp_path / "cut", stream)), flat(whole)) and len(calls) == 8
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    with pytest.raises(Stopped), stoppable():
        os.kill(os.getpid(), signal.SIGHUP)  # outside of a step: at once


def test_weights_are_kept_on_the_way_and_a_listed_table_is_the_texts(stream: TokenStream, tmp_path: Path) -> None:
    changes = {"run": {"keep_every": 3}, "model": {"bigram_layout": "frequent"}}
    weights = train(with_(**changes), tmp_path, stream)
    kept = {p.name: tensors.load(p, "weights", BELONGS) for p in sorted((tmp_path / "steps").iterdir())}
    assert [plain["step"] for _, plain in kept.values()] == [3, 6]
    listed = weights.rest["bigram_pairs"]
    counts = np.bincount(TOKENS[:-1].astype(int) * 1024 + TOKENS[1:], minlength=1024**2)
    codes = (listed[:, 0] * 1024 + listed[:, 1]).long().numpy()
    assert (np.diff(codes) > 0).all() and counts[codes].min() >= np.sort(counts)[-len(codes)]
    assert all(torch.equal(found["bigram_pairs"], listed) for found, _ in kept.values())  # nothing moves it
    assert not torch.equal(kept["000003.safetensors"][0]["bigram"], kept["000006.safetensors"][0]["bigram"])


def test_pieces_of_a_micro_batch_are_the_same_text_in_another_order_of_sums(stream: TokenStream) -> None:
    whole, cut = (steps(with_(optim={"pieces": n, "ns_dtype": "float32"}), stream, 2)[0] for n in (1, 4))
    assert whole.position == cut.position
    for a, b in zip(flat(whole.weights).values(), flat(cut.weights).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert not same(flat(whole.weights), flat(cut.weights))  # the last bits are others
    with pytest.raises(UserError, match="optim.pieces 3: expected a divisor of the 4 rows of a micro-batch"):
        plan(with_(optim={"pieces": 3}), 1)


def test_gradient_accumulation_is_the_mean_over_micro_batches(stream: TokenStream) -> None:
    """Two micro-batches of one row: loss and clipped norm of the step are those of the mean loss."""
    cfg = with_(optim={"batch_tokens": 128, "grad_clip": 0.0})
    weights = tree_map(lambda t: t.requires_grad_(), params.init(cfg.model, cfg.run.seed))
    stream.position = 0
    pairs = [stream.rows(position, 1, 64) for position in (0, 65)]
    mean = sum(nll(forward(Net(cfg.model, tables()), weights, x), y).mean() for x, y in pairs) / 2
    grads = torch.autograd.grad(mean, list(flat(weights).values()))
    _, (report,) = steps(cfg, stream, 1)
    assert report.loss == pytest.approx(mean.item(), rel=1e-6)
    norm = torch.sqrt(sum(g.square().sum() for g in grads))
    assert report.grad_norm == pytest.approx(float(norm), rel=1e-4)


def test_late_qat_fake_quantizes_every_bank_matrix_and_the_published_one_none(stream: TokenStream) -> None:
    cfg = with_(optim={"qat": "matrices", "qat_scale": 2.0})
    weights = lively(cfg)
    touched = fake_quantized(cfg, weights)
    assert all(not torch.equal(a, b) for a, b in zip(weights.banks, touched.banks, strict=True))
    for row, before in zip(touched.banks.down[0], weights.banks.down[0], strict=True):
        assert len(row.unique()) <= 63 < len(before.unique())
    losses = {q: steps(with_(optim={"qat": q, "qat_scale": 2.0}), stream, 2)[1] for q in ("none", "matrices", "inert")}
    assert losses["none"] == [r._replace(events=()) for r in losses["inert"]]
    assert losses["none"][-1].loss != losses["matrices"][-1].loss
    assert [r.events for r in losses["inert"]] == [("qat",), ()]


def test_late_qat_rounds_through_the_steps_that_the_artifact_will_have(stream: TokenStream) -> None:
    """What training sees of a matrix is what `quantize_weights` makes of it to nearest; without a step, the grid's."""
    cfg = with_(
        optim={"qat": "matrices", "qat_scale": 2.0}, quant={"steps": "sigma", "step": 0.4, "rounding": "nearest"}
    )
    weights = lively(cfg)
    names = [name for name, _ in matrices(weights)]
    packed = quantize_weights(cfg, weights, None, steps=dict.fromkeys(allocate.coded(cfg), 0.4))
    back = dict(matrices(dequantize_weights(cfg.model, packed)))
    touched = dict(matrices(fake_quantized(cfg, weights)))
    assert all(torch.allclose(touched[name], back[name], rtol=1e-6, atol=1e-7) for name in names)
    unknown = with_(optim={"qat": "matrices"}, quant={"steps": "measured", "step": 0.0})
    plain = with_(optim={"qat": "matrices"})
    two = [flat(fake_quantized(c, weights)) for c in (unknown, plain)]
    assert all(torch.equal(two[0][name], two[1][name]) for name in two[0])
    assert steps(cfg, stream, 2)[1][-1].loss != steps(plain, stream, 2)[1][-1].loss


def test_coverage_reports_what_the_switches_did(stream: TokenStream, tmp_path: Path) -> None:
    """An n-gram embedding in no optimizer stays, and its gradient is not clipped with the others: it does not exist."""
    n = params.summary(TINY.model)["kinds"]["matrix"]
    meta = {"enabled": True, "every": 2}
    train(with_(optim={"qat": "matrices", "qat_scale": 2.0}, meta=meta, schedule=SHORT), tmp_path / "a", stream)
    published = with_(optim={"qat": "inert"}, model={"ngram_trained": False}, meta=meta, schedule=SHORT)
    train(published, tmp_path / "b", stream)
    a, b = (RunFolder(tmp_path / name).coverage() for name in "ab")
    assert (a["qat"]["done"], a["qat"]["of"]) == (n, n) and a["ema"]["done"] == 3 and a["meta"]["done"] == 2
    assert b["qat"]["done"] == 0 and "published" in b["qat"]["note"]
    found = b["ngram_trained"]
    assert (found["done"], found["of"]) == (0, 128 * 8 + 32 * 8 + 32 + 2) and "no optimizer" in found["note"]
    s, _ = steps(published, stream, 1)
    start = flat(params.init(published.model, published.run.seed))
    still = {name for name, t in flat(s.weights).items() if torch.equal(t.detach(), start[name])}
    assert still == {"smear", "bigram", "bigram_scale", "bigram_proj", "word_start_boost"}
    assert all(flat(s.weights)[name].grad is None for name in still)


def test_z_loss_trains_otherwise_and_is_not_reported(stream: TokenStream) -> None:
    (plain, other), (first, second) = (steps(with_(optim={"z_loss": z}), stream, 2)[1] for z in (0.0, 0.1))
    assert plain.loss == first.loss and plain.grad_norm != first.grad_norm and other.loss != second.loss


NEVER = {
    "optim.qat_scale": ({"optim": {"qat": "matrices", "qat_scale": 1e-6}}, "qat is switched on but touched 0 of"),
    "quant.guided_scale": ({"quant": {"guided_low": 0.1, "guided_scale": 1e-6}}, "guided_bits is .* 0 of 3 steps"),
    "average.start_scale": ({"average": {"kind": "swa", "start_scale": 1e-6}}, "swa is switched on but touched 0 of"),
    "average.every 4": ({"average": {"kind": "lawa", "every": 4}}, "lawa is switched on but touched 0 of"),
    "meta.min_scale": (
        {"meta": {"enabled": True, "min_scale": 0.6}, "schedule": {**SHORT, "warmdown_steps": 6, "shape": "linear"}},
        "meta is switched on but touched 0 of",
    ),
}


@pytest.mark.parametrize("key", NEVER)
def test_a_switch_that_does_nothing_is_refused_before_training_or_fails_it(key: str, stream, tmp_path: Path) -> None:
    """By the step clock it is known beforehand; otherwise the trained weights are kept."""
    changes, sentence = NEVER[key]
    cfg = with_(**{"schedule": SHORT, **changes})
    with pytest.raises(UserError, match=f"{key}.*: expected a step at which it acts, found none among 3"):
        loop.check(cfg, 1)
    loop.check(with_(schedule=SHORT), 1)
    with pytest.raises(UserError, match=f"{sentence}.* trained weights are kept in .*checkpoint.safetensors"):
        train(cfg, tmp_path / "run", stream)


def test_gradients_for_guided_bits_are_those_before_clipping_of_the_late_steps(
    stream: TokenStream, tmp_path: Path, monkeypatch
) -> None:
    """The run's file against a sum made here, gradient by gradient, of the two steps at a multiplier below 0.5."""
    cfg = with_(quant={"guided_high": 0.1, "guided_scale": 0.5}, optim={"grad_clip": 1e-3})
    real, squares = build.clip_, []

    def watched(weights: Weights, most: float) -> torch.Tensor:
        grads = tree_map(lambda t: t.grad, weights)
        squares.append({name: float(g.double().square().mean()) for name, g in matrices(grads)})
        return real(weights, most)

    monkeypatch.setattr(build, "clip_", watched)
    train(cfg, tmp_path / "run", stream)
    scales = [r["lr_multiplier"] for r in RunFolder(tmp_path / "run").metrics("train")]
    late = [s for s, scale in zip(squares, scales, strict=True) if scale < 0.5]
    found = files.read_json(tmp_path / "run" / sensitivity.FILE, "the gradients")
    assert found["steps"] == len(late) == RunFolder(tmp_path / "run").coverage()["guided_bits"]["done"] == 1
    assert found["mean_square"].keys() == late[0].keys() and len(late[0]) == 12
    for name, value in found["mean_square"].items():
        assert value == pytest.approx(sum(s[name] for s in late) / len(late), rel=1e-4)


@pytest.mark.parametrize("kind", ["swa", "lawa", "ema"])
def test_configured_averages_are_what_is_returned(kind: str, stream: TokenStream, tmp_path: Path) -> None:
    cfg = with_(schedule=SHORT, average={"kind": kind, "every": 1, "start_scale": 2.0, "keep": 2, "decay": 0.5})
    found = train(cfg, tmp_path / "run", stream)
    s, path = None, [params.init(cfg.model, cfg.run.seed)]
    for _ in range(3):
        s, _ = steps(cfg, stream, 1, s)
        path.append(tree_map(lambda t: t.detach().clone(), s.weights))
    shares = {"swa": (0, 1 / 3, 1 / 3, 1 / 3), "lawa": (0, 0, 1 / 2, 1 / 2), "ema": (1 / 8, 1 / 8, 1 / 4, 1 / 2)}[kind]
    want = tree_map(lambda *ts: sum(share * t for share, t in zip(shares, ts, strict=True)), *path)
    for a, b in zip(flat(found).values(), flat(want).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_not_a_number_stops_with_the_last_good_state(stream: TokenStream, tmp_path: Path, monkeypatch) -> None:
    real, calls = loop.train_step, []

    def poisoned(cfg, net, s, *args):
        calls.append(1)
        if len(calls) == 6:
            with torch.no_grad():
                s.weights.banks.up[0, 0, 0] = float("nan")
        return real(cfg, net, s, *args)

    monkeypatch.setattr(loop, "train_step", poisoned)
    with pytest.raises(Diverged, match=r"step 5: expected a finite loss and gradient, found loss nan.*last good state"):
        train(TINY, tmp_path / "run", stream)
    kept = load(tmp_path / "run" / loop.CHECKPOINT)
    assert kept.step == 4 and all(t.isfinite().all() for t in flat(kept.weights).values())


def test_the_wall_clock_cap_ends_training(stream: TokenStream, tmp_path: Path) -> None:
    train(with_(schedule={"max_seconds": 1e-9}), tmp_path / "run", stream)
    rows = RunFolder(tmp_path / "run").metrics()
    assert [r["event"] for r in rows if r["kind"] == "event"] == ["cap"]
    assert max(r["step"] for r in rows) == 1


# -- checkpoints


def altered(source: Path, path: Path, change) -> None:
    """A checkpoint whose digest is right and whose contents are not: `change` is given its tensors and plain values."""
    values, plain = tensors.load(source, "a checkpoint")
    change(values, plain)
    tensors.save(path, values, plain, BELONGS)


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(finished, stream, tmp_path: Path, capsys) -> None:
    """And says so; it ends in the same bits."""
    done, folder = finished[0], tmp_path / "run"
    shutil.copytree(done, folder)
    newest = folder / loop.CHECKPOINT
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    assert load(tensors.previous(newest)).step == 6
    train(TINY, folder, stream)
    assert "going on from checkpoint.previous.safetensors instead" in capsys.readouterr().out
    a, b = load(newest), load(done / loop.CHECKPOINT)
    assert a.step == 8
    assert same(a.named(), b.named())
    tensors.previous(newest).write_bytes(damaged)
    newest.write_bytes(damaged)
    with pytest.raises(UserError, match=r"previous.safetensors: expected a training checkpoint, found a file"):
        train(TINY, folder, stream)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -5), ("step", 9), ("step", 2.5), ("step", None), ("position", 513), ("elapsed", -1.0),
        ("elapsed", "long"), ("qat", 1), ("ema", "low"), ("triggered", -1.0), ("averaged", 9), ("sensed", 0.5),
    ],
)  # fmt: skip
def test_a_checkpoint_of_impossible_values_is_refused(key: str, value: object, finished, tmp_path: Path) -> None:
    for change in (lambda _, plain: plain.update({key: value}), lambda _, plain: plain.pop(key)):
        altered(finished[0] / loop.CHECKPOINT, tmp_path / "c.safetensors", change)
        with pytest.raises(UserError, match=rf"c\.safetensors.*{key}.*, found"):
            load(tmp_path / "c.safetensors")


CHANGES = {
    "no optimizer": lambda v, _: [v.pop(k) for k in list(v) if k.startswith("optim/")],
    "another shape": lambda v, _: v.update({"weights/qo": v["weights/qo"][1:]}),
    "another dtype": lambda v, _: v.update({"weights/qo": v["weights/qo"].half()}),
    "a tensor more": lambda v, _: v.update({"weights/extra": v["weights/qo"].clone()}),
    "another average": lambda v, _: v.update({"average/0/up": v["average/0/up"][:, 1:]}),
    "a record of nothing": lambda v, _: v.update({"sensitivity/qo": torch.ones(4)}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused(change, finished, tmp_path: Path) -> None:
    altered(finished[0] / loop.CHECKPOINT, tmp_path / "c.safetensors", change)
    with pytest.raises(UserError, match=r"c\.safetensors[:,] .*expected .*, found"):
        load(tmp_path / "c.safetensors")


def test_a_checkpoint_of_another_training_is_refused(finished) -> None:
    with pytest.raises(UserError, match="a training checkpoint of data other, found that of data easy"):
        load(finished[0] / loop.CHECKPOINT, belongs={**BELONGS, "data": "other"})


# -- ranks


@pytest.mark.parametrize(
    ("accum", "rows", "world", "parts"), [(4, 8, 1, 1), (4, 8, 2, 1), (4, 8, 8, 2), (1, 16, 8, 8), (4, 9, 3, 3)]
)
def test_any_number_of_ranks_reads_the_same_text(
    accum: int, rows: int, world: int, parts: int, stream: TokenStream
) -> None:
    cfg = with_(optim={"grad_accum": accum, "batch_tokens": accum * rows * 64})
    shared = plan(cfg, world)
    stream.position = 11
    read = [list(shared.pieces(stream, rank)) for rank in range(world)]
    assert shared.parts == parts and len({len(pieces) for pieces in read}) == 1
    dealt = [read[i % world][i // world] for i in range(accum * parts)]
    want = [stream.rows(11 + i * (rows * 64 + 1), rows, 64) for i in range(accum)]
    for side in (0, 1):
        assert torch.equal(torch.cat([p[side] for p in dealt]), torch.cat([w[side] for w in want]))
    assert stream.position == 11 and shared.tokens == accum * (rows * 64 + 1)


def test_ranks_that_cannot_share_a_step_are_refused_before_training(stream: TokenStream, tmp_path: Path) -> None:
    cfg = with_(optim={"grad_accum": 4, "batch_tokens": 4 * 8 * 64})
    data = TrainingData(stream, TOKENS[:65], tables(), 3.0, BELONGS)
    with pytest.raises(UserError, match=r"optim.grad_accum 4 micro-batches of 8 rows evenly \(1, 2, 4\), found 3"):
        loop.train(cfg, RunFolder(tmp_path / "run"), data, RUNTIME._replace(world=3))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_runs_on_1_2_4_and_8_ranks(name: str) -> None:
    cfg = preset(name)
    for world in (1, 2, 4, 8):
        loop.check(cfg, world)
        shared = plan(cfg, world)
        assert shared.tokens == plan(cfg, 1).tokens and shared.micro * shared.parts % world == 0
        assert shared.rows % shared.parts == 0


def test_a_training_that_used_up_other_text_than_its_steps_fails(
    stream: TokenStream, tmp_path: Path, monkeypatch
) -> None:
    real = loop.train_step

    def forgetful(cfg, net, s, *args):
        report = real(cfg, net, s, *args)
        s.position -= 1
        return report

    monkeypatch.setattr(loop, "train_step", forgetful)
    with pytest.raises(RuntimeError, match="expected 4112 tokens of text used up, found 41"):
        train(TINY, tmp_path / "run", stream)


RANK = """
import sys
from pathlib import Path
from test_train import ranks_train
from golfcore.base import runtime
folder = Path(sys.argv[1])
ranks_train(folder, runtime.start("float32", 1))
runtime.stop()
"""
ARMS = {  # ranks share micro-batches, rows, or both
    "halves": {"meta.enabled": True, "meta.every": 2, "meta.inner_lr": 0.1, "reptile.share": 0.25},
    "rows": {"meta.enabled": True, "meta.split": "next-chunk", "optim.grad_accum": 1},
}


def ranks_train(folder: Path, rt: runtime.Runtime) -> None:
    """What one rank does: it trains each arm, takes Muon's steps, and leaves all weights in `folder`."""
    found = {f"muon/{name}": t for name, t in three_steps(torch.float32).items()}
    for name, changes in ARMS.items():
        exact = {"schedule.iterations": 4, "run.val_every": 0, "optim.ns_dtype": "float32"}
        cfg = override(TINY, exact | changes, name)
        stream = TokenStream([folder / "train_000000.bin"], cfg.model.vocab_size)
        data = TrainingData(stream, TOKENS[:130], tables(cfg), 3.0, BELONGS)
        found |= tensors.under(name, flat(loop.train(cfg, RunFolder(folder / f"{name}-{rt.world}"), data, rt)))
    tensors.save(folder / f"{rt.world}-{rt.rank}.safetensors", found, {})


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_train_as_one(world: int, stream: TokenStream, tmp_path: Path, monkeypatch) -> None:
    """Within rounding: Muon on stacks that do not divide, shared micro-batches or rows, meta-learning, Reptile.

    The four go on with what one began: the checkpoint of its second step.
    """
    shutil.copy(stream.shards[0], tmp_path)
    ranks_train(tmp_path, RUNTIME)
    if world == 4:
        (begun := tmp_path / "halves-4").mkdir()
        for name in (loop.CHECKPOINT, "metrics.jsonl"):
            shutil.copy(tmp_path / "halves-1" / name.replace("checkpoint", "checkpoint.previous"), begun / name)
    (tmp_path / "rank.py").write_text(RANK)
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{root / 'tests'}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run([*torchrun, tmp_path / "rank.py", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runs = ["1-0", *(f"{world}-{rank}" for rank in range(world))]
    alone, first, *others = (tensors.load(tmp_path / f"{run}.safetensors", "weights")[0] for run in runs)
    assert all(same(first, other) for other in others)
    for key in alone:
        torch.testing.assert_close(first[key], alone[key], rtol=1e-3, atol=1e-5)
    for name in ARMS:
        one, two = (RunFolder(tmp_path / f"{name}-{n}") for n in (1, world))
        assert [r["tokens"] for r in one.metrics("train")] == [r["tokens"] for r in two.metrics("train")]
        for kind, keys in (("train", ["loss"]), ("meta", ["loss_post", "main_norm", "meta_norm", "cosine"])):
            for a, b in zip(one.metrics(kind), two.metrics(kind), strict=True):
                assert [a[key] for key in keys] == pytest.approx([b[key] for key in keys], rel=1e-3)
