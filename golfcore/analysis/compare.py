"""Runs side by side. An arm is every run of one configuration, whatever its seed; the first arm is the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from golfcore import config
from golfcore.analysis.frames import frame, to_text
from golfcore.analysis.runs import report
from golfcore.analysis.stats import MIN_CHUNKS, Estimate, estimate
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config, differences
from golfcore.evals import result as results
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


@dataclass(frozen=True)
class Scored:
    """A finished run: its scores, and the first scores of each chunk of the validation text, in bits per byte."""

    run: RunFolder
    config: Config
    data: str
    code: str  # version of the code that scored it; "" where it was not recorded
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
        """(C,) scored bytes of each chunk, 0 where an evaluation scored none."""
        return np.min([[c["bytes"] for c in rows] for rows in self.chunks.values()], axis=0).astype(float)

    def total(self, measure: Measure) -> float:
        return sum(weight * self.bpb[name] for name, weight in measure.items())

    def by_chunk(self, measure: Measure) -> np.ndarray:
        """(C,) the measure on each chunk alone; 0 where nothing was scored, which then weighs nothing."""
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

    @property
    def weights(self) -> np.ndarray:
        """(C,) bytes of each chunk."""
        return self.runs[0].weights

    def totals(self, measure: Measure) -> list[float]:
        """The measure of each run."""
        return [run.total(measure) for run in self.runs]

    def by_chunk(self, measure: Measure, seeds: Sequence[int] = ()) -> np.ndarray:
        """(S, C) the measure on each chunk, for the runs with these seeds (all, if none are given)."""
        return np.array([run.by_chunk(measure) for run in self.runs if not seeds or run.seed in seeds])


# -- reading


def scored(path: Path) -> Scored:
    """The scores of the run at `path` (UserError if it is no run folder, or has not finished)."""
    run = find_run(path)
    found = report(run)
    rows = found["measures"]
    chunks = {e: results.load(run.file(f"eval/{e}.json")).chunks for e in EVALUATIONS}
    code = str(rows["static"].get("code") or found.get("source", {}).get("code", ""))
    bpb = {e: rows[e]["bpb"] for e in EVALUATIONS}
    return Scored(run, config.of_run(run), run.data_hash(), code, rows["static"]["tokens"], bpb, chunks)


def arms_of(paths: Sequence[Path]) -> list[Arm]:
    """The runs at `paths` as arms, in the order of first mention, labelled by preset (and hash, if two share one).

    UserError: no run, a run that has not finished, runs on other data, validation text or chunks than the first, or
    two runs of one configuration and seed.
    """
    runs = [scored(path) for path in paths]
    if not runs:
        raise UserError("compare: expected run folders, found none")
    groups: dict[str, list[Scored]] = {}
    for run in runs:
        _check_text(runs[0], run)
        group = groups.setdefault(seedless(run.config).hash, [])
        twice = next((other for other in group if other.seed == run.seed), None)
        if twice:
            expected = "expected one run of each configuration and seed"
            raise UserError(f"{run.run.path}: {expected}, found {twice.run.path} the same")
        group.append(run)
    names = [group[0].config.name for group in groups.values()]
    found = []
    for key, group in groups.items():
        name = group[0].config.name
        label = name if names.count(name) == 1 else f"{name}-{key[:6]}"
        found.append(Arm(label, seedless(group[0].config), tuple(sorted(group, key=lambda run: run.seed))))
    return found


def seedless(config: Config) -> Config:
    """The configuration with seed 0."""
    return replace(config, run=replace(config.run, seed=0))


def _check_text(first: Scored, other: Scored) -> None:
    where, what = other.run.path, f"as in {first.run.path}"
    if other.data != first.data:
        raise UserError(f"{where}: expected data {first.data[:12]} {what}, found {other.data[:12]}")
    if other.tokens != first.tokens or other.spans[-1][1] != first.spans[-1][1]:
        raise UserError(f"{where}: expected {first.tokens:,} validation targets {what}, found {other.tokens:,}")
    if other.spans != first.spans:
        expected = f"expected {len(first.spans)} chunks {what}"
        raise UserError(f"{where}: {expected}, found {len(other.spans)}, which do not pair")


# -- differences


def compare(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row for each measure and arm, in bits per byte; those after the first arm carry their difference to it.

    `seeds`: how many runs; `mean`, `sd`: over them, of the reported scores. The other columns are as `difference`'s.
    """
    rows = []
    for name, measure in MEASURES.items():
        for arm in arms:
            totals = arm.totals(measure)
            row: dict[str, Any] = {"measure": name, "arm": arm.label, "seeds": len(totals)}
            row |= {"mean": float(np.mean(totals)), "sd": float(np.std(totals, ddof=1)) if len(totals) > 1 else None}
            rows.append(row if arm is arms[0] else row | difference(arms[0], arm, measure))
    return frame(rows)


def difference(reference: Arm, arm: Arm, measure: Measure) -> dict[str, Any]:
    """The difference arm - reference of a measure, of first scores.

    `low`, `high`: its 95 % interval; `p` against 0; `df`; `detectable`: the true difference that would be found 4 times
    out of 5. `pairs`: the seeds that both arms have; where there are two or more, the difference is over these alone.
    `chunks` of text, fewer than MIN_CHUNKS of which give no interval. `over`: what the interval is over, "seeds and
    text", or "text" where an arm has one seed.
    """
    pairs = sorted(set(arm.seeds) & set(reference.seeds))
    if len(pairs) > 1 or (pairs and min(len(arm.runs), len(reference.runs)) == 1):
        values, less = arm.by_chunk(measure, pairs) - reference.by_chunk(measure, pairs), None
    else:
        values, less = arm.by_chunk(measure), reference.by_chunk(measure)
    middle = values.mean(0) - (0.0 if less is None else less.mean(0))
    row = {"difference": float(np.average(middle, weights=arm.weights))}
    return row | columns(interval(values, arm.weights, less)) | {"pairs": len(pairs), "chunks": len(middle)}


def interval(values: np.ndarray, weights: np.ndarray, less: np.ndarray | None = None) -> Estimate | None:
    """`stats.estimate`; None for fewer than MIN_CHUNKS chunks that weigh anything."""
    return estimate(values, weights, less) if int((weights > 0).sum()) >= MIN_CHUNKS else None


def columns(found: Estimate | None) -> dict[str, Any]:
    """What a row says of the error of its value; nothing is known of None."""
    names = ("low", "high", "p", "df", "detectable", "over")
    return {name: None if found is None else getattr(found, name) for name in names}


def mean(arm: Arm, measure: Measure) -> dict[str, Any]:
    """The measure of an arm, mean over its seeds: `mean`, and the columns of its interval for other seeds and text."""
    return {"mean": float(np.mean(arm.totals(measure)))} | columns(interval(arm.by_chunk(measure), arm.weights))


# -- for people


def as_text(arms: Sequence[Arm], table: pd.DataFrame) -> str:
    """The comparison for a terminal: what was compared, then one line for each measure and arm."""
    first = arms[0].runs[0]
    lines = [f"data {first.data[:12]}, {first.tokens:,} targets in {len(first.spans)} chunks; bits per byte"]
    for arm in arms:
        change = "reference" if arm is arms[0] else differences(arms[0].config, arm.config)
        lines.append(f"{arm.label}: seeds {', '.join(map(str, arm.seeds))}; {change}")
    by_code: dict[str, list[str]] = {}
    for run in [run for arm in arms for run in arm.runs]:
        by_code.setdefault(run.code or "a version that was not recorded", []).append(run.run.id)
    if len(by_code) > 1:
        parts = [f"{code} ({', '.join(ids)})" for code, ids in by_code.items()]
        lines.append(f"made by other versions of the code: {'; '.join(parts)}")
    notes = (
        "low to high: 95 % interval, paired by seed where two seeds are shared, for what over names; detectable:\n"
        f"the true difference found 4 times out of 5; there is no interval for fewer than {MIN_CHUNKS} chunks of text."
    )
    return "\n".join([*lines, "", to_text(signed(table, "difference", "low", "high")), "", notes])


def signed(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The same with signs before the numbers of these columns, five decimals."""
    shown = {c: [f"{v:+.5f}" if pd.notna(v) else "" for v in table[c]] for c in names if c in table}
    return table.assign(**shown)
