"""A black box in a process of its own, and text that the auditor brings."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cheaters import CHUNK, VOCAB, Breaks, Calls, Counts, Finds, Remembers, honest, text
from test_audit import SMALL, golf, one_thread  # noqa: F401  the fixture is for this module, too

from golfcore.base.errors import UserError
from golfcore.evals.audit import Verdict, audit, memory, scorer_apart
from golfcore.evals.audit.bench import Bench, layout

WORDS = "the quick brown fox jumps over a lazy dog while nobody looks at what it says about tokens and bytes. "


def opened(finding) -> str:
    return " ".join(next(f.evidence for f in finding.findings if f.test == "T13"))


def test_a_scorer_answers_the_same_from_a_process_apart() -> None:
    """To the bit, with its log, its states and copies that go their own way."""
    here, tokens = honest("ttt"), text()
    with scorer_apart(honest, "ttt") as there:
        ours, theirs = here.run(tokens), there.run(tokens)
        assert np.array_equal(ours.nats, theirs.nats) and np.array_equal(ours.positions, theirs.positions)
        assert np.array_equal(ours.states, theirs.states) and ours.start == theirs.start
        assert [tuple(e) for e in theirs.log] == [tuple(e) for e in ours.log]
        at = np.array([3, 70])
        assert np.array_equal(here.log_probs(tokens, at), there.log_probs(tokens, at))


def test_an_honest_scorer_passes_apart_and_leaves_no_process() -> None:
    with scorer_apart(Counts, 0.0) as scorer:
        report = audit(scorer, text(), VOCAB, CHUNK, seed=5)
    assert report.passed, report.text()
    assert not multiprocessing.active_children()


def test_what_looks_through_memory_finds_nothing_apart() -> None:
    """In one process a scorer finds the stream among all objects; in its own there is only what it was given."""
    tokens = text()
    bench = Bench(Finds(), tokens, VOCAB, layout(len(tokens) - 1, CHUNK, CHUNK // 4))
    assert bench.nats(tokens).mean() < Counts(0.0).run(tokens).nats.mean() / 10
    with scorer_apart(Finds) as scorer:
        assert np.array_equal(replace(bench, scorer=scorer, _scores={}).nats(tokens), Counts(0.0).run(tokens).nats)


def test_connections_and_files_are_refused_and_told(tmp_path: Path) -> None:
    place = tmp_path / "notes.txt"
    with scorer_apart(Calls, str(place)) as scorer:
        report = audit(scorer, text(), VOCAB, CHUNK, seed=5)
    assert "T13" in report.failed_tests and not place.exists()
    assert "socket.connect" in opened(report) and "notes.txt" in opened(report)
    with scorer_apart(Calls, str(place), own=tmp_path) as scorer:
        scorer.run(text())
    assert place.read_text() == "seen"  # its own folder


def test_what_goes_wrong_there_is_one_sentence_here() -> None:
    with scorer_apart(Breaks) as scorer, pytest.raises(UserError, match="RuntimeError: out of order"):
        scorer.run(text())


def test_a_copy_of_the_text_shows_beside_text_that_the_auditor_brings() -> None:
    stream, brought = text(), text(seed=3)
    honest_one = memory(Counts(0.0), stream, brought, VOCAB)
    assert honest_one.verdict == Verdict.PASS and "the auditor brings" in honest_one.evidence[0]
    assert memory(Remembers(stream), stream, brought, VOCAB).verdict == Verdict.FAIL
    assert memory(Remembers(brought), stream, brought, VOCAB).verdict == Verdict.PASS  # of another text
    other = np.random.default_rng(0).integers(
        0, VOCAB, len(stream)
    )  # of another kind: dearer, but the stream is not free
    assert memory(Counts(0.0), stream, other, VOCAB).verdict == Verdict.PASS


def test_the_command_takes_a_text(small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(WORDS * 40)
    command = ["audit", small_run, "--protocol", "sliding", "--seed", "3", *SMALL]
    golf(*command, "--text", file)
    assert "T15" in capsys.readouterr().out
    file.write_text("short")
    assert golf(*command, "--text", file) == 2 and "mine.txt: expected at least" in capsys.readouterr().err
