"""What a run measures, its numbers with their source, and the table that it prints."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from golfcore.base import files, tensors
from golfcore.base.errors import UserError
from golfcore.base.records import RunFolder
from golfcore.config import Config
from golfcore.evals import result as results
from golfcore.model.weights import Weights, to_device, unflat
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
NUMBERS = ("protocol", "bpb", "bpb_first", "loss", "tokens", "bytes", "repeats", "dropped", "seconds")


def measures(cfg: Config) -> dict[str, tuple[str, str]]:
    """Everything that a run measures, as MEASURES: those four, and `eval.also` on the artifact."""
    return MEASURES | {name: (ARTIFACT, name) for name in cfg.eval.also if name not in MEASURES}


def last_stage(cfg: Config) -> str:
    """The last stage that records what features touched."""
    return f"eval-{list(measures(cfg))[-1]}"


def measured(report: dict) -> list[str]:
    """What a report has scores of: the pipeline's own in their order, then other protocols by name."""
    return [*MEASURES, *sorted(set(report["measures"]) - set(MEASURES))]


def load_weights(path: Path, device: torch.device | str = "cpu") -> Weights:
    """The weights in a file of a run: trained, or rounded and as scoring reads them. UserError: not there, damaged."""
    trained = path.name == FLOAT
    found = unflat(tensors.load(path, "trained weights")[0]) if trained else artifact.read(path)[1]
    return to_device(found, device)


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


def eval_inputs(run: RunFolder, cfg: Config, weights: str) -> dict[str, str]:
    """What an evaluation of the file `weights` of a run depends on: the inputs of its stage."""
    files_of = {"weights": run.file(weights), "artifact": run.file(ARTIFACT)}
    shas = {name: files.sha256_file(path) for name, path in files_of.items()}
    return {"config": cfg.hash, "data": run.data_hash(), **shas}


def build(cfg: Config, run: RunFolder, source: dict, total: int) -> dict:
    """The numbers of a run whose stages are done, each with its source; `total` targets were to be scored.

    UserError: a number that is not finite. RuntimeError: one that is not over every target.
    """
    found = {name: results.load(run.file(f"eval/{name}.json")) for name in measures(cfg)}
    for name, r in found.items():
        if r.tokens - r.repeats + r.dropped != total:
            raise RuntimeError(f"{name}: {r.tokens - r.repeats:,} of {total:,} targets were scored")
    rows = {
        name: {key: getattr(r, key) for key in NUMBERS}
        | {"weights": measures(cfg)[name][0], "legality": str(r.legality), "code": r.source.get("code", "")}
        for name, r in found.items()
    }
    size, code, limit = run.file(ARTIFACT).stat().st_size, artifact.code_bytes(), cfg.quant.max_bytes
    choice = files.read_json(run.file(CHOICE), "the chosen TTT settings", {"lr": float})
    fits = artifact.fits(size, code, limit)
    return {
        "source": source,
        "measures": rows,
        "context_gain": found["sliding"].bpb_first - found["static"].bpb_first,
        "ttt_gain": found["ttt"].bpb_first - found["sliding"].bpb_first,
        "ttt": {**choice, "lr": packed_facts(run.file(ARTIFACT)).chosen(cfg).ttt.lr},
        "baseline": files.read_json(run.file("baseline.json"), "the baseline", {"bpb": float}),
        "steps": max((row["step"] for row in run.metrics("train")), default=0),
        "artifact": {"bytes": size, "code_bytes": code, "total": size + code, "max_bytes": limit, "fits": fits},
    }


def table(report: dict) -> str:
    """The report as text: the three numbers side by side, other protocols, the gains, the baseline and the bytes."""
    s, a = report["source"], report["artifact"]
    lines = [f"run {s['run']}: preset {s['preset']}, config {s['config']}, seed {s['seed']}, data {s['data'][:12]}", ""]
    lines.append(f"{'':50}{'bpb':>9}  {'legality':<12}{'targets':>11}{'seconds':>9}")
    for name in measured(report):
        row, label = report["measures"][name], LABELS.get(name, f"    artifact, {name}")
        if name == "ttt" and row["legality"] == "static":
            label = "(c) as (b): nothing was adapted"
        lines.append(f"{label:50}{row['bpb']:9.4f}  {row['legality']:<12}{row['tokens']:>11,}{row['seconds']:>9.1f}")
    legality, rate = report["measures"]["ttt"]["legality"], f"    (TTT rate {report['ttt']['lr']:g})"
    remark = {"static": "    (nothing was adapted)", "score-first": rate}
    return "\n".join(
        [
            *lines,
            f"{'    interpolated bigram of the training text':50}{report['baseline']['bpb']:9.4f}",
            "",
            f"context gain b - a: {report['context_gain']:+.4f}    adaptation gain c - b: {report['ttt_gain']:+.4f}"
            f"{remark.get(legality, f' ({legality}: not a valid score){rate}')}",
            f"bytes: artifact {a['bytes']:,} + code {a['code_bytes']:,} = {a['total']:,} of {a['max_bytes']:,}"
            f" ({'fits' if a['fits'] else 'TOO LARGE'})",
        ]
    )
