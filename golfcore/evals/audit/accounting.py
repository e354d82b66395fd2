"""Tests of what is counted: distributions that sum to one, and targets scored once, in order, before their use."""

import math
from collections.abc import Sequence

import numpy as np

from golfcore.evals.audit.bench import Bench
from golfcore.evals.audit.causality import Outcome, moved, outcome, shift
from golfcore.evals.audit.report import Verdict
from golfcore.evals.audit.scorer import Scores
from golfcore.evals.ledger import Event

MOST_ROWS = 2048  # positions whose whole distribution is looked at
SUM_TOLERANCE = 1e-4  # |ln sum p| in float32
KRAFT_TOLERANCE = 1e-3
GATHER_TOLERANCE = 1e-4  # nats between a recorded score and -ln p of the target
CANARY_NATS = 20.0  # an honest scorer fails with a probability of at most exp(-20)


def white_box(bench: Bench) -> Outcome:
    """T5. Distributions are finite and sum to one, and the scores are read off them: nats = -ln p(target)."""
    failures = []
    positions = np.unique(np.linspace(0, bench.total - 1, min(bench.total, MOST_ROWS)).astype(np.int64))
    worst = 0.0
    streams = [(bench.tokens, positions), *((bench.swapped(p), np.array([p])) for p in bench.layout.swaps)]
    for tokens, at in streams:
        rows, nats = bench.rows(tokens, at.tolist()), bench.nats(tokens)[at]
        what = "" if tokens is bench.tokens else " with its target replaced"
        sums = _log_sum_exp(rows)
        if len(bad := np.flatnonzero(~(np.abs(sums) <= SUM_TOLERANCE))):
            i = bad[np.nan_to_num(np.abs(sums[bad]), nan=np.inf).argmax()]
            failures.append(f"{len(bad)} of {len(at)} sums are not 1: position {at[i]}{what}: {math.exp(sums[i]):.6f}")
        worst = max(worst, float(np.abs(sums).max()))
        expected = -rows[np.arange(len(at)), tokens[at + 1].astype(np.int64)]
        if len(bad := moved(expected, nats, GATHER_TOLERANCE + bench.tolerance)):
            i = bad[0]
            failures.append(
                f"{len(bad)} of {len(at)} scores are not -ln p of the target: position {at[i]}{what}: recorded "
                f"{nats[i]:.6f}, the distribution says {expected[i]:.6f}"
            )
    return outcome(failures, f"{len(positions):,} distributions: |ln sum| at most {worst:.1e}, scores read off them")


def _log_sum_exp(rows: np.ndarray) -> np.ndarray:
    top = rows.max(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        return top + np.log(np.exp(rows - top[:, None]).sum(axis=1))


def black_box(bench: Bench) -> Outcome:
    """T6. The probabilities of all tokens, each scored as the target of a stream of its own, sum to one."""
    failures, sums = [], []
    for p in bench.layout.blackbox:
        total = 0.0
        for token in range(bench.vocab_size):
            tokens = bench.tokens[: p + 2].copy()
            tokens[p + 1] = token
            total += math.exp(-bench.run_of(bench.fresh(), tokens).dense(p + 1)[p])
        sums.append(f"position {p}: {total:.6f}")
        if not abs(total - 1) <= KRAFT_TOLERANCE:
            failures.append(f"{sums[-1]} instead of 1, over {bench.vocab_size} streams that differ in its target")
    return outcome(failures, f"{'; '.join(sums)}, over {bench.vocab_size} streams each")


def state_commit(bench: Bench) -> Outcome:
    """T7. The log trains only on what it scored before, and the state changes only by training that it shows.

    Training that changed nothing (at a rate of 0, say) is no use of a target, and is let pass.
    """
    scores = bench.run(bench.tokens)
    if not scores.log:
        return Outcome(Verdict.NOT_TESTED, ("the scorer keeps no log of what it scored and trained on",))
    log, hidden = _effective(scores)
    trained = [e for e in log if e.kind == "train"]
    n = sum(e.stop - e.start for e in trained)
    held = f"trained {len(trained)} times on {n:,} targets, each after its score" if trained else "never trained"
    states = "state not hashed" if scores.states is None else f"{len(np.unique(scores.states))} states"
    return outcome([*trained_too_early(log), *hidden], f"{held}; {states}")


def trained_too_early(log: Sequence[Event]) -> list[str]:
    """Sentences about targets trained on before they were surely scored, in the joined logs of any number of ranks.

    Training comes surely after a score if the same rank made it before, or another rank made it before a meeting of
    all ranks that comes before the training.
    """
    found, size = [], max((e.stop for e in log), default=0)
    own = {rank: np.zeros(size, dtype=bool) for rank in {e.rank for e in log}}
    scored = [e for e in log if e.kind == "score"]
    for event in log:
        if event.kind == "score":
            own[event.rank][event.start : event.stop] = True
            continue
        sure = own[event.rank].copy()
        for e in scored if len(own) > 1 else ():
            if e.rank != event.rank and e.meeting < event.meeting:
                sure[e.start : e.stop] = True
        early = event.start + np.flatnonzero(~sure[event.start : event.stop])
        if len(early):
            found.append(
                f"rank {event.rank} trained on {len(early):,} targets before they were scored, "
                f"the first at position {early[0]}{_scored_elsewhere(scored, int(early[0]), event)}"
            )
    return found


def _scored_elsewhere(scored: Sequence[Event], position: int, training: Event) -> str:
    for e in scored:
        if e.start <= position < e.stop and e.rank != training.rank:
            return f" (rank {e.rank} scored it after {e.meeting} meetings, the training came after {training.meeting})"
    return ""


def _effective(scores: Scores) -> tuple[list[Event], list[str]]:
    """The log without trainings that changed nothing, and sentences about changes of state that it does not show."""
    if scores.states is None:
        return list(scores.log), []
    log, hidden, waiting = list[Event](), list[str](), list[Event]()
    at, state = 0, scores.start
    for event in scores.log:
        if event.kind == "train":
            waiting.append(event)
            continue
        for i, now in enumerate(scores.states[at : at + event.stop - event.start]):
            if state is None or now != state:
                log += waiting
                if state is not None and not waiting:
                    hidden.append(f"the state changed before position {event.start + i} was scored, by nothing logged")
            waiting, state = [], now
        log.append(event)
        at += event.stop - event.start
    return log + waiting, hidden


def exactly_once(bench: Bench) -> Outcome:
    """T8. Every target has one score, and they come in order."""
    positions = bench.run(bench.tokens).positions
    failures = []
    inside = positions[(positions >= 0) & (positions < bench.total)]
    counts = np.bincount(inside, minlength=bench.total)
    if len(outside := np.setdiff1d(positions, np.arange(bench.total))):
        failures.append(f"{len(outside)} scores of positions outside the stream, the first {outside[0]}")
    if len(missing := np.flatnonzero(counts == 0)):
        failures.append(f"{len(missing)} targets have no score, the first at position {missing[0]}")
    if len(again := np.flatnonzero(counts > 1)):
        extra = int((counts[again] - 1).sum())
        failures.append(f"{extra} scores beyond the first, of {len(again)} targets, the first at position {again[0]}")
    elif len(back := np.flatnonzero(np.diff(positions) < 0)):
        failures.append(f"position {positions[back[0] + 1]} was scored after position {positions[back[0]]}")
    return outcome(failures, f"positions 0 to {bench.total - 1} once each, in order")


def reset(bench: Bench) -> Outcome:
    """T9. A scorer that has seen the stream scores it the same once more: nothing is left behind."""
    base, failures = bench.nats(bench.tokens), []
    scorer = bench.fresh()
    for turn in ("second", "third"):
        if turn == "second":
            bench.run_of(scorer, bench.tokens)
        again = bench.run_of(scorer, bench.tokens).dense(bench.total)
        if len(at := moved(base, again, bench.tolerance)):
            failures.append(f"{turn} pass of one scorer: {shift(base, again, at)}")
    warmed = bench.fresh()
    bench.rows_of(warmed, bench.tokens, np.arange(1))
    after = bench.run_of(warmed, bench.tokens).dense(bench.total)
    if len(at := moved(base, after, bench.tolerance)):
        failures.append(f"pass after a warm-up on the same stream: {shift(base, after, at)}")
    return outcome(failures, "second and third passes, and one after a warm-up, score the same")


def canary(bench: Bench) -> Outcome:
    """T10. Random tokens cannot be predicted: P(sum of nats <= K ln V - a) <= exp(-a) for any honest scorer."""
    span = bench.layout.canary
    nats = bench.nats(bench.drawn(span.start, span.stop, salt=10))[span.start - 1 : span.stop - 1]
    found, expected = float(nats.sum()), len(nats) * math.log(bench.vocab_size)
    said = f"{len(nats)} random tokens from {span.start} on: {found:.1f} nats, {expected:.1f} expected at least"
    if math.isnan(found):
        return Outcome(Verdict.NOT_TESTED, (f"{len(nats)} random tokens from {span.start} on: not all were scored",))
    return outcome([f"{said}, less {CANARY_NATS:.0f} for luck"] if found < expected - CANARY_NATS else [], said)
