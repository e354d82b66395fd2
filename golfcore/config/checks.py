"""Which values of a configuration cannot be, or cannot be together."""

from collections.abc import Iterator
from dataclasses import fields
from functools import cache

from golfcore.base.errors import shown
from golfcore.config.schema import Config, ModelConfig

FLOAT16_WHOLE = 2048  # whole numbers up to it are float16 values


def contradictions(c: Config) -> Iterator[str]:
    """Sentences about values that cannot be, then about values that cannot be together."""
    yield from _outside(c)
    yield from _model(c.model)
    yield from _training(c)
    yield from _packing_and_scoring(c)


def _outside(c: Config) -> Iterator[str]:
    """Of lists that are empty though their default is not, and of numbers outside of their fields' intervals."""
    for name, section in vars(c).items():
        for f in fields(section) if name != "name" else ():
            key, value, interval = f"{name}.{f.name}", getattr(section, f.name), f.metadata.get("interval")
            if f.default and value == ():
                yield f"{key} is empty, expected at least one value"
            for x in value if isinstance(value, tuple) else (value,):
                if interval and (wanted := _missed(x, interval)):
                    found = f"{shown(x)} in {shown(value)}" if isinstance(value, tuple) else shown(x)
                    yield f"{key}: expected {wanted}, found {found}"


def _missed(x: float, interval: str) -> str:
    """The interval in words if `x` is outside of it (so is NaN), else ""."""
    low, high = _ends(interval)
    above, low_word = (x > low, "more than") if interval[0] == "(" else (x >= low, "at least")
    below, high_word = (x < high, "less than") if interval[-1] == ")" else (x <= high, "at most")
    words = interval[1:-1].split(", ") if not (above and below) else ()
    return f"{low_word} {words[0]} and {high_word} {words[1]}" if words else ""


@cache
def _ends(interval: str) -> tuple[float, ...]:
    return tuple(map(float, interval[1:-1].split(", ")))


def _model(m: ModelConfig) -> Iterator[str]:
    if m.dim % m.n_heads:
        yield f"model.dim {m.dim} is not a multiple of model.n_heads {m.n_heads}"
    if m.n_heads % m.n_kv_heads:
        yield f"model.n_heads {m.n_heads} is not a multiple of n_kv_heads {m.n_kv_heads}"
    if set(m.blocks) != set(range(len(set(m.blocks)))):
        yield f"model.blocks {list(m.blocks)} must use every block number from 0 to its largest"
    if m.rope_dims > m.head_dim or m.rope_dims % 2:
        yield f"model.rope_dims {m.rope_dims} must be even and within the head width {m.head_dim}"
    if m.mlp == "swiglu" and 2 * m.mlp_hidden % 3:
        yield f"model.mlp_hidden {m.mlp_hidden} must divide by 3 for swiglu"
    if any(i >= m.n_layers for i in m.ve_layers):
        yield f"model.ve_layers {list(m.ve_layers)} names no such layer"
    if any(i >= m.n_skips for i in m.frozen_skips):
        yield f"model.frozen_skips {list(m.frozen_skips)} names no such skip row"
    if m.trigram and not m.bigram_rows:
        yield "model.trigram needs model.bigram_rows > 0"
    if m.bigram_layout == "frequent" and (m.trigram or m.vocab_size > FLOAT16_WHOLE):
        what = "model.trigram" if m.trigram else f"model.vocab_size {m.vocab_size}"
        yield f"model.bigram_layout frequent lists pairs of up to {FLOAT16_WHOLE} different tokens, found {what}"
    if not (m.ngram_trained or m.smear or m.bigram_rows):
        yield "model.ngram_trained false needs model.smear or model.bigram_rows: there is nothing to leave untrained"
    if 0 < m.bigram_rows < 4:
        yield f"model.bigram_rows {m.bigram_rows} is too few: expected 0 or at least 4"
    if m.rope_angles == "bfloat16" and not m.rope_ntk_len:
        yield "model.rope_angles bfloat16 needs model.rope_ntk_len"


def _training(c: Config) -> Iterator[str]:
    m, blocks, row, memory = c.meta, c.model.n_blocks, c.data.seq_len, c.model.memory_tokens
    if c.optim.batch_tokens % (c.optim.grad_accum * row):
        factors = f"{c.optim.grad_accum} x {row}"
        yield f"optim.batch_tokens {c.optim.batch_tokens} is not a multiple of grad_accum x data.seq_len ({factors})"
    if memory >= row:
        yield f"model.memory_tokens {memory} leaves no input of data.seq_len {row}"
    if c.optim.conditioning and c.optim.matrix_optimizer != "muon":
        yield f"optim.conditioning needs optim.matrix_optimizer muon, found {c.optim.matrix_optimizer}"
    if m.enabled and memory >= row // 2:
        yield f"meta.enabled splits rows, and model.memory_tokens {memory} fills a half of data.seq_len {row}"
    if c.schedule.clock == "wall" and not c.schedule.max_seconds:
        yield "schedule.clock wall needs schedule.max_seconds > 0"
    if c.model.meta_sgd and not (m.enabled and m.inner_steps):
        yield "model.meta_sgd needs meta.enabled and meta.inner_steps > 0: nothing else trains the inner rates"
    if m.enabled and m.inner_steps and m.adapted == "banks" and m.freeze_blocks >= blocks:
        yield f"meta.freeze_blocks {m.freeze_blocks} of {blocks} blocks leaves nothing for an inner step"
    if m.enabled and not m.inner_steps:
        idle = [key for key in ("inner_momentum", "inner_clip", "sam_rho", "delta_weight") if getattr(m, key)]
        yield from (f"meta.inner_steps 0 takes no inner step, but meta.{key} is set" for key in idle)
    if c.reptile.share and c.reptile.freeze_blocks >= blocks:
        yield f"reptile.freeze_blocks {c.reptile.freeze_blocks} of {blocks} blocks leaves nothing to train"


def _packing_and_scoring(c: Config) -> Iterator[str]:
    q, t, blocks, trains_first = c.quant, c.ttt, c.model.n_blocks, c.ttt.order == "train-first"
    memory, row, window = c.model.memory_tokens, c.data.seq_len, c.eval.seq_len or c.data.seq_len
    spread = 1 if q.guided_high or q.guided_low else 0
    if not 2 + spread <= q.matrix_bits <= 8 - spread:
        yield f"quant.matrix_bits {q.matrix_bits}: expected {2 + spread} to {8 - spread}"
    if q.rounding == "gptq" and not q.stored_scale_codes and q.matrix_bits + spread == 8:
        yield "quant.stored_scale_codes false with 8-bit matrices needs quant.rounding nearest, found gptq"
    if q.steps != "clip" and (q.floor or not q.stored_scale_codes or spread or q.damp_twice):
        yield f"quant.steps {q.steps} sets scales itself: no floor, stored_scale_codes false, guided bits or damp_twice"
    if q.steps == "clip" and (q.rate or q.table_gptq):
        yield "quant.rate and table_gptq need quant.steps sigma or measured"
    if q.rounding != "gptq" and (q.rate or q.table_gptq or q.steps == "measured"):
        yield f"quant.rounding {q.rounding}: quant.rate, table_gptq and steps measured need gptq"
    if q.guided_high + q.guided_low > 1:
        yield f"quant.guided_high {q.guided_high} and guided_low {q.guided_low} are more than all matrices"
    if c.eval.stride > window:
        yield f"eval.stride {c.eval.stride}: expected at most the windows' length {window}"
    if memory >= window:
        yield f"model.memory_tokens {memory} leaves no input of a window of {window}"
    if c.eval.ppm_weight and c.eval.tail != "exact":
        yield f"eval.ppm_weight needs eval.tail exact, found {c.eval.tail}: its counts see every target once"
    if t.epochs and not trains_first and t.chunk_tokens < row:
        yield f"ttt.chunk_tokens {t.chunk_tokens} is less than data.seq_len {row}: nothing to adapt on"
    if t.lr_candidates and c.data.reserve_tokens <= 2 * t.chunk_tokens:
        yield "ttt.lr_candidates needs data.reserve_tokens of more than two TTT chunks"
    in_blocks = t.adapted in ("banks", "mlps", "lora") and t.freeze == "all"
    if t.epochs + t.sweeps > 0 and in_blocks and t.freeze_blocks >= blocks:
        yield f"ttt.freeze_blocks {t.freeze_blocks} of {blocks} blocks leaves nothing to adapt"
    if not trains_first and (t.sweeps > 0 or t.shards > 1):
        yield f"ttt.order score-first has no sweeps and no shards, found ttt.sweeps {t.sweeps} and shards {t.shards}"
    if trains_first and t.lr_shape == "cosine":
        yield "ttt.order train-first has no chunks to take a cosine over: it needs ttt.lr_shape constant"
    if trains_first and t.reset != "never":
        yield f"ttt.order train-first adapts before the first chunk: ttt.reset {t.reset} would undo all of it"
    if t.reset == "document" and t.lr_shape == "cosine" and not t.lr_horizon:
        yield "ttt.reset document makes a chunk of every document: it needs ttt.lr_horizon > 0 or lr_shape constant"
