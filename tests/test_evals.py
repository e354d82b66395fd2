"""Laws of evaluation: every target once, the ledger's verdict, numbers that are whole, state that is whole."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_eval import CFG, T, run, subject, tables, text, weights

from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.evals import protocols, result, saved
from golfcore.evals.adapt import Diverged
from golfcore.evals.bigram import fit_bigram
from golfcore.evals.evaluation import Subject
from golfcore.evals.ledger import Ledger, Legality, NotFinite
from golfcore.evals.protocols import begin, evaluate
from golfcore.evals.windows import by_chunk, chunk_edges, split, windows
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import count, tree_map

TAILS = ("exact", "exp101", "pr398")


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
    rows, scores, both = windows(64, 32, 32), [np.ones(32, np.float32)], np.array([0, 32])
    ledger, early = Ledger(text(64)), Ledger(text(64))
    ledger.record(rows, scores * 2)
    assert ledger.legality == Legality.STATIC
    ledger.train(both, 32)
    assert ledger.legality == Legality.SCORE_FIRST
    early.record(rows[:1], scores)
    early.train(both, 32)
    early.record(rows[1:], scores)
    assert early.legality == Legality.TRAIN_FIRST


def test_a_second_score_raises_unless_it_is_counted() -> None:
    rows, twos, zeros = windows(64, 32, 32)[:1], np.full(32, 2.0, np.float32), np.zeros(32, np.float32)
    ledger, counting = Ledger(text(64)), Ledger(text(64), rescore=True)
    ledger.record(rows, [twos])
    with pytest.raises(RuntimeError, match="positions 0 to 32: some were already scored"):
        ledger.record(rows, [zeros])
    counting.record(rows, [twos])
    counting.record(rows, [zeros])
    assert (counting.nats[:32] == 2).all() and len(counting.again) == 32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_never_recorded(bad: float) -> None:
    ledger = Ledger(text(64))
    scores = np.ones(32, np.float32)
    scores[5] = bad
    with pytest.raises(NotFinite, match="the score of position 5 is"):
        ledger.record(windows(64, 32, 32)[:1], [scores])
    assert np.isnan(ledger.nats).all() and not ledger.events


# -- numbers that are not whole are not given


@pytest.mark.parametrize("name", ["static", "ppm"])
def test_a_score_that_is_not_finite_ends_the_evaluation(name: str) -> None:
    poisoned = tree_map(torch.clone, weights())
    poisoned.banks.up[0, 0, 0] = float("nan")
    with pytest.raises(NotFinite):
        evaluate(name, CFG, Subject(poisoned, text(200), tables()))


@pytest.mark.parametrize("name", ["ttt", "window-ttt", "lora-ttt", "train-then-score", "causal-sweep"])
def test_adaptation_that_diverges_is_one_sentence(name: str) -> None:
    with pytest.raises(Diverged, match=f"protocol {name}: adaptation at rate 1e.30 diverged"):
        run(name, ttt__lr=1e30, ttt__clip=0.0)


def test_a_result_over_fewer_targets_than_there_are_is_none() -> None:
    evaluation = begin("sliding", CFG, subject(text(300)))
    while not evaluation.finished:
        evaluation.step()
    evaluation.result({})
    evaluation.ledger.nats[7] = np.nan
    with pytest.raises(RuntimeError, match="299 targets instead of 300"):
        evaluation.result({})


def test_what_is_switched_on_touches_something_or_fails() -> None:
    """Done of possible; with one chunk nothing was possible, and the ledger calls the score static."""
    found = run("ttt", ttt__epochs=2, ttt__batch_seqs=1, ttt__freeze_blocks=1).coverage
    assert (found["ttt_steps"]["done"], found["ttt_steps"]["of"]) == (16, 16)
    assert found["ttt_adapted"]["done"] + found["ttt_frozen"]["done"] == found["ttt_adapted"]["of"] == count(weights())
    assert found["ttt_frozen"]["done"] > 0
    assert run("ppm").coverage["ppm"] == {"done": 600, "of": 600, "unit": "targets", "note": ""}
    rows = run("error-guided", ttt__top_fraction=0.3).coverage["ttt_rows"]
    assert (rows["done"], rows["of"]) == (2, 9)
    assert run("ttt", ttt__reset="chunk").coverage["ttt_resets"]["done"] == 4
    alone = run("ttt", text(100)).coverage["ttt_steps"]
    assert (alone["done"], alone["of"]) == (0, 0) and "no chunk is followed by another" in alone["note"]
    with pytest.raises(UserError, match="ttt_rows is switched on but touched 0 of 1 rows"):
        run("error-guided-legal", text(100))
    with pytest.raises(UserError, match="ttt_resets is switched on but touched 0 of 0 documents"):
        run("ttt", ttt__reset="document", ttt__lr_shape="constant")


# -- what a score is


def reference(tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The nats of every target, each window by itself."""
    want, ids = np.full(len(tokens) - 1, np.nan), torch.from_numpy(tokens.astype(np.int64))
    for start, stop, first in rows:
        losses = nll(
            forward(Net(CFG.model, tables()), weights(), ids[None, start:stop]), ids[None, start + 1 : stop + 1]
        )
        want[first:stop] = losses[0, first - start :].numpy()
    return want


def test_static_is_the_plain_sum_over_rows() -> None:
    tokens, t = text(T * 5), tables()
    found = run("static", tokens)
    x, y = tokens[:-1].astype(int), tokens[1:].astype(int)
    n_bytes = int((t.base_bytes[y].long() + (t.word_start[y] & ~t.boundary[x])).sum())
    assert found.legality == Legality.STATIC and found.tokens == 320 and found.bytes == n_bytes
    assert math.isclose(found.nats, reference(tokens, windows(T * 5, T, T)).sum(), rel_tol=1e-6)
    assert math.isclose(found.bpb, found.nats / math.log(2) / n_bytes, rel_tol=1e-12)


@pytest.mark.parametrize("total", [300, 320, 64, 20])
def test_sliding_scores_each_target_from_its_own_window(total: int) -> None:
    found, want = run("sliding", text(total)), reference(text(total), windows(total, T, 32))
    assert found.tokens == total and found.repeats == 0
    np.testing.assert_allclose(found.per_target, want, atol=1e-5)
    sums = [want[i : i + 128].sum() for i in range(0, total, 128)]
    assert [c["nats"] for c in found.chunks] == pytest.approx(sums, abs=1e-3)


def test_the_published_static_evaluation_drops_the_remainder() -> None:
    found = run("static", text(T * 4 + 5), eval__tail="exp101")
    assert found.tokens == T * 4 and np.isnan(found.per_target[-5:]).all() and found.chunks[-1]["bytes"] == 0
    assert found.dropped == 5 and "5 targets dropped" in result.as_text(found)


def test_first_scores_are_counted_apart_from_repeats() -> None:
    """With a published tail the score counts repeats; what differences are taken of does not."""
    published, exact = (run("sliding", text(300), eval__tail=tail) for tail in ("exp101", "exact"))
    assert published.repeats > 0 and published.bpb != exact.bpb
    assert published.bpb_first == pytest.approx(exact.bpb, rel=1e-12) and exact.bpb_first == exact.bpb
    assert published.chunks == exact.chunks


@pytest.mark.parametrize("length", [32, 96])
def test_windows_may_be_longer_or_shorter_than_rows_of_training(length: int) -> None:
    """eval.seq_len: windows of that length; what is adapted on are rows of data.seq_len all the same."""
    changes = {"eval__seq_len": length, "eval__stride": 24}
    static = run("static", text(400), eval__seq_len=length)
    want = reference(text(400), np.array([[0, length, 0]]))[:length]
    np.testing.assert_allclose(static.per_target[:length], want, atol=1e-5)
    found = run("ttt", text(400), ttt__batch_seqs=1, ttt__epochs=1, **changes)
    assert found.tokens == 400 and found.coverage["ttt_steps"]["done"] == 3 * 2  # three chunks of two rows of 64
    longer = replace(CFG, eval=replace(CFG.eval, seq_len=length, stride=24))
    assert evaluate("static", longer, subject(text(400))).bpb == static.bpb


def test_streams_without_a_target_are_refused() -> None:
    with pytest.raises(UserError, match="expected at least 2 validation tokens, found 1"):
        run("static", text(0))


# -- on disk


def test_a_part_of_another_evaluation_is_refused(tmp_path, monkeypatch) -> None:
    """Of other weights, text, configuration or protocol; damaged; or with values that cannot be. One sentence each."""
    monkeypatch.setattr(protocols, "SAVE_EVERY_SECONDS", 0.0)
    part, kept = tmp_path / "ttt.part", tmp_path / "kept"
    monkeypatch.setattr(protocols.Evaluation, "result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate("ttt", CFG, subject(), resume=part)
    part.rename(kept)

    def refused(name: str, cfg: Config, other: Subject, data: bytes) -> str:
        part.write_bytes(data)
        with pytest.raises(UserError) as found:
            evaluate(name, cfg, other, resume=part)
        assert part.exists() and str(part) in str(found.value)
        return str(found.value)

    whole = kept.read_bytes()
    assert "weights" in refused("ttt", CFG, subject()._replace(weights=weights(1)), whole)
    assert "text" in refused("ttt", CFG, subject()._replace(tokens=text(600, 1)), whole)
    assert "configuration" in refused("ttt", replace(CFG, ttt=replace(CFG.ttt, lr=0.01)), subject(), whole)
    assert refused("score-first", CFG, subject(), whole)
    flipped = bytearray(whole)
    flipped[-40] ^= 1
    refused("ttt", CFG, subject(), bytes(flipped))
    refused("ttt", CFG, subject(), whole[:-1000])
    evaluation = begin("ttt", CFG, subject())
    owner = saved.belongs(evaluation)
    values, plain = tensors.load(kept, "a part", owner)
    for key, value in (("chunk", -1), ("chunk", 99), ("seconds", -1.0), ("trained", 1), ("steps", -3), ("losses", [])):
        tensors.save(part, values, plain | {key: value}, belongs=owner)
        assert key in refused("ttt", CFG, subject(), part.read_bytes())
    for name in ("weights/qo", "slots/momentum/qo", "nats"):
        tensors.save(part, {k: v for k, v in values.items() if k != name}, plain, belongs=owner)
        assert f"expected a tensor {name!r}" in refused("ttt", CFG, subject(), part.read_bytes())
        tensors.save(part, values | {name: values[name].ravel()[:-1]}, plain, belongs=owner)
        assert f"expected a tensor {name!r} as torch.float32 of shape" in refused(
            "ttt", CFG, subject(), part.read_bytes()
        )


def test_results_survive_the_disk(tmp_path) -> None:
    found = evaluate("ttt", CFG, subject(text(300)), source={"run": "r"})
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
