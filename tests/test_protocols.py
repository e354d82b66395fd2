"""Laws of the named protocols: what each adapts, when, and what the ledger makes of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_eval import CFG, CHUNK, VOCAB, T, run, subject, tables, text, weights

from golfcore.base.errors import UserError
from golfcore.config import TTTConfig
from golfcore.evals import adapt as ttt
from golfcore.evals import protocols
from golfcore.evals.evaluation import Evaluation
from golfcore.evals.ledger import Legality
from golfcore.evals.ppm import Ppm
from golfcore.evals.protocols import PROTOCOLS, begin, configure, evaluate, reference_of
from golfcore.evals.windows import windows
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import flat, matrix, tree_map

CONSTANT = {"ttt__lr_shape": "constant"}


# -- names


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_scores_every_target_once_and_the_ledger_labels_it(name: str) -> None:
    epochs = {"ttt.epochs": 2} if name in ("train-then-score", "two-phase") else {}
    evaluation, done = begin(name, CFG, subject(), changes=epochs), 0
    while not evaluation.finished:
        done += evaluation.step()
    assert done == evaluation.work == evaluation.done  # what a bar shows, choosing and training included
    found = evaluation.result({})
    assert found.tokens == 600 and found.repeats == 0 and np.isfinite(found.per_target).all()
    trains_first = name in ("train-then-score", "causal-sweep", "two-phase", "error-guided")
    still = name in ("static", "sliding", "ppm")
    label = Legality.TRAIN_FIRST if trains_first else Legality.STATIC if still else Legality.SCORE_FIRST
    if name == "error-guided-legal":  # the 2 % of ten windows may be none
        assert found.legality in (Legality.SCORE_FIRST, Legality.STATIC)
    else:
        assert found.legality == label
    spans = [(c["start"], c["stop"]) for c in found.chunks]
    assert spans == [(a, min(a + CHUNK, 600)) for a in range(0, 600, CHUNK)]  # whatever the protocol's own chunk


def test_what_a_user_asks_for_stands_above_the_protocol() -> None:
    own = configure("train-then-score", CFG, {"ttt.lr": 0.5, "ttt.epochs": 3}).ttt
    assert (own.lr, own.epochs, own.order, own.momentum) == (0.5, 3, "train-first", 0.9)
    with pytest.raises(UserError, match="unknown protocol 'best'; known: static, sliding"):
        configure("best", CFG)
    with pytest.raises(UserError, match="expected changes of eval and ttt values, found 'model.dim'"):
        configure("ttt", CFG, {"model.dim": 8})
    assert configure("ttt", CFG, {"ttt.chunk_tokens": 100, "eval.stride": 24}).eval.stride == 24


def test_evaluation_changes_no_weight() -> None:
    before = {k: v.clone() for k, v in flat(weights()).items()}
    found = run("ttt", text(400))
    assert all(torch.equal(before[k], v) for k, v in flat(weights()).items())
    assert found.legality == Legality.SCORE_FIRST and found.coverage["ttt_steps"]["done"] > 0


def test_adaptation_cannot_change_what_was_scored_before_it() -> None:
    """The first chunk is scored by the weights as they are; without epochs or rate all chunks are."""
    still, adapted = (run(name, text(400)).per_target for name in ("sliding", "ttt"))
    assert np.array_equal(still[:CHUNK], adapted[:CHUNK]) and not np.array_equal(still[CHUNK:], adapted[CHUNK:])
    for change in ({"ttt__lr": 0.0}, {"ttt__epochs": 0}):
        assert np.array_equal(still, run("ttt", text(400), **change).per_target)


def test_future_tokens_change_no_score() -> None:
    """Perturb everything from a cut on: all earlier scores are bit-identical, at chunk edges and inside."""
    found = run("ttt", text(400)).per_target
    for cut in (2, CHUNK - 1, CHUNK, CHUNK + 1, 300):
        other = text(400)
        other[cut + 1 :] = (other[cut + 1 :] + 1) % VOCAB
        changed = run("ttt", other).per_target
        assert np.array_equal(found[:cut], changed[:cut]) and not np.array_equal(found[cut:], changed[cut:])


def test_a_protocol_is_held_against_the_same_windows_without_adaptation() -> None:
    still = {name: reference_of(name, CFG) for name in PROTOCOLS}
    assert still["ttt"] == still["lora-ttt"] == still["ppm"] == still["error-guided"] == "sliding"
    assert still["static"] == still["window-ttt"] == "static"
    wide = replace(CFG, eval=replace(CFG.eval, stride=T))
    assert {reference_of(name, wide) for name in PROTOCOLS} == {"static"}


# -- what adapts


@pytest.mark.parametrize(
    "adapted, moves",
    [
        ("banks", {"qo", "kv", "up", "down"}),
        ("mlps", {"up", "down"}),
        ("blocks", {"qo", "kv", "up", "down", "attn_scale", "mlp_scale", "resid_mix", "q_gain"}),
        (
            "scalars",
            {"attn_scale", "mlp_scale", "resid_mix", "q_gain", "skip", "smear", "bigram_scale", "word_start_boost"}
            | {"ve_scale", "ve_layer_scale"},
        ),
        ("all", {p.name for p in params.table(CFG.model)}),
    ],
)
def test_only_what_was_named_adapts(adapted: str, moves: set[str]) -> None:
    before = flat(weights())
    after = run("ttt", ttt__adapted=adapted)
    moved = {name for name, t in flat(after.adapted).items() if not torch.equal(t, before[name])}
    assert moved == moves
    assert after.coverage["ttt_adapted"]["done"] == sum(before[name].numel() for name in moves)


def test_frozen_blocks_do_not_adapt_whatever_is_named() -> None:
    before = weights()
    for adapted in ("all", "mlps", "lora"):
        after = run("ttt", ttt__adapted=adapted, ttt__freeze_blocks=1).adapted
        for role in ("up", "down"):
            assert torch.equal(matrix(after.banks, role, 0), matrix(before.banks, role, 0))
            assert not torch.equal(matrix(after.banks, role, 1), matrix(before.banks, role, 1))


def test_the_published_freeze_adapts_the_banks_and_the_exact_one_does_not() -> None:
    before = weights()
    for freeze, banks_move in (("scalars", True), ("all", False)):
        after = run("ttt", text(400), ttt__freeze=freeze, ttt__freeze_blocks=1).adapted
        assert [not torch.equal(a[0], b[0]) for a, b in zip(after.banks, before.banks, strict=True)] == [banks_move] * 4
        scales = zip(after.rest["attn_scale"], before.rest["attn_scale"], strict=True)
        assert [torch.equal(a, b) for a, b in scales] == [True, False]


def test_low_rank_adapters_are_added_to_the_chosen_matrices() -> None:
    cfg = replace(CFG, ttt=replace(CFG.ttt, adapted="lora", lora_rank=3, lora_roles=("value", "down")))
    before, adapter = weights(), ttt.start(cfg, weights())
    assert all(torch.equal(t, flat(before)[name]) for name, t in flat(adapter.folded()).items())
    g = torch.Generator().manual_seed(1)
    for name in adapter.scope.names:
        t = adapter.weights.rest[name]
        t.copy_(torch.randn(t.shape, generator=g))
    folded = ttt.fold(adapter.weights)
    for role in ("query", "key", "value", "out", "up", "down"):
        for block in range(CFG.model.n_blocks):
            difference = matrix(folded.banks, role, block) - matrix(before.banks, role, block)
            if role in ("value", "down"):
                a, b = (adapter.weights.rest[f"{role}.{part}"][block] for part in "ab")
                torch.testing.assert_close(difference, b @ a, atol=1e-5, rtol=1e-4)
                assert torch.linalg.matrix_rank(difference, atol=1e-3) == 3
            else:
                assert not difference.any()
    assert folded.rest.keys() == before.rest.keys()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_step_is_torchs_own(optimizer: str) -> None:
    cfg = replace(CFG, ttt=replace(CFG.ttt, optimizer=optimizer, clip=1.0, momentum=0.9))
    ours, theirs = ttt.start(cfg, weights()), {k: v.clone().requires_grad_() for k, v in flat(weights()).items()}
    torchs = {"sgd": torch.optim.SGD(theirs.values(), 0.01, 0.9), "adam": torch.optim.Adam(theirs.values(), 0.01)}
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        grads = {k: torch.randn(v.shape, generator=g) for k, v in theirs.items()}
        for k, v in theirs.items():
            v.grad = grads[k].clone()
        torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        torchs[optimizer].step()
        ttt.update(cfg.ttt, ours, grads, 0.01)
    for a, b in zip(flat(ours.weights).values(), theirs.values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "lars"])
def test_a_step_of_a_matrix_is_as_long_as_its_optimizer_says(optimizer: str) -> None:
    """Singular values near lr sqrt(max(1, rows / columns)), or lr of the matrix's norm; vectors step as under SGD."""
    cfg = replace(CFG, ttt=replace(CFG.ttt, optimizer=optimizer, clip=0.0, momentum=0.0))
    adapter, lr = ttt.start(cfg, weights()), 0.01
    before = {name: t.clone() for name, t in flat(adapter.weights).items()}
    grads = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for name, t in before.items()}
    grads["up"][0] = 0  # a matrix without a gradient stays where it is
    ttt.update(cfg.ttt, adapter, grads, lr)
    for name, t in flat(adapter.weights).items():
        moved = before[name] - t
        if t.ndim < 3:
            torch.testing.assert_close(moved, lr * grads[name], atol=1e-6, rtol=1e-4)
        elif optimizer == "muon":
            scale = lr * max(1.0, t.shape[-2] / t.shape[-1]) ** 0.5
            values = torch.linalg.svdvals(moved[1:] if name == "up" else moved) / scale
            assert 0.2 < float(values.min()) < float(values.max()) < 1.3
        else:
            share = moved.norm(dim=(-2, -1)) / before[name].norm(dim=(-2, -1))
            expected = torch.full_like(share, lr)
            expected[:1] *= name != "up"
            torch.testing.assert_close(share, expected, atol=1e-6, rtol=1e-3)
    assert torch.equal(adapter.weights.banks.up[0], before["up"][0])


def test_the_rate_is_a_cosine_over_chunks_with_a_horizon_of_choice() -> None:
    cfg = TTTConfig(lr=0.004)
    published = {0: 0.004, 1: 0.003999989, 100: 0.003890725, 473: 0.002, 900: 2.3291e-5, 945: 1.1e-8}
    for chunk, lr in published.items():
        assert ttt.chunk_lr(cfg, chunk, 947) == pytest.approx(lr, rel=5e-3)
    fixed = replace(cfg, lr_horizon=50)
    assert ttt.chunk_lr(fixed, 7, 100) == ttt.chunk_lr(fixed, 7, 900) and ttt.chunk_lr(fixed, 60, 900) == 0


# -- when it adapts


def test_a_reset_at_every_chunk_reaches_one_chunk_on() -> None:
    """Chunk c is scored with the packed weights adapted on chunk c - 1 alone."""
    other = text()
    other[1:CHUNK] = other[1:CHUNK][::-1]  # what chunk 0 held reaches the third chunk by no other way than adaptation
    once, kept = (
        [run("ttt", tokens, ttt__reset=reset, **CONSTANT).per_target for tokens in (text(), other)]
        for reset in ("chunk", "never")
    )
    assert np.array_equal(once[0][:CHUNK], run("sliding").per_target[:CHUNK])
    assert not np.array_equal(once[0][CHUNK : 2 * CHUNK], once[1][CHUNK : 2 * CHUNK])
    assert np.array_equal(once[0][2 * CHUNK :], once[1][2 * CHUNK :])
    assert not np.array_equal(kept[0][2 * CHUNK :], kept[1][2 * CHUNK :])


def test_a_reset_at_every_document_forgets_the_one_before() -> None:
    tokens = text()
    tokens[[200, 440]] = 1
    found, sliding = run("ttt", tokens, ttt__reset="document", **CONSTANT), run("sliding", tokens).per_target
    assert found.tokens == 600 and found.legality == Legality.SCORE_FIRST
    assert not np.array_equal(found.per_target[CHUNK:200], sliding[CHUNK:200])
    np.testing.assert_allclose(found.per_target[200 : 200 + CHUNK], sliding[200 : 200 + CHUNK], atol=1e-5)
    assert np.abs(found.per_target[200 + CHUNK : 440] - sliding[200 + CHUNK : 440]).max() > 1e-3
    with pytest.raises(UserError, match="ttt.reset document makes a chunk of every document"):
        run("ttt", tokens, ttt__reset="document", ttt__lr_horizon=0)


def test_only_hard_rows_are_trained_on_and_by_their_recorded_loss() -> None:
    everything, hard = (
        run("ttt", ttt__top_fraction=f, ttt__epochs=1, ttt__batch_seqs=1).coverage["ttt_steps"]["done"]
        for f in (1.0, 0.3)
    )
    assert 0 < hard < everything == 8  # four whole chunks of two rows; the last is not adapted on
    found = run("error-guided", ttt__top_fraction=0.25, ttt__epochs=1)
    static = run("static").per_target[: 9 * T].reshape(9, T).mean(1)
    assert found.coverage["ttt_steps"]["done"] == 2  # a quarter of the nine whole rows, the hardest
    first = float(found.adapt_losses[0])
    assert first == pytest.approx(float(static[np.sort(np.argsort(-static)[:2])[0]]), rel=1e-4)


def test_train_first_order_of_batches() -> None:
    """Epochs in order; `shards` takes a part of each batch from every part of the stream; a sweep steps by chunk."""

    def batches(**changes: object) -> list[list[int]]:
        return [(b // T).tolist() for b in begin("train-then-score", CFG, subject(), changes=changes).batches]

    assert batches(**{"ttt.epochs": 2, "ttt.batch_seqs": 4}) == 2 * [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert batches(**{"ttt.epochs": 1, "ttt.batch_seqs": 2, "ttt.shards": 2}) == [[0, 1, 4, 5], [2, 3, 6, 7], [8]]
    assert batches(**{"ttt.epochs": 0, "ttt.sweeps": 1}) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]


def test_training_first_pays_and_is_labelled() -> None:
    """The cheat works (it must, for its label to matter): a lower score than any honest one."""
    cheat, honest = run("train-then-score", ttt__lr=0.05, ttt__epochs=5), run("score-first", ttt__lr=0.05)
    assert cheat.bpb < honest.bpb - 0.05 and cheat.legality == Legality.TRAIN_FIRST
    assert len(cheat.adapt_losses) == cheat.coverage["ttt_steps"]["done"] == 5 * 5


@pytest.mark.parametrize("name", ["ttt", "train-then-score", "error-guided", "error-guided-legal", "ppm", "lora-ttt"])
def test_a_killed_evaluation_goes_on_to_the_same_bits(name: str, tmp_path, monkeypatch) -> None:
    part, changes = tmp_path / "part", {"ttt.top_fraction": 0.5} if "guided" in name else {}
    if name == "error-guided":
        changes |= {"eval.batch_seqs": 2}  # killed while rows are chosen
    if name == "train-then-score":
        changes = {"ttt.epochs": 2}
    real, calls, limit = Evaluation.step, list[int](), [0]

    def killed(self: Evaluation) -> int:
        calls.append(1)
        if len(calls) == limit[0]:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(protocols, "SAVE_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(Evaluation, "step", killed)
    whole = evaluate(name, CFG, subject(), changes=changes)
    steps = len(calls)
    limit[0] = steps + 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(name, CFG, subject(), changes=changes, resume=part)
    resumed = evaluate(name, CFG, subject(), changes=changes, resume=part)
    assert len(calls) == 2 * steps + 1  # only what the kill cut short was done again
    assert replace(whole, seconds=0) == replace(resumed, seconds=0) and not part.exists()
    assert np.array_equal(whole.per_target, resumed.per_target)
    for a, b in zip(*(flat(r.adapted or weights()).values() for r in (whole, resumed)), strict=True):
        assert torch.equal(a, b)


def by_hand(
    tokens: np.ndarray, chunk: int, stride: int, epochs: int, momentum: float, first: bool
) -> tuple[np.ndarray, list[float]]:
    """Scores (total,) and step losses with torch's own optimizer: nothing frozen, constant rate, chunk by chunk."""
    leaves = tree_map(lambda t: t.clone().requires_grad_(), weights())
    optimizer = torch.optim.SGD(flat(leaves).values(), lr=0.02, momentum=momentum)
    ids, total, losses = torch.from_numpy(tokens.astype(np.int64)), len(tokens) - 1, list[float]()
    found = np.full(total, np.nan)

    def train(start: int, stop: int) -> None:
        rows = [slice(a, a + T) for a in range(start, stop - T + 1, T)]
        for _ in range(epochs):
            for at in range(0, len(rows), 2):
                x, y = (torch.stack([ids[r.start + k : r.stop + k] for r in rows[at : at + 2]]) for k in (0, 1))
                optimizer.zero_grad()
                loss = nll(forward(Net(CFG.model, tables()), leaves, x), y).mean()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(flat(leaves).values(), 1.0)
                optimizer.step()
                losses.append(loss.item())

    if first:
        train(0, total)
    for start in range(0, total, chunk):
        for a, b, s in windows(total, T, stride).tolist():
            if start <= s < start + chunk:
                with torch.no_grad():
                    x = torch.nn.functional.pad(ids[a:b], (0, T - (b - a)))[None]  # the rotary base follows the length
                    row = nll(forward(Net(CFG.model, tables()), leaves, x)[:, : b - a], ids[None, a + 1 : b + 1])[0]
                found[s:b] = row[s - a :].numpy()
        if not first and start + chunk < total:
            train(start, start + chunk)
    return found, losses


@pytest.mark.parametrize(
    "chunk, stride, momentum, first",
    [(160, 32, 0.0, False), (224, 32, 0.9, False), (150, 24, 0.9, False), (160, 32, 0.0, True), (150, 24, 0.9, True)],
)
def test_adaptation_is_that_of_a_plain_loop(chunk: int, stride: int, momentum: float, first: bool) -> None:
    """Chunks of 2.5, 3.5 and 2.3 rows: the rest is scored and not trained on; a stride may divide nothing."""
    want, losses = by_hand(text(), chunk, stride, 2, momentum, first)
    order = {"ttt.order": "train-first"} if first else {}
    common = {"ttt.chunk_tokens": chunk, "eval.stride": stride, "ttt.lr_shape": "constant"}
    common |= {"ttt.momentum": momentum, "ttt.epochs": 2}
    found = evaluate("ttt", CFG, subject(), changes=common | order)
    np.testing.assert_allclose(found.per_target, want, atol=2e-5)
    steps = found.adapt_losses if first else [loss for row in found.chunks for loss in row["adapt_losses"]]
    np.testing.assert_allclose(steps, losses, atol=1e-5)
    assert found.legality == (Legality.TRAIN_FIRST if first else Legality.SCORE_FIRST)


# -- PPM


def test_the_adaptive_model_is_a_distribution_that_learns() -> None:
    ppm, rng = Ppm(16), np.random.default_rng(0)
    previous = 0
    for target in rng.integers(0, 4, 300).tolist():
        whole = ppm.probability(previous, slice(None))
        assert whole.shape == (16,) and abs(whole.sum() - 1) < 1e-12 and (whole > 0).all()
        assert whole[target] == pytest.approx(ppm.probability(previous, target))
        ppm.see(previous, target)
        previous = target
    assert ppm.probability(0, slice(None))[:4].sum() > 0.9


def test_the_adaptive_model_by_hand() -> None:
    """After a b a b: order 1 of a has seen b twice; order 0 has seen a once and b twice (the first a is no target)."""
    ppm = Ppm(4)
    for a, b in ((0, 1), (1, 0), (0, 1)):
        ppm.see(a, b)
    assert ppm.probability(0, 1) == pytest.approx(2 / 3 + 1 / 3 * (2 / 5 + 2 / 5 / 4))
    assert ppm.probability(0, 3) == pytest.approx(1 / 3 * 2 / 5 / 4)
    assert ppm.probability(3, 0) == pytest.approx(1 / 5 + 2 / 5 / 4)


def test_blending_is_a_mixture_with_a_fixed_weight() -> None:
    tokens = text()
    plain, mixed = run("sliding", tokens).per_target, run("ppm", tokens, eval__ppm_weight=0.25).per_target
    ppm = Ppm(VOCAB)
    for p, (a, b) in enumerate(zip(tokens[:-1].tolist(), tokens[1:].tolist(), strict=True)):
        want = 0.75 * np.exp(-np.float64(plain[p])) + 0.25 * ppm.probability(a, b)
        assert mixed[p] == pytest.approx(-np.log(want), rel=1e-5)
        ppm.see(a, b)
    with pytest.raises(UserError, match="eval.ppm_weight needs eval.tail exact"):
        run("sliding", tokens, eval__ppm_weight=0.1, eval__tail="exp101")
