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
from golfcore.analysis.stats import MIN_CHUNKS, estimate
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
    """A finished run: its results, and the first scores of each chunk of the validation text by evaluation."""

    run: RunFolder
    config: Config
    results: dict[str, Any]
    bpb: dict[str, float]
    chunks: dict[str, list[dict]]

    @property
    def data(self) -> str:
        return self.run.data_hash()

    @property
    def tokens(self) -> int:
        """Validation targets."""
        return self.results["measures"]["static"]["tokens"]

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
        """(S, C) the measure on each chunk, of the runs with these seeds (of all, if none are given)."""
        return np.array([run.by_chunk(measure) for run in self.runs if not seeds or run.seed in seeds])


# -- reading


def scored(path: Path) -> Scored:
    """The scores of the run at `path` (UserError if it is no run folder, or has not finished)."""
    run = find_run(path)
    stated = run.results()
    chunks = {e: results.load(run.file(f"eval/{e}.json")).chunks for e in EVALUATIONS}
    bpb = {e: stated["measures"][e]["bpb"] for e in EVALUATIONS}
    return Scored(run, config.of_run(run), stated, bpb, chunks)


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
    return [
        Arm(
            name if names.count(name) == 1 else f"{name}-{key[:6]}",
            seedless(group[0].config),
            tuple(sorted(group, key=lambda run: run.seed)),
        )
        for name, (key, group) in zip(names, groups.items(), strict=True)
    ]


def seedless(config: Config) -> Config:
    """The configuration with seed 0."""
    return replace(config, run=replace(config.run, seed=0))


def _check_text(first: Scored, other: Scored) -> None:
    where, what = other.run.path, f"as in {first.run.path}"
    if other.data != first.data:
        raise UserError(f"{where}: expected data {first.data[:12]} {what}, found {other.data[:12]}")
    if other.tokens != first.tokens:
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

    `pairs`: the seeds that both arms have; the difference is over these alone where there are two or more. `chunks` of
    text. The other columns are those of `interval`.
    """
    pairs, values, less = paired(reference, arm, measure)
    middle = values.mean(0) - (0.0 if less is None else less.mean(0))
    row = {"difference": float(np.average(middle, weights=arm.weights))}
    return row | interval(values, arm.weights, less) | {"pairs": pairs, "chunks": len(middle)}


def paired(reference: Arm, arm: Arm, measure: Measure) -> tuple[int, np.ndarray, np.ndarray | None]:
    """How many seeds both arms have, then (S, C) differences over these and None; or, if two arms of several seeds
    share fewer than two, (S, C) of the arm and (S', C) of the reference.
    """
    pairs = sorted(set(arm.seeds) & set(reference.seeds))
    if len(pairs) > 1 or (pairs and min(len(arm.runs), len(reference.runs)) == 1):
        return len(pairs), arm.by_chunk(measure, pairs) - reference.by_chunk(measure, pairs), None
    return len(pairs), arm.by_chunk(measure), reference.by_chunk(measure)


def interval(values: np.ndarray, weights: np.ndarray, less: np.ndarray | None = None) -> dict[str, Any]:
    """What `stats.estimate` knows of the error of a value; nothing for fewer than MIN_CHUNKS chunks.

    `low`, `high`: 95 % interval; `p` against 0; `df`; `detectable`: the true difference that would be found 4 times out
    of 5; `over`: what the interval is over, "seeds and text", or "text" where an arm has one seed.
    """
    found = estimate(values, weights, less) if int((weights > 0).sum()) >= MIN_CHUNKS else None
    return {name: found and getattr(found, name) for name in ("low", "high", "p", "df", "detectable", "over")}


def mean(arm: Arm, measure: Measure) -> dict[str, Any]:
    """The measure of an arm, mean over its seeds: `mean`, and its `interval` for other seeds and text."""
    return {"mean": float(np.mean(arm.totals(measure)))} | interval(arm.by_chunk(measure), arm.weights)


# -- for people


def as_text(arms: Sequence[Arm], table: pd.DataFrame) -> str:
    """The comparison for a terminal: what was compared, then one line for each measure and arm."""
    first = arms[0].runs[0]
    lines = [f"data {first.data[:12]}, {first.tokens:,} targets in {len(first.spans)} chunks; bits per byte"]
    by_code: dict[str, list[str]] = {}
    for arm in arms:
        change = "reference" if arm is arms[0] else differences(arms[0].config, arm.config)
        lines.append(f"{arm.label}: seeds {', '.join(map(str, arm.seeds))}; {change}")
        for run in arm.runs:
            code = run.results["measures"]["static"].get("code") or "a version that was not recorded"
            by_code.setdefault(code, []).append(run.run.id)
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
