"""What a run measures, its numbers with their source, and the table that it prints."""

from typing import Any

from golfcore.base import files
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.evals import result as results
from golfcore.quant import artifact

FLOAT, ARTIFACT = "weights.safetensors", "artifact.golf"
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


def build(cfg: Config, run: RunFolder, source: dict) -> dict:
    """The numbers of a run whose stages are done, each with its source."""
    rows: dict[str, dict[str, Any]] = {}
    for name, (weights, protocol) in measures(cfg).items():
        r = results.load(run.file(f"eval/{name}.json"))
        rows[name] = {
            "protocol": protocol,
            "weights": weights,
            "bpb": r.bpb,
            "loss": r.loss,
            "tokens": r.tokens,
            "bytes": r.bytes,
            "repeats": r.repeats,
            "legality": str(r.legality),
            "seconds": r.seconds,
        }
    size, code = run.file(ARTIFACT).stat().st_size, artifact.code_bytes()
    bpb = {name: row["bpb"] for name, row in rows.items()}
    return {
        "source": source,
        "measures": rows,
        "context_gain": bpb["sliding"] - bpb["static"],
        "ttt_gain": bpb["ttt"] - bpb["sliding"],
        "ttt": files.read_json(run.file("ttt.json"), "the chosen TTT settings"),
        "baseline": files.read_json(run.file("baseline.json"), "the baseline"),
        "artifact": {
            "bytes": size,
            "code_bytes": code,
            "total": size + code,
            "max_bytes": cfg.quant.max_bytes,
            "fits": size + code <= cfg.quant.max_bytes,
        },
    }


def measured(report: dict) -> list[str]:
    """What a report has scores of: the pipeline's own in their order, then other protocols by name."""
    return [*MEASURES, *sorted(set(report["measures"]) - set(MEASURES))]


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
