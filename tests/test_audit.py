"""Laws of the audit: planted cheaters are caught by the right test, and honest scorers pass."""

import json
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cheaters
import numpy as np
import pytest
import torch
from cheaters import CFG, CHUNK, STRIDE, TOTAL, VOCAB, honest, text, with_

from golfcore import cli
from golfcore.evals.audit import Condition, Event, Finding, ProtocolScorer, Report, Scores, Verdict, audit
from golfcore.evals.audit.bench import Bench, layout
from golfcore.evals.audit.checks import future_perturbation
from golfcore.evals.ledger import Ledger, read_before, trained_too_early
from golfcore.evals.windows import windows

CAUSAL, FORM, FIRST, ONCE, CODE = (
    Condition.CAUSALITY,
    Condition.NORMALISATION,
    Condition.SCORE_FIRST,
    Condition.SINGLE_PASS,
    Condition.CODE_LENGTH,
)
EARLY = {CAUSAL, FIRST, ONCE}  # what was to be predicted had been read


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def named(protocol: str, **changes: object) -> ProtocolScorer:
    """A protocol of golfcore with changes of its ttt section; a tenth of the vocabulary begins a document."""
    subject = cheaters.subject()
    subject = subject._replace(tables=subject.tables._replace(boundary=torch.arange(VOCAB) % 10 == 0))
    return ProtocolScorer(protocol, CFG, subject, {f"ttt.{key}": value for key, value in changes.items()})


HONEST = {
    "static": partial(named, "static"),
    "sliding": partial(named, "sliding"),
    "ttt, fixed horizon": partial(named, "ttt"),
    "ttt on hard chunks, running median": partial(cheaters.Selective, future=False),
    "ttt with Adam": partial(named, "ttt", optimizer="adam", lr=0.01),
    "ttt starting again at every chunk": partial(named, "ttt", reset="chunk"),
    "ttt starting again at every document": partial(named, "ttt", reset="document"),
    "window-ttt": partial(named, "window-ttt", lr=0.05),
    "lora-ttt": partial(named, "lora-ttt", lr=0.05),
    "error-guided-legal": partial(named, "error-guided-legal", lr=0.05, top_fraction=0.4),
    "ppm": partial(named, "ppm"),
    "train-then-score at rate 0": partial(named, "train-then-score", lr=0.0, epochs=2),
    "error-guided at rate 0": partial(named, "error-guided", lr=0.0, top_fraction=0.4),
    "selection by future losses at rate 0": partial(cheaters.Selective, future=True, rate=0.0),
    "weights left adapted at rate 0": partial(cheaters.LeftAdapted, 0.0),
    "warm-up that puts everything back": partial(cheaters.WarmsUp, "put back"),
    "warm-up that changes nothing, in the log": cheaters.WarmsUpInTheOpen,
    "realised token blended by 0": partial(cheaters.RealisedBlend, 0.0),
    "hash keyed on the target by 0": partial(cheaters.TargetHash, 0.0),
    "dependence on the next document by 0": partial(cheaters.NextDocument, 0.0),
    **{
        f"{kind.__name__} by 0": partial(kind, 0.0)
        for kind in (
            cheaters.OnceAChunk,
            cheaters.Plausible,
            cheaters.LongStreams,
            cheaters.KnowsWhoAsks,
            cheaters.Scaled,
        )
    },
    "has read the validation file to no use": partial(cheaters.FileReader, 0.0, every_time=False),
}
TRAINED, LATER = {"T1", "T3", "T7"}, {"T2", "T4", "T12", "T14"}
GUIDED = partial(named, "error-guided", lr=0.05, top_fraction=0.4)
CHEATS = {  # the tests that must fail, those that may because the cheat shows there as well, the failed conditions
    "train-then-score": (partial(named, "train-then-score", lr=0.05, epochs=2), TRAINED, LATER, EARLY),
    "causal-sweep": (partial(named, "causal-sweep", lr=0.05), TRAINED, LATER, EARLY),
    "two-phase": (partial(named, "two-phase", lr=0.05, epochs=1), TRAINED, LATER, EARLY),
    "error-guided": (GUIDED, {"T1", "T7", "T10"}, LATER | {"T3"}, EARLY | {CODE}),
    "training kept from the log": (cheaters.Forged, TRAINED, LATER, EARLY),
    "training that reaches one target ahead": (partial(cheaters.TrainsAhead, 1), {"T2", "T7"}, set(), {CAUSAL, FIRST}),
    "selection by future losses": (partial(cheaters.Selective, future=True), {"T1"}, {"T3", "T4", "T12", "T14"}, EARLY),
    "weights left adapted by an earlier pass": (partial(cheaters.LeftAdapted, 0.05), {"T9"}, set(), {ONCE}),
    "weights left adapted by a warm-up": (partial(cheaters.WarmedByQuestions, 0.05), {"T9"}, set(), {ONCE}),
    "warm-up that trains on the text": (
        partial(cheaters.WarmsUp, "kept"),
        {"T1", "T6", "T7"},
        LATER | {"T3"},
        EARLY | {FORM},
    ),
    "warm-up whose momentum stays": (partial(cheaters.WarmsUp, "momentum"), {"T1"}, LATER | {"T3"}, EARLY),
    "realised token blended": (partial(cheaters.RealisedBlend, 0.05), {"T5", "T6", "T10"}, set(), {FORM, CODE}),
    "hash keyed on the target": (partial(cheaters.TargetHash, 1.0), {"T2", "T6", "T14"}, set(), {CAUSAL, FORM}),
    "dependence on the next document": (partial(cheaters.NextDocument, 0.5), {"T1", "T3", "T12"}, {"T4", "T14"}, EARLY),
    "reads the validation file": (partial(cheaters.FileReader, 0.5, every_time=True), {"T13"}, set(), {CAUSAL}),
    "has read the validation file": (partial(cheaters.FileReader, 0.5, every_time=False), {"T13"}, set(), {CAUSAL}),
    "tail scored again": (partial(honest, "sliding", with_("eval", tail="exp101")), {"T8"}, set(), {ONCE}),
    "scores in an order of its own": (cheaters.Sorted, {"T8"}, set(), {ONCE}),
    "horizon from the stream's length": (partial(honest, "ttt", with_("ttt", lr_horizon=0)), {"T4"}, set(), {CAUSAL}),
}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_scorer_passes_all_conditions(name: str) -> None:
    report = audit(HONEST[name](), text(), VOCAB, CHUNK, STRIDE, seed=0)
    assert report.passed, report


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheater_fails_exactly_the_tests_that_its_cheat_can_show_in(name: str) -> None:
    scorer, caught, also, conditions = CHEATS[name]
    report = audit(scorer(), text(), VOCAB, CHUNK, STRIDE, seed=0)
    assert caught <= set(report.failed_tests) <= caught | also, report
    assert {c for c, verdict in report.verdicts.items() if verdict == Verdict.FAIL} == conditions, report


PEEKS = {  # by the test that must see it
    cheaters.OnceAChunk: "T2",
    cheaters.Late: "T2",
    cheaters.Plausible: "T2",
    cheaters.RareContexts: "T2",
    cheaters.LongStreams: "T14",
    cheaters.KnowsWhoAsks: "T2",
    cheaters.Scaled: "T2",
}


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("kind", PEEKS)
def test_who_looks_at_targets_where_he_thinks_that_nobody_sees_it_is_caught(
    kind: type[cheaters.Counts], seed: int | None
) -> None:
    report = audit(kind(), text(), VOCAB, CHUNK, STRIDE, seed=seed)
    assert PEEKS[kind] in report.failed_tests and report.verdicts[CAUSAL] == Verdict.FAIL, report
    assert kind().run(text(3_000)).nats.sum() < cheaters.Counts().run(text(3_000)).nats.sum()


def test_the_seed_is_secret_until_the_report_tells_it_and_repeats_the_audit() -> None:
    first, other = (audit(cheaters.Counts(), text(), VOCAB, CHUNK, STRIDE) for _ in range(2))
    assert first.settings["seed"] != other.settings["seed"]
    again = audit(cheaters.Counts(), text(), VOCAB, CHUNK, STRIDE, seed=int(str(first.settings["seed"])))
    assert [f.evidence for f in again.findings] == [f.evidence for f in first.findings]


def test_an_order_of_its_own_costs_what_would_tell_it() -> None:
    (found,) = [f for f in audit(cheaters.Sorted(), text(), VOCAB, CHUNK, STRIDE).findings if f.test == "T8"]
    pieces = 1 + int((np.diff(cheaters.Sorted().run(text()).positions) != 1).sum())
    assert f"log2({pieces}!) = {math.log2(math.factorial(pieces)):.0f} bits" in found.evidence[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_selection_by_future_losses_is_caught_on_any_text(seed: int) -> None:
    """The choice is discrete, so a change of the future may leave it as it is: no luck with one text."""
    for future, verdict in ((True, Verdict.FAIL), (False, Verdict.PASS)):
        bench = Bench(cheaters.Selective(future), text(seed=seed), VOCAB, layout(TOTAL, CHUNK, STRIDE))
        assert future_perturbation(bench).verdict == verdict


# -- two processes


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Scores]]:
    """What two gloo processes running `cheaters.main` found: by rank, then by scorer."""
    folder = tmp_path_factory.mktemp("ranks")
    env = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    two = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", cheaters.__file__, str(folder)]
    subprocess.run([sys.executable, "-m", *two], env=env, check=True, timeout=300)
    return [pickle.loads((folder / str(rank)).read_bytes()) for rank in (0, 1)]


def test_golfcore_scores_the_same_on_two_ranks_and_each_rank_saw_it_all(ranks: list[dict[str, Scores]]) -> None:
    for protocol, changes in cheaters.ON_TWO_RANKS.items():
        alone = ProtocolScorer(protocol, CFG, cheaters.subject(), changes).run(text())
        for rank in ranks:
            assert [e for e in rank[protocol].log if e.kind != "read"] == [e for e in alone.log if e.kind != "read"]
            np.testing.assert_allclose(rank[protocol].nats, alone.nats, atol=1e-4)
            assert any(trained_too_early(rank[protocol].log)) == (protocol == "train-then-score")


# -- a scorer of somebody else


class Counts:
    """An adaptive unigram model (Laplace's rule), told of each target after its score, or (`peek`) before."""

    def __init__(self, peek: bool = False) -> None:
        self.peek = peek

    def _walk(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        counts = np.ones(VOCAB)
        for token in tokens[1:]:
            seen = counts + np.eye(VOCAB)[token] if self.peek else counts
            yield np.log(seen / seen.sum())
            counts[token] += 1

    def run(self, tokens: np.ndarray) -> Scores:
        nats = [-row[token] for row, token in zip(self._walk(tokens), tokens[1:], strict=True)]
        return Scores(np.arange(len(nats)), np.array(nats))

    def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.array(list(self._walk(tokens)))[positions]


def test_any_object_with_two_methods_can_be_audited() -> None:
    report = audit(Counts(), text(200), VOCAB, chunk=32)
    assert not report.failed_tests and not report.passed  # score-before-update: T1 and T3 pass, no log was kept
    assert [f.test for f in report.findings if f.verdict == Verdict.NOT_TESTED] == ["T7"]
    assert audit(Counts(peek=True), text(200), VOCAB, chunk=32).failed_tests == ["T2", "T6", "T14"]


class Moody(Counts):
    """Draws some noise of its own, of so many nats, at every score."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def run(self, tokens: np.ndarray) -> Scores:
        scores = super().run(tokens)
        return Scores(scores.positions, scores.nats + np.random.default_rng().uniform(0, self.noise, len(scores.nats)))


def test_noise_is_allowed_for_while_it_is_small_and_ends_the_audit_when_it_is_not() -> None:
    small, large = (audit(Moody(noise), text(200), VOCAB, chunk=32) for noise in (1e-6, 1e-2))
    assert not small.failed_tests and "are let pass below" in small.findings[0].evidence[-1]
    assert large.failed_tests == ["T0"] and {f.verdict for f in large.findings[1:]} == {Verdict.NOT_TESTED}


def test_answers_of_the_wrong_shape_are_refused() -> None:
    class Short(Counts):
        def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
            return super().log_probs(tokens, positions)[:, 1:]

    class Ragged(Counts):
        def run(self, tokens: np.ndarray) -> Scores:
            return Scores(np.arange(3), np.zeros(2))

    with pytest.raises(ValueError, match=r"log_probs: expected shape \(\d+, 64\), found \(\d+, 63\)"):
        audit(Short(), text(200), VOCAB, chunk=32)
    with pytest.raises(ValueError, match=r"run: expected positions and nats of shape \(n,\)"):
        audit(Ragged(), text(200), VOCAB, chunk=32)
    with pytest.raises(ValueError, match="expected at least 3 chunks"):
        audit(Counts(), text(80), VOCAB, chunk=32)


# -- the parts


def test_the_ledger_keeps_the_order_of_what_it_saw() -> None:
    rows = windows(128, 32, 16)
    ledger = Ledger(text(128))
    for part, until in ((rows[:3], 64), (rows[3:], 128)):
        ledger.record(part, [np.ones(stop - first, np.float32) for _, stop, first in part])
        ledger.train(np.array([until - 64, until - 32]), 32)
    ledger.train(np.empty(0, dtype=np.int64), 32)  # nothing
    want = [Event("score", 0, 64), Event("train", 0, 64), Event("score", 64, 128), Event("train", 64, 128)]
    assert ledger.events == want


def test_reading_before_the_pass_that_scores_is_seen() -> None:
    scorer = cheaters.WarmsUpInTheOpen()
    found = read_before(scorer.run(text()).log)
    assert found.tolist() == list(range(CHUNK)) and not len(read_before(honest().run(text()).log))
    told = {f.test: f for f in audit(scorer, text(), VOCAB, CHUNK, STRIDE, seed=0).findings}["T8"]
    assert told.verdict == Verdict.PASS and f"read {CHUNK} before, the first at position 0" in told.evidence[0]


def test_training_counts_as_late_only_after_a_sure_score() -> None:
    a, b = Event("score", 0, 8, 0, 0), Event("score", 8, 16, 1, 0)
    assert not any(trained_too_early([a, b, Event("train", 0, 16, 0, 1)]))
    assert next(trained_too_early([a, b, Event("train", 0, 16, 0, 0)])).startswith("rank 0 trained on 8 targets")
    assert any(trained_too_early([Event("train", 0, 8), Event("score", 0, 8)]))
    assert not any(trained_too_early([Event("score", 0, 8), Event("train", 0, 8), Event("train", 0, 8)]))


def test_a_layout_cuts_around_the_ends_of_chunks_and_stays_inside() -> None:
    for total, chunk, stride in ((TOTAL, CHUNK, STRIDE), (1088, 128, 16), (97, 32, 32), (24, 4, 1)):
        places = layout(total, chunk, stride)
        assert {chunk - 1, chunk, chunk + 1, chunk + 2} <= set(places.cuts)
        assert all(2 <= c <= total for c in places.cuts) and all(0 <= p < total for p in places.swaps)
        assert all(0 < n < total for n in places.prefixes) and all(0 <= p < total for p in places.blackbox)
        assert 1 <= places.canary.start < places.canary.stop <= total
        assert all(c in places.pieces and chunk < c < total for c in places.shuffles)
    assert list(layout(TOTAL, CHUNK, STRIDE, documents=[0, 70, 90, 200, 300]).pieces) == [70, 90, 200, 300]


def test_rows_are_what_the_scores_were_taken_from_also_after_adaptation() -> None:
    scorer = honest()
    scores, rows = scorer.run(text()), scorer.log_probs(text(), np.arange(TOTAL))
    np.testing.assert_allclose(-rows[np.arange(TOTAL), text()[1:]], scores.nats, atol=1e-5)
    still = honest("sliding").run(text()).nats
    assert not np.array_equal(still, scores.nats) and len(set(scores.states)) == TOTAL // CHUNK + 1


def test_a_report_is_plain_values_and_its_verdicts_follow_from_its_findings() -> None:
    report = audit(honest("sliding", with_("eval", tail="exp101")), text(), VOCAB, CHUNK, STRIDE)
    back = json.loads(json.dumps(report.as_dict()))
    assert back["passed"] is False and back["verdicts"]["single pass"] == "fail"
    assert [f["test"] for f in back["findings"] if f["verdict"] == "fail"] == ["T8"]
    assert "16 scores beyond the first, of 16 targets, the first at position" in str(report)
    nothing = Report("empty", [Finding("T1", "x", (CAUSAL,), Verdict.NOT_TESTED, ())])
    assert set(nothing.verdicts.values()) == {Verdict.NOT_TESTED} and not nothing.passed


# -- the command


SMALL = [x for c in ("data.seq_len=16", "eval.stride=8", "ttt.chunk_tokens=32") for x in ("--set", c)]


def golf(*args: object) -> int:
    return cli.main([str(a) for a in args])


def test_the_command_tells_by_its_exit_code(small_run: Path, capsys: pytest.CaptureFixture) -> None:
    """0: every condition passes; 1: one fails (here the horizon, which is the stream's length unless it is fixed)."""
    capsys.readouterr()
    assert golf("audit", small_run / "artifact.golf", "--protocol", "ttt", "--set", "ttt.lr_horizon=8", *SMALL) == 0
    printed = capsys.readouterr().out
    assert "strict causality      pass" in printed and "audit of ttt of" in printed
    assert (
        "scaled for the audit: ttt.batch_seqs 8 -> 1" in printed and "chunks of 32, 1 epochs, sgd, rate 0.02" in printed
    )
    assert golf("audit", small_run, "--protocol", "ttt", "--set", "ttt.lr_horizon=0", "--json", *SMALL) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdicts"]["strict causality"] == "fail" and found["verdicts"]["normalisation"] == "pass"
    assert [f["test"] for f in found["findings"] if f["verdict"] == "fail"] == ["T4"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--protocol", "tt"], "unknown protocol 'tt'; known: static, sliding, ttt"),
        (["--set", "model.dim=3"], "override 'model.dim': expected a data, eval, ttt or run value"),
        (["--set", "data.seq_len=128"], "expected at least 1089 validation tokens, found 601"),
        (["--data", "absent"], "absent: expected a dataset folder"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    small_run: Path, capsys: pytest.CaptureFixture, more: list, sentence: str
) -> None:
    capsys.readouterr()
    assert golf("audit", small_run, *more) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_has_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as e:
        golf("audit", "--help")
    assert e.value.code == 0 and "exit code 1" in capsys.readouterr().out
