"""Which targets cost the loss: its distribution, its concentration, and the tokens that it falls on.

The published analysis (pr294) gives for each threshold how many targets lie above it and which share of the loss they
bring. The counts alone bound that share from below: a target above a threshold costs at least the threshold. Where a
published share lies under the bound, it cannot be right.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from golfcore.analysis.scores import CLASS_NAMES, by_class
from golfcore.analysis.table import Row, Table
from golfcore.analysis.text import Text, legible, render
from golfcore.data.tokens import TokenClass
from golfcore.evals.result import EvalResult

THRESHOLDS = (1.0, 3.0, 5.0, 7.0, 10.0)  # nats
EDGES = np.arange(0.0, 12.25, 0.25)  # nats; one more bin holds what is beyond
GRID = 100  # points of the curve of concentration
DECILES = 10
CONTEXT = 24  # tokens shown before a hard target
QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9}

PUBLISHED_TARGETS = 61.9e6
PUBLISHED_MEAN = (1.86, 1.97)  # nats a target: the range that the published scores of such models allow
PUBLISHED = {1.0: (36.9e6, 0.85), 3.0: (20.3e6, 0.55), 5.0: (7.2e6, 0.30), 7.0: (1.7e6, 0.15), 10.0: (135e3, 0.03)}


def least_loss(counts: Sequence[float]) -> list[float]:
    """For each of THRESHOLDS the least loss (nats) that targets above it can bring, given how many lie above each.

    sum over the thresholds from it on of (threshold - the one before) x count, the first from 0: every target costs at
    least the highest threshold that it exceeds.
    """
    bounds = []
    for k, threshold in enumerate(THRESHOLDS):
        steps = [threshold, *np.diff(THRESHOLDS[k:])]
        bounds.append(float(np.dot(steps, counts[k:])))
    return bounds


def published() -> Table:
    """The published rows with the shares of loss that their own counts imply at least.

    `bound_low`, `bound_high`: at the largest and the smallest mean loss that the model can have had. `impossible`: the
    published share lies below the lower of them.
    """
    bounds = least_loss([count for count, _ in PUBLISHED.values()])
    rows = Table()
    for (threshold, (count, share)), bound in zip(PUBLISHED.items(), bounds, strict=True):
        low, high = (bound / (mean * PUBLISHED_TARGETS) for mean in reversed(PUBLISHED_MEAN))
        row: Row = {"threshold": threshold, "targets": int(count), "share": count / PUBLISHED_TARGETS}
        row |= {"share_of_loss": share, "bound_low": low, "bound_high": high}
        rows.append(row | {"impossible": share < low})
    return rows


def exceedance(nats: np.ndarray) -> Table:
    """For each threshold: targets above it, their share, their exact share of the loss, and the bound of the counts."""
    above = [nats > threshold for threshold in THRESHOLDS]
    counts, total = [int(here.sum()) for here in above], float(nats.sum())
    return Table(
        {
            "threshold": threshold,
            "targets": count,
            "share": count / len(nats),
            "share_of_loss": float(nats[here].sum()) / total,
            "bound": bound / total,
        }
        for threshold, here, count, bound in zip(THRESHOLDS, above, counts, least_loss(counts), strict=True)
    )


def histogram(nats: np.ndarray) -> Table:
    """Targets and loss by nats, in bins [low, high); the last has no upper edge."""
    index = np.minimum(np.searchsorted(EDGES, nats, "right") - 1, len(EDGES) - 1)
    counts, sums = np.bincount(index, minlength=len(EDGES)), np.bincount(index, nats, minlength=len(EDGES))
    highs = [*map(float, EDGES[1:]), None]
    return Table(
        {
            "low": float(low),
            "high": high,
            "targets": int(n),
            "share": float(n / len(nats)),
            "share_of_loss": float(s / nats.sum()),
        }
        for low, high, n, s in zip(EDGES, highs, counts, sums, strict=True)
    )


def concentration(nats: np.ndarray) -> Table:
    """The share of the loss that the hardest share of the targets brings."""
    sums = np.concatenate(([0.0], np.cumsum(np.sort(nats)[::-1])))
    at = np.round(np.linspace(0, len(nats), GRID + 1)).astype(int)
    return Table({"share": float(n / len(nats)), "share_of_loss": float(sums[n] / sums[-1])} for n in np.unique(at))


def classes(result: EvalResult, text: Text) -> Table:
    """`scores.by_class` with quantiles of the nats of each class, and its share above each threshold."""
    target, nats = text.val[1:], _nats(result)
    scored = ~np.isnan(nats)
    names = {name: token_class for token_class, name in CLASS_NAMES.items()}
    rows = Table()
    for row in by_class(result, text).to_dict("records"):
        here = nats[scored & (text.classes[target] == names[str(row["class"])])]
        found: Row = {name: float(np.quantile(here, q)) for name, q in QUANTILES.items()}
        found |= {f"above_{threshold:g}": float((here > threshold).mean()) for threshold in THRESHOLDS}
        rows.append(row | found)
    return rows


def frequency(result: EvalResult, text: Text) -> Table:
    """By how often the target's token occurs in the training text: tokens of the vocabulary in ten equal groups.

    Group 1 holds the most frequent tenth. `unigram_bits`: what its targets would cost under the frequencies of the
    training text alone (plus one for each token), so that what context saves can be seen.
    """
    nats, target = _nats(result), text.val[1:]
    scored = ~np.isnan(nats)
    counts = np.bincount(text.train, minlength=len(text.classes))
    unigram = -np.log2((counts + 1) / (counts.sum() + len(counts)))
    total, rows = float(nats[scored].sum()), Table()
    for number, group in enumerate(np.array_split(np.argsort(-counts, kind="stable"), DECILES), 1):
        here = scored & np.isin(target, group)
        n, loss = int(here.sum()), float(nats[here].sum())
        row: Row = {"group": number, "tokens": len(group), "most": int(counts[group].max())}
        row |= {"least": int(counts[group].min()), "targets": n, "share": float(n / scored.sum())}
        row["share_of_loss"] = loss / total
        if n:
            row |= {"bits_per_target": float(loss / np.log(2) / n), "unigram_bits": float(unigram[target[here]].mean())}
        rows.append(row)
    return rows


def pieces(result: EvalResult, text: Text, names: Sequence[str], most: int = 20) -> Table:
    """The tokens of the vocabulary that cost most altogether. `names`: `text.pieces_of`."""
    nats, target = _nats(result), text.val[1:]
    scored = ~np.isnan(nats)
    counts, sums = (np.bincount(target[scored], w, minlength=len(names)) for w in (None, nats[scored]))
    total = float(sums.sum())
    return Table(
        {
            "token": int(i),
            "piece": _quoted(names[i]),
            "class": CLASS_NAMES[TokenClass(int(text.classes[i]))],
            "targets": int(counts[i]),
            "bits_per_target": float(sums[i] / np.log(2) / counts[i]),
            "share": float(counts[i] / scored.sum()),
            "share_of_loss": float(sums[i] / total),
        }
        for i in np.argsort(-sums, kind="stable")[:most]
        if counts[i]
    )


def hardest(result: EvalResult, text: Text, names: Sequence[str], most: int = 20) -> Table:
    """The targets that cost most, with the text before each."""
    nats, target = _nats(result), text.val[1:]
    order = np.argsort(-np.nan_to_num(nats, nan=-1.0), kind="stable")[:most]
    return Table(
        {
            "position": int(p),
            "nats": float(nats[p]),
            "target": _quoted(names[target[p]]),
            "class": CLASS_NAMES[TokenClass(int(text.classes[target[p]]))],
            "after": legible(render(names, text.val[max(0, p + 1 - CONTEXT) : p + 1])),
        }
        for p in order
        if not np.isnan(nats[p])
    )


def tables(evaluations: Mapping[str, EvalResult], text: Text, names: Sequence[str], measure: str) -> dict[str, Table]:
    """Every table that has a figure, by the figure's name: distributions of each evaluation, kinds of token of one.

    ValueError: an evaluation without the nats of every target, or of another text.
    """
    nats = {name: (x := _nats(r))[~np.isnan(x)] for name, r in evaluations.items()}
    each = {"histogram": histogram, "exceedance": exceedance, "concentration": concentration}
    found = {
        name: Table({"measure": m, **row} for m, values in nats.items() for row in make(values))
        for name, make in each.items()
    }
    for name in ("exceedance", "concentration"):
        found[name] += [{"measure": "published", **row} for row in published()]
    one = evaluations[measure]
    return found | {
        "classes": classes(one, text),
        "frequency": frequency(one, text),
        "pieces": pieces(one, text, names),
    }


def _quoted(piece: str) -> str:
    """In quotes, so that a space shows, and a piece that is a number stays text in a table's file."""
    return f'"{legible(piece)}"'


def _nats(result: EvalResult) -> np.ndarray:
    if result.per_target is None:
        raise ValueError(f"{result.protocol}: expected the nats of every target")
    return result.per_target.astype(np.float64)
