"""What sharing a row costs while a model learns: losses by class and by route over steps, and what a layout is worth.

Routes belong to pairs, not to a layout, so that models with different tables are compared on the same targets.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from golfcore import config
from golfcore.analysis.buckets import Buckets
from golfcore.analysis.divergence import kept
from golfcore.analysis.frames import frame
from golfcore.analysis.models import rows_of
from golfcore.analysis.text import text_of
from golfcore.base.records import RunFolder
from golfcore.data.tokens import Tables
from golfcore.model.forward import Net, forward, ngram, nll
from golfcore.model.weights import Weights

ROUTES = ("hot, alone", "hot, collided", "cold")  # by their codes in `routes_of`
WITHOUT = {"as it is": {}, "without the gate": {"word_start_boost": 1.0}, "without the table": {"bigram_scale": 0.0}}


def layout(tables: Tables, n_rows: int) -> pd.DataFrame:
    """Which rows of a table of `n_rows` belong to whom, hashed anywhere and split.

    Columns: layout, part, first and last (row), rows, tokens (ids of the class that ends the pairs), pairs (that can
    fall there), pairs_per_row. The last row of the table is of positions without a pair.
    """
    assert tables.word_start is not None
    v, starts, half = len(tables.word_start), int(tables.word_start.sum()), (n_rows - 1) // 2
    parts = [("shared", "all pairs", 0, n_rows - 1, v), ("split", "word start", 0, half, starts)]
    parts.append(("split", "within word", half, 2 * half, v - starts))
    return frame(
        {"layout": kind, "part": part, "first": first, "last": stop - 1, "rows": stop - first, "tokens": tokens}
        | {"pairs": tokens * v, "pairs_per_row": tokens * v / (stop - first)}
        for kind, part, first, stop, tokens in parts
    )


def routes_of(tokens: np.ndarray, tables: Tables, n_rows: int) -> np.ndarray:
    """(V * V,) int8 by previous * V + current: the index in ROUTES of every pair.

    Hot are the `n_rows` - 1 most frequent pairs of the text; collided those of them that share their row of a hashed
    table (anywhere) with another hot one. All others are cold.
    """
    made = Buckets(tokens, tables, n_rows, "shared")
    hot = made.pairs.iloc[: n_rows - 1]
    v = len(made.pieces)
    found = np.full(v * v, 2, np.int8)
    wanted = hot.groupby("row")["times"].transform("size")
    found[(hot["previous"] * v + hot["current"]).to_numpy()] = (wanted > 1).to_numpy()
    return found


def learning(runs: Sequence[RunFolder], rows: int) -> pd.DataFrame:
    """Losses after pairs on `rows` rows of validation text, at every step that the runs kept weights of.

    Columns: arm (name of the configuration), seed, step, word_start (class of the pair), route, targets, nats (mean),
    norm (mean length of the vectors that the table gives there; missing without a table), scale (bigram_scale), gate
    (word_start_boost). Pairs are counted in the training text of the first run with a table; all rows of a step are of
    the same targets.
    """
    sized = next((run for run in runs if config.of_run(run).model.bigram_rows), runs[0])
    text = text_of(sized)
    routes = routes_of(text.train, text.tables, config.of_run(sized).model.bigram_rows or 2)
    found = []
    for run in runs:
        cfg, (net, x, y) = config.of_run(run), rows_of(run, rows)
        for step, weights in kept(run).items():
            rest = weights.rest
            table = _by_route(net, weights, x, y, routes).assign(arm=cfg.name, seed=cfg.run.seed, step=step)
            scalars = {"scale": "bigram_scale", "gate": "word_start_boost"}
            found.append(table.assign(**{k: float(rest[n]) if n in rest else None for k, n in scalars.items()}))
    table = frame(pd.concat(found))
    first = ["arm", "seed", "step"]
    return table[first + [c for c in table if c not in first]]


@torch.no_grad()
def _by_route(net: Net, weights: Weights, x: Tensor, y: Tensor, routes: np.ndarray) -> pd.DataFrame:
    assert net.tables is not None and net.tables.word_start is not None
    nats, norms = [], []
    for part, targets in zip(x.split(8), y.split(8), strict=True):
        nats.append(nll(forward(net, weights, part), targets)[:, 1:])
        norms.append(_lengths(net, weights, part)[:, 1:])
    code = (x[:, :-1] * net.cfg.vocab_size + x[:, 1:]).numpy()
    cells = pd.DataFrame(
        {
            "word_start": net.tables.word_start[x[:, 1:]].numpy().ravel(),
            "route": np.array(ROUTES)[routes[code.ravel()]],
            "nats": torch.cat(nats).double().numpy().ravel(),
            "norm": torch.cat(norms).double().numpy().ravel(),
        }
    )
    grouped = cells.groupby(["word_start", "route"])
    return grouped[["nats", "norm"]].mean().assign(targets=grouped.size()).reset_index()


def _lengths(net: Net, weights: Weights, x: Tensor) -> Tensor:
    """(B, T) length of what the table adds at each position, the gate left out; NaN without a table."""
    rest = weights.rest
    if "bigram" not in rest:
        return torch.full(x.shape, float("nan"))
    without = weights._replace(rest={name: t for name, t in rest.items() if name != "word_start_boost"})
    return ngram(net, without, x, None).norm(dim=-1)


def gains(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """`learning` as differences to an arm of the same seed on the same targets.

    Columns: arm, step, route, difference (nats, mean over seeds and classes by targets), seeds.
    """
    keys = ["arm", "seed", "step", "route"]
    sums = table.assign(total=table["nats"] * table["targets"]).groupby(keys)[["total", "targets"]].sum()
    nats = (sums["total"] / sums["targets"]).unstack("arm")
    less = nats.sub(nats[reference], axis=0).drop(columns=reference).stack().rename("difference").reset_index()
    found = less.groupby(["arm", "step", "route"], sort=False)["difference"]
    return frame(found.agg(["mean", "size"]).rename(columns={"mean": "difference", "size": "seeds"}).reset_index())


@torch.no_grad()
def word_starts(net: Net, weights: Weights, x: Tensor, y: Tensor) -> pd.DataFrame:
    """What word starts cost, and what the gate and the table do for them, on the targets y of x, (B, T).

    Columns: target (its class), share (of targets), nats (mean), loss (share of all nats), then nats without the gate
    and without the table; of models that have them.
    """
    assert net.tables is not None and net.tables.word_start is not None
    starts, found = net.tables.word_start[y].numpy().ravel(), {}
    for name, change in WITHOUT.items():
        if change.keys() <= weights.rest.keys():
            rest = {**weights.rest, **{n: torch.tensor(value) for n, value in change.items()}}
            parts = zip(x.split(8), y.split(8), strict=True)
            nats = [nll(forward(net, weights._replace(rest=rest), a), b) for a, b in parts]
            found[name] = torch.cat(nats).double().numpy().ravel()
    whole, rows = found.pop("as it is"), []
    for target, mask in (("word start", starts), ("within word", ~starts)):
        row = {"target": target, "share": mask.mean(), "nats": whole[mask].mean()}
        row["loss"] = whole[mask].sum() / whole.sum()
        rows.append(row | {f"nats {name}": nats[mask].mean() for name, nats in found.items()})
    return frame(rows)


def recommendation(table: pd.DataFrame) -> str:
    """What a comparison of layouts says to do. `table`: of `compare.compare`, one measure; the first arm is plain.

    Named is the best arm whose difference to the first excludes 0; otherwise the first, as nothing better is shown.
    """
    first, rest = table.iloc[0], table.iloc[1:].dropna(subset=["difference", "high"])
    if rest.empty:
        return f"Too little text or too few arms for intervals: nothing speaks against {first['arm']}, nor for it."
    better, best = rest[rest["high"] < 0], rest.loc[rest["difference"].idxmin()]
    least = rest["detectable"].min()
    if better.empty:
        return (
            f"Keep {first['arm']}: no layout is better than it beyond doubt ({best['arm']}, the best, by "
            f"{best['difference']:+.4f}, 95 % {best['low']:+.4f} to {best['high']:+.4f}); {least:.4f} would have shown."
        )
    best = better.loc[better["difference"].idxmin()]
    return (
        f"Take {best['arm']}: {best['difference']:+.4f} bits per byte against {first['arm']} (95 % {best['low']:+.4f} "
        f"to {best['high']:+.4f}, over {best['over']}, {int(best['seeds'])} seeds), the best of {len(table)} layouts."
    )
