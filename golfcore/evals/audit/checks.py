"""The tests of an audit: tokens are changed and scores watched; what is counted is counted again.

Position p predicts token p + 1, so tokens from c on are the targets of the positions from c - 1 on.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import logsumexp

from golfcore.evals.audit.bench import Bench
from golfcore.evals.audit.report import Verdict
from golfcore.evals.audit.scorer import Scores
from golfcore.evals.bigram import fit_bigram
from golfcore.evals.ledger import Event, read_before, trained_too_early

REPEATS = 2  # further runs that a tolerance is taken from, where runs do not repeat bit for bit
MOST_NOISE = 1e-3  # nats: with more noise than this no test can tell anything
SHAPE_NOISE = 1e-5  # nats: a shorter stream may be computed in batches of another shape
WITHHELD_SIGMAS = 6.0
MOST_EVIDENCE = 4  # lines
MOST_ROWS = 2048  # positions whose whole distribution is looked at
SUM_TOLERANCE = 1e-4  # |ln sum p| in float32
KRAFT_TOLERANCE = 1e-3
GATHER_TOLERANCE = 1e-4  # nats between a recorded score and -ln p of the target
MEMORY_NATS, MEMORY_SHARE = 1.0, 0.25  # gained a target, and cost beside the other text: what only a copy explains
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


def differences(what: str, a: np.ndarray, b: np.ndarray, tolerance: float) -> list[str]:
    """A sentence that begins with `what` about the scores `a` that are others in `b`; none if they are the same."""
    at = moved(a, b[: len(a)], tolerance)
    if not len(at):
        return []
    gap = np.nan_to_num(b[at]) - np.nan_to_num(a[at])
    top = np.abs(gap).argmax()
    return [
        f"{what}: {len(at):,} scores moved, first position {at[0]} by {gap[0]:+.2e} nats, "
        f"most position {at[top]} by {gap[top]:+.2e}"
    ]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def determinism(bench: Bench) -> Outcome:
    """T0. Fresh scorers agree on the unchanged stream. Sets the tolerance of the other tests to 4 x their noise."""
    base, again = bench.nats(bench.tokens), bench.nats(bench.tokens, bench.fresh())
    if not (example := differences("the same stream again", base, again, 0.0)):
        return Outcome(Verdict.PASS, (f"two fresh scorers agree bit for bit on {bench.total:,} targets",))
    for other in (again, *(bench.nats(bench.tokens, bench.fresh()) for _ in range(REPEATS - 1))):
        gaps = np.nan_to_num(np.abs(other - base)[moved(base, other, 0.0)], nan=np.inf)
        bench.tolerance = max(bench.tolerance, 4 * float(gaps.max(initial=0.0)))
    if bench.tolerance > MOST_NOISE:
        return Outcome(Verdict.FAIL, (*example, "with such noise no other test means anything"))
    return Outcome(Verdict.PASS, (*example, f"differences up to {bench.tolerance:.1e} nats are let pass below"))


def future_perturbation(bench: Bench) -> Outcome:
    """T1. Replacing every token from a cut on changes no score before the cut."""
    base, failures, cuts = bench.nats(bench.tokens), [], bench.layout.cuts
    for cut in cuts:
        other = bench.nats(bench.replaced(cut, bench.total + 1, salt=1))
        failures += differences(f"tokens from {cut} on replaced", base[: cut - 1], other, bench.tolerance)
    return outcome(failures, f"tokens replaced from {_listed(cuts)} on: every earlier score is the same")


def target_swap(bench: Bench) -> Outcome:
    """T2. Replacing one target changes nothing in its own distribution.

    Also at positions drawn at random and where the scorer was least surprised: who peeks is sure of what he saw.
    """
    probes = bench.probes()
    failures = _peeks(bench, bench.tokens, probes)
    return outcome(failures, f"targets of positions {_listed(probes)} replaced: their distributions are the same")


def _peeks(bench: Bench, tokens: np.ndarray, probes: Sequence[int]) -> list[str]:
    """A sentence for each of the positions whose distribution is another where its target is."""
    failures = []
    for p, before in zip(probes, bench.rows(tokens, probes), strict=True):
        swapped = bench.swapped(p, tokens)
        after = bench.rows(swapped, [p])[0]
        if len(at := moved(before, after, bench.tolerance)):
            top = at[np.abs(np.nan_to_num(after[at]) - np.nan_to_num(before[at])).argmax()]
            failures.append(
                f"target of position {p} {tokens[p + 1]} -> {swapped[p + 1]}: ln p of {len(at):,} tokens moved, "
                f"most that of token {top} by {after[top] - before[top]:+.2e}"
            )
    return failures


def long_stream(bench: Bench) -> Outcome:
    """T14. T1 and T2 hold on a stream of realistic length, at a place that is drawn and where the scorer is surest."""
    tokens = bench.lengthened()
    n, base, rng = len(tokens) - 1, bench.nats(tokens), bench.rng(140)
    cut = int(rng.integers(n // 2, n - 1))
    what = f"{n:,} targets, tokens from {cut} on replaced"
    failures = differences(what, base[: cut - 1], bench.nats(bench.replaced(cut, n + 1, 1, tokens)), bench.tolerance)
    late = n // 2 + int(np.nan_to_num(base[n // 2 :], nan=np.inf).argmin())
    failures += _peeks(bench, tokens, sorted({late, int(rng.integers(n // 2, n))}))
    return outcome(failures, f"{n:,} targets: earlier scores are the same from {cut} on, and so are distributions")


def influence_map(bench: Bench) -> Outcome:
    """T3. The scores that one token moves, but for its own, are all of later positions."""
    base, failures, seen = bench.nats(bench.tokens), [], []
    for p in bench.layout.swaps:
        other = bench.nats(bench.swapped(p))
        failures += differences(f"token {p + 1} replaced, before its own", base[:p], other, bench.tolerance)
        later = p + 1 + moved(base[p + 1 :], other[p + 1 :], bench.tolerance)
        seen.append(f"token {p + 1} moves " + (f"{len(later)} in {later[0]}..{later[-1]}" if len(later) else "none"))
    return outcome(failures, "; ".join(seen))


def truncation(bench: Bench) -> Outcome:
    """T4. A stream that ends earlier is scored the same as far as it goes.

    Where T1 passes and this fails, scores depend on the length alone (a rate's horizon, shares by rank, tail windows).
    """
    base, failures, tolerance = bench.nats(bench.tokens), [], max(bench.tolerance, SHAPE_NOISE)
    for n in bench.layout.prefixes:
        what = f"length dependence, {n} targets instead of {bench.total}"
        failures += differences(what, base[:n], bench.nats(bench.tokens[: n + 1]), tolerance)
    return outcome(failures, f"the first {_listed(bench.layout.prefixes)} targets alone score the same")


def shuffle_later(bench: Bench) -> Outcome:
    """T12. Permuting later documents changes no score before them."""
    base, failures, cuts = bench.nats(bench.tokens), [], bench.layout.shuffles
    for cut in cuts:
        other = bench.nats(_shuffled(bench, cut))
        failures += differences(f"pieces from token {cut} on permuted", base[: cut - 1], other, bench.tolerance)
    return outcome(failures, f"pieces permuted from tokens {_listed(cuts)} on: earlier scores are the same")


def _shuffled(bench: Bench, cut: int) -> np.ndarray:
    edges = [p for p in bench.layout.pieces if p >= cut]
    pieces = np.split(bench.tokens[cut:], np.array(edges[1:], dtype=np.int64) - cut)
    order = bench.rng(12, cut).permutation(len(pieces))
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
    rng = bench.rng(130)
    chance = np.array([rows[positions, rng.permutation(text)].sum() for _ in range(200)])
    sigmas = float(rows[positions, text].sum() - chance.mean()) / max(float(chance.std()), 1e-9)
    if sigmas > WITHHELD_SIGMAS:
        failures.append(f"given random tokens, it favours the withheld text by {sigmas:.1f} sigmas over permutations")
    failures += [f"opened while scoring: {name}" for name in dict.fromkeys(bench.opened)]
    return outcome(failures, f"opens no file; given random tokens, the withheld text is at {sigmas:+.1f} sigmas")


# -- what is counted: distributions that sum to one, targets scored once, in order, before their use


def white_box(bench: Bench) -> Outcome:
    """T5. Distributions are finite and sum to one, and the scores are read off them: nats = -ln p(target)."""
    failures, worst = [], 0.0
    positions = np.unique(np.linspace(0, bench.total - 1, min(bench.total, MOST_ROWS)).astype(np.int64))
    streams = [("", bench.tokens, positions)]
    streams += [(" with its target replaced", bench.swapped(p), np.array([p])) for p in bench.layout.swaps]
    for what, tokens, at in streams:
        rows, nats = bench.rows(tokens, at.tolist()), bench.nats(tokens)[at]
        sums = logsumexp(rows, axis=1)
        if len(bad := np.flatnonzero(~(np.abs(sums) <= SUM_TOLERANCE))):
            i = bad[np.nan_to_num(np.abs(sums[bad]), nan=np.inf).argmax()]
            failures.append(f"{len(bad)} of {len(at)} sums are not 1: position {at[i]}{what}: {np.exp(sums[i]):.6f}")
        worst = max(worst, float(np.abs(sums).max()))
        expected = -rows[np.arange(len(at)), tokens[at + 1].astype(np.int64)]
        if len(bad := moved(expected, nats, GATHER_TOLERANCE + bench.tolerance)):
            i = bad[0]
            failures.append(
                f"{len(bad)} of {len(at)} scores are not -ln p of the target: position {at[i]}{what}: recorded "
                f"{nats[i]:.6f}, the distribution says {expected[i]:.6f}"
            )
    return outcome(failures, f"{len(positions):,} distributions: |ln sum| at most {worst:.1e}, scores read off them")


def black_box(bench: Bench) -> Outcome:
    """T6. The probabilities of all tokens, each scored as the target of a stream of its own, sum to one."""
    failures, sums = [], []
    for p in bench.layout.blackbox:
        total, tokens = 0.0, bench.tokens[: p + 2].copy()
        for token in range(bench.vocab_size):
            tokens[p + 1] = token
            total += math.exp(-bench.nats(tokens)[p])
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
    trained = [e.stop - e.start for e in log if e.kind == "train"]
    held = f"trained {len(trained)} times on {sum(trained):,} targets, each after its score"
    states = "state not hashed" if scores.states is None else f"{len(np.unique(scores.states))} states"
    return outcome([*trained_too_early(log), *hidden], f"{held if trained else 'never trained'}; {states}")


def _effective(scores: Scores) -> tuple[list[Event], list[str]]:
    """The log without trainings that changed nothing, and sentences about changes of state that it does not show."""
    if scores.states is None:
        return list(scores.log), []
    log, hidden, waiting = list[Event](), list[str](), list[Event]()
    at, state = 0, scores.start
    for event in scores.log:
        if event.kind == "train":
            waiting.append(event)
        if event.kind != "score":
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
    """T8. Every target has one score, and they come in order.

    Earlier reading that the log shows is told: what came of it is for the other tests to see.
    """
    scores, everything, failures = bench.run(bench.tokens), np.arange(bench.total), []
    positions, early = scores.positions, read_before(scores.log)
    if len(outside := np.setdiff1d(positions, everything)):
        failures.append(f"{len(outside)} scores of positions outside the stream, the first {outside[0]}")
    if len(missing := np.setdiff1d(everything, positions)):
        failures.append(f"{len(missing)} targets have no score, the first at position {missing[0]}")
    found, counts = np.unique(positions, return_counts=True)
    if len(again := found[counts > 1]):
        extra = len(positions) - len(found)
        failures.append(f"{extra} scores beyond the first, of {len(again)} targets, the first at position {again[0]}")
    elif len(back := np.flatnonzero(np.diff(positions) < 0)):
        failures.append(f"position {positions[back[0] + 1]} was scored after position {positions[back[0]]}")
        pieces = 1 + int((np.diff(positions) != 1).sum())
        bits = math.lgamma(pieces + 1) / math.log(2)
        failures.append(
            f"who decodes must be told the order of {pieces:,} pieces: log2({pieces:,}!) = {bits:,.0f} bits"
        )
    held = f"positions 0 to {bench.total - 1} once each, in order"
    if len(early):
        held += f"; a warm-up or another pass read {len(early):,} before, the first at position {early[0]}"
    return outcome(failures, held)


def reset(bench: Bench) -> Outcome:
    """T9. A scorer that has seen the stream scores it the same once more: nothing is left behind."""
    base, failures = bench.nats(bench.tokens), []
    used, warmed = bench.fresh(), bench.fresh()
    bench.run_of(used, bench.tokens)
    bench.rows_of(warmed, bench.tokens, np.array([0, bench.total - 1]))
    passes = {"second pass of one scorer": used, "third pass of one scorer": used, "pass after a warm-up": warmed}
    for what, scorer in passes.items():
        again = bench.nats(bench.tokens, scorer)
        failures += differences(f"{what} on the same stream", base, again, bench.tolerance)
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


def memory(bench: Bench, brought: np.ndarray) -> Outcome:
    """T15. The stream is no cheaper than text of its kind that the auditor brings, beyond what counts of pairs explain.

    `brought` (M + 1,): nobody else has it. What a scorer gains over one bigram model of both texts is nearly the same
    on two texts of one kind; a copy of the published text gains what no model does, and costs next to nothing. A pass
    is no proof. Text of another kind than the stream's shows as a gain, but not as a stream that is nearly free.
    """
    plain, costs, gains = fit_bigram([bench.tokens, brought], bench.vocab_size), list[float](), list[float]()
    for text in (bench.tokens, brought):
        nats = bench.nats(text)
        known = ~np.isnan(nats)
        costs.append(float(nats[known].mean()))
        gains.append(float(plain.nats(text)[known].mean()) - costs[-1])
    said = (
        f"less than counts of pairs: {gains[0]:+.3f} nats a target on the stream, {gains[1]:+.3f} on the text that the "
        f"auditor brings ({len(brought) - 1:,} targets)"
    )
    known_by_heart = gains[0] - gains[1] > MEMORY_NATS and costs[0] < MEMORY_SHARE * costs[1]
    return outcome([said] if known_by_heart else [], said)
