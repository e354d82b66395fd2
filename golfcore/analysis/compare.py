"""Runs side by side. An arm is every run of one configuration, whatever its seed; the first arm is the reference.

Two kinds of chance are kept apart. Over seeds: would other runs of the same arms differ as these do (Welch's t)? Over
chunks: would these runs differ so on other text (paired block bootstrap)? A finding must survive both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from golfcore import config
from golfcore.analysis.runs import report
from golfcore.analysis.seeds import detectable, mean_interval, welch
from golfcore.analysis.stats import MIN_CHUNKS, Interval, block_length, paired_bootstrap
from golfcore.analysis.table import Row, Table, number, to_text
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config, differences
from golfcore.evals.score import bits_per_byte
from golfcore.runs.folder import find_run

Measure = Mapping[str, int]  # evaluation -> its weight in the sum
MEASURES: dict[str, Measure] = {
    "static": {"static": 1},  # a
    "sliding": {"sliding": 1},  # b
    "ttt": {"ttt": 1},  # c
    "context_gain": {"sliding": 1, "static": -1},  # b - a
    "ttt_gain": {"ttt": 1, "sliding": -1},  # c - b
    "total_gain": {"ttt": 1, "static": -1},  # c - a, what was published as the TTT delta
}
EVALUATIONS = ("static", "sliding", "ttt")
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Scored:
    """A finished run: its scores, and the scores of each chunk of the validation text, in bits per byte."""

    run: RunFolder
    config: Config
    data: str
    tokens: int
    bpb: dict[str, float]
    chunks: dict[str, list[dict]]

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def spans(self) -> list[tuple[int, int]]:
        return [(c["start"], c["stop"]) for c in self.chunks[EVALUATIONS[0]]]

    @cached_property
    def weights(self) -> np.ndarray:
        """(n,) scored bytes of each chunk, 0 where an evaluation scored none."""
        return np.min([[c["bytes"] for c in rows] for rows in self.chunks.values()], axis=0).astype(float)

    def total(self, measure: Measure) -> float:
        return sum(weight * self.bpb[name] for name, weight in measure.items())

    def by_chunk(self, measure: Measure) -> np.ndarray:
        """(n,) the measure on each chunk alone; 0 where nothing was scored, which then weighs nothing."""
        value = np.zeros(len(self.weights))
        for name, weight in measure.items():
            value += [weight * bits_per_byte(c["nats"], c["bytes"]) if c["bytes"] else 0.0 for c in self.chunks[name]]
        return value


@dataclass(frozen=True)
class Arm:
    """The runs of one configuration, by seed."""

    label: str
    config: Config  # with seed 0
    runs: tuple[Scored, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    def totals(self, measure: Measure) -> list[float]:
        return [run.total(measure) for run in self.runs]

    def by_chunk(self, measure: Measure, seeds: Sequence[int]) -> np.ndarray:
        """(n,) the measure on each chunk, mean over the runs with these seeds."""
        return np.mean([run.by_chunk(measure) for run in self.runs if run.seed in seeds], axis=0)


def scored(path: Path) -> Scored:
    """The scores of the run at `path` (UserError if it is no run folder, or has not finished)."""
    run = find_run(path)
    rows = report(run)["measures"]
    chunks = {e: files.read_json(run.file(f"eval/{e}.json"), "an evaluation result")["chunks"] for e in EVALUATIONS}
    bpb = {e: rows[e]["bpb"] for e in EVALUATIONS}
    return Scored(run, config.of_run(run), run.data_hash(), rows["static"]["tokens"], bpb, chunks)


def arms_of(paths: Sequence[Path]) -> list[Arm]:
    """The runs at `paths` as arms, in the order of first mention, labelled by preset (and hash, if two share one).

    UserError: no run, a run that has not finished, runs on other data, validation text or chunks than the first, or
    two runs of one configuration and seed.
    """
    runs = [scored(path) for path in paths]
    if not runs:
        raise UserError("compare: expected run folders, found none")
    for run in runs[1:]:
        _same_text(runs[0], run)
    groups: dict[str, list[Scored]] = {}
    for run in runs:
        group = groups.setdefault(seedless(run.config).hash, [])
        for other in group:
            if other.seed == run.seed:
                raise UserError(
                    f"{run.run.path}: expected one run of each configuration and seed, found {other.run.path} the same"
                )
        group.append(run)
    names = [group[0].config.name for group in groups.values()]
    found = []
    for key, group in groups.items():
        name, config = group[0].config.name, seedless(group[0].config)
        label = name if names.count(name) == 1 else f"{name}-{key[:6]}"
        found.append(Arm(label, config, tuple(sorted(group, key=lambda run: run.seed))))
    return found


def seedless(config: Config) -> Config:
    return replace(config, run=replace(config.run, seed=0))


def _same_text(first: Scored, other: Scored) -> None:
    where, what = other.run.path, f"as in {first.run.path}"
    if other.data != first.data:
        raise UserError(f"{where}: expected data {first.data[:12]} {what}, found {other.data[:12]}")
    if other.tokens != first.tokens or other.spans[-1][1] != first.spans[-1][1]:
        raise UserError(f"{where}: expected {first.tokens:,} validation targets {what}, found {other.tokens:,}")
    if other.spans != first.spans:
        raise UserError(
            f"{where}: expected {len(first.spans)} chunks {what}, found {len(other.spans)}, which do not pair"
        )


def compare(arms: Sequence[Arm]) -> Table:
    """One row for each measure and arm; those after the first arm carry their difference to it.

    `mean`, `sd`: over seeds, in bits per byte; `gain_low`, `gain_high`: interval of the mean of a gain, over chunks.
    `difference`: of the means. `t`, `df`, `p`, `seeds_low`, `seeds_high`: Welch's t, where both arms have 2 seeds.
    `pairs`: seeds that both arms have. `paired`, `chunks_low`, `chunks_high`: difference over those pairs (over all
    runs if there are none) and its bootstrap interval, where there are at least MIN_CHUNKS chunks. `mde_seeds`: the
    true difference that the t-test would find 4 times out of 5; `mde_chunks`: half of the bootstrap interval.
    """
    return Table(_row(arms[0], arm, name, measure) for name, measure in MEASURES.items() for arm in arms)


def _row(reference: Arm, arm: Arm, name: str, measure: Measure) -> Row:
    totals = arm.totals(measure)
    row: Row = {"measure": name, "arm": arm.label, "runs": len(totals), "mean": float(np.mean(totals))}
    row["sd"] = float(np.std(totals, ddof=1)) if len(totals) > 1 else None
    if sum(measure.values()) == 0:
        found = over_chunks(arm, measure)
        row |= {"gain_low": found.low, "gain_high": found.high} if found else {}
    return row if arm is reference else row | contrast(reference, arm, measure)


def contrast(reference: Arm, arm: Arm, measure: Measure) -> Row:
    """The difference arm - reference of a measure, with the columns that `compare` describes."""
    ours, theirs = arm.totals(measure), reference.totals(measure)
    row: Row = {"difference": float(np.mean(ours) - np.mean(theirs))}
    if min(len(ours), len(theirs)) > 1:
        w = welch(theirs, ours)
        row |= {"t": w.t, "df": w.df, "p": w.p, "seeds_low": w.low, "seeds_high": w.high}
        row["mde_seeds"] = detectable(w.error, w.df)
    pairs = sorted(set(arm.seeds) & set(reference.seeds))
    ours_here = arm.by_chunk(measure, pairs or arm.seeds)
    theirs_here = reference.by_chunk(measure, pairs or reference.seeds)
    by_chunk, weights = ours_here - theirs_here, arm.runs[0].weights
    row |= {"pairs": len(pairs), "paired": float(np.average(by_chunk, weights=weights)), "chunks": len(by_chunk)}
    found = _bootstrap(by_chunk, weights)
    if found:
        row |= {"chunks_low": found.low, "chunks_high": found.high, "mde_chunks": (found.high - found.low) / 2}
    return row


def over_chunks(arm: Arm, measure: Measure) -> Interval | None:
    """The measure of an arm, mean over its runs, with its interval over chunks; None if there are too few."""
    return _bootstrap(arm.by_chunk(measure, arm.seeds), arm.runs[0].weights)


def over_seeds(arm: Arm, measure: Measure) -> Interval | None:
    """The mean of a measure over the runs of an arm, with Student's interval; None if there is one run."""
    totals = arm.totals(measure)
    return Interval(float(np.mean(totals)), *mean_interval(totals)) if len(totals) > 1 else None


def _bootstrap(by_chunk: np.ndarray, weights: np.ndarray) -> Interval | None:
    kept = weights > 0
    n = int(kept.sum())
    return paired_bootstrap(by_chunk[kept], weights[kept], block_length(n), BOOTSTRAP_SEED) if n >= MIN_CHUNKS else None


def as_text(arms: Sequence[Arm], table: Table) -> str:
    """The comparison for a terminal: what was compared, then one line for each measure and arm."""
    first = arms[0].runs[0]
    lines = [f"data {first.data[:12]}, {first.tokens:,} targets in {len(first.spans)} chunks; bits per byte"]
    for arm in arms:
        change = "reference" if arm is arms[0] else differences(arms[0].config, arm.config)
        lines.append(f"{arm.label}: seeds {', '.join(map(str, arm.seeds))}; {change}")
    shown = Table(
        {
            "measure": str(row["measure"]).replace("_", " "),
            **{c: row.get(c) for c in ("arm", "mean", "sd")},
            "difference": _signed(row, "difference"),
            "over seeds": _interval(row, "seeds"),
            "p": row.get("p"),
            "mde": row.get("mde_seeds"),
            "over chunks": _interval(row, "chunks"),
            "half": row.get("mde_chunks"),
        }
        for row in table
    )
    notes = (
        "over seeds: Welch's t, 95 %; mde: true difference found 4 times out of 5. "
        "over chunks: paired block bootstrap, 95 %; half: half of that interval."
    )
    return "\n".join([*lines, "", to_text(shown), "", notes])


def _signed(row: Row, column: str) -> str:
    return "" if row.get(column) is None else f"{number(row, column):+.5f}"


def _interval(row: Row, over: str) -> str:
    low, high = row.get(f"{over}_low"), row.get(f"{over}_high")
    if low is None or high is None:
        return "" if row.get("difference") is None else "-"
    return f"{number(row, f'{over}_low'):+.5f} to {number(row, f'{over}_high'):+.5f}"
