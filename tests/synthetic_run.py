"""A finished run made without training: random text and scores, written through the records' own functions."""

from pathlib import Path

import numpy as np
import torch

from golfcore.analysis.text import Text
from golfcore.base import files
from golfcore.base.records import RunFolder
from golfcore.config import Config, load
from golfcore.data.tokens import Tables, TokenClass
from golfcore.evals import result as results
from golfcore.evals.ledger import Legality
from golfcore.evals.result import EvalResult
from golfcore.evals.score import bits_per_byte, bytes_of
from golfcore.model import params
from golfcore.quant import artifact
from golfcore.quant.quantize import quantize_weights
from golfcore.runs.folder import open_run
from golfcore.runs.pipeline import ARTIFACT, MEASURES, RESULTS

CHUNK = 100
CODE_BYTES = 5000


def make_text(n_targets: int, n_train: int = 5000, vocab: int = 1024) -> Text:
    """Zipf-like ids; a third of the ids start words, a few are bytes or control."""
    rng = np.random.default_rng(1)
    p = 1 / (10 + np.arange(vocab))
    val, train = (rng.choice(vocab, size=n, p=p / p.sum()) for n in (n_targets + 1, n_train))
    classes = np.where(np.arange(vocab) % 3 == 0, TokenClass.WORD_START, TokenClass.WITHIN_WORD).astype(np.int8)
    classes[5:9], classes[1] = TokenClass.BYTE, TokenClass.CONTROL
    kind = torch.from_numpy(classes)
    base = torch.randint(1, 5, (vocab,), generator=torch.Generator().manual_seed(1)).to(torch.int16)
    return Text(val, train, Tables(base, kind == TokenClass.WORD_START, kind == TokenClass.CONTROL), classes)


def make_result(name: str, nats: np.ndarray, text: Text) -> EvalResult:
    """What an evaluation that gave these scores (with NaN where a target was dropped) would have returned."""
    n_bytes, scored = bytes_of(text.tables, text.val[:-1], text.val[1:]), ~np.isnan(nats)
    spans = [(start, min(start + CHUNK, len(nats))) for start in range(0, len(nats), CHUNK)]
    chunks = [
        {
            "chunk": i,
            "start": a,
            "stop": b,
            "nats": float(np.nansum(nats[a:b], dtype=np.float64)),
            "bytes": int(n_bytes[a:b][scored[a:b]].sum()),
        }
        for i, (a, b) in enumerate(spans)
    ]
    total, total_bytes = sum(c["nats"] for c in chunks), sum(c["bytes"] for c in chunks)
    return EvalResult(
        protocol=MEASURES[name][1],
        legality=Legality.SCORE_FIRST if name == "ttt" else Legality.STATIC,
        nats=total,
        tokens=int(scored.sum()),
        bytes=total_bytes,
        bpb=float(bits_per_byte(total, total_bytes)),
        repeats=0,
        seconds=1.5,
        chunks=chunks,
        per_target=nats.astype(np.float32),
    )


def make_run(
    path: Path, n_chunks: int = 12, ttt: float = -0.05, config: Config | None = None
) -> tuple[RunFolder, Text]:
    """A run folder as the pipeline leaves it, on a text of `n_chunks` chunks; adaptation changes each nat by `ttt`."""
    cfg = config or load("smoke")
    run, text, rng = open_run(path, cfg, "d" * 64, {}), make_text(n_chunks * CHUNK), np.random.default_rng(2)
    log_training(run)
    base = rng.gamma(4, 1, n_chunks * CHUNK)
    first = np.arange(len(base)) < CHUNK  # scored before any adaptation
    nats = {"float": base - 0.01, "static": base, "sliding": base - 0.1 + 0.02 * rng.standard_normal(len(base))}
    nats["ttt"] = np.where(first, nats["sliding"], nats["sliding"] + ttt + 0.02 * rng.standard_normal(len(base)))
    found = {name: make_result(name, nats[name].astype(np.float32), text) for name in MEASURES}
    for name, result in found.items():
        results.save(result, run.file(f"eval/{name}.json"))
    size = artifact.write(run.file(ARTIFACT), cfg, quantize_weights(cfg, params.init(cfg.model, 0), None))
    files.write_json(run.file(RESULTS), make_report(run, cfg, found, size))
    run.finish("train", {}, [], 1.0)
    return run, text


def log_training(run: RunFolder) -> None:
    rng = np.random.default_rng(3)
    for step in (0, 50, 100):
        run.log({"kind": "val", "step": step, "loss": 5.0, "bpb": 4.0 - step / 50, "elapsed": float(step)})
    for step in range(5, 101, 5):
        row = {
            "kind": "train",
            "step": step,
            "loss": 6.0,
            "lr_multiplier": 1 - step / 200,
            "momentum": 0.9,
            "grad_norm": 1.0,
        }
        run.log(row | {"bpb": 4 - step / 50 + 0.1 * rng.random(), "tokens": step * 1025, "elapsed": step / 10})
    run.log({"kind": "event", "step": 60, "event": "warmdown", "elapsed": 6.0})
    run.log({"kind": "event", "step": 65, "event": "qat", "elapsed": 6.5})


def make_report(run: RunFolder, cfg: Config, found: dict[str, EvalResult], size: int) -> dict:
    bpb = {name: r.bpb for name, r in found.items()}
    keys = ("protocol", "bpb", "tokens", "bytes", "repeats", "seconds")
    return {
        "source": {
            "run": run.id,
            "config": cfg.hash,
            "preset": cfg.name,
            "seed": cfg.run.seed,
            "data": run.data_hash(),
        },
        "measures": {n: {k: getattr(r, k) for k in keys} | {"legality": str(r.legality)} for n, r in found.items()},
        "context_gain": bpb["sliding"] - bpb["static"],
        "ttt_gain": bpb["ttt"] - bpb["sliding"],
        "ttt": {"lr": 0.01},
        "baseline": {"bpb": 9.0},
        "artifact": {
            "bytes": size,
            "code_bytes": CODE_BYTES,
            "total": size + CODE_BYTES,
            "max_bytes": cfg.quant.max_bytes,
            "fits": True,
        },
    }
