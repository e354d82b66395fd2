"""Which targets cost the loss: its distribution, its concentration, and the tokens that it falls on.

The published analysis (pr294) gives for each threshold how many targets lie above it and which share of the loss they
bring. The counts alone bound that share from below: a target above a threshold costs at least the threshold. Where a
published share lies under the bound, it cannot be right.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from golfcore.analysis import published as publications
from golfcore.analysis.scores import CLASS_NAMES, by_class, by_group, nats_of
from golfcore.analysis.text import Text, legible, render
from golfcore.data.tokens import TokenClass
from golfcore.evals.result import EvalResult

THRESHOLDS = (1.0, 3.0, 5.0, 7.0, 10.0)  # nats: the published ones
EDGES = np.arange(0.0, 12.25, 0.25)  # nats; one more bin holds what is beyond
GRID = 100  # points of the curve of concentration
DECILES = 10
CONTEXT = 24  # tokens shown before a hard target
QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9}
PUBLISHED_TARGETS = 61.9e6
PUBLISHED_MEAN = (1.86, 1.97)  # nats a target: the range that the published scores of such models allow


def least_loss(counts: np.ndarray) -> np.ndarray:
    """The least nats that the targets above each of THRESHOLDS can bring, given how many lie above each.

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
    found = publications.token_losses()
    counts = found["targets"].to_numpy(float)
    high, low = (least_loss(counts) / (mean * PUBLISHED_TARGETS) for mean in PUBLISHED_MEAN)
    found = found.assign(share=counts / PUBLISHED_TARGETS, bound_low=low, bound_high=high)
    return found.assign(impossible=found["share_of_loss"] < low)


def exceedance(nats: np.ndarray) -> pd.DataFrame:
    """For each threshold: targets above it, their share, their exact share_of_loss, and the bound of the counts."""
    above = nats > np.array(THRESHOLDS)[:, None]
    counts, total = above.sum(1), nats.sum()
    found = pd.DataFrame({"threshold": THRESHOLDS, "targets": counts, "share": counts / len(nats)})
    return found.assign(share_of_loss=above @ nats / total, bound=least_loss(counts) / total)


def histogram(nats: np.ndarray) -> pd.DataFrame:
    """Targets, their share and their share_of_loss by nats, in bins [low, high); the last has no upper edge."""
    index = np.searchsorted(EDGES[1:], nats, "right")
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
    found, nats = by_class(result, text), pd.Series(nats_of(result, text)).dropna()
    kinds = pd.Series(text.classes[text.val[1:]])[nats.index].map(lambda kind: CLASS_NAMES[TokenClass(kind)])
    groups = [nats[kinds == kind] for kind in found["class"]]
    more = {name: [here.quantile(q) for here in groups] for name, q in QUANTILES.items()}
    more |= {f"above_{threshold:g}": [(here > threshold).mean() for here in groups] for threshold in THRESHOLDS}
    return found.assign(**more)


def frequency(result: EvalResult, text: Text) -> pd.DataFrame:
    """By how often the target's token occurs in the training text: tokens of the vocabulary in ten equal groups.

    Columns group (1 holds the most frequent tenth), tokens, most and least occurrences, targets, share, share_of_loss,
    bits_per_target, and unigram_bits: what the targets would cost under the frequencies of the training text alone
    (plus one for each token), so that what context saves can be seen.
    """
    nats, target, vocab = nats_of(result, text), text.val[1:], len(text.classes)
    counts = np.bincount(text.train, minlength=vocab)
    unigram = pd.Series(-np.log2((counts + 1) / (counts.sum() + vocab)))
    groups = np.array_split(np.argsort(-counts, kind="stable"), DECILES)
    group = pd.Series({token: i for i, tokens in enumerate(groups) for token in tokens})
    scored = target[~np.isnan(nats)]
    found = pd.DataFrame({"group": range(1, DECILES + 1), "tokens": [len(tokens) for tokens in groups]})
    found["most"], found["least"] = [counts[t].max() for t in groups], [counts[t].min() for t in groups]
    found = found.join(by_group(nats, group[target].to_numpy(), DECILES))
    return found.assign(unigram_bits=unigram[scored].groupby(group[scored].to_numpy()).mean())


def pieces(result: EvalResult, text: Text, names: Sequence[str], most: int = 20) -> pd.DataFrame:
    """The tokens of the vocabulary that cost most altogether, most first. `names`: `text.pieces_of`.

    Columns token, piece (in quotes), class, targets, bits_per_target, share, share_of_loss.
    """
    found = by_group(nats_of(result, text), text.val[1:], len(names))
    found = found[found["targets"] > 0].sort_values("share_of_loss", ascending=False, kind="stable")[:most]
    found = found.rename_axis("token").reset_index()
    return found.join(_named(found["token"].to_numpy(), text, names, "piece"))


def hardest(result: EvalResult, text: Text, names: Sequence[str], most: int = 20) -> pd.DataFrame:
    """The targets that cost most: position, nats, target (in quotes), class, and the text `after` which each comes."""
    nats, ids = pd.Series(nats_of(result, text)).dropna(), text.val
    found = nats.sort_values(ascending=False, kind="stable")[:most].rename("nats").rename_axis("position").reset_index()
    order = found["position"].to_numpy()
    found = found.join(_named(ids[order + 1], text, names, "target"))
    return found.assign(after=[legible(render(names, ids[max(0, p + 1 - CONTEXT) : p + 1])) for p in order])


def _named(ids: np.ndarray, text: Text, names: Sequence[str], column: str) -> pd.DataFrame:
    """The piece of every id, in quotes so that a space shows, and its class."""
    kinds = [CLASS_NAMES[TokenClass(kind)] for kind in text.classes[ids]]
    return pd.DataFrame({column: [f'"{legible(names[i])}"' for i in ids], "class": kinds})


def tables(
    evaluations: Mapping[str, EvalResult], text: Text, names: Sequence[str], measure: str
) -> dict[str, pd.DataFrame]:
    """Every frame that has a figure, by the figure's name: distributions of each evaluation, kinds of token of one.

    The distributions have a column `measure`: an evaluation's name, or "published". ValueError: an evaluation without
    the nats of every target, or of another text.
    """
    found = {}
    for make in (histogram, exceedance, concentration):
        each = {
            name: make(nats[~np.isnan(nats)]) for name, nats in ((n, nats_of(r, text)) for n, r in evaluations.items())
        }
        each |= {"published": published()} if make is not histogram else {}
        rows = pd.concat(each, names=["measure", None])
        found[make.__name__] = rows.reset_index("measure").reset_index(drop=True)
    one = evaluations[measure]
    found |= {"classes": classes(one, text), "frequency": frequency(one, text), "pieces": pieces(one, text, names)}
    return found
