"""Which targets cost the loss: its distribution, its concentration, and the tokens that it falls on.

The published analysis (pr294) gives for each threshold how many targets lie above it and which share of the loss they
bring. The counts alone bound that share from below: a target above a threshold costs at least the threshold. Where a
published share lies under the bound, it cannot be right.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from golfcore.analysis.frames import frame
from golfcore.analysis.scores import CLASS_NAMES, by_class
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


def least_loss(counts: Sequence[float] | np.ndarray) -> np.ndarray:
    """For each of THRESHOLDS the least loss (nats) that targets above it can bring, given how many lie above each.

    sum over the thresholds from it on of (threshold - the one before) x count, the first from 0: every target costs at
    least the highest threshold that it exceeds.
    """
    steps = ([threshold, *np.diff(THRESHOLDS[k:])] for k, threshold in enumerate(THRESHOLDS))
    return np.array([np.dot(step, counts[k:]) for k, step in enumerate(steps)])


def published() -> pd.DataFrame:
    """The published rows: threshold, targets, share, share_of_loss, bound_low, bound_high, impossible.

    `bound_low`, `bound_high`: the shares of loss that the counts imply at least, at the largest and the smallest mean
    loss that the model can have had. `impossible`: the published share lies below the lower of them.
    """
    counts, shares = (np.array(column) for column in zip(*PUBLISHED.values(), strict=True))
    found = pd.DataFrame({"threshold": list(PUBLISHED), "targets": counts.astype(int)}).astype({"targets": "Int64"})
    low, high = (least_loss(counts) / (mean * PUBLISHED_TARGETS) for mean in reversed(PUBLISHED_MEAN))
    found = found.assign(share=counts / PUBLISHED_TARGETS, share_of_loss=shares, bound_low=low, bound_high=high)
    return found.assign(impossible=shares < low)


def exceedance(nats: np.ndarray) -> pd.DataFrame:
    """For each threshold: targets above it, their share, their exact share_of_loss, and the bound of the counts."""
    counts = np.array([(nats > threshold).sum() for threshold in THRESHOLDS])
    sums = np.array([nats[nats > threshold].sum() for threshold in THRESHOLDS])
    found = pd.DataFrame({"threshold": THRESHOLDS, "targets": counts, "share": counts / len(nats)})
    return found.assign(share_of_loss=sums / nats.sum(), bound=least_loss(counts) / nats.sum())


def histogram(nats: np.ndarray) -> pd.DataFrame:
    """Targets, their share and their share_of_loss by nats, in bins [low, high); the last has no upper edge."""
    index = np.minimum(np.searchsorted(EDGES, nats, "right") - 1, len(EDGES) - 1)
    counts, sums = np.bincount(index, minlength=len(EDGES)), np.bincount(index, nats, minlength=len(EDGES))
    found = pd.DataFrame({"low": EDGES, "high": [*EDGES[1:], np.nan], "targets": counts})
    return found.assign(share=counts / len(nats), share_of_loss=sums / nats.sum())


def concentration(nats: np.ndarray) -> pd.DataFrame:
    """The share_of_loss that the hardest share of the targets brings."""
    sums = np.concatenate(([0.0], np.cumsum(np.sort(nats)[::-1])))
    at = np.unique(np.round(np.linspace(0, len(nats), GRID + 1)).astype(int))
    return pd.DataFrame({"share": at / len(nats), "share_of_loss": sums[at] / sums[-1]})


def classes(result: EvalResult, text: Text) -> pd.DataFrame:
    """`scores.by_class` with quantiles of the nats of each class, and its share above each threshold."""
    target, nats = text.val[1:], _nats(result)
    found = pd.DataFrame(by_class(result, text))
    rows = []
    for token_class in (kind for kind, name in CLASS_NAMES.items() if name in set(found["class"])):
        here = nats[~np.isnan(nats) & (text.classes[target] == token_class)]
        row = {name: float(np.quantile(here, q)) for name, q in QUANTILES.items()}
        rows.append(row | {f"above_{threshold:g}": float((here > threshold).mean()) for threshold in THRESHOLDS})
    return pd.concat([found, pd.DataFrame(rows)], axis="columns")


def frequency(result: EvalResult, text: Text) -> pd.DataFrame:
    """By how often the target's token occurs in the training text: tokens of the vocabulary in ten equal groups.

    Columns group (1 holds the most frequent tenth), tokens, most and least occurrences, targets, share, share_of_loss,
    bits_per_target, and unigram_bits: what the targets would cost under the frequencies of the training text alone
    (plus one for each token), so that what context saves can be seen.
    """
    nats, target = _nats(result), text.val[1:]
    scored = ~np.isnan(nats)
    counts = np.bincount(text.train, minlength=len(text.classes))
    unigram = -np.log2((counts + 1) / (counts.sum() + len(counts)))
    rows = []
    for number, group in enumerate(np.array_split(np.argsort(-counts, kind="stable"), DECILES), 1):
        here = scored & np.isin(target, group)
        n, loss = int(here.sum()), float(nats[here].sum())
        row: dict[str, Any] = {"group": number, "tokens": len(group), "most": int(counts[group].max())}
        row |= {"least": int(counts[group].min()), "targets": n, "share": float(n / scored.sum())}
        row |= {"share_of_loss": loss / float(nats[scored].sum())}
        if n:
            row |= {"bits_per_target": float(loss / np.log(2) / n), "unigram_bits": float(unigram[target[here]].mean())}
        rows.append(row)
    return frame(rows)


def pieces(result: EvalResult, text: Text, names: Sequence[str], most: int = 20) -> pd.DataFrame:
    """The tokens of the vocabulary that cost most altogether, most first. `names`: `text.pieces_of`.

    Columns token, piece (in quotes), class, targets, bits_per_target, share, share_of_loss.
    """
    nats, target = _nats(result), text.val[1:]
    scored = ~np.isnan(nats)
    counts, sums = (np.bincount(target[scored], w, minlength=len(names)) for w in (None, nats[scored]))
    first = np.array([i for i in np.argsort(-sums, kind="stable")[:most] if counts[i]], int)
    found = _named(pd.DataFrame({"token": first}), first, text, names, "piece")
    found = found.assign(targets=counts[first], bits_per_target=sums[first] / np.log(2) / counts[first])
    return found.assign(share=counts[first] / scored.sum(), share_of_loss=sums[first] / sums.sum())


def hardest(result: EvalResult, text: Text, names: Sequence[str], most: int = 20) -> pd.DataFrame:
    """The targets that cost most: position, nats, target (in quotes), class, and the text `after` which each comes."""
    nats, ids = _nats(result), text.val
    order = np.argsort(-np.nan_to_num(nats, nan=-1.0), kind="stable")[: min(most, int((~np.isnan(nats)).sum()))]
    found = pd.DataFrame({"position": order, "nats": nats[order]})
    found = _named(found, ids[order + 1], text, names, "target")
    return found.assign(after=[legible(render(names, ids[max(0, p + 1 - CONTEXT) : p + 1])) for p in order])


def _named(found: pd.DataFrame, ids: np.ndarray, text: Text, names: Sequence[str], column: str) -> pd.DataFrame:
    """With the piece of every id, in quotes so that a space shows, and its class."""
    quoted = [f'"{legible(names[i])}"' for i in ids]
    kinds = [CLASS_NAMES[TokenClass(int(text.classes[i]))] for i in ids]
    return found.assign(**{column: quoted, "class": kinds})


def tables(
    evaluations: Mapping[str, EvalResult], text: Text, names: Sequence[str], measure: str
) -> dict[str, pd.DataFrame]:
    """Every frame that has a figure, by the figure's name: distributions of each evaluation, kinds of token of one.

    The distributions have a column `measure`: an evaluation's name, or "published". ValueError: an evaluation without
    the nats of every target, or of another text.
    """
    nats = {name: (x := _nats(r))[~np.isnan(x)] for name, r in evaluations.items()}
    make = {"histogram": histogram, "exceedance": exceedance, "concentration": concentration}
    each = {name: {m: of(values) for m, values in nats.items()} for name, of in make.items()}
    for name in ("exceedance", "concentration"):
        each[name]["published"] = published()
    found = {
        name: pd.concat(parts, names=["measure", "row"]).reset_index(level="measure").reset_index(drop=True)
        for name, parts in each.items()
    }
    one = evaluations[measure]
    return found | {
        "classes": classes(one, text),
        "frequency": frequency(one, text),
        "pieces": pieces(one, text, names),
    }


def _nats(result: EvalResult) -> np.ndarray:
    if result.per_target is None:
        raise ValueError(f"{result.protocol}: expected the nats of every target")
    return result.per_target.astype(np.float64)
