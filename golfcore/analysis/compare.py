"""Runs side by side. An arm is every run of one configuration, whatever its seed; the first arm is the reference."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from golfcore import config
from golfcore.analysis.frames import frame, to_text
from golfcore.analysis.stats import MIN_CHUNKS, interval
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config, differences
from golfcore.evals import result as results
from golfcore.runs.folder import find_run

EVALUATIONS = ("static", "sliding", "ttt")  # a, b, c
MEASURES = (*EVALUATIONS, "context_gain", "ttt_gain", "total_gain")


@dataclass(frozen=True)
class Scored:
    """A finished run: its results, and its first scores in bits per byte by `with_gains`."""

    run: RunFolder
    config: Config
    results: dict[str, Any]
    totals: dict[str, float]  # as reported
    chunks: pd.DataFrame  # of the text: start, stop, bytes (0 where an evaluation scored none), the scores of each

    @property
    def seed(self) -> int:
        return self.config.run.seed

    @property
    def tokens(self) -> int:
        """Validation targets."""
        return self.results["measures"]["static"]["tokens"]

    @property
    def steps(self) -> int:
        return self.run.metrics("train")[-1]["step"]


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
        return self.runs[0].chunks["bytes"].to_numpy()

    def totals(self, measure: str) -> list[float]:
        """The measure of each run."""
        return [run.totals[measure] for run in self.runs]

    def by_chunk(self, measure: str, seeds: Sequence[int] = ()) -> np.ndarray:
        """(S, C) the measure on each chunk, of the runs with these seeds (of all, if none are given)."""
        return np.array([run.chunks[measure] for run in self.runs if not seeds or run.seed in seeds])


def each(arms: Sequence[Arm]) -> Iterator[tuple[Arm, Scored]]:
    """Every run with its arm."""
    return ((arm, run) for arm in arms for run in arm.runs)


def with_gains(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores EVALUATIONS with what context (b - a), adaptation (c - b) and both bring, and c - b less b - a.

    c - a, `total_gain`, is what was published as the TTT delta.
    """
    a, b, c = (scores[name] for name in EVALUATIONS)
    return scores.assign(context_gain=b - a, ttt_gain=c - b, total_gain=c - a, ttt_over_context=(c - b) - (b - a))


# -- reading


def scored(path: Path) -> Scored:
    """The scores of the run at `path` (UserError if it is no run folder, or has not finished)."""
    run = find_run(path)
    stated = run.results()
    parts = {e: pd.DataFrame(results.load(run.file(f"eval/{e}.json")).chunks) for e in EVALUATIONS}
    bpb = {e: (c["nats"] / (np.log(2) * c["bytes"])).where(c["bytes"] > 0, 0.0) for e, c in parts.items()}
    n_bytes = pd.DataFrame({e: c["bytes"] for e, c in parts.items()}).min(axis=1).astype(float)
    chunks = with_gains(parts["static"][["start", "stop"]].assign(bytes=n_bytes, **bpb))
    totals = with_gains(pd.DataFrame({e: [stated["measures"][e]["bpb"]] for e in EVALUATIONS})).iloc[0].to_dict()
    return Scored(run, config.of_run(run), stated, totals, chunks)


def arms_of(paths: Sequence[Path]) -> list[Arm]:
    """The runs at `paths` as arms, in the order of first mention, labelled by preset (and hash, if two share one).

    UserError: no run, a run that has not finished, runs on other data, validation text or chunks than the first, or
    two runs of one configuration and seed.
    """
    runs = [scored(path) for path in paths]
    if not runs:
        raise UserError("compare: expected run folders, found none")
    groups: dict[str, dict[int, Scored]] = {}  # by the hash with seed 0, by seed
    configs: dict[str, Config] = {}
    for run in runs:
        _check_text(runs[0], run)
        seedless = replace(run.config, run=replace(run.config.run, seed=0))
        key = seedless.hash
        configs.setdefault(key, seedless)
        group = groups.setdefault(key, {})
        if run.seed in group:
            expected = "expected one run of each configuration and seed"
            raise UserError(f"{run.run.path}: {expected}, found {group[run.seed].run.path} the same")
        group[run.seed] = run
    names = [cfg.name for cfg in configs.values()]
    return [
        Arm(
            name if names.count(name) == 1 else f"{name}-{key[:6]}",
            configs[key],
            tuple(group[seed] for seed in sorted(group)),
        )
        for name, (key, group) in zip(names, groups.items(), strict=True)
    ]


def _check_text(first: Scored, other: Scored) -> None:
    where, what = other.run.path, f"as in {first.run.path}"
    data, found = first.run.data_hash(), other.run.data_hash()
    if found != data:
        raise UserError(f"{where}: expected data {data[:12]} {what}, found {found[:12]}")
    if other.tokens != first.tokens:
        raise UserError(f"{where}: expected {first.tokens:,} validation targets {what}, found {other.tokens:,}")
    spans = [run.chunks[["start", "stop"]] for run in (first, other)]
    if not spans[0].equals(spans[1]):
        expected = f"expected {len(first.chunks)} chunks {what}"
        raise UserError(f"{where}: {expected}, found {len(other.chunks)}, which do not pair")


# -- differences


def compare(arms: Sequence[Arm]) -> pd.DataFrame:
    """One row for each measure and arm, in bits per byte; those after the first arm carry their difference to it.

    `seeds`: how many runs; `mean`, `sd`: over them, of the reported scores. The other columns are as `difference`'s.
    """
    rows = []
    for measure in MEASURES:
        for arm in arms:
            totals = arm.totals(measure)
            row: dict[str, Any] = {"measure": measure, "arm": arm.label, "seeds": len(totals)}
            row |= {"mean": float(np.mean(totals)), "sd": float(np.std(totals, ddof=1)) if len(totals) > 1 else None}
            rows.append(row if arm is arms[0] else row | difference(arms[0], arm, measure))
    return frame(rows)


def difference(reference: Arm, arm: Arm, measure: str) -> dict[str, Any]:
    """The difference arm - reference of a measure, of first scores, with its `stats.interval`.

    `pairs`: the seeds that both arms have; the difference is over these alone where there are two or more. `chunks` of
    text.
    """
    pairs, values, less = paired(reference, arm, measure)
    here = by_chunk(values, less)
    row = {"difference": float(np.average(here, weights=arm.weights))}
    return row | interval(values, arm.weights, less) | {"pairs": pairs, "chunks": len(here)}


def paired(reference: Arm, arm: Arm, measure: str) -> tuple[int, np.ndarray, np.ndarray | None]:
    """How many seeds both arms have, then (S, C) differences over these and None; or, if two arms of several seeds
    share fewer than two, (S, C) of the arm and (S', C) of the reference.
    """
    pairs = sorted(set(arm.seeds) & set(reference.seeds))
    if len(pairs) > 1 or (pairs and min(len(arm.runs), len(reference.runs)) == 1):
        return len(pairs), arm.by_chunk(measure, pairs) - reference.by_chunk(measure, pairs), None
    return len(pairs), arm.by_chunk(measure), reference.by_chunk(measure)


def by_chunk(values: np.ndarray, less: np.ndarray | None) -> np.ndarray:
    """(C,) the difference on each chunk, mean over seeds, of what `paired` returned."""
    return values.mean(0) - (0.0 if less is None else less.mean(0))


def mean(arm: Arm, measure: str) -> dict[str, Any]:
    """The measure of an arm, mean over its seeds: `mean`, and its `stats.interval` for other seeds and text."""
    return {"mean": float(np.mean(arm.totals(measure)))} | interval(arm.by_chunk(measure), arm.weights)


# -- for people


def as_text(arms: Sequence[Arm], table: pd.DataFrame) -> str:
    """The comparison for a terminal: what was compared, then one line for each measure and arm."""
    first = arms[0].runs[0]
    text = f"{first.tokens:,} targets in {len(first.chunks)} chunks"
    lines = [f"data {first.run.data_hash()[:12]}, {text}; bits per byte"]
    for arm in arms:
        change = "reference" if arm is arms[0] else differences(arms[0].config, arm.config)
        lines.append(f"{arm.label}: seeds {', '.join(map(str, arm.seeds))}; {change}")
    code = {run.run.id: run.results["measures"]["static"].get("code") for _, run in each(arms)}
    versions = pd.Series(code, dtype=object).fillna("a version that was not recorded")
    by_version = versions.index.to_series().groupby(versions, sort=False).agg(", ".join)
    if len(by_version) > 1:
        parts = "; ".join(f"{version} ({ids})" for version, ids in by_version.items())
        lines.append(f"made by other versions of the code: {parts}")
    notes = (
        "low to high: 95 % interval, paired by seed where two seeds are shared, for what over names; detectable:\n"
        f"the true difference found 4 times out of 5; there is no interval for fewer than {MIN_CHUNKS} chunks of text."
    )
    return "\n".join([*lines, "", to_text(signed(table, "difference", "low", "high")), "", notes])


def signed(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The same with signs before the numbers of these columns, five decimals."""
    shown = {c: [f"{v:+.5f}" if pd.notna(v) else "" for v in table[c]] for c in names if c in table}
    return table.assign(**shown)
