"""The tests of an audit: tokens are changed and scores watched; what is counted is counted again.

Position p predicts token p + 1, so tokens from c on are the targets of the positions from c - 1 on.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from golfcore.evals.audit.bench import Bench
from golfcore.evals.audit.report import Verdict
from golfcore.evals.audit.scorer import Scores
from golfcore.evals.ledger import Event

REPEATS = 3  # runs that a tolerance is taken from, where runs do not repeat bit for bit
MOST_NOISE = 1e-3  # nats: with more noise than this no test can tell anything
SHAPE_NOISE = 1e-5  # nats: a shorter stream may be computed in batches of another shape
WITHHELD_SIGMAS = 6.0
MOST_EVIDENCE = 4  # lines
MOST_ROWS = 2048  # positions whose whole distribution is looked at
SUM_TOLERANCE = 1e-4  # |ln sum p| in float32
KRAFT_TOLERANCE = 1e-3
GATHER_TOLERANCE = 1e-4  # nats between a recorded score and -ln p of the target
CANARY_NATS = 20.0  # an honest scorer fails with a probability of at most exp(-20)


class Outcome(NamedTuple):
    verdict: Verdict
    evidence: tuple[str, ...]


def outcome(failures: Sequence[str], passed: str) -> Outcome:
    """Fail with the failures as evidence, else pass with what was seen to hold."""
    if not failures:
        return Outcome(Verdict.PASS, (passed,))
    more = (f"and {len(failures) - MOST_EVIDENCE} more",) if len(failures) > MOST_EVIDENCE else ()
    return Outcome(Verdict.FAIL, (*failures[:MOST_EVIDENCE], *more))


def moved(a: np.ndarray, b: np.ndarray, tolerance: float) -> np.ndarray:
    """Indices at which two arrays of scores differ by more than the tolerance, or only one has a score."""
    with np.errstate(invalid="ignore"):
        return np.flatnonzero((np.isnan(a) != np.isnan(b)) | (np.abs(a - b) > tolerance))


def shift(a: np.ndarray, b: np.ndarray, at: np.ndarray) -> str:
    """The first and the largest of the differences at the indices `at`."""
    first, gap = at[0], np.abs(np.nan_to_num(b[at]) - np.nan_to_num(a[at]))
    top = at[gap.argmax()]
    return (
        f"{len(at):,} scores moved, first position {first} by {b[first] - a[first]:+.2e} nats, "
        f"most position {top} by {b[top] - a[top]:+.2e}"
    )


def determinism(bench: Bench) -> Outcome:
    """T0. Fresh scorers agree on the unchanged stream. Sets the tolerance of the other tests to 4 x their noise."""
    base = bench.nats(bench.tokens)
    noise, example = 0.0, ""
    for turn in range(1, REPEATS):
        again = bench.run_of(bench.fresh(), bench.tokens).dense(bench.total)
        at = moved(base, again, 0.0)
        if len(at):
            gaps = np.abs(np.nan_to_num(again, nan=np.inf) - np.nan_to_num(base, nan=np.inf))[at]
            noise, example = max(noise, float(gaps.max())), example or shift(base, again, at)
        elif turn == 1:
            return Outcome(Verdict.PASS, (f"two fresh scorers agree bit for bit on {bench.total:,} targets",))
    bench.tolerance = 4 * noise
    if bench.tolerance > MOST_NOISE:
        return Outcome(Verdict.FAIL, (f"{example}; with such noise no other test means anything",))
    return Outcome(Verdict.PASS, (f"{example}; differences up to {bench.tolerance:.1e} nats are let pass below",))


def future_perturbation(bench: Bench) -> Outcome:
    """T1. Replacing every token from a cut on changes no score before the cut."""
    base, failures = bench.nats(bench.tokens), []
    for cut in bench.layout.cuts:
        other = bench.nats(bench.replaced(cut, bench.total + 1, salt=1))
        if len(at := moved(base[: cut - 1], other[: cut - 1], bench.tolerance)):
            failures.append(f"tokens from {cut} on replaced: {shift(base, other, at)}")
    held = f"tokens replaced from {', '.join(map(str, bench.layout.cuts))} on: every earlier score is the same"
    return outcome(failures, held)


def target_swap(bench: Bench) -> Outcome:
    """T2. Replacing one target changes nothing in its own distribution.

    Also at positions drawn at random and where the scorer was least surprised: who peeks is sure of what he saw.
    """
    failures, probes = [], bench.probes()
    for p, before in zip(probes, bench.rows(bench.tokens, probes), strict=True):
        swapped = bench.swapped(p)
        after = bench.rows(swapped, [p])[0]
        if len(at := moved(before, after, bench.tolerance)):
            top = at[np.abs(np.nan_to_num(after[at]) - np.nan_to_num(before[at])).argmax()]
            failures.append(
                f"target of position {p} {bench.tokens[p + 1]} -> {swapped[p + 1]}: ln p of {len(at):,} tokens moved, "
                f"most that of token {top} by {after[top] - before[top]:+.2e}"
            )
    held = f"targets of positions {', '.join(map(str, probes))} replaced: their distributions are the same"
    return outcome(failures, held)


def influence_map(bench: Bench) -> Outcome:
    """T3. The scores that one token moves, but for its own, are all of later positions."""
    base, failures, seen = bench.nats(bench.tokens), [], []
    for p in bench.layout.swaps:
        other = bench.nats(bench.swapped(p))
        at = moved(base, other, bench.tolerance)
        at = at[at != p]
        if len(early := at[at < p]):
            failures.append(f"token {p + 1} replaced: {shift(base, other, early)}, all before its own")
        elif len(at):
            seen.append(f"token {p + 1} moves {len(at)} scores in {at[0]}..{at[-1]}")
        else:
            seen.append(f"token {p + 1} moves none")
    return outcome(failures, "; ".join(seen))


def truncation(bench: Bench) -> Outcome:
    """T4. A stream that ends earlier is scored the same as far as it goes.

    Where T1 passes and this fails, scores depend on the length alone (a rate's horizon, shares by rank, tail windows).
    """
    base, failures = bench.nats(bench.tokens), []
    for n in bench.layout.prefixes:
        other = bench.nats(bench.tokens[: n + 1])
        if len(at := moved(base[:n], other, max(bench.tolerance, SHAPE_NOISE))):
            failures.append(f"length dependence, {n} targets instead of {bench.total}: {shift(base[:n], other, at)}")
    held = f"the first {', '.join(map(str, bench.layout.prefixes))} targets alone score the same"
    return outcome(failures, held)


def shuffle_later(bench: Bench) -> Outcome:
    """T12. Permuting later documents changes no score before them."""
    base, failures = bench.nats(bench.tokens), []
    for cut in bench.layout.shuffles:
        other = bench.nats(_shuffled(bench, cut))
        if len(at := moved(base[: cut - 1], other[: cut - 1], bench.tolerance)):
            failures.append(f"pieces from token {cut} on permuted: {shift(base, other, at)}")
    held = (
        f"pieces permuted from tokens {' and '.join(map(str, bench.layout.shuffles))} on: earlier scores are the same"
    )
    return outcome(failures, held)


def _shuffled(bench: Bench, cut: int) -> np.ndarray:
    edges = [p for p in bench.layout.pieces if p >= cut]
    pieces = np.split(bench.tokens[cut:], np.array(edges[1:], dtype=np.int64) - cut)
    order = np.random.default_rng((0, 12, cut)).permutation(len(pieces))
    if (order == np.arange(len(order))).all():
        order = order[::-1]
    return np.concatenate([bench.tokens[:cut], *(pieces[i] for i in order)])


def sealed(bench: Bench) -> Outcome:
    """T13. The scorer follows the tokens it is given, knows nothing of those it is not given, and opens no file.

    On a stream drawn at random, the distributions can favour the withheld text only by chance over a permutation of
    it. A scorer that has that text by position (from a file, or from an earlier run) stands out by many sigmas.
    """
    failures = []
    drawn = bench.drawn(0, bench.total + 1, salt=13)
    if not len(moved(bench.nats(bench.tokens), bench.nats(drawn), max(bench.tolerance, SHAPE_NOISE))):
        failures.append("every token of the stream replaced: no score moved")
    positions = np.arange(min(bench.total, 512))
    rows, text = bench.rows(drawn, positions.tolist()), bench.tokens[positions + 1].astype(np.int64)
    rng = np.random.default_rng((0, 130))
    chance = np.array([rows[positions, rng.permutation(text)].sum() for _ in range(200)])
    sigmas = float(rows[positions, text].sum() - chance.mean()) / max(float(chance.std()), 1e-9)
    if sigmas > WITHHELD_SIGMAS:
        failures.append(f"given random tokens, it favours the withheld text by {sigmas:.1f} sigmas over permutations")
    for name in dict.fromkeys(bench.opened):
        failures.append(f"opened while scoring: {name}")
    return outcome(failures, f"opens no file; given random tokens, the withheld text is at {sigmas:+.1f} sigmas")


# -- what is counted: distributions that sum to one, targets scored once, in order, before their use


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
