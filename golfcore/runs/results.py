"""What a run measures, its numbers with their source, and the table that it prints."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.evals import result as results
from golfcore.quant import artifact

FLOAT, QUANTIZED, CHOICE = "weights.safetensors", "quantized.golf", "ttt.json"
ARTIFACT = "artifact.golf"
MEASURES = {  # name of the measure -> (weights, protocol); a, b and c of every table
    "float": (FLOAT, "static"),
    "static": (ARTIFACT, "static"),
    "sliding": (ARTIFACT, "sliding"),
    "ttt": (ARTIFACT, "ttt"),
}
LABELS = {
    "float": "    float weights, windows that do not overlap",
    "static": "(a) artifact, windows that do not overlap",
    "sliding": "(b) artifact, sliding window",
    "ttt": "(c) artifact, sliding window + TTT",
}


def measures(cfg: Config) -> dict[str, tuple[str, str]]:
    """Everything that a run measures, as MEASURES: those four, and `eval.also` on the artifact."""
    return MEASURES | {name: (ARTIFACT, name) for name in cfg.eval.also if name not in MEASURES}


class Facts(NamedTuple):
    """What an artifact carries beside its weights and configuration, in its header."""

    ttt_lr: float | None  # the TTT rate that was chosen; None: that of the configuration
    data: str  # hash of the data that it was trained on and scored on; "": not recorded
    tokenizer: str  # hash of the tokenizer

    def chosen(self, cfg: Config) -> Config:
        """`cfg` with the rate that was chosen."""
        return cfg if self.ttt_lr is None else replace(cfg, ttt=replace(cfg.ttt, lr=self.ttt_lr))


def packed_facts(path: Path) -> Facts:
    """What an artifact carries. UserError: no artifact, or facts that cannot be."""
    extra = {"ttt_lr": None, "data": "", "tokenizer": ""} | artifact.info(path)["extra"]
    files.check(extra, {"ttt_lr": (float, None), "data": str, "tokenizer": str}, f"{path}: expected a header")
    if (extra["ttt_lr"] or 0) < 0:
        raise UserError(f"{path}: expected ttt_lr as a number of at least 0, found {extra['ttt_lr']!r}")
    return Facts(extra["ttt_lr"], extra["data"], extra["tokenizer"])


def build(cfg: Config, run: RunFolder, source: dict, total: int) -> dict:
    """The numbers of a run whose stages are done, each with its source; `total` targets were to be scored.

    UserError: a number that is not finite. RuntimeError: one that is not over every target.
    """
    found = {name: results.load(run.file(f"eval/{name}.json")) for name in measures(cfg)}
    baseline = files.read_json(run.file("baseline.json"), "the baseline", {"bpb": float})
    record = files.read_json(run.file(CHOICE), "the chosen TTT settings", {"lr": float})
    for name, r in found.items():
        if r.tokens - r.repeats + r.dropped != total:
            raise RuntimeError(f"{name}: {r.tokens - r.repeats:,} of {total:,} targets were scored")
    size, code, limit = run.file(ARTIFACT).stat().st_size, artifact.code_bytes(), cfg.quant.max_bytes
    first = {name: r.bpb_first for name, r in found.items()}
    return {
        "source": source,
        "measures": {name: _row(r, measures(cfg)[name][0]) for name, r in found.items()},
        "context_gain": first["sliding"] - first["static"],
        "ttt_gain": first["ttt"] - first["sliding"],
        "ttt": {**record, "lr": packed_facts(run.file(ARTIFACT)).chosen(cfg).ttt.lr},
        "baseline": baseline,
        "artifact": {
            "bytes": size,
            "code_bytes": code,
            "total": size + code,
            "max_bytes": limit,
            "fits": artifact.fits(size, code, limit),
        },
    }


def measured(report: dict) -> list[str]:
    """What a report has scores of: the pipeline's own in their order, then other protocols by name."""
    return [*MEASURES, *sorted(set(report["measures"]) - set(MEASURES))]


def _row(r: results.EvalResult, weights: str) -> dict[str, Any]:
    keys = ("protocol", "bpb", "bpb_first", "loss", "tokens", "bytes", "repeats", "dropped", "seconds")
    return {key: getattr(r, key) for key in keys} | {
        "weights": weights,
        "legality": str(r.legality),
        "code": r.source.get("code", ""),
    }


def table(report: dict) -> str:
    """The report as text: the three numbers side by side, other protocols, the gains, the baseline and the bytes."""
    s, a, rows = report["source"], report["artifact"], {name: report["measures"][name] for name in measured(report)}
    lines = [f"run {s['run']}: preset {s['preset']}, config {s['config']}, seed {s['seed']}, data {s['data'][:12]}", ""]
    lines.append(f"{'':50}{'bpb':>9}  {'legality':<12}{'targets':>11}{'seconds':>9}")
    for name, row in rows.items():
        label = LABELS.get(name, f"    artifact, {name}")
        if name == "ttt" and row["legality"] == "static":
            label = "(c) as (b): nothing was adapted"
        lines.append(f"{label:50}{row['bpb']:9.4f}  {row['legality']:<12}{row['tokens']:>11,}{row['seconds']:>9.1f}")
    lines += [
        f"{'    interpolated bigram of the training text':50}{report['baseline']['bpb']:9.4f}",
        "",
        f"context gain b - a: {report['context_gain']:+.4f}    adaptation gain c - b: {report['ttt_gain']:+.4f}"
        f"{_remark(report)}",
        f"bytes: artifact {a['bytes']:,} + code {a['code_bytes']:,} = {a['total']:,} of {a['max_bytes']:,}"
        f" ({'fits' if a['fits'] else 'TOO LARGE'})",
    ]
    return "\n".join(lines)


def _remark(report: dict) -> str:
    """What must be known of c beside its gain: the TTT rate, that nothing was adapted, that it is no valid score."""
    legality, rate = report["measures"]["ttt"]["legality"], f"    (TTT rate {report['ttt']['lr']:g})"
    if legality == "static":
        return "    (nothing was adapted)"
    return rate if legality == "score-first" else f" ({legality}: not a valid score){rate}"
