"""Which values of a configuration cannot be, or cannot be together."""

from collections.abc import Iterable
from dataclasses import asdict

from golfcore.config.schema import Config

POSITIVE = {  # numbers that cannot be 0; no number can be negative
    "model": (
        "vocab_size",
        "dim",
        "n_heads",
        "n_kv_heads",
        "mlp_hidden",
        "rope_dims",
        "bigram_dim",
        "ve_dim",
        "softcap",
    ),
    "data": ("seq_len",),
    "optim": ("batch_tokens", "grad_accum", "ns_steps"),
    "schedule": ("iterations", "adaptive_every"),
    "average": ("every", "keep"),
    "meta": ("every", "log_rates_every"),
    "reptile": ("inner_steps", "batch_seqs"),
    "quant": ("block", "calib_seqs", "calib_len", "calib_batch", "temperature", "max_bytes"),
    "eval": ("stride", "batch_seqs"),
    "ttt": ("chunk_tokens", "batch_seqs", "shards", "lora_rank", "top_fraction"),
    "run": ("log_every", "checkpoint_every"),
}


def contradictions(c: Config) -> Iterable[str]:
    """Sentences about values that cannot be, or cannot be together."""
    return list(_out_of_range(c)) or list(_contradictory(c))


def _out_of_range(c: Config) -> Iterable[str]:
    for section, values in asdict(c).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, (int, float))]
            if any(not 0 <= x < float("inf") for x in numbers):
                yield f"{section}.{key}: expected a number of at least 0, found {value}"
            elif key in POSITIVE.get(section, ()) and not value:
                yield f"{section}.{key}: expected more than 0, found {value}"


def _contradictory(c: Config) -> Iterable[str]:
    m, s = c.model, c.data.seq_len
    checks: list[tuple[bool, str]] = [
        (m.dim % m.n_heads != 0, f"model.dim {m.dim} is not a multiple of model.n_heads {m.n_heads}"),
        (m.n_heads % m.n_kv_heads != 0, f"model.n_heads {m.n_heads} is not a multiple of n_kv_heads {m.n_kv_heads}"),
        (not m.blocks, "model.blocks is empty, expected one block number a layer"),
        (
            sorted(set(m.blocks)) != list(range(len(set(m.blocks)))),
            f"model.blocks {list(m.blocks)} must use every block number from 0 to its largest",
        ),
        (
            not 0 < m.rope_dims <= m.head_dim or m.rope_dims % 2 != 0,
            f"model.rope_dims {m.rope_dims} must be even and within the head width {m.head_dim}",
        ),
        (
            m.mlp == "swiglu" and 2 * m.mlp_hidden % 3 != 0,
            f"model.mlp_hidden {m.mlp_hidden} must divide by 3 for swiglu",
        ),
        (
            any(not 0 <= i < len(m.blocks) for i in m.ve_layers),
            f"model.ve_layers {list(m.ve_layers)} names no such layer",
        ),
        (
            any(not 0 <= i < len(m.blocks) // 2 for i in m.frozen_skips),
            f"model.frozen_skips {list(m.frozen_skips)} names no such skip row",
        ),
        (m.trigram and not m.bigram_rows, "model.trigram needs model.bigram_rows > 0"),
        (
            not m.ngram_trained and not (m.smear or m.bigram_rows),
            "model.ngram_trained false needs model.smear or model.bigram_rows: there is nothing to leave untrained",
        ),
        (0 < m.bigram_rows < 4, f"model.bigram_rows {m.bigram_rows} is too few: expected 0 or at least 4"),
        (m.rope_angles == "bfloat16" and not m.rope_ntk_len, "model.rope_angles bfloat16 needs model.rope_ntk_len"),
        (
            c.optim.batch_tokens % (c.optim.grad_accum * s) != 0,
            f"optim.batch_tokens {c.optim.batch_tokens} is not a multiple of grad_accum x data.seq_len "
            f"({c.optim.grad_accum} x {s})",
        ),
        (
            c.eval.stride > (c.eval.seq_len or s),
            f"eval.stride {c.eval.stride} is more than the window of {c.eval.seq_len or s}: it would leave out targets",
        ),
        (
            m.memory_tokens >= (c.eval.seq_len or s),
            f"model.memory_tokens {m.memory_tokens} leaves no input of a window of {c.eval.seq_len or s}",
        ),
        (
            c.schedule.clock == "wall" and c.schedule.max_seconds <= 0,
            "schedule.clock wall needs schedule.max_seconds > 0",
        ),
    ]
    return (text for wrong, text in [*checks, *_meta_checks(c), *_quant_checks(c), *_ttt_checks(c)] if wrong)


def _meta_checks(c: Config) -> list[tuple[bool, str]]:
    m, adapts = c.meta, c.meta.enabled and c.meta.inner_steps > 0
    idle = [key for key in ("inner_momentum", "inner_clip", "sam_rho", "delta_weight") if getattr(m, key)]
    return [
        (m.enabled and c.data.seq_len < 2, f"meta.enabled splits rows, but data.seq_len is {c.data.seq_len}"),
        (
            m.enabled and c.model.memory_tokens >= c.data.seq_len // 2,
            f"meta.enabled splits rows, and model.memory_tokens {c.model.memory_tokens} fills a half of "
            f"data.seq_len {c.data.seq_len}",
        ),
        (
            c.model.meta_sgd and not adapts,
            "model.meta_sgd needs meta.enabled and meta.inner_steps > 0: nothing else trains the inner rates",
        ),
        (
            m.enabled and not m.inner_steps and bool(idle),
            f"meta.inner_steps 0 takes no inner step, but meta.{idle[0] if idle else ''} is set",
        ),
    ]


def _quant_checks(c: Config) -> list[tuple[bool, str]]:
    q = c.quant
    guided = q.guided_high > 0 or q.guided_low > 0
    spread = 1 if guided else 0
    return [
        (
            not 2 + spread <= q.matrix_bits <= 8 - spread,
            f"quant.matrix_bits {q.matrix_bits}: expected {2 + spread} to {8 - spread}",
        ),
        (
            q.rounding == "gptq" and not q.stored_scale_codes and q.matrix_bits + spread == 8,
            "quant.stored_scale_codes false with 8-bit matrices needs quant.rounding nearest, found gptq",
        ),
        (not 2 <= q.table_bits <= 8, f"quant.table_bits {q.table_bits}: expected 2 to 8"),
        (not q.clip_quantiles, "quant.clip_quantiles is empty, expected at least one"),
        (
            q.guided_high + q.guided_low > 1,
            f"quant.guided_high {q.guided_high} and guided_low {q.guided_low} are more than all matrices",
        ),
        (not 0 <= c.reptile.share < 1, f"reptile.share {c.reptile.share}: expected less than 1"),
        (
            c.model.memory_tokens >= c.data.seq_len,
            f"model.memory_tokens {c.model.memory_tokens} leaves no input of data.seq_len {c.data.seq_len}",
        ),
    ]


def _ttt_checks(c: Config) -> list[tuple[bool, str]]:
    t, trains_first = c.ttt, c.ttt.order == "train-first"
    return [
        (
            not trains_first and t.epochs > 0 and t.chunk_tokens < c.data.seq_len,
            f"ttt.chunk_tokens {t.chunk_tokens} is less than data.seq_len {c.data.seq_len}: nothing to adapt on",
        ),
        (
            bool(t.lr_candidates) and c.data.reserve_tokens <= 2 * t.chunk_tokens,
            "ttt.lr_candidates needs data.reserve_tokens of more than two TTT chunks",
        ),
        (not t.lora_roles, "ttt.lora_roles is empty, expected at least one role"),
        (t.top_fraction > 1, f"ttt.top_fraction {t.top_fraction}: expected at most 1"),
        (not c.eval.ppm_weight < 1, f"eval.ppm_weight {c.eval.ppm_weight}: expected less than 1"),
        (
            c.eval.ppm_weight > 0 and c.eval.tail != "exact",
            f"eval.ppm_weight needs eval.tail exact, found {c.eval.tail}: its counts see every target once",
        ),
        (
            not trains_first and (t.sweeps > 0 or t.shards > 1),
            f"ttt.order score-first has no sweeps and no shards, found ttt.sweeps {t.sweeps} and shards {t.shards}",
        ),
        (
            trains_first and t.lr_shape == "cosine",
            "ttt.order train-first has no chunks to take a cosine over: it needs ttt.lr_shape constant",
        ),
        (
            trains_first and t.reset != "never",
            f"ttt.order train-first adapts before the first chunk: ttt.reset {t.reset} would undo all of it",
        ),
        (
            t.reset == "document" and t.lr_shape == "cosine" and not t.lr_horizon,
            "ttt.reset document makes a chunk of every document: it needs ttt.lr_horizon > 0 or lr_shape constant",
        ),
    ]
