"""Evaluation protocols by name. Each is a configuration: what it changes of the `eval` and `ttt` sections.

All run one loop (`golfcore.evals.evaluation`): perhaps train first, then score a chunk, record it, perhaps adapt. Which
of them is legal is not said here: the ledger sees it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.base.progress import bar
from golfcore.base.runtime import Runtime
from golfcore.config import Config
from golfcore.data.tokens import Tables
from golfcore.evals.evaluation import Walk
from golfcore.evals.ledger import Ledger
from golfcore.evals.result import EvalResult
from golfcore.evals.score import Look
from golfcore.model.attention import Compute, choose_compute
from golfcore.model.weights import Weights

Changes = Mapping[str, object]  # dotted keys of the eval and ttt sections


class Named(NamedTuple):
    text: str
    changes: Callable[[Config], Changes]


STILL = {"ttt.epochs": 0, "ttt.sweeps": 0, "ttt.order": "score-first", "ttt.shards": 1, "ttt.reset": "never"}
SCORE_FIRST = {"ttt.order": "score-first", "ttt.sweeps": 0, "ttt.shards": 1, "ttt.top_fraction": 1.0}
TRAIN_FIRST = {"ttt.order": "train-first", "ttt.reset": "never", "ttt.lr_shape": "constant", "ttt.top_fraction": 1.0}
PR398 = TRAIN_FIRST | {  # its published settings
    "ttt.epochs": 20,
    "ttt.sweeps": 0,
    "ttt.optimizer": "sgd",
    "ttt.lr": 0.008,
    "ttt.momentum": 0.9,
    "ttt.clip": 1.0,
    "ttt.adapted": "all",
    "ttt.freeze_blocks": 0,
}
LORA = {"ttt.adapted": "lora", "ttt.lora_rank": 4, "ttt.lora_roles": ("up", "down"), "ttt.optimizer": "adam"}
LORA |= {"ttt.lr": 0.001, "ttt.lr_shape": "constant", "ttt.clip": 1.0, "ttt.epochs": 3, "ttt.batch_seqs": 1}


def _last_quarter(cfg: Config) -> dict[str, object]:
    """pr294 adapts the last quarter of the blocks, at least one."""
    n = cfg.model.n_blocks
    return {"ttt.freeze_blocks": n - max(1, n // 4), "ttt.freeze": "all"}


PROTOCOLS = {
    "static": Named(
        "windows that do not overlap",
        lambda c: {
            **STILL,
            "eval.stride": c.data.seq_len,
            "ttt.chunk_tokens": -(-c.ttt.chunk_tokens // c.data.seq_len) * c.data.seq_len,  # whole windows
        },
    ),
    "sliding": Named("a window every eval.stride tokens, each scores what none before it did", lambda c: STILL),
    "ttt": Named("sliding windows, adapting as the configuration says", lambda c: {}),
    "score-first": Named("the same, but only on targets already scored", lambda c: SCORE_FIRST),
    "window-ttt": Named(
        "pr294's in-script TTT: a step of SGD on the MLPs of the last blocks after each window",
        lambda c: {
            **SCORE_FIRST,
            **_last_quarter(c),
            "eval.stride": c.data.seq_len,
            "ttt.chunk_tokens": c.data.seq_len,
            "ttt.epochs": 1,
            "ttt.optimizer": "sgd",
            "ttt.lr": 0.01,
            "ttt.lr_shape": "constant",
            "ttt.momentum": 0.0,
            "ttt.clip": 0.0,
            "ttt.adapted": "mlps",
        },
    ),
    "lora-ttt": Named(
        "score-first with low-rank adapters, rank 4, on the MLPs of the last blocks, Adam",
        lambda c: {**SCORE_FIRST, **LORA, **_last_quarter(c)},
    ),
    "train-then-score": Named("pr398's TTT: 20 epochs over everything, then scores", lambda c: PR398),
    "causal-sweep": Named(
        "pr398's causal TTT: one step a chunk through the stream, then scores",
        lambda c: {**PR398, "ttt.epochs": 0, "ttt.sweeps": 1},
    ),
    "two-phase": Named("pr398's TTT, then its causal TTT, then scores", lambda c: {**PR398, "ttt.sweeps": 1}),
    "error-guided": Named(
        "pr294's: low-rank adapters trained on the 2 % of the windows with the highest loss, then scores",
        lambda c: {
            **TRAIN_FIRST,
            **LORA,
            **_last_quarter(c),
            "ttt.sweeps": 0,
            "ttt.shards": 1,
            "ttt.top_fraction": 0.02,
        },
    ),
    "error-guided-legal": Named(
        "the same, each window only once scored, and only if among the 2 % highest recorded so far",
        lambda c: {
            **SCORE_FIRST,
            **LORA,
            **_last_quarter(c),
            "ttt.chunk_tokens": c.data.seq_len,
            "ttt.top_fraction": 0.02,
        },
    ),
    "ppm": Named(
        "sliding windows, mixed with an adaptive order-1 model of the stream",
        lambda c: {**STILL, "eval.tail": "exact", "eval.ppm_weight": 0.05},
    ),
}


def configure(name: str, cfg: Config, changes: Changes | None = None) -> Config:
    """`cfg` under protocol `name`: what the protocol changes, and over that `changes`.

    UserError: an unknown protocol, a change outside of eval and ttt, of the wrong type, or that contradicts `cfg`.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol {name!r}; known: {', '.join(PROTOCOLS)}")
    changes = changes or {}
    for dotted in changes:
        if dotted.partition(".")[0] not in ("eval", "ttt"):
            raise UserError(f"protocol {name}: expected changes of eval and ttt values, found {dotted!r}")
    own = PROTOCOLS[name].changes(cfg)
    sections = {
        section: replace(
            getattr(cfg, section), **{k.partition(".")[2]: v for k, v in own.items() if k.startswith(f"{section}.")}
        )
        for section in ("eval", "ttt")
    }
    return config.override(replace(cfg, **sections), changes, f"protocol {name}")


def evaluate(
    name: str,
    cfg: Config,
    weights: Weights,
    tokens: np.ndarray,
    tables: Tables,
    *,
    changes: Changes | None = None,
    runtime: Runtime | None = None,
    compute: Compute | None = None,
    resume: Path | None = None,
    source: dict | None = None,
    label: str = "",
) -> EvalResult:
    """Score the stream `tokens` (total + 1,) ids under protocol `name`. The weights are not changed.

    `changes`: dotted eval and ttt values over the protocol's own. `resume`: a file for the state between chunks; an
    evaluation killed at any moment goes on from it to the same result, and it is gone when done.
    Raises UserError as `configure`, and for a chunk that windows would straddle.
    """
    walk = begin(name, cfg, weights, tokens, tables, changes=changes, runtime=runtime, compute=compute, resume=resume)
    with bar(walk.work, label or name, "tok", walk.worked, walk.runtime.is_main) as progress:
        while not walk.finished:
            progress.update(walk.step())
            if walk.scored:
                progress.set_postfix_str(f"bpb {walk.running_bpb():.4f}", refresh=False)
    return walk.result(name, source or {})


def begin(
    name: str,
    cfg: Config,
    weights: Weights,
    tokens: np.ndarray,
    tables: Tables,
    *,
    changes: Changes | None = None,
    runtime: Runtime | None = None,
    compute: Compute | None = None,
    resume: Path | None = None,
    look: Look | None = None,
) -> Walk:
    """An evaluation that nothing was scored in yet (or what `resume` holds); arguments and errors as `evaluate`."""
    runtime = runtime or Runtime(weights.rest["tok_emb"].device, 0, 1, 0, torch.float32)
    compute = compute or choose_compute(runtime.device, runtime.dtype)
    own, ledger = configure(name, cfg, changes), Ledger(tokens, rescore=cfg.eval.tail != "exact")
    if ledger.total < 1:
        raise UserError(f"protocol {name}: expected at least 2 validation tokens, found {len(tokens)}")
    return Walk(own, cfg.ttt.chunk_tokens, ledger, weights, tables, runtime, compute, resume, look)
