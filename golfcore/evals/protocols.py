"""Evaluation protocols by name. Each is a configuration: what it changes of the `eval` and `ttt` sections.

All run one loop (`golfcore.evals.evaluation`): perhaps train first, then score a chunk, record it, perhaps adapt. Which
of them is legal is not said here: the ledger sees it.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from golfcore import config
from golfcore.base.errors import UserError
from golfcore.base.progress import bar
from golfcore.config import Config
from golfcore.evals import saved
from golfcore.evals.evaluation import Evaluation, Subject
from golfcore.evals.result import EvalResult
from golfcore.evals.score import bits_per_byte
from golfcore.evals.windows import window_length

SAVE_EVERY_SECONDS = 20.0
Changes = Mapping[str, object]  # dotted keys of the eval and ttt sections


class Named(NamedTuple):
    text: str
    changes: Changes  # a function of the configuration stands for its value


STILL = {"ttt.epochs": 0, "ttt.sweeps": 0, "ttt.order": "score-first", "ttt.shards": 1, "ttt.reset": "never"}
SCORE_FIRST = {"ttt.order": "score-first", "ttt.sweeps": 0, "ttt.shards": 1, "ttt.top_fraction": 1.0}
TRAIN_FIRST = {"ttt.order": "train-first", "ttt.reset": "never", "ttt.lr_shape": "constant", "ttt.top_fraction": 1.0}
PR398 = TRAIN_FIRST | {"ttt.epochs": 20, "ttt.sweeps": 0, "ttt.adapted": "all", "ttt.freeze_blocks": 0}  # as published
PR398 |= {"ttt.optimizer": "sgd", "ttt.lr": 0.008, "ttt.momentum": 0.9, "ttt.clip": 1.0}
LAST_QUARTER = {"ttt.freeze_blocks": lambda c: c.model.n_blocks - max(1, c.model.n_blocks // 4), "ttt.freeze": "all"}
LORA = LAST_QUARTER | {"ttt.adapted": "lora", "ttt.lora_rank": 4, "ttt.lora_roles": ["up", "down"]}
LORA |= {"ttt.optimizer": "adam", "ttt.lr": 0.001, "ttt.lr_shape": "constant", "ttt.clip": 1.0}
LORA |= {"ttt.epochs": 3, "ttt.batch_seqs": 1}
WINDOW = SCORE_FIRST | LAST_QUARTER | {"ttt.adapted": "mlps", "ttt.epochs": 1, "ttt.optimizer": "sgd"}
WINDOW |= {"ttt.lr": 0.01, "ttt.lr_shape": "constant", "ttt.momentum": 0.0, "ttt.clip": 0.0}
WINDOW |= {"eval.stride": window_length, "ttt.chunk_tokens": lambda c: max(window_length(c), c.data.seq_len)}
HARDEST = LORA | {"ttt.top_fraction": 0.02}

PROTOCOLS = {
    "static": Named("windows that do not overlap", STILL | {"eval.stride": window_length}),
    "sliding": Named("a window every eval.stride tokens, each scores what none before it did", STILL),
    "ttt": Named("sliding windows, adapting as the configuration says", {}),
    "score-first": Named("the same, but only on targets already scored", SCORE_FIRST),
    "window-ttt": Named(
        "pr294's in-script TTT: a step of SGD on the MLPs of the last blocks after each window", WINDOW
    ),
    "lora-ttt": Named(
        "score-first with low-rank adapters, rank 4, on the MLPs of the last blocks, Adam", SCORE_FIRST | LORA
    ),
    "train-then-score": Named("pr398's TTT: 20 epochs over everything, then scores", PR398),
    "causal-sweep": Named(
        "pr398's causal TTT: one step a chunk through the stream, then scores",
        PR398 | {"ttt.epochs": 0, "ttt.sweeps": 1},
    ),
    "two-phase": Named("pr398's TTT, then its causal TTT, then scores", PR398 | {"ttt.sweeps": 1}),
    "error-guided": Named(
        "pr294's: low-rank adapters trained on the 2 % of the windows with the highest loss, then scores",
        TRAIN_FIRST | HARDEST | {"ttt.sweeps": 0, "ttt.shards": 1},
    ),
    "error-guided-legal": Named(
        "the same, each window only once scored, and only if among the 2 % highest recorded so far",
        SCORE_FIRST | HARDEST | {"ttt.chunk_tokens": lambda c: c.data.seq_len},
    ),
    "ppm": Named(
        "sliding windows, mixed with an adaptive order-1 model of the stream",
        STILL | {"eval.tail": "exact", "eval.ppm_weight": 0.05},
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
    length = {key: value for key, value in changes.items() if key == "eval.seq_len"}  # protocols count in windows
    base = config.override(cfg, length, f"protocol {name}")
    own = {key: value(base) if callable(value) else value for key, value in PROTOCOLS[name].changes.items()}
    return config.override(cfg, own | dict(changes), f"protocol {name}")


def reference_of(name: str, cfg: Config) -> str:
    """The protocol that scores the same windows as `name` under `cfg` and adapts nothing: what its gain is over."""
    own = configure(name, cfg)
    return "static" if own.eval.stride == window_length(own) else "sliding"


def evaluate(
    name: str,
    cfg: Config,
    subject: Subject,
    *,
    changes: Changes | None = None,
    resume: Path | None = None,
    source: dict | None = None,
    label: str = "",
) -> EvalResult:
    """Score the subject's text with its weights, which are not changed, under protocol `name`.

    `changes`: dotted eval and ttt values over the protocol's own. `resume`: a file for the state between chunks, from
    which a killed evaluation goes on to the same result; it is gone when done.
    UserError: as `configure`; a part of another evaluation; adaptation that diverges or does nothing.
    """
    evaluation, main = begin(name, cfg, subject, changes), subject.runtime.is_main
    owner = saved.belongs(evaluation) if resume is not None else {}
    if resume is not None and resume.exists():
        saved.load(evaluation, resume, owner)
    last = time.perf_counter()
    with bar(evaluation.work, label or name, "tok", evaluation.done, main) as progress:
        while not evaluation.finished:
            progress.update(evaluation.step())
            if evaluation.so_far[1]:
                progress.set_postfix_str(f"bpb {bits_per_byte(*evaluation.so_far):.4f}", refresh=False)
            stale = time.perf_counter() - last > SAVE_EVERY_SECONDS
            if resume is not None and main and stale and not evaluation.finished:
                saved.save(evaluation, resume, owner)
                last = time.perf_counter()
    found = evaluation.result(source or {})
    if resume is not None:
        resume.unlink(missing_ok=True)
    return found


def begin(name: str, cfg: Config, subject: Subject, changes: Changes | None = None) -> Evaluation:
    """An evaluation that nothing was scored in yet, to be stepped; arguments and errors as `evaluate`."""
    return Evaluation(name, configure(name, cfg, changes), cfg.ttt.chunk_tokens, subject)
