"""Laws of evaluation: every target once, the ledger's verdict, adaptation only on what was scored."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.config import Config, TTTConfig, load
from golfcore.data.tokens import Tables
from golfcore.evals import adapt as ttt
from golfcore.evals import protocols, result, saved
from golfcore.evals.adapt import Diverged
from golfcore.evals.bigram import fit_bigram
from golfcore.evals.evaluation import Evaluation, Subject
from golfcore.evals.ledger import Ledger, Legality, NotFinite
from golfcore.evals.protocols import begin, evaluate
from golfcore.evals.score import bits_per_byte
from golfcore.evals.windows import by_chunk, chunk_edges, split, windows
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import Weights, flat, tree_map

TAILS = ("exact", "exp101", "pr398")
SMOKE = load("smoke", {"ttt.freeze_blocks": 1, "ttt.lr": 0.05, "ttt.lr_candidates": [], "ttt.chunk_tokens": 128})


def smoke_weights(seed: int = 0) -> Weights:
    g = torch.Generator().manual_seed(seed)
    return tree_map(lambda t: t + 0.1 * torch.randn(t.shape, generator=g), params.init(SMOKE.model, seed))


def text(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SMOKE.model.vocab_size, n + 1).astype(np.uint16)


def tables() -> Tables:
    rng, v = np.random.default_rng(0), SMOKE.model.vocab_size
    base = torch.from_numpy(rng.integers(1, 6, v).astype(np.int16))
    return Tables(base, torch.from_numpy(rng.random(v) < 0.4), torch.from_numpy(rng.random(v) < 0.05))


# -- windows


def test_windows_by_example() -> None:
    """total 10, window 4, stride 2: each row is (start, stop, first scored)."""
    exact = [[0, 4, 0], [2, 6, 4], [4, 8, 6], [6, 10, 8]]
    assert windows(10, 4, 2).tolist() == exact
    assert windows(9, 4, 2).tolist() == [*exact[:3], [6, 9, 8]]
    assert windows(10, 4, 4).tolist() == [[0, 4, 0], [4, 8, 4], [8, 10, 8]]
    assert windows(3, 4, 2).tolist() == [[0, 3, 0]]
    assert windows(10, 4, 2, "exp101").tolist() == [*exact, [8, 10, 8]]
    assert windows(10, 4, 4, "exp101").tolist() == [[0, 4, 0], [4, 8, 4]]


@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 8))
def test_exact_windows_score_every_target_once(total: int, stride: int, strides: int) -> None:
    rows = windows(total, stride * strides, stride)
    scored = np.concatenate([np.arange(s, b) for _, b, s in rows])
    assert scored.tolist() == list(range(total))
    assert (rows[:, 1] - rows[:, 0] <= stride * strides).all() and (rows[:, 2] >= rows[:, 0]).all()


def test_published_tail_at_full_validation_size() -> None:
    """62,021,632 targets, stride 64, window 2048: 1,984 scores too many, or none, without running a model."""
    for tail, extra in (("exp101", 1_984), ("pr398", 1_984), ("exact", 0)):
        rows = windows(62_021_632, 2048, 64, tail)
        assert int((rows[:, 1] - rows[:, 2]).sum()) - 62_021_632 == extra
    rows = windows(62_021_632, 2048, 64, "exp101")
    sizes = [len(c) for c in by_chunk(rows, chunk_edges(62_021_632, 65_536))]
    assert len(sizes) == 947 and (sizes[0], sizes[1], sizes[945], sizes[946]) == (993, 1024, 1024, 415)


@given(st.integers(1, 400), st.integers(1, 24), st.integers(1, 24), st.integers(1, 90), st.sampled_from(TAILS))
def test_any_stride_is_scored_before_its_chunk_is_trained_on(
    total: int, seq_len: int, stride: int, chunk: int, tail: str
) -> None:
    """Strides that divide neither window nor chunk: once a chunk's windows are scored, all before its end are."""
    rows = windows(total, seq_len, min(stride, seq_len), tail)
    edges, seen = chunk_edges(total, chunk), np.zeros(total, dtype=bool)
    chunks = by_chunk(rows, edges)
    dropped = total - rows[:, 1].max()
    assert sum(map(len, chunks)) == len(rows) and (tail != "exact" or not dropped)
    for part, start, end in zip(chunks, edges[:-1], edges[1:], strict=True):
        assert ((part[:, 2] >= start) & (part[:, 2] < end)).all()
        for _, stop, first in part:
            seen[first:stop] = True
        assert seen[: min(end, total - dropped)].all()


def test_chunks_of_documents_cut_the_windows() -> None:
    edges = chunk_edges(20, 6, np.array([0, 9, 17]))
    assert edges.tolist() == [0, 6, 9, 15, 17, 20]
    rows = split(windows(20, 4, 4), edges)
    assert np.concatenate([np.arange(s, b) for _, b, s in rows]).tolist() == list(range(20))
    assert [[4, 6, 4], [4, 8, 6]] == rows[1:3].tolist()  # both parts see the window from its start
    assert [(c[0, 2], c[-1, 1]) for c in by_chunk(rows, edges)] == list(zip(edges[:-1], edges[1:], strict=True))


# -- the ledger


def test_the_ledger_labels_what_it_saw() -> None:
    tokens = text(64)
    rows = windows(64, 32, 32)
    scores = [np.ones(32, np.float32), np.ones(32, np.float32)]
    ledger = Ledger(tokens)
    ledger.record(rows, scores)
    assert ledger.legality == Legality.STATIC
    ledger.train(np.array([0, 32]), 32)
    assert ledger.legality == Legality.SCORE_FIRST
    early = Ledger(tokens)
    early.record(rows[:1], scores[:1])
    early.train(np.array([0, 32]), 32)
    early.record(rows[1:], scores[1:])
    assert early.legality == Legality.TRAIN_FIRST and early.trained_unscored == 32


def test_a_second_score_raises_unless_it_is_counted() -> None:
    rows = windows(64, 32, 32)
    ledger, counting = Ledger(text(64)), Ledger(text(64), rescore=True)
    for one in (ledger, counting):
        one.record(rows[:1], [np.full(32, 2.0, np.float32)])
    with pytest.raises(RuntimeError, match="positions 0 to 32: some were already scored"):
        ledger.record(rows[:1], [np.zeros(32, np.float32)])
    counting.record(rows[:1], [np.zeros(32, np.float32)])
    assert (counting.nats[:32] == 2).all() and len(counting.again) == 32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_never_recorded(bad: float) -> None:
    ledger = Ledger(text(64))
    scores = np.ones(32, np.float32)
    scores[5] = bad
    with pytest.raises(NotFinite, match="the score of position 5 is"):
        ledger.record(windows(64, 32, 32)[:1], [scores])
    assert not ledger.scored.any() and not ledger.events


# -- numbers that are not whole are not given


def poisoned() -> Weights:
    weights = smoke_weights()
    weights.banks.up[0, 0, 0] = float("nan")
    return weights


def test_a_score_that_is_not_finite_ends_the_evaluation() -> None:
    """Of NaN weights, of adaptation at too high a rate (the user's choice: one sentence), in any order of training."""
    with pytest.raises(NotFinite):
        evaluate("static", SMOKE, Subject(poisoned(), text(200), tables()))
    for name in ("ttt", "ppm", "window-ttt", "lora-ttt", "train-then-score", "causal-sweep"):
        with pytest.raises(NotFinite if name == "ppm" else Diverged) as found:
            weights = poisoned() if name == "ppm" else smoke_weights()
            changes = {} if name == "ppm" else {"ttt.lr": 1e30, "ttt.clip": 0.0}
            evaluate(name, SMOKE, Subject(weights, text(600), tables()), changes=changes)
        assert name == "ppm" or f"protocol {name}: adaptation at rate 1e+30 diverged" in str(found.value)


def test_a_result_over_fewer_targets_or_bytes_than_there_are_is_none() -> None:
    evaluation = begin("sliding", SMOKE, Subject(smoke_weights(), text(300), tables()))
    while not evaluation.finished:
        evaluation.step()
    evaluation.result({})
    evaluation.ledger.scored[7] = False
    with pytest.raises(RuntimeError, match="299 targets instead of 300, 300 targets counted instead of 299"):
        evaluation.result({})
    evaluation.ledger.scored[7] = True
    evaluation._bytes += 1
    with pytest.raises(RuntimeError, match="bytes instead of"):
        evaluation.result({})


def test_what_is_switched_on_touches_something_or_fails() -> None:
    """Done of possible; with one chunk nothing was possible, and the ledger calls the score static."""

    def of(name: str, total: int = 600, **changes: object) -> dict:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return evaluate(name, SMOKE, Subject(smoke_weights(), text(total), tables()), changes=dotted).coverage

    values = sum(t.numel() for t in flat(smoke_weights()).values())
    found = of("ttt", ttt__epochs=2, ttt__batch_seqs=1)
    assert (found["ttt_steps"]["done"], found["ttt_steps"]["of"]) == (16, 16)
    assert found["ttt_adapted"]["done"] + found["ttt_frozen"]["done"] == found["ttt_adapted"]["of"] == values
    assert found["ttt_frozen"]["done"] > 0
    assert of("ppm")["ppm"] == {"done": 600, "of": 600, "unit": "targets", "note": ""}
    rows = of("error-guided", ttt__top_fraction=0.3)["ttt_rows"]
    assert (rows["done"], rows["of"]) == (2, 9)
    assert of("ttt", ttt__reset="chunk")["ttt_resets"]["done"] == 4
    alone = of("ttt", total=100)["ttt_steps"]
    assert (alone["done"], alone["of"]) == (0, 0) and "no chunk is followed by another" in alone["note"]
    with pytest.raises(UserError, match="ttt_rows is switched on but touched 0 of 1 rows"):
        of("error-guided-legal", total=100)
    with pytest.raises(UserError, match="ttt_adapted is switched on but touched 0 of"):
        of("ttt", ttt__adapted="mlps", ttt__freeze_blocks=2)
    with pytest.raises(UserError, match="ttt_resets is switched on but touched 0 of 0 documents"):
        unbound = tables()._replace(boundary=torch.zeros(SMOKE.model.vocab_size, dtype=torch.bool))
        changes = {"ttt.reset": "document", "ttt.lr_shape": "constant"}
        evaluate("ttt", SMOKE, Subject(smoke_weights(), text(300), unbound), changes=changes)


# -- protocols


def test_static_is_the_plain_sum_over_rows() -> None:
    weights, tokens = smoke_weights(), text(64 * 5)
    found = evaluate("static", SMOKE, Subject(weights, tokens, tables()))
    x, y = (torch.from_numpy(t.astype(np.int64)).view(5, 64) for t in (tokens[:-1], tokens[1:]))
    losses = nll(forward(Net(SMOKE.model, tables()), weights, x), y).double()
    t = tables()
    n_bytes = int((t.base_bytes[y].long() + (t.word_start[y] & ~t.boundary[x])).sum())
    assert found.legality == Legality.STATIC and found.tokens == 320 and found.bytes == n_bytes
    assert math.isclose(found.nats, float(losses.sum()), rel_tol=1e-6)
    assert math.isclose(found.bpb, found.nats / math.log(2) / n_bytes, rel_tol=1e-12)
    assert math.isclose(found.bpb, bits_per_byte(found.nats, n_bytes), rel_tol=1e-12)


@pytest.mark.parametrize("total", [300, 320, 64, 20])
def test_sliding_scores_each_target_from_its_own_window(total: int) -> None:
    weights, tokens = smoke_weights(), text(total)
    found = evaluate("sliding", SMOKE, Subject(weights, tokens, tables()))
    want = np.full(total, np.nan)
    for start, stop, first in windows(total, 64, 32):
        x = torch.from_numpy(tokens[start:stop].astype(np.int64))[None]
        y = torch.from_numpy(tokens[start + 1 : stop + 1].astype(np.int64))[None]
        want[first:stop] = nll(forward(Net(SMOKE.model, tables()), weights, x), y)[0, first - start :].numpy()
    assert found.tokens == total and found.repeats == 0
    np.testing.assert_allclose(found.per_target, want, atol=1e-5)
    assert [c["nats"] for c in found.chunks] == pytest.approx(
        [want[i : i + 128].sum() for i in range(0, total, 128)], abs=1e-3
    )


def test_the_published_static_evaluation_drops_the_remainder() -> None:
    found = evaluate("static", with_({"eval.tail": "exp101"}), Subject(smoke_weights(), text(64 * 4 + 5), tables()))
    assert found.tokens == 64 * 4 and np.isnan(found.per_target[-5:]).all() and found.chunks[-1]["bytes"] == 0
    assert found.dropped == 5 and "5 targets dropped" in result.as_text(found)


def test_first_scores_are_counted_apart_from_repeats() -> None:
    """With a published tail the score counts repeats; what differences are taken of does not."""
    subject = Subject(smoke_weights(), text(300), tables())
    published, exact = (evaluate("sliding", with_({"eval.tail": tail}), subject) for tail in ("exp101", "exact"))
    assert published.repeats > 0 and published.bpb != exact.bpb
    assert published.bpb_first == pytest.approx(exact.bpb, rel=1e-12) and exact.bpb_first == exact.bpb
    assert published.chunks == exact.chunks


@pytest.mark.parametrize("length", [32, 96])
def test_windows_may_be_longer_or_shorter_than_rows_of_training(length: int) -> None:
    """eval.seq_len: windows of that length; what is adapted on are rows of data.seq_len all the same."""
    weights, tokens = smoke_weights(), text(400)
    cfg = replace(SMOKE, eval=replace(SMOKE.eval, seq_len=length, stride=24))
    static = evaluate("static", cfg, Subject(weights, tokens, tables()))
    x = torch.from_numpy(tokens[:length].astype(np.int64))[None]
    y = torch.from_numpy(tokens[1 : length + 1].astype(np.int64))[None]
    want = nll(forward(Net(cfg.model, tables()), weights, x), y)[0]
    np.testing.assert_allclose(static.per_target[:length], want, atol=1e-5)
    found = evaluate("ttt", cfg, Subject(weights, tokens, tables()), changes={"ttt.batch_seqs": 1})
    assert found.tokens == 400 and found.coverage["ttt_steps"]["done"] == 3 * 2  # three chunks of two rows of 64
    same = evaluate("static", SMOKE, Subject(weights, tokens, tables()), changes={"eval.seq_len": length})
    assert same.bpb == static.bpb


def test_evaluation_changes_no_weight() -> None:
    weights = smoke_weights()
    before = {k: v.clone() for k, v in flat(weights).items()}
    found = evaluate("ttt", SMOKE, Subject(weights, text(400), tables()))
    assert all(torch.equal(before[k], v) for k, v in flat(weights).items())
    assert found.legality == Legality.SCORE_FIRST and found.coverage["ttt_steps"]["done"] > 0


def test_adaptation_cannot_change_what_was_scored_before_it() -> None:
    """The first chunk is scored by the weights as they are; without epochs or rate all chunks are."""
    weights, tokens = smoke_weights(), text(400)
    still, adapted = (evaluate(p, SMOKE, Subject(weights, tokens, tables())).per_target for p in ("sliding", "ttt"))
    assert np.array_equal(still[:128], adapted[:128]) and not np.array_equal(still[128:], adapted[128:])
    for change in ({"ttt.lr": 0.0}, {"ttt.epochs": 0}):
        same = evaluate("ttt", with_(change), Subject(weights, tokens, tables()))
        assert np.array_equal(still, same.per_target)


def with_(change: dict) -> Config:
    (dotted, value), *_ = change.items()
    section, key = dotted.split(".")
    return replace(SMOKE, **{section: replace(getattr(SMOKE, section), **{key: value})})


def test_future_tokens_change_no_score() -> None:
    """Perturb everything from a cut on: all earlier scores are bit-identical, at chunk edges and inside."""
    weights, tokens = smoke_weights(), text(400)
    for cut in (2, 127, 128, 129, 300):
        other = tokens.copy()
        other[cut + 1 :] = (other[cut + 1 :] + 1) % SMOKE.model.vocab_size
        a, b = (evaluate("ttt", SMOKE, Subject(weights, t, tables())).per_target for t in (tokens, other))
        assert np.array_equal(a[:cut], b[:cut]) and not np.array_equal(a[cut:], b[cut:])


def test_a_killed_adaptation_goes_on_to_the_same_bits(tmp_path, monkeypatch) -> None:
    weights, tokens, part = smoke_weights(), text(900), tmp_path / "ttt.part"
    whole = evaluate("ttt", SMOKE, Subject(weights, tokens, tables()))
    monkeypatch.setattr(protocols, "SAVE_EVERY_SECONDS", 0.0)
    real, calls = Evaluation.adapt, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(Evaluation, "adapt", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate("ttt", SMOKE, Subject(weights, tokens, tables()), resume=part)
    assert part.exists()
    resumed = evaluate("ttt", SMOKE, Subject(weights, tokens, tables()), resume=part)
    assert len(calls) < 4 + 7 and not part.exists()  # the first three chunks were not done again
    assert np.array_equal(whole.per_target, resumed.per_target) and whole.bpb == resumed.bpb
    assert all(
        torch.equal(a, b) for a, b in zip(flat(whole.adapted).values(), flat(resumed.adapted).values(), strict=True)
    )
    assert whole.chunks == resumed.chunks and whole.legality == resumed.legality


def test_a_part_of_another_evaluation_is_refused(tmp_path, monkeypatch) -> None:
    """Of other weights, text, configuration or protocol; damaged; or with values that cannot be. One sentence each."""
    monkeypatch.setattr(protocols, "SAVE_EVERY_SECONDS", 0.0)
    part, kept = tmp_path / "ttt.part", tmp_path / "kept"
    subject = Subject(smoke_weights(), text(600), tables())
    monkeypatch.setattr(protocols.Evaluation, "result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate("ttt", SMOKE, subject, resume=part)
    part.rename(kept)

    def refused(name: str, cfg: Config, other: Subject, data: bytes) -> str:
        part.write_bytes(data)
        with pytest.raises(UserError) as found:
            evaluate(name, cfg, other, resume=part)
        assert part.exists() and str(part) in str(found.value)
        return str(found.value)

    whole = kept.read_bytes()
    assert "weights" in refused("ttt", SMOKE, subject._replace(weights=smoke_weights(1)), whole)
    assert "text" in refused("ttt", SMOKE, subject._replace(tokens=text(600, 1)), whole)
    assert "configuration" in refused("ttt", with_({"ttt.lr": 0.01}), subject, whole)
    assert refused("score-first", SMOKE, subject, whole)
    flipped = bytearray(whole)
    flipped[-40] ^= 1
    refused("ttt", SMOKE, subject, bytes(flipped))
    refused("ttt", SMOKE, subject, whole[:-1000])
    evaluation = begin("ttt", SMOKE, subject)
    owner = saved.belongs(evaluation)
    values, plain = tensors.load(kept, "a part", owner)
    wrong = [
        ("chunk", -1),
        ("chunk", 99),
        ("chunk", 2),
        ("seconds", -1.0),
        ("trained", 1),
        ("steps", -3),
        ("losses", []),
    ]
    for key, value in wrong:
        tensors.save(part, values, plain | {key: value}, belongs=owner)
        assert "found one that cannot be" in refused("ttt", SMOKE, subject, part.read_bytes())
    for name in ("weights/qo", "slots/momentum/qo", "ledger/nats"):
        tensors.save(part, {k: v for k, v in values.items() if k != name}, plain, belongs=owner)
        assert "found one that cannot be" in refused("ttt", SMOKE, subject, part.read_bytes())
        tensors.save(part, values | {name: values[name].ravel()[:-1]}, plain, belongs=owner)
        assert "found one that cannot be" in refused("ttt", SMOKE, subject, part.read_bytes())


def test_published_freeze_adapts_the_banks_and_the_exact_one_does_not() -> None:
    weights, tokens = smoke_weights(), text(400)
    for freeze, banks_move in (("scalars", True), ("all", False)):
        adapted = evaluate("ttt", with_({"ttt.freeze": freeze}), Subject(weights, tokens, tables())).adapted
        moved = [not torch.equal(a[0], b[0]) for a, b in zip(adapted.banks, weights.banks, strict=True)]
        assert moved == [banks_move] * 4
        assert torch.equal(adapted.rest["attn_scale"][0], weights.rest["attn_scale"][0])
        assert not torch.equal(adapted.rest["attn_scale"][1], weights.rest["attn_scale"][1])


def test_sgd_step_is_torchs_own() -> None:
    weights = smoke_weights()
    cfg = with_({"ttt.freeze_blocks": 0})
    ours, theirs = ttt.start(cfg, weights), tree_map(lambda t: t.clone().requires_grad_(), weights)
    optimizer = torch.optim.SGD(flat(theirs).values(), lr=0.1, momentum=0.9)
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        grads = {k: torch.randn(v.shape, generator=g) for k, v in flat(weights).items()}
        for k, v in flat(theirs).items():
            v.grad = grads[k].clone()
        torch.nn.utils.clip_grad_norm_(flat(theirs).values(), 1.0)
        optimizer.step()
        ttt.update(cfg.ttt, ours, grads, 0.1)
    for a, b in zip(flat(ours.weights).values(), flat(theirs).values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_the_rate_is_a_cosine_over_chunks_with_a_horizon_of_choice() -> None:
    cfg = TTTConfig(lr=0.004)
    published = {0: 0.004, 1: 0.003999989, 100: 0.003890725, 473: 0.002, 900: 2.3291e-5, 945: 1.1e-8}
    for chunk, lr in published.items():
        assert ttt.chunk_lr(cfg, chunk, 947) == pytest.approx(lr, rel=5e-3)
    fixed = replace(cfg, lr_horizon=50)
    assert ttt.chunk_lr(fixed, 7, 100) == ttt.chunk_lr(fixed, 7, 900) and ttt.chunk_lr(fixed, 60, 900) == 0


def test_unknown_protocols_and_empty_streams_are_refused() -> None:
    with pytest.raises(UserError, match="unknown protocol 'tt'; known: static, sliding, ttt"):
        evaluate("tt", SMOKE, Subject(smoke_weights(), text(100), tables()))
    with pytest.raises(UserError, match="expected at least 2 validation tokens, found 1"):
        evaluate("static", SMOKE, Subject(smoke_weights(), text(0), tables()))


def test_results_survive_the_disk(tmp_path) -> None:
    found = evaluate("ttt", SMOKE, Subject(smoke_weights(), text(300), tables()), source={"run": "r"})
    result.save(found, tmp_path / "ttt.json")
    back = result.load(tmp_path / "ttt.json")
    assert back == found and np.array_equal(back.per_target, found.per_target)


# --- the bigram baseline


@given(tokens=st.lists(st.integers(0, 4), min_size=2, max_size=40), cuts=st.lists(st.integers(1, 39), max_size=4))
def test_a_bigram_model_of_pieces_is_that_of_the_whole_text(tokens, cuts):
    text = np.array(tokens, np.uint16)
    pieces = [piece for piece in np.split(text, sorted(cuts)) if len(piece)]
    found, counts = fit_bigram(pieces, 5).log_prob, np.zeros((5, 5))
    for a, b in zip(tokens, tokens[1:], strict=False):
        counts[a, b] += 1
    unigram = (np.bincount(text, minlength=5) + 1) / (len(text) + 5)
    for a in range(5):
        k = max((counts[a] > 0).sum(), 1)
        np.testing.assert_allclose(np.exp(found[a]), (counts[a] + k * unigram) / (counts[a].sum() + k), rtol=1e-12)
