"""Laws of the driven audit: honest protocols score what they say, and a cheat has nothing to cheat with."""

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from cheaters import TOTAL, VOCAB, text
from test_audit import CHEATS, HONEST, SMALL, golf, one_thread  # noqa: F401  the fixture is for this module, too

from golfcore.base.errors import UserError
from golfcore.evals.audit import Scores
from golfcore.evals.audit.driven import SAME, Refused, Stepwise, apart, drive

AT = [0, 40, 70, 131, 200, TOTAL - 1]  # in the first windows and later chunks, at their ends and inside


def fast(scorer: object) -> dict[int, float]:
    found: Scores = scorer.run(text())
    return dict(zip(found.positions[::-1].tolist(), found.nats[::-1].tolist(), strict=True))


def stepped(scorer: object) -> np.ndarray:
    return drive(Stepwise(scorer, TOTAL + 1), text(), VOCAB, AT).nats


@pytest.mark.parametrize("name", [n for n in HONEST if "document" not in n and "file" not in n])
def test_an_honest_protocol_is_the_fast_one_at_every_probe(name: str) -> None:
    scores = fast(HONEST[name]())
    assert stepped(HONEST[name]()) == pytest.approx([scores[p] for p in AT], abs=SAME / 10)


@pytest.mark.parametrize(
    "name",
    [
        "train-then-score",
        "causal-sweep",
        "two-phase",
        "error-guided",
        "training kept from the log",
        "realised token blended",
        "hash keyed on the target",
    ],
)
def test_what_saw_the_target_early_cannot_repeat_its_score(name: str) -> None:
    scores = fast(CHEATS[name][0]())
    try:
        found = stepped(CHEATS[name][0]())
    except Refused:
        return
    assert np.abs(found - [scores[p] for p in AT]).max() > 10 * SAME


class Counts:
    """An honest predictor: counts of pairs."""

    def __init__(self) -> None:
        self.pairs, self.last = np.full((VOCAB, VOCAB), 0.5), None

    def observe(self, token: int) -> None:
        if self.last is not None:
            self.pairs[self.last, token] += 1
        self.last = token

    def predict(self) -> np.ndarray:
        return np.log(self.pairs[self.last] / self.pairs[self.last].sum())


class Spy(Counts):
    """Looks at everything its process holds for the stream: the frames that called it, and every array."""

    def predict(self) -> np.ndarray:
        frame, seen = sys._getframe(), []
        while frame is not None:
            seen += list(frame.f_locals.values())
            frame = frame.f_back
        arrays = [a for a in (*seen, *gc.get_objects()) if isinstance(a, np.ndarray) and a.dtype.kind in "iu"]
        if any(len(a) > 100 and np.isin(a[:50], np.arange(VOCAB)).all() for a in arrays if a.ndim == 1):
            return np.full(VOCAB, -np.inf)  # it found one: says something that would be refused
        return super().predict()


class Dies(Counts):
    def predict(self) -> np.ndarray:
        os._exit(3)


def test_a_driven_score_is_the_predictors_own_also_from_a_process_apart() -> None:
    tokens, pairs, want = text(60), np.full((VOCAB, VOCAB), 0.5), []
    for a, b in zip(tokens[:-1].astype(int), tokens[1:].astype(int), strict=True):
        want.append(-np.log(pairs[a, b] / pairs[a].sum()))
        pairs[a, b] += 1
    assert drive(Counts(), tokens, VOCAB).nats == pytest.approx(want)
    with apart(Counts) as predictor:
        found = drive(predictor, tokens, VOCAB)
    assert found.nats == pytest.approx(want) and found.apart < 1e-12 and len(found.positions) == 60


def test_nothing_of_the_stream_is_in_the_process_of_the_predictor() -> None:
    with apart(Spy) as predictor:
        found = drive(predictor, text(150), VOCAB, [140, 149])
    assert found.nats == pytest.approx(drive(Counts(), text(150), VOCAB, [140, 149]).nats)
    stream = text(150)  # in one process it is found
    with pytest.raises(Refused):
        drive(Spy(), stream, VOCAB, [140])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda logs: logs + 0.01, "sum to 1, found a sum"),
        (lambda logs: logs[:-1], "log-probabilities, found other"),
        (lambda logs: np.where(np.arange(VOCAB) == 3, np.nan, logs), "log-probabilities, found other"),
        (lambda logs: logs * 0 + 0.5, "log-probabilities, found other"),
    ],
)
def test_what_is_no_distribution_is_refused(wrong, sentence: str) -> None:
    class Scaled(Counts):
        def predict(self) -> np.ndarray:
            return wrong(super().predict())

    with pytest.raises(Refused, match=sentence):
        drive(Scaled(), text(20), VOCAB)


def test_a_predictor_that_ends_is_said() -> None:
    with apart(Dies) as predictor, pytest.raises(UserError, match="its process had ended"):
        drive(predictor, text(20), VOCAB)


def test_the_command_proves_a_runs_score(small_run: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    command = ["audit", small_run, "--protocol", "ttt", "--driven", "3", "--json", *SMALL]
    assert golf(*command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["verdict"] == "proven" and found["difference"] < SAME and (found["probes"], found["targets"]) == (3, 272)
    )
    assert golf("audit", small_run, "--protocol", "train-then-score", "--driven", "2", *SMALL) == 1
    assert "not what it says" in capsys.readouterr().out
