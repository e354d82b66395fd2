"""Laws of training: resume is bit for bit, a switch does what it says, and NaN stops with the last good state."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import BELONGS, RUNTIME, TINY, TOKENS, open_stream, tables, train

from golfcore.base import files, tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config, preset_names
from golfcore.config import load as preset
from golfcore.data.stream import TokenStream
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import Weights, flat, map_matrices, matrices, tree_map
from golfcore.optim import average, build
from golfcore.train import loop, sensitivity, state
from golfcore.train.meta import meta_gradients
from golfcore.train.state import TrainingData
from golfcore.train.step import Diverged, fake_quantized, loss_function, plan, train_step


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    return open_stream(tmp_path)


def with_(**sections: dict) -> Config:
    return replace(TINY, **{name: replace(getattr(TINY, name), **changes) for name, changes in sections.items()})


def steps(cfg: Config, stream: TokenStream, n: int, s: state.TrainState | None = None) -> tuple[state.TrainState, list]:
    s = s or state.start(cfg, params.init(cfg.model, cfg.run.seed), torch.float32, torch.device("cpu"))
    stream.position = s.position
    loss_fn = loss_function(Net(cfg.model, tables(cfg)), cfg.optim.z_loss, compiled=False)
    reports = [train_step(cfg, Net(cfg.model, tables(cfg)), s, stream, loss_fn, RUNTIME) for _ in range(n)]
    return s, reports


def everything(s: state.TrainState) -> dict[str, torch.Tensor]:
    sensed = tensors.under("sensitivity", sensitivity.state_tensors(s.sensitivity))
    return {**flat(s.weights), **s.optimizers.state_tensors(), **average.state_tensors(s.averaged), **sensed}


KINDS = {
    "plain": {},
    "swa": {"average": {"kind": "swa", "start_scale": 1.1, "every": 2}},
    "lawa": {"average": {"kind": "lawa", "every": 1, "keep": 3}},
    "qat": {"optim": {"qat": "matrices", "qat_scale": 0.9}},
    "meta": {"meta": {"enabled": True, "every": 2}},
    "guided": {"quant": {"guided_high": 0.1, "guided_scale": 2.0}},
    "adaptive": {"schedule": {"adaptive": True, "adaptive_min_steps": 1, "adaptive_every": 1}},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_three_steps_saved_and_three_more_are_six_steps(changes: dict, stream: TokenStream, tmp_path: Path) -> None:
    cfg = with_(**changes)
    whole, all_reports = steps(cfg, stream, 6)
    half, first = steps(cfg, stream, 3)
    state.save(half, tmp_path / "s.safetensors", BELONGS)
    fresh = state.start(cfg, params.init(cfg.model, 99), torch.float32, torch.device("cpu"))
    resumed, second = steps(cfg, stream, 3, state.load(fresh, cfg, tmp_path / "s.safetensors", BELONGS))
    a, b = everything(whole), everything(resumed)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert first + second == all_reports
    assert (whole.adaptive, whole.position, whole.qat) == (resumed.adaptive, resumed.position, resumed.qat)


def test_a_run_killed_between_checkpoints_ends_the_same(stream: TokenStream, tmp_path: Path, monkeypatch) -> None:
    whole = train(TINY, tmp_path / "whole", stream)
    real, calls = loop.train_step, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 6:  # steps 0..4 are done, the last checkpoint is of step 4
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(loop, "train_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, tmp_path / "cut", stream)
    resumed = train(TINY, tmp_path / "cut", stream)
    assert len(calls) == 6 + 8 - 4
    assert all(torch.equal(a, b) for a, b in zip(flat(whole).values(), flat(resumed).values(), strict=True))

    def rows(name: str) -> list[dict]:
        return [{k: v for k, v in r.items() if k != "elapsed"} for r in RunFolder(tmp_path / name).metrics()]

    assert rows("whole") == rows("cut")
    assert [r["step"] for r in rows("cut") if r["kind"] == "val"] == [0, 4, 8]


def test_the_loss_falls(stream: TokenStream) -> None:
    _, reports = steps(TINY, stream, 8)
    assert reports[-1].loss < reports[0].loss - 0.5


def test_gradient_accumulation_is_the_mean_over_micro_batches(stream: TokenStream) -> None:
    """Two micro-batches of one row: loss and clipped norm of the step are those of the mean loss."""
    cfg = with_(optim={"batch_tokens": 128, "grad_clip": 0.0})
    weights = tree_map(lambda t: t.requires_grad_(), params.init(cfg.model, cfg.run.seed))
    stream.position = 0
    pairs = [stream.batch(1, 64) for _ in range(2)]
    mean = sum(nll(forward(Net(cfg.model, tables()), weights, x), y).mean() for x, y in pairs) / 2
    grads = torch.autograd.grad(mean, list(flat(weights).values()))
    _, (report,) = steps(cfg, stream, 1)
    assert report.loss == pytest.approx(mean.item(), rel=1e-6)
    norm = torch.sqrt(sum(g.square().sum() for g in grads))
    assert report.grad_norm == pytest.approx(float(norm), rel=1e-4)


def test_late_qat_fake_quantizes_every_bank_matrix_and_the_published_one_none(stream: TokenStream) -> None:
    cfg = with_(optim={"qat": "matrices", "qat_scale": 2.0})
    weights = map_matrices(lambda name, m: m + 0.3 * torch.randn(m.shape), params.init(cfg.model, 0))
    touched = fake_quantized(cfg, weights)
    assert all(not torch.equal(a, b) for a, b in zip(weights.banks, touched.banks, strict=True))
    assert all(
        len(row.unique()) <= 63 < len(before.unique())
        for row, before in zip(touched.banks.down[0], weights.banks.down[0], strict=True)
    )
    losses = {q: steps(with_(optim={"qat": q, "qat_scale": 2.0}), stream, 4)[1] for q in ("none", "matrices", "inert")}
    assert losses["none"] == [r._replace(qat_started=False) for r in losses["inert"]]
    assert losses["none"][-1].loss != losses["matrices"][-1].loss
    assert [r.qat_started for r in losses["inert"]] == [True, False, False, False]


def test_coverage_reports_what_the_switches_did(stream: TokenStream, tmp_path: Path) -> None:
    n = params.summary(TINY.model)["kinds"]["matrix"]
    train(with_(optim={"qat": "matrices"}, meta={"enabled": True, "every": 2}), tmp_path / "a", stream)
    train(with_(optim={"qat": "inert"}), tmp_path / "b", stream)
    a, b = (RunFolder(tmp_path / name).coverage() for name in "ab")
    assert (a["qat"]["done"], a["qat"]["of"]) == (n, n) and a["ema"]["done"] == 8
    assert a["meta"]["done"] == 3  # of steps 0, 2, 4, 6: the multiplier is 0.5 at 6, and must be above it
    assert b["qat"]["done"] == 0 and "published" in b["qat"]["note"]


def test_an_untrained_ngram_embedding_stays_and_says_so(stream: TokenStream, tmp_path: Path) -> None:
    """Its gradient is not clipped with the others either: it does not exist."""
    cfg = with_(model={"ngram_trained": False})
    s, _ = steps(cfg, stream, 2)
    start = flat(params.init(cfg.model, cfg.run.seed))
    still = {name for name, t in flat(s.weights).items() if torch.equal(t.detach(), start[name])}
    assert still == {"smear", "bigram", "bigram_scale", "bigram_proj", "word_start_boost"}
    assert all(flat(s.weights)[name].grad is None for name in still)
    train(with_(model={"ngram_trained": False}, meta={"enabled": True, "every": 2}), tmp_path / "run", stream)
    found = RunFolder(tmp_path / "run").coverage()["ngram_trained"]
    assert (found["done"], found["of"]) == (0, 128 * 8 + 32 * 8 + 32 + 2) and "no optimizer" in found["note"]


def test_z_loss_trains_otherwise_and_is_not_reported(stream: TokenStream) -> None:
    (plain, other), (first, second) = (steps(with_(optim={"z_loss": z}), stream, 2)[1] for z in (0.0, 0.1))
    assert plain.loss == first.loss and plain.grad_norm != first.grad_norm and other.loss != second.loss


def test_a_switch_that_does_nothing_fails_the_run(stream: TokenStream, tmp_path: Path) -> None:
    never = with_(optim={"qat": "matrices", "qat_scale": 0.0})
    with pytest.raises(UserError, match="qat is switched on but touched 0 of"):
        train(never, tmp_path / "qat", stream)
    with pytest.raises(UserError, match="guided_bits is switched on but touched 0 of 8 steps"):
        train(with_(quant={"guided_low": 0.1, "guided_scale": 0.0}), tmp_path / "guided", stream)
    with pytest.raises(UserError, match=r"swa .* trained weights are kept in .*checkpoint.safetensors"):
        train(with_(average={"kind": "swa", "start_scale": 0.0}), tmp_path / "swa", stream)


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
    changes = {"kind": kind, "every": 1, "start_scale": 2.0, "keep": 2, "decay": 0.5}
    found = train(with_(average=changes), tmp_path / "run", stream)
    s, path = None, []
    for _ in range(8):
        s, _ = steps(TINY, stream, 1, s)
        path.append({k: v.detach().clone() for k, v in flat(s.weights).items()})
    start = params.init(TINY.model, TINY.run.seed)
    first = {k: v for k, v in flat(start).items()}
    for k, value in flat(found).items():
        if kind == "swa":
            want = torch.stack([p[k] for p in path]).mean(0)
        elif kind == "lawa":
            want = torch.stack([p[k] for p in path[-2:]]).mean(0)
        else:
            want = first[k]
            for p in path:
                want = 0.5 * want + 0.5 * p[k]
        torch.testing.assert_close(value, want, atol=1e-5, rtol=1e-4)


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
    fresh = state.start(TINY, params.init(TINY.model, 0), torch.float32, torch.device("cpu"))
    kept = state.load(fresh, TINY, tmp_path / "run" / loop.CHECKPOINT, BELONGS)
    assert kept.step == 4 and all(t.isfinite().all() for t in flat(kept.weights).values())


def test_the_wall_clock_cap_ends_training(stream: TokenStream, tmp_path: Path) -> None:
    train(with_(schedule={"max_seconds": 1e-9}), tmp_path / "run", stream)
    rows = RunFolder(tmp_path / "run").metrics()
    assert [r["event"] for r in rows if r["kind"] == "event"] == ["cap"]
    assert max(r["step"] for r in rows) == 1


# -- checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TokenStream]:
    folder = tmp_path_factory.mktemp("finished")
    stream = open_stream(folder)
    train(TINY, folder / "run", stream)
    return folder / "run", stream


def load(path: Path, cfg: Config = TINY, belongs: dict[str, str] = BELONGS) -> state.TrainState:
    fresh = state.start(cfg, params.init(cfg.model, 0), torch.float32, torch.device("cpu"))
    return state.load(fresh, cfg, path, belongs)


def altered(source: Path, path: Path, change) -> None:
    """A checkpoint whose digest is right and whose contents are not: `change` is given its tensors and plain values."""
    values, plain = tensors.load(source, "a checkpoint")
    change(values, plain)
    tensors.save(path, values, plain, BELONGS)


def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"checkpoint.safetensors: expected a training checkpoint"):
        load(path)


def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(finished, tmp_path: Path, capsys) -> None:
    """And says so; it ends in the same bits."""
    done, stream = finished
    folder = tmp_path / "run"
    shutil.copytree(done, folder)
    newest = folder / loop.CHECKPOINT
    whole, damaged = newest.read_bytes(), bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    newest.write_bytes(damaged)
    assert load(tensors.previous(newest)).step == 6
    train(TINY, folder, stream)
    assert "going on from checkpoint.previous.safetensors instead" in capsys.readouterr().out
    a, b = load(newest), load(done / loop.CHECKPOINT)
    assert a.step == 8 and len(whole) == len(newest.read_bytes())
    assert all(torch.equal(x, y) for x, y in zip(everything(a).values(), everything(b).values(), strict=True))
    tensors.previous(newest).write_bytes(damaged)
    newest.write_bytes(damaged)
    with pytest.raises(UserError, match=r"previous.safetensors: expected a training checkpoint, found a file"):
        train(TINY, folder, stream)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", -5), ("step", 9), ("step", 2.5), ("step", None), ("position", -1), ("position", 513),
        ("elapsed", -1.0), ("elapsed", "long"), ("qat", 1), ("stopped", None), ("adaptive", {"ema": 1.0}),
        ("adaptive", {"ema": "low", "triggered": None}),
    ],
)  # fmt: skip
def test_a_checkpoint_of_impossible_values_is_refused(key: str, value: object, finished, tmp_path: Path) -> None:
    altered(finished[0] / loop.CHECKPOINT, tmp_path / "c.safetensors", lambda _, plain: plain.update({key: value}))
    with pytest.raises(UserError, match=rf"c\.safetensors, {key}.*: expected .*, found"):
        load(tmp_path / "c.safetensors")


CHANGES = {
    "no optimizer": lambda v, _: [v.pop(k) for k in list(v) if k.startswith("optim/")],
    "a slot missing": lambda v, _: v.pop("optim/muon/qo/momentum"),
    "another shape": lambda v, _: v.update({"weights/qo": v["weights/qo"][1:]}),
    "another dtype": lambda v, _: v.update({"weights/qo": v["weights/qo"].half()}),
    "a bank missing": lambda v, _: v.pop("weights/up"),
    "a tensor more": lambda v, _: v.update({"weights/extra": v["weights/qo"]}),
    "another average": lambda v, _: v.update({"average/0/up": v["average/0/up"][:, 1:]}),
    "more taken than steps": lambda v, _: v.update({"average/taken": torch.tensor(9)}),
    "a record of nothing": lambda v, _: v.update({"sensitivity/steps": torch.tensor(1)}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_that_does_not_fit_is_refused(change, finished, tmp_path: Path) -> None:
    altered(finished[0] / loop.CHECKPOINT, tmp_path / "c.safetensors", change)
    with pytest.raises(UserError, match=r"c\.safetensors: .*expected .*, found"):
        load(tmp_path / "c.safetensors")


def test_a_checkpoint_of_another_training_is_refused(finished) -> None:
    with pytest.raises(UserError, match="a training checkpoint of data other, found that of data easy"):
        load(finished[0] / loop.CHECKPOINT, belongs={**BELONGS, "data": "other"})


@pytest.mark.parametrize("name", ["smoke", "exp106", "pr398", "pr294-recurrent", "pr294-error-guided"])
def test_a_step_updates_every_parameter_that_a_checkpoint_must_have(name: str, stream: TokenStream) -> None:
    cfg = preset(name, {}, "smoke")
    s, _ = steps(cfg, stream, 1)
    keys = {key.split("/")[1] for key in s.optimizers.state_tensors()}
    assert state._updated(cfg) <= keys


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
    want = [stream.batch(rows, 64) for _ in range(accum)]
    for side in (0, 1):
        assert torch.equal(torch.cat([p[side] for p in dealt]), torch.cat([w[side] for w in want]))
    assert stream.position == 11 + shared.tokens


def test_ranks_that_cannot_share_a_step_are_refused_before_training(stream: TokenStream, tmp_path: Path) -> None:
    cfg = with_(optim={"grad_accum": 4, "batch_tokens": 4 * 8 * 64})
    data = TrainingData(stream, TOKENS[:65], tables(), 3.0, BELONGS)
    with pytest.raises(UserError, match=r"optim.grad_accum 4 micro-batches of 8 rows evenly \(1, 2, 4\), found 3"):
        loop.train(cfg, RunFolder(tmp_path / "run"), data, RUNTIME._replace(world=3))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_runs_on_1_2_4_and_8_ranks(name: str) -> None:
    for world in (1, 2, 4, 8):
        plan(preset(name), world)


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
import torch
from tiny import TINY, BELONGS, TOKENS, open_stream, tables
from golfcore.base import runtime, tensors
from golfcore.base.records import RunFolder
from golfcore.config import override
from golfcore.data.stream import TokenStream
from golfcore.model.weights import flat
from golfcore.train import loop
from golfcore.train.state import TrainingData
folder, arms = Path(sys.argv[1]), ARMS
rt = runtime.start("float32", 1)
if rt.is_main:
    open_stream(folder)
runtime.barrier()
for name, changes in arms.items():
    cfg = override(TINY, {"schedule.iterations": 4, "run.val_every": 0, **changes}, name)
    stream = TokenStream([folder / "train_000000.bin"], cfg.model.vocab_size)
    data = TrainingData(stream, TOKENS[:130], tables(cfg), 3.0, BELONGS)
    weights = loop.train(cfg, RunFolder(folder / f"{name}-{rt.world}"), data, rt)
    tensors.save(folder / f"{name}-{rt.world}-{rt.rank}.safetensors", flat(weights), {})
runtime.stop()
"""
ARMS = {
    "halves": {},
    "rows": {"optim.grad_accum": 1},
    "meta": {"meta.enabled": True, "meta.every": 2, "meta.inner_lr": 0.1},
    "next": {"meta.enabled": True, "meta.split": "next-chunk", "optim.grad_accum": 1},
    "reptile": {"reptile.share": 0.25},
}


def test_two_ranks_train_as_one(tmp_path: Path, monkeypatch) -> None:
    """Within rounding, whether they share micro-batches or rows; with meta-learning; through Reptile."""
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("ARMS", repr(ARMS)))
    root = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root}{os.pathsep}{root / 'tests'}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for command in ([sys.executable], torchrun):
        done = subprocess.run([*command, script, tmp_path], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for name in ARMS:
        alone, first, second = (
            tensors.load(tmp_path / f"{name}-{run}.safetensors", "weights")[0] for run in ("1-0", "2-0", "2-1")
        )
        assert all(torch.equal(first[key], second[key]) for key in first)
        for key in alone:
            torch.testing.assert_close(first[key], alone[key], rtol=1e-3, atol=1e-5)
        rows = [RunFolder(tmp_path / f"{name}-{world}").metrics("train") for world in (1, 2)]
        assert [r["tokens"] for r in rows[0]] == [r["tokens"] for r in rows[1]]
        assert [r["loss"] for r in rows[0]] == pytest.approx([r["loss"] for r in rows[1]], abs=1e-4)
    calls = [RunFolder(tmp_path / f"meta-{world}").metrics("meta") for world in (1, 2)]
    for key in ("loss_post", "main_norm", "meta_norm", "cosine"):
        assert [r[key] for r in calls[0]] == pytest.approx([r[key] for r in calls[1]], rel=1e-3)


def test_without_an_inner_rate_the_meta_gradient_is_that_of_the_outer_half() -> None:
    cfg = with_(meta={"enabled": True, "inner_lr": 0.0, "loss_weight": 1.0, "freeze_blocks": 0})
    g = torch.Generator().manual_seed(0)
    leaves = tree_map(
        lambda t: (t + 0.1 * torch.randn(t.shape, generator=g)).requires_grad_(), params.init(cfg.model, 0)
    )
    x = torch.randint(cfg.model.vocab_size, (3, 16), generator=g)
    y = torch.randint(cfg.model.vocab_size, (3, 16), generator=g)
    loss, found = meta_gradients(Net(cfg.model, tables()), cfg.meta, leaves, x, y)
    outer = nll(forward(Net(cfg.model, tables()), leaves, x[:, 8:]), y[:, 8:]).mean()
    want = torch.autograd.grad(outer, list(flat(leaves).values()))
    assert torch.equal(loss, outer.detach())
    assert all(torch.equal(a, b) for a, b in zip(flat(found).values(), want, strict=True))
