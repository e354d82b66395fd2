"""Tests that change tokens and watch which scores move: determinism, causality, and what a scorer can see at all.

Position p predicts token p + 1, so tokens from c on are the targets of the positions from c - 1 on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from golfcore.evals.audit.bench import Bench
from golfcore.evals.audit.report import Verdict

REPEATS = 3  # runs that a tolerance is taken from, where runs do not repeat bit for bit
MOST_NOISE = 1e-3  # nats: with more noise than this no test can tell anything
SHAPE_NOISE = 1e-5  # nats: a shorter stream may be computed in batches of another shape
WITHHELD_SIGMAS = 6.0
MOST_EVIDENCE = 4  # lines


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
    """T2. Replacing one target changes nothing in its own distribution."""
    failures = []
    for p in bench.layout.swaps:
        swapped = bench.swapped(p)
        a, b = (bench.rows(tokens, [p])[0] for tokens in (bench.tokens, swapped))
        if len(at := moved(a, b, bench.tolerance)):
            top = at[np.abs(np.nan_to_num(b[at]) - np.nan_to_num(a[at])).argmax()]
            failures.append(
                f"target of position {p} {bench.tokens[p + 1]} -> {swapped[p + 1]}: ln p of {len(at):,} tokens moved, "
                f"most that of token {top} by {b[top] - a[top]:+.2e}"
            )
    held = f"targets of positions {', '.join(map(str, bench.layout.swaps))} replaced: their distributions are the same"
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
    order = np.random.default_rng((bench.seed, 12, cut)).permutation(len(pieces))
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
    rng = np.random.default_rng((bench.seed, 130))
    mean, spread = _moments([float(rows[positions, rng.permutation(text)].sum()) for _ in range(200)])
    sigmas = (float(rows[positions, text].sum()) - mean) / max(spread, 1e-9)
    if sigmas > WITHHELD_SIGMAS:
        failures.append(f"given random tokens, it favours the withheld text by {sigmas:.1f} sigmas over permutations")
    for name in dict.fromkeys(bench.opened):
        failures.append(f"opened while scoring: {name}")
    return outcome(failures, f"opens no file; given random tokens, the withheld text is at {sigmas:+.1f} sigmas")


def _moments(values: list[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))
