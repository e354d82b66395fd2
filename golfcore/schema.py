"""The configuration's sections: frozen dataclasses, and which of their values contradict one another.

A published system's accident is a named field ("quirk"), with the faithful value in that system's preset
and the sound value as the default here.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

from golfcore.files import canonical_json, sha256_text


@dataclass(frozen=True)
class ModelConfig:
    """The network. `blocks[i]` is the unique block that layer i reads; the identity shares nothing."""

    vocab_size: int = 1024
    dim: int = 512
    n_heads: int = 8
    n_kv_heads: int = 4
    mlp_hidden: int = 1536  # F; SwiGLU uses 2F/3 so that parameters stay equal
    mlp: Literal["leaky_relu2", "relu2", "swiglu"] = "leaky_relu2"
    blocks: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    frozen_skips: tuple[int, ...] = ()  # rows of `skip` held at 0 in training
    ln_scale: bool = True  # multiply normalised inputs by 1/sqrt(layer + 1)
    softcap: float = 30.0
    q_gain_init: float = 1.5
    embed_init_std: float = 0.005
    first_attn_scale: float = 1.0  # init of layer 0's attention scale
    init_dtype: Literal["float32", "bfloat16"] = "float32"  # initial values are rounded through this
    rope_dims: int = 16
    rope_base: float = 10000.0
    rope_ntk_len: int = 0  # > 0: the base grows for sequences longer than this (quirk: 1024 while training at 2048)
    rope_angles: Literal["float32", "bfloat16"] = "float32"  # quirk: bfloat16 angles up to rope_ntk_len
    xsa_last_n: int = 0  # exclusive self-attention on the last n layers
    bigram_rows: int = 0  # hash table rows; 0 = no n-gram embedding
    bigram_dim: int = 64
    bigram_split: bool = True  # one half of the table for word starts, one for the rest
    trigram: bool = False
    word_start_boost: bool = True
    smear: bool = True
    ve_layers: tuple[int, ...] = ()  # layers whose values get the shared value embedding
    ve_dim: int = 128
    meta_sgd: bool = False  # train-only: a learned inner rate for every slot of the banks (exp106)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def n_blocks(self) -> int:
        return max(self.blocks) + 1

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def n_skips(self) -> int:
        return self.n_layers // 2


@dataclass(frozen=True)
class DataConfig:
    path: str = ""  # a folder with shards and a tokenizer; "" = the embedded corpus
    packages: tuple[str, ...] = ("stdlib", "numpy", "scipy", "matplotlib")  # of the embedded corpus
    seq_len: int = 2048
    reserve_tokens: int = 0  # last training tokens, never trained on: TTT settings are chosen on them
    val_tokens: int = 0  # score only the first so many validation targets; 0 = all


@dataclass(frozen=True)
class OptimConfig:
    batch_tokens: int = 786_432
    grad_accum: int = 8  # micro-batches a step, over all ranks
    matrix_lr: float = 0.025
    table_lr: float = 0.035
    scalar_lr: float = 0.025
    matrix_wd: float = 0.04
    adam_wd: float = 0.04
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.99
    momentum_start: float = 0.92
    momentum_steps: int = 1500
    ns_steps: int = 5
    grad_clip: float = 0.3
    table_dtype: Literal["float32", "compute"] = "float32"  # quirk: tables (and moments) in the compute dtype
    qat: Literal["none", "matrices", "inert"] = "none"  # quirk: inert = announced, touches no matrix (published)
    qat_scale: float = 0.25  # late QAT starts when the LR multiplier falls below this


@dataclass(frozen=True)
class ScheduleConfig:
    clock: Literal["steps", "wall"] = "steps"  # what the multiplier is a function of
    shape: Literal["cosine", "linear"] = "cosine"
    iterations: int = 7500
    max_seconds: float = 0.0  # training stops here (validation not counted); 0 = no cap
    warmdown_steps: int = 2500
    guard_steps: int = 25  # the multiplier is 1 before this step
    adaptive: bool = False  # start the warmdown when the loss average stops falling
    adaptive_ema: float = 0.99
    adaptive_threshold: float = 0.0005
    adaptive_min_steps: int = 2000
    adaptive_every: int = 100


@dataclass(frozen=True)
class AverageConfig:
    kind: Literal["none", "ema", "swa", "lawa"] = "ema"
    decay: float = 0.998  # EMA, per step
    every: int = 10
    start_scale: float = 0.2  # SWA: while the LR multiplier is below this
    keep: int = 10  # LAWA: mean of so many last snapshots


@dataclass(frozen=True)
class MetaConfig:
    """Meta-learning inside training: inner steps on one part of a micro-batch, the loss after them on another.

    The gradient of (loss_weight + delta_weight) post - delta_weight pre, over the number of micro-batches, joins that
    of the step. model.meta_sgd learns the inner rates.
    """

    enabled: bool = False
    every: int = 4  # steps
    min_scale: float = 0.5  # only while the LR multiplier is above this
    split: Literal["time", "batch", "next-chunk"] = "time"  # halves of each row, halves of the rows, next micro-batch
    adapted: Literal["banks", "all"] = "banks"  # what takes inner steps; all = as in TTT
    freeze_blocks: int = 2  # the first blocks take no inner step
    inner_steps: int = 1  # 0 = placebo: the same outer gradient without adaptation
    inner_lr: float = 0.002
    inner_momentum: float = 0.0
    inner_clip: float = 0.0  # joint norm of the inner gradient; 0 = not clipped
    sam_rho: float = 0.0  # the inner gradient is taken at the weights + so much in its own direction; 0 = off
    order: Literal["first", "second"] = "first"  # second = differentiate through the inner steps
    loss_weight: float = 0.5
    delta_weight: float = 0.0  # also reward what the inner steps gain
    dtype: Literal["float32", "compute"] = "float32"  # quirk: compute rounds adapted weights, and their step, to it
    log_pre_every: int = 1  # without a delta: the loss before the inner steps, at every so many meta steps; 0 = never
    log_rates_every: int = 50  # steps between records of the learned rates


@dataclass(frozen=True)
class QuantConfig:
    matrix_bits: int = 6
    table_bits: int = 8
    floor: bool = False  # quirk: scales are at least 1/qmax (this, not the bit width, made the artifact fit)
    clip_quantiles: tuple[float, ...] = (0.999, 0.9995, 0.9999, 0.99999, 1.0)
    clip_score: Literal["hessian", "mse"] = "hessian"  # quirk: mse, which GPTQ does not minimise
    table_quantile: float = 0.9999984
    stored_scale_codes: bool = True  # quirk: False = int8 codes from the scale before it is rounded to fp16
    fp16_max_numel: int = 0  # quirk: 65,536 = any matrix or table up to this size stays fp16
    damping: float = 0.01
    damp_twice: bool = False  # quirk: the damping is added again inside GPTQ
    block: int = 128
    calib_seqs: int = 64
    calib_len: int = 2048
    calib_batch: int = 8
    temperature: float = 0.8
    max_bytes: int = 16_000_000  # artifact + code


@dataclass(frozen=True)
class EvalConfig:
    stride: int = 64
    batch_seqs: int = 128
    tail: Literal["exact", "published"] = "exact"  # quirk: published re-scores the last stride in every short window


@dataclass(frozen=True)
class TTTConfig:
    chunk_tokens: int = 65_536
    epochs: int = 4
    lr: float = 0.004
    lr_candidates: tuple[float, ...] = ()  # chosen among on reserved training text; () = use lr as it is
    lr_horizon: int = 0  # chunks in the cosine; 0 = as many as the stream has (published: depends on its length)
    momentum: float = 0.9
    batch_seqs: int = 16
    clip: float = 1.0  # joint norm of the gradient; 0 = not clipped
    freeze_blocks: int = 2
    freeze: Literal["all", "scalars"] = "all"  # quirk: scalars = the blocks' matrices are adapted all the same
    qat_projections: bool = False  # quirk: adaptation sees the two small projections fake-quantized


@dataclass(frozen=True)
class RunConfig:
    seed: int = 42
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute; auto = bfloat16 on CUDA
    val_every: int = 500  # 0 = only at the end
    log_every: int = 10
    checkpoint_every: int = 250


@dataclass(frozen=True)
class Config:
    name: str = "default"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    average: AverageConfig = field(default_factory=AverageConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    ttt: TTTConfig = field(default_factory=TTTConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def hash(self) -> str:
        """16 hex digits over every value but the name."""
        values = asdict(self)
        del values["name"]
        return sha256_text(canonical_json(values))[:16]


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
    "quant": ("block", "calib_seqs", "calib_len", "calib_batch", "temperature", "max_bytes"),
    "eval": ("stride", "batch_seqs"),
    "ttt": ("chunk_tokens", "batch_seqs"),
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
        (0 < m.bigram_rows < 4, f"model.bigram_rows {m.bigram_rows} is too few: expected 0 or at least 4"),
        (m.rope_angles == "bfloat16" and not m.rope_ntk_len, "model.rope_angles bfloat16 needs model.rope_ntk_len"),
        (
            c.optim.batch_tokens % (c.optim.grad_accum * s) != 0,
            f"optim.batch_tokens {c.optim.batch_tokens} is not a multiple of grad_accum x data.seq_len "
            f"({c.optim.grad_accum} x {s})",
        ),
        (
            c.ttt.chunk_tokens % c.eval.stride != 0,
            f"ttt.chunk_tokens {c.ttt.chunk_tokens} is not a multiple of eval.stride {c.eval.stride}: "
            "a scored span would straddle two chunks",
        ),
        (
            c.ttt.chunk_tokens < s,
            f"ttt.chunk_tokens {c.ttt.chunk_tokens} is less than data.seq_len {s}: nothing to adapt on",
        ),
        (s % c.eval.stride != 0, f"data.seq_len {s} is not a multiple of eval.stride {c.eval.stride}"),
        (
            c.schedule.clock == "wall" and c.schedule.max_seconds <= 0,
            "schedule.clock wall needs schedule.max_seconds > 0",
        ),
        (
            bool(c.ttt.lr_candidates) and c.data.reserve_tokens <= 2 * c.ttt.chunk_tokens,
            "ttt.lr_candidates needs data.reserve_tokens of more than two TTT chunks",
        ),
        (not 2 <= c.quant.matrix_bits <= 8, f"quant.matrix_bits {c.quant.matrix_bits}: expected 2 to 8"),
        (not 2 <= c.quant.table_bits <= 8, f"quant.table_bits {c.quant.table_bits}: expected 2 to 8"),
        (not c.quant.clip_quantiles, "quant.clip_quantiles is empty, expected at least one"),
    ]
    return (sentence for wrong, sentence in [*checks, *_meta_checks(c)] if wrong)


def _meta_checks(c: Config) -> list[tuple[bool, str]]:
    m, adapts = c.meta, c.meta.enabled and c.meta.inner_steps > 0
    idle = [key for key in ("inner_momentum", "inner_clip", "sam_rho", "delta_weight") if getattr(m, key)]
    return [
        (m.enabled and c.data.seq_len < 2, f"meta.enabled splits rows, but data.seq_len is {c.data.seq_len}"),
        (
            c.model.meta_sgd and not adapts,
            "model.meta_sgd needs meta.enabled and meta.inner_steps > 0: nothing else trains the inner rates",
        ),
        (
            m.enabled and not m.inner_steps and bool(idle),
            f"meta.inner_steps 0 takes no inner step, but meta.{idle[0] if idle else ''} is set",
        ),
    ]
