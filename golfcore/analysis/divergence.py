"""How two runs part on the way: the weights that they kept, compared step by step."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import pandas as pd

from golfcore import config
from golfcore.analysis.alignment import distances
from golfcore.analysis.frames import frame
from golfcore.base import tensors
from golfcore.base.errors import UserError
from golfcore.base.records import KEPT, RunFolder
from golfcore.model import params
from golfcore.model.weights import Weights, flat, unflat

if TYPE_CHECKING:
    from golfcore.runs.sweep import Sweep

PARTS = ("matrices", "others", "all")


def kept(run: RunFolder) -> dict[int, Weights]:
    """The weights that a run kept, by step. UserError: none."""
    files = sorted(run.path.glob(KEPT.format("*")))
    if not files:
        raise UserError(f"{run.path}: expected weights kept on the way (run.keep_every), found none")
    return {int(path.stem): unflat(tensors.load(path, "weights kept on the way")[0]) for path in files}


def course(a: RunFolder, b: RunFolder) -> pd.DataFrame:
    """Two runs of one shape at every step that both kept.

    Columns: step, part ("matrices", "others", "all"), l2 (distance), relative (to a's norm), cosine (of the weights),
    moved_cosine (of what each has moved from its own initial weights: NaN where one has not).
    """
    (first, start_a), (second, start_b) = _whole(a), _whole(b)
    rows = []
    for step in sorted(first.keys() & second.keys()):
        at = distances({"a": first[step], "b": second[step]}, "a").set_index("tensor")
        moved = {"a": _less(first[step], start_a), "b": _less(second[step], start_b)}
        along = distances(moved, "a").set_index("tensor")
        for part in PARTS:
            row = {"step": step, "part": part, **at.loc[part, ["l2", "relative", "cosine"]].to_dict()}
            still = pd.isna(along.loc[part, "relative"])
            rows.append(row | {"moved_cosine": None if still else along.loc[part, "cosine"]})
    return frame(rows)


def of_sweep(plan: "Sweep", runs: Sequence[RunFolder]) -> pd.DataFrame:
    """`course` of every arm of a sweep and the arm that it is `on`, seed by seed, and of every two seeds of the latter.

    Further columns: base (arm), change (arm, or "other seed"), pair ("muon-s1 vs muon-rerun-s1").
    """
    by: dict[tuple[str, int], RunFolder] = {}
    for run in runs:
        cfg = config.of_run(run)
        by[cfg.name, cfg.run.seed] = run
    wanted = [((arm.on, s), (name, s), name) for name, arm in plan.arms.items() for n, s in by if n == name and arm.on]
    for base in dict.fromkeys(arm.on for arm in plan.arms.values() if arm.on):
        wanted += [((base, s), (base, t), "other seed") for s, t in combinations([s for n, s in by if n == base], 2)]
    found = []
    for one, other, change in wanted:
        names = {"base": one[0], "change": change, "pair": f"{one[0]}-s{one[1]} vs {other[0]}-s{other[1]}"}
        found.append(course(by[one], by[other]).assign(**names))
    return frame(pd.concat(found)) if found else frame([])


def last(table: pd.DataFrame, part: str = "matrices") -> pd.DataFrame:
    """Means over pairs at the last step: base, change, pairs, relative, cosine, moved_cosine."""
    rows = table[(table["part"] == part) & (table["step"] == table["step"].max())]
    found = rows.groupby(["base", "change"], sort=False)
    means = found[["relative", "cosine", "moved_cosine"]].mean()
    return frame(means.assign(pairs=found.size()).reset_index())


def _whole(run: RunFolder) -> tuple[dict[int, Weights], Weights]:
    """What a run kept, and its initial weights; without what is no weight."""
    cfg = config.of_run(run)
    names = {p.name for p in params.table(cfg.model) if p.kind != "index" and p.exported}
    found = kept(run) | {0: params.init(cfg.model, cfg.run.seed)}
    found = {step: unflat({n: t for n, t in flat(w).items() if n in names}) for step, w in sorted(found.items())}
    return found, found[0]


def _less(weights: Weights, start: Weights) -> Weights:
    before: Mapping = flat(start)
    return unflat({name: t - before[name] for name, t in flat(weights).items()})
