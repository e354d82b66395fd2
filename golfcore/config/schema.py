"""The configuration's sections as frozen dataclasses.

A published system's accident is a named field ("quirk"), with the faithful value in that system's preset
and the sound value as the default here.
"""

from dataclasses import asdict, dataclass, field
from typing import Literal

from golfcore.base.files import canonical_json, sha256_text


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
    linear_init: Literal["orthogonal", "uniform"] = "orthogonal"  # uniform = torch's default, +-1/sqrt(columns)
    embed_init: Literal["normal", "overtone"] = "normal"  # overtone: singular values s_1 / sqrt(k) (pr294)
    embed_init_std: float = 0.005
    mix_init: Literal["identity", "phase"] = "identity"  # phase: early layers lean on the embedding (pr294)
    first_attn_scale: float = 1.0  # init of layer 0's attention scale
    init_dtype: Literal["float32", "bfloat16"] = "float32"  # initial values are rounded through this
    rope_dims: int = 16
    rope_base: float = 10000.0
    rope_ntk_len: int = 0  # > 0: the base grows for sequences longer than this (quirk: 1024 while training at 2048)
    rope_angles: Literal["float32", "bfloat16"] = "float32"  # quirk: bfloat16 angles up to rope_ntk_len
    xsa_last_n: int = 0  # exclusive self-attention on the last n layers
    bigram_rows: int = 0  # hash table rows; 0 = no n-gram embedding
    bigram_dim: int = 64
    bigram_proj_init: Literal["orthogonal", "scaled", "zeros"] = "orthogonal"  # scaled: by 1/sqrt(2 layers) (pr398)
    bigram_proj_group: Literal["scalar", "matrix"] = "scalar"  # AdamW, or Muon (pr398)
    bigram_split: bool = True  # one half of the table for word starts, one for the rest
    trigram: bool = False
    word_start_boost: bool = True
    smear: bool = True
    ngram_trained: bool = True  # quirk: False = SmearGate and the n-gram embedding are in no optimizer (pr294)
    memory_tokens: int = 0  # learned vectors in place of the first so many inputs of every row (pr398's ablation)
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
    nesterov: bool = True
    momentum_steps: int = 1500
    matrix_decay: Literal["before", "after"] = "before"  # quirk: after = of what the step has just made (pr294)
    momentum_dtype: Literal["compute", "float32"] = "compute"  # of Muon's buffers
    ns_steps: int = 5
    grad_clip: float = 0.3
    z_loss: float = 0.0  # weight of the mean squared log-partition of the capped logits, in training only
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
class ReptileConfig:
    """A phase after training (Nichol et al. 2018; pr294): SGD on a few spans of text, then a step towards its end.

    Ordinary training then ends (1 - share) through the budget. Three arms settle what the phase is worth: it; share 0,
    ordinary steps instead; outer_lr 0, nothing instead (the same bits as so many fewer iterations).
    """

    share: float = 0.0  # of the training budget (tokens, or seconds by the wall clock); 0 = no such phase
    inner_steps: int = 3  # each on text of its own
    inner_lr: float = 0.1
    outer_lr: float = 0.01  # 0 = the share is left unused
    batch_seqs: int = 1
    freeze_blocks: int = 0  # of the MLPs that take part, those of the first so many blocks do not


@dataclass(frozen=True)
class QuantConfig:
    rounding: Literal["gptq", "nearest"] = "gptq"
    matrix_bits: int = 6
    table_bits: int = 8
    lowest: Literal["symmetric", "full"] = "symmetric"  # quirk: full = codes go down to -qmax - 1, never used
    float16: tuple[str, ...] = ()  # tensors that keep 16 bits whatever their size
    guided_high: float = 0.0  # share of the matrices that get a bit more, by their gradients in training (pr398)
    guided_low: float = 0.0  # share that get a bit less
    guided_scale: float = 0.5  # gradients count while the LR multiplier is below this
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
    codec: Literal["ans", "zstd", "lzma", "zlib"] = "ans"  # of the codes; the last three as published
    max_bytes: int = 16_000_000  # artifact + code


@dataclass(frozen=True)
class EvalConfig:
    seq_len: int = 0  # positions of a window; 0 = data.seq_len. Rows to adapt on have data.seq_len in any case
    stride: int = 64
    batch_seqs: int = 128
    tail: Literal["exact", "exp101", "pr398"] = "exact"  # quirk: both re-score the last stride in every short window
    ppm_weight: float = 0.0  # of an adaptive order-1 model of the stream, mixed into every distribution (pr398: 0.05)
    also: tuple[str, ...] = ()  # protocols that a run measures besides static, sliding and ttt


@dataclass(frozen=True)
class TTTConfig:
    order: Literal["score-first", "train-first"] = "score-first"  # quirk: train-first is not legal (pr294, pr398)
    chunk_tokens: int = 65_536
    epochs: int = 4  # over each chunk once it is scored; train-first: over the whole stream
    sweeps: int = 0  # train-first: so many more passes, a fresh optimizer, one step a chunk (pr398's "causal TTT")
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.004
    lr_candidates: tuple[float, ...] = ()  # chosen among on reserved training text; () = use lr as it is
    lr_shape: Literal["cosine", "constant"] = "cosine"  # over chunks
    lr_horizon: int = 0  # chunks in the cosine; 0 = as many as the stream has (published: depends on its length)
    momentum: float = 0.9  # of SGD; Adam has its usual 0.9 and 0.999
    batch_seqs: int = 16
    shards: int = 1  # quirk, train-first: a batch takes batch_seqs rows from each of so many parts of the stream
    clip: float = 1.0  # joint norm of the gradient; 0 = not clipped
    adapted: Literal["all", "banks", "blocks", "mlps", "scalars", "lora"] = "all"  # blocks: their scales as well
    lora_rank: int = 4
    lora_roles: tuple[Literal["query", "key", "value", "out", "up", "down"], ...] = ("up", "down")
    freeze_blocks: int = 2
    freeze: Literal["all", "scalars"] = "all"  # quirk: scalars = the blocks' matrices are adapted all the same
    top_fraction: float = 1.0  # adapt only on rows whose recorded loss is among this share of the highest so far
    reset: Literal["never", "chunk", "document"] = "never"  # where adaptation starts again from the packed weights
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
    reptile: ReptileConfig = field(default_factory=ReptileConfig)
    quant: QuantConfig = field(default_factory=QuantConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    ttt: TTTConfig = field(default_factory=TTTConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def hash(self) -> str:
        """16 hex digits over every value but the name."""
        values = asdict(self)
        del values["name"]
        return _hash(values)

    @property
    def training_hash(self) -> str:
        """The same over what training reads: runs that agree in it, and in their data, train to the same weights.

        Left out are the sections that act on trained weights only: eval, ttt, and quant, unless training rounds by it
        (QAT) or records for it (guided bits: the scale below which, but not the shares).
        """
        values = asdict(self)
        guided = self.quant.guided_high > 0 or self.quant.guided_low > 0
        if self.optim.qat != "matrices":
            values["quant"] = {"guided_scale": self.quant.guided_scale} if guided else {}
        for name in ("name", "eval", "ttt"):
            del values[name]
        return _hash(values)


def _hash(values: dict) -> str:
    return sha256_text(canonical_json(values))[:16]
