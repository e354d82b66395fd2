"""The audit of what a run or an artifact scores, on a short stretch of its own validation text: tested, or proven."""

import secrets
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.runtime import full_float32
from golfcore.config import Config, differences, override
from golfcore.data.tokens import load_tokenizer
from golfcore.evals import protocols
from golfcore.evals.audit import ProtocolScorer, Report, audit, driven, memory
from golfcore.evals.windows import window_length
from golfcore.runs.reopen import Packed, open_packed

CHUNKS = 8.5  # of an audit; the last one partial, as a real stream's is
SEQ_LEN = 64
STRIDES = 4  # windows that see a target's context, at most


class Stretch(NamedTuple):
    """A protocol of what was opened, scaled down, and the short stretch of validation text that it is examined on."""

    packed: Packed
    cfg: Config
    own: Config  # `cfg` with the protocol's settings
    text: np.ndarray
    scorer: ProtocolScorer


def stretch(target: Path, protocol: str, changes: dict[str, object]) -> Stretch:
    """What is audited of a target: lengths scaled down so that a short stream has several chunks.

    `changes` hold as they are given. UserError as `open_packed`; an unknown protocol; too little validation text.
    """
    packed = open_packed(target, changes)
    wanted = scaled(packed.cfg, packed.cfg.data.seq_len if "data.seq_len" in changes else SEQ_LEN)
    free = {key: value for key, value in wanted.items() if key not in changes}
    cfg = override(packed.cfg, free, f"the audit's scaling of {target}")
    own = protocols.configure(protocol, cfg, packed.changes)
    total, found = int(CHUNKS * own.ttt.chunk_tokens), len(packed.subject.tokens)
    if found <= total:
        raise UserError(f"{target}: expected at least {total + 1} validation tokens, found {found}")
    alone = packed.subject.runtime._replace(rank=0, world=1, dtype=torch.float32, compiled=False)
    scorer = ProtocolScorer(protocol, cfg, packed.subject._replace(runtime=alone), packed.changes)
    return Stretch(packed, cfg, own, packed.subject.tokens[: total + 1], scorer)


def audit_packed(
    target: Path, protocol: str, changes: dict[str, object], seed: int | None = None, text: Path | None = None
) -> Report:
    """Audit what `golfcore eval` would score, on a `stretch` of its text. `seed`: as `audit`.

    `text`: a file of text that the auditor brings, for T15. UserError as `stretch`, or too little of that text.
    """
    s = stretch(target, protocol, changes)
    brought = None if text is None else tokens_of(s, text)
    own, cfg = s.own, s.cfg
    with full_float32():
        report = audit(
            s.scorer,
            s.text,
            cfg.model.vocab_size,
            own.ttt.chunk_tokens,
            own.eval.stride,
            seed=seed,
            documents=np.flatnonzero(s.packed.subject.tables.boundary.cpu().numpy()[s.text]).tolist(),
        )
        if brought is not None:
            found = memory(s.scorer, s.text, brought, cfg.model.vocab_size)
            report = replace(report, findings=[*report.findings, found])
    windows = f"of {window_length(own)} tokens, each scores {own.eval.stride}; float32"
    said: dict[str, object] = {"data": s.packed.source["data"][:12], "windows": windows}
    t = own.ttt
    if t.epochs + t.sweeps:
        rate = f"rate {t.lr:g}" if t.lr_shape == "constant" else f"rate {t.lr:g}, horizon {t.lr_horizon}"
        passes = f"{t.epochs} epochs" + (f", {t.sweeps} sweeps" if t.sweeps else "")
        said["adaptation"] = f"{t.order}, {t.adapted}, chunks of {t.chunk_tokens}, {passes}, {t.optimizer}, {rate}"
    said["scaled for the audit"] = differences(s.packed.cfg, cfg, most=20) or "nothing"
    return replace(report, subject=f"{protocol} of {target}", settings={**report.settings, **said})


def tokens_of(s: Stretch, text: Path) -> np.ndarray:
    """As many tokens of a file as the stretch has. UserError: it has fewer, or is no text."""
    processor = load_tokenizer(s.packed.tokenizer, s.cfg.model.vocab_size)
    found = np.array(processor.encode(files.read_text(text, "text that the auditor brings")), np.int64)
    if len(found) < len(s.text):
        raise UserError(f"{text}: expected at least {len(s.text)} tokens of text, found {len(found)}")
    return found[: len(s.text)]


def certify(
    target: Path, protocol: str, changes: dict[str, object], probes: int, seed: int | None
) -> dict[str, object]:
    """The fast score of a `stretch` held against a driven one, at `probes` targets chosen by `seed`, and its verdict.

    The predictor runs in a process of its own and knows the artifact, the length of the stream and what it was told.
    Keys: verdict ("proven" if every probed score is the fast one, else "not what it says"); probes, of how many
    targets, by which seed (None: a secret one); difference, the largest in nats, and where; apart, the largest of a sum
    of probabilities from 1; driven_nats and fast_nats, means over the probes. UserError as `stretch`, or fewer than one
    probe; driven.Refused: a prediction that is no distribution.
    """
    if probes < 1:
        raise UserError(f"--driven: expected one probe or more, found {probes}")
    s = stretch(target, protocol, changes)
    with full_float32():
        fast = s.scorer.run(s.text)
    first = dict(zip(fast.positions[::-1].tolist(), fast.nats[::-1].tolist(), strict=True))  # the first score counts
    n = len(s.text) - 1
    seed = secrets.randbits(32) if seed is None else seed
    at = np.sort(np.random.default_rng(seed).choice(n, min(probes, n), replace=False))
    with driven.apart(stepwise, target, protocol, changes, len(s.text)) as predictor:
        found = driven.drive(predictor, s.text, s.cfg.model.vocab_size, at.tolist())
    off = np.abs(found.nats - np.array([first[p] for p in at.tolist()]))
    worst = int(off.argmax())
    verdict = "proven" if off[worst] < driven.SAME else "not what it says"
    return {
        "verdict": verdict,
        "probes": len(at),
        "targets": n,
        "seed": seed,
        "difference": float(off[worst]),
        "where": int(at[worst]),
        "apart": found.apart,
        "driven_nats": float(found.nats.mean()),
        "fast_nats": float(np.mean([first[p] for p in at.tolist()])),
    }


def stepwise(target: Path, protocol: str, changes: dict[str, object], length: int) -> driven.Stepwise:
    """The predictor of a protocol on a target's artifact, for a stream of `length` tokens that it has not seen."""
    scorer = stretch(target, protocol, changes).scorer
    scorer.subject = scorer.subject._replace(tokens=np.zeros(0, np.int64))  # its own text is not scored
    return driven.Stepwise(scorer, length)


def scaled(cfg: Config, longest: int) -> dict[str, object]:
    """Overrides for windows and rows of at most `longest` tokens and chunks of two; rates, epochs, what adapts stay."""
    seq_len, window = min(cfg.data.seq_len, longest), min(window_length(cfg), longest)
    strides = min(max(window_length(cfg) // cfg.eval.stride, 1), STRIDES)
    rows = min(max(cfg.ttt.chunk_tokens // cfg.data.seq_len, 1), 2)
    return {
        "data.seq_len": seq_len,
        "eval.seq_len": window if cfg.eval.seq_len else 0,
        "eval.stride": -(-window // strides),
        "ttt.chunk_tokens": rows * seq_len,
        "ttt.batch_seqs": 1,
    }
