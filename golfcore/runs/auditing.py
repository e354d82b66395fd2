"""The audit of an artifact under one of golfcore's protocols, on a short stretch of its own validation text."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from golfcore.base.errors import UserError
from golfcore.base.progress import bar
from golfcore.base.runtime import full_float32
from golfcore.config import Config, override, to_dict
from golfcore.evals import protocols
from golfcore.evals.audit import TESTS, ProtocolScorer, Report, audit
from golfcore.evals.windows import window_length
from golfcore.runs.reopen import open_packed

CHUNKS = 8.5  # the last one partial, as a real stream's is
SEQ_LEN = 64
STRIDES = 4  # windows that see a target's context, at most


def audit_packed(target: Path, protocol: str, changes: dict[str, object]) -> Report:
    """Audit what `golfcore eval` would score, with lengths scaled down so that a short stream has several chunks.

    `changes` hold as they are given. UserError as `open_packed`; an unknown protocol; too little validation text.
    """
    packed = open_packed(target, changes)
    wanted = scaled(packed.cfg, packed.cfg.data.seq_len if "data.seq_len" in changes else SEQ_LEN)
    cfg = override(
        packed.cfg, {k: v for k, v in wanted.items() if k not in changes}, f"the audit's scaling of {target}"
    )
    own = protocols.configure(protocol, cfg, packed.changes)
    chunk, stride, text = own.ttt.chunk_tokens, own.eval.stride, packed.subject.tokens
    total = int(CHUNKS * chunk)
    if len(text) <= total:
        raise UserError(f"{target}: expected at least {total + 1} validation tokens, found {len(text)}")
    alone = packed.subject.runtime._replace(rank=0, world=1, dtype=torch.float32)
    scorer = ProtocolScorer(protocol, cfg, packed.subject._replace(runtime=alone), packed.changes)
    begins = np.flatnonzero(packed.subject.tables.boundary.cpu().numpy()[text[: total + 1]])
    with bar(len(TESTS), "audit", "test") as progress, full_float32():
        report = audit(
            scorer,
            text[: total + 1],
            cfg.model.vocab_size,
            chunk,
            stride,
            documents=begins.tolist(),
            progress=lambda test: progress.update(),
        )
    said = {"data": packed.source["data"][:12], **_settings(packed.cfg, cfg, own)}
    return replace(report, subject=f"{protocol} of {target}", settings={**report.settings, **said})


def scaled(cfg: Config, longest: int) -> dict[str, object]:
    """Overrides for windows and rows of at most `longest` tokens and chunks of two; rates, epochs, what adapts stay."""
    seq_len = min(cfg.data.seq_len, longest)
    window = min(window_length(cfg), longest)
    strides = min(max(window_length(cfg) // cfg.eval.stride, 1), STRIDES)
    rows = min(max(cfg.ttt.chunk_tokens // cfg.data.seq_len, 1), 2)
    return {
        "data.seq_len": seq_len,
        "eval.seq_len": window if cfg.eval.seq_len else 0,
        "eval.stride": -(-window // strides),
        "ttt.chunk_tokens": rows * seq_len,
        "ttt.batch_seqs": 1,
    }


def _settings(given: Config, audited: Config, own: Config) -> dict[str, object]:
    """What the report says of the settings that it holds for: `own` is what the protocol makes of `audited`."""
    t, windows = own.ttt, f"of {window_length(own)} tokens, each scores {own.eval.stride}; float32"
    said: dict[str, object] = {"windows": windows}
    if t.epochs + t.sweeps:
        rate = f"rate {t.lr:g}" if t.lr_shape == "constant" else f"rate {t.lr:g}, horizon {t.lr_horizon}"
        passes = f"{t.epochs} epochs" + (f", {t.sweeps} sweeps" if t.sweeps else "")
        said["adaptation"] = f"{t.order}, {t.adapted}, chunks of {t.chunk_tokens}, {passes}, {t.optimizer}, {rate}"
    return said | {"scaled for the audit": _differences(given, audited) or "nothing"}


def _differences(a: Config, b: Config) -> str:
    x, y = to_dict(a), to_dict(b)
    found = [
        f"{section}.{key} {x[section][key]} -> {value}"
        for section in ("data", "eval", "ttt")
        for key, value in y[section].items()
        if x[section][key] != value
    ]
    return ", ".join(found)
