"""The configuration's sections as frozen dataclasses.

A published system's accident is a named field ("quirk"), with the faithful value in that system's preset and the sound
value as the default here.
"""

import json
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, Literal

from golfcore.base.files import canonical_json, sha256_text


def bounded(default: Any, interval: str, hashed: bool = True) -> Any:
    """A field whose numbers (in a tuple: each) lie in `interval`, as "[0, 1)": without 1.

    Not `hashed` is what changes no number of a run but by rounding: where its data lie, how often it says something.
    """
    return field(default=default, metadata={"interval": interval, "hashed": hashed})


def added(default: Any, interval: str = "") -> Any:
    """A field that came later: at its default, which is what was done before, it is in no hash, so those stay."""
    return field(default=default, metadata={"interval": interval, "added": True})


@dataclass(frozen=True)
class ModelConfig:
    """The network. `blocks[i]` is the unique block that layer i reads; the identity shares nothing."""

    vocab_size: int = bounded(1024, "[1, 65536]")
    dim: int = bounded(512, "[1, 65536]")
    n_heads: int = bounded(8, "[1, 1024]")
    n_kv_heads: int = bounded(4, "[1, 1024]")
    mlp_hidden: int = bounded(1536, "[1, 262144]")  # F; SwiGLU uses 2F/3 so that parameters stay equal
    mlp: Literal["leaky_relu2", "relu2", "swiglu"] = "leaky_relu2"
    blocks: tuple[int, ...] = bounded((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), "[0, 1023]")
    frozen_skips: tuple[int, ...] = bounded((), "[0, 1023]")  # rows of `skip` held at 0 in training
    ln_scale: bool = True  # multiply normalised inputs by 1/sqrt(layer + 1)
    softcap: float = bounded(30.0, "(0, 1e6]")
    q_gain_init: float = bounded(1.5, "[0, 1e6]")
    linear_init: Literal["orthogonal", "uniform"] = "orthogonal"  # uniform = torch's default, +-1/sqrt(columns)
    embed_init: Literal["normal", "overtone"] = "normal"  # overtone: singular values s_1 / sqrt(k) (pr294)
    embed_init_std: float = bounded(0.005, "[0, 1e6]")
    mix_init: Literal["identity", "phase"] = "identity"  # phase: early layers lean on the embedding (pr294)
    first_attn_scale: float = bounded(1.0, "[0, 1e6]")  # init of layer 0's attention scale
    init_dtype: Literal["float32", "bfloat16"] = "float32"  # initial values are rounded through this
    rope_dims: int = bounded(16, "[2, 65536]")
    rope_base: float = bounded(10000.0, "[1, 1e12]")
    rope_ntk_len: int = bounded(0, "[0, 1e9]")  # > 0: the base grows beyond it (quirk: 1024, trained at 2048)
    rope_angles: Literal["float32", "bfloat16"] = "float32"  # quirk: bfloat16 angles up to rope_ntk_len
    xsa_last_n: int = bounded(0, "[0, 1024]")  # exclusive self-attention on the last n layers
    bigram_rows: int = bounded(0, "[0, 1e8]")  # hash table rows; 0 = no n-gram embedding
    bigram_dim: int = bounded(64, "[1, 65536]")
    bigram_proj_init: Literal["orthogonal", "scaled", "zeros"] = "orthogonal"  # scaled: by 1/sqrt(2 layers) (pr398)
    bigram_proj_group: Literal["scalar", "matrix"] = "scalar"  # AdamW, or Muon (pr398)
    # hashed: into one half for word starts and one for the rest, or anywhere; frequent: a row for each of the most
    # frequent pairs of the training text, without collisions, and the last row for all others
    bigram_layout: Literal["split", "shared", "frequent"] = "split"
    trigram: bool = False
    word_start_boost: bool = True
    smear: bool = True
    ngram_trained: bool = True  # quirk: False = SmearGate and the n-gram embedding are in no optimizer (pr294)
    memory_tokens: int = bounded(0, "[0, 1e6]")  # learned vectors in place of a row's first inputs (pr398's ablation)
    ve_layers: tuple[int, ...] = bounded((), "[0, 1023]")  # layers whose values get the shared value embedding
    ve_dim: int = bounded(128, "[1, 65536]")
    meta_sgd: bool = False  # train-only: a learned inner rate for every slot of the banks (exp106)

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def n_blocks(self) -> int:
        return max(self.blocks, default=-1) + 1

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
    path: str = bounded("", "", hashed=False)  # shards and a tokenizer; "" = the embedded corpus
    packages: tuple[str, ...] = ("stdlib", "numpy", "scipy", "matplotlib")  # of the embedded corpus
    seq_len: int = bounded(2048, "[1, 1e6]")
    reserve_tokens: int = bounded(0, "[0, 1e12]")  # at the end of the training text, kept to choose TTT settings on
    val_tokens: int = bounded(0, "[0, 1e12]")  # score only the first so many validation targets; 0 = all


@dataclass(frozen=True)
class OptimConfig:
    batch_tokens: int = bounded(786_432, "[1, 1e9]")
    grad_accum: int = bounded(8, "[1, 1e6]")  # micro-batches a step, over all ranks
    pieces: int = added(1, "[1, 1e6]")  # of a micro-batch, by rows, one after another: less memory, other last bits
    matrix_optimizer: Literal["muon", "adamw"] = added("muon")  # adamw: with matrix_lr, matrix_wd, beta1, beta2 and eps
    conditioning: float = added(0.0, "[0, 100]")  # Muon's decay of singular values towards their root mean square
    matrix_lr: float = bounded(0.025, "[0, 1e30]")
    table_lr: float = bounded(0.035, "[0, 1e30]")
    scalar_lr: float = bounded(0.025, "[0, 1e30]")
    matrix_wd: float = bounded(0.04, "[0, 1e30]")
    adam_wd: float = bounded(0.04, "[0, 1e30]")
    beta1: float = bounded(0.9, "[0, 1)")
    beta2: float = bounded(0.95, "[0, 1)")
    eps: float = bounded(1e-8, "(0, 1]")
    momentum: float = bounded(0.99, "[0, 1)")
    momentum_start: float = bounded(0.92, "[0, 1)")
    nesterov: bool = True  # Muon steps along gradient + momentum x buffer, as torch's does; False: along the buffer
    momentum_steps: int = bounded(1500, "[0, 1e9]")
    matrix_decay: Literal["before", "after"] = "before"  # quirk: after = of what the step has just made (pr294)
    momentum_dtype: Literal["compute", "float32"] = "compute"  # of Muon's buffers
    ns_steps: int = bounded(5, "[1, 100]")
    ns_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # of Newton-Schulz; auto: bfloat16 where it is native
    ns_quintics: Literal["muon", "polar-express"] = "muon"  # its polynomials (arXiv 2505.16932 for the second)
    equal_rows: bool = False  # rows of Muon's direction have length 1 before Newton-Schulz (MuonEq-R, arXiv 2603.28254)
    grad_clip: float = bounded(0.3, "[0, 1e30]")
    z_loss: float = bounded(0.0, "[0, 1e30]")  # weight of the capped logits' mean squared log-partition; training only
    table_dtype: Literal["float32", "compute"] = "float32"  # quirk: tables (and moments) in the compute dtype
    qat: Literal["none", "matrices", "inert"] = "none"  # quirk: inert = announced, touches no matrix (published)
    qat_scale: float = bounded(0.25, "(0, 2]")  # late QAT starts when the LR multiplier falls below this


@dataclass(frozen=True)
class ScheduleConfig:
    clock: Literal["steps", "wall"] = "steps"  # what the multiplier is a function of
    shape: Literal["cosine", "linear"] = "cosine"
    iterations: int = bounded(7500, "[1, 1e9]")
    max_seconds: float = bounded(0.0, "[0, 1e9]")  # training stops here (validation not counted); 0 = no cap
    warmdown_steps: int = bounded(2500, "[0, 1e9]")
    guard_steps: int = bounded(25, "[0, 1e9]")  # the multiplier is 1 before this step
    adaptive: bool = False  # start the warmdown when the loss average stops falling
    adaptive_ema: float = bounded(0.99, "[0, 1)")
    adaptive_threshold: float = bounded(0.0005, "[0, 1e30]")
    adaptive_min_steps: int = bounded(2000, "[0, 1e9]")
    adaptive_every: int = bounded(100, "[1, 1e9]")


@dataclass(frozen=True)
class AverageConfig:
    kind: Literal["none", "ema", "swa", "lawa"] = "ema"
    decay: float = bounded(0.998, "[0, 1)")  # EMA, per step
    every: int = bounded(10, "[1, 1e9]")
    start_scale: float = bounded(0.2, "(0, 2]")  # SWA: while the LR multiplier is below this
    keep: int = bounded(10, "[1, 1000]")  # LAWA: mean of so many last snapshots


@dataclass(frozen=True)
class MetaConfig:
    """Meta-learning inside training: inner steps on one part of a micro-batch, the loss after them on another.

    The step gains the gradient of (loss_weight + delta_weight) post - delta_weight pre, over the micro-batches.
    """

    enabled: bool = False
    every: int = bounded(4, "[1, 1e9]")  # steps
    min_scale: float = bounded(0.5, "[0, 1)")  # only while the LR multiplier is above this
    split: Literal["time", "batch", "next-chunk"] = "time"  # halves of each row, halves of the rows, next micro-batch
    adapted: Literal["banks", "all"] = "banks"  # what takes inner steps; all = as in TTT
    freeze_blocks: int = bounded(2, "[0, 1024]")  # the first blocks take no inner step
    inner_steps: int = bounded(1, "[0, 1000]")  # 0 = placebo: the same outer gradient without adaptation
    inner_lr: float = bounded(0.002, "[0, 1e30]")
    inner_momentum: float = bounded(0.0, "[0, 1)")
    inner_clip: float = bounded(0.0, "[0, 1e30]")  # joint norm of the inner gradient; 0 = not clipped
    sam_rho: float = bounded(0.0, "[0, 1e30]")  # the inner gradient is taken this far along itself; 0 = off
    order: Literal["first", "second"] = "first"  # second = differentiate through the inner steps
    loss_weight: float = bounded(0.5, "[0, 1e30]")
    delta_weight: float = bounded(0.0, "[0, 1e30]")  # also reward what the inner steps gain
    dtype: Literal["float32", "compute"] = "float32"  # quirk: compute rounds adapted weights, and their step, to it
    log_pre_every: int = bounded(1, "[0, 1e9]")  # meta steps between losses before inner steps; 0 = never
    log_rates_every: int = bounded(50, "[1, 1e9]")  # steps between records of the learned rates


@dataclass(frozen=True)
class ReptileConfig:
    """A phase after training (Nichol et al. 2018; pr294): SGD on a few spans of text, then a step towards its end.

    Ordinary training then ends (1 - share) through the budget. Three arms settle what the phase is worth: it; share 0,
    ordinary steps instead; outer_lr 0, nothing instead (the same bits as so many fewer iterations).
    """

    share: float = bounded(0.0, "[0, 1)")  # of the training budget (tokens; seconds by the wall clock); 0 = no phase
    inner_steps: int = bounded(3, "[1, 1e6]")  # each on text of its own
    inner_lr: float = bounded(0.1, "[0, 1e30]")
    outer_lr: float = bounded(0.01, "[0, 1e30]")  # 0 = the share is left unused
    batch_seqs: int = bounded(1, "[1, 1e6]")
    freeze_blocks: int = bounded(0, "[0, 1024]")  # of the MLPs that take part, those of the first so many blocks do not


@dataclass(frozen=True)
class QuantConfig:
    rounding: Literal["gptq", "nearest"] = "gptq"
    matrix_bits: int = bounded(6, "[2, 8]")
    table_bits: int = bounded(8, "[2, 8]")
    lowest: Literal["symmetric", "full"] = "symmetric"  # quirk: full = codes go down to -qmax - 1, never used
    float16: tuple[str, ...] = ()  # tensors that keep 16 bits whatever their size
    guided_high: float = bounded(0.0, "[0, 1]")  # share of matrices that get a bit more, by their gradients (pr398)
    guided_low: float = bounded(0.0, "[0, 1]")  # share that get a bit less
    guided_scale: float = bounded(0.5, "(0, 2]")  # gradients count while the LR multiplier is below this
    floor: bool = False  # quirk: scales are at least 1/qmax (this, not the bit width, made the artifact fit)
    clip_quantiles: tuple[float, ...] = bounded((0.999, 0.9995, 0.9999, 0.99999, 1.0), "(0, 1]")
    clip_score: Literal["hessian", "mse"] = "hessian"  # quirk: mse, which GPTQ does not minimise
    table_quantile: float = bounded(0.9999984, "(0, 1]")
    stored_scale_codes: bool = True  # quirk: False = int8 codes from the scale before it is rounded to fp16
    fp16_max_numel: int = bounded(0, "[0, 1e12]")  # quirk: 65,536 = any matrix or table up to this size stays fp16
    damping: float = bounded(0.01, "[0, 1e6]")
    damp_twice: bool = False  # quirk: the damping is added again inside GPTQ
    block: int = bounded(128, "[1, 65536]")
    calib_seqs: int = bounded(64, "[1, 1e6]")
    calib_len: int = bounded(2048, "[2, 1e6]")
    calib_batch: int = bounded(8, "[1, 1e6]")
    temperature: float = bounded(0.8, "(0, 1e6]")
    # clip: by quantiles, the width sets the bits. sigma: a multiple of each tensor's root mean square, the coder sets
    # them. measured: so at the same mean, by what rounding each tensor does to the predictions on self-generated text
    steps: Literal["clip", "sigma", "measured"] = added("clip")
    step: float = added(0.25, "[0, 4]")  # in root mean squares; 0 = the finest at which the file fits max_bytes
    rate: float = added(0.0, "[0, 16]")  # weight of code length in GPTQ's rounding; 1: a bit costs as in the best coder
    table_gptq: bool = added(False)  # the token embedding through GPTQ, by the inputs of the head
    codec: Literal["ans", "zstd", "lzma", "zlib"] = "ans"  # of the codes; the last three as published
    max_bytes: int = bounded(16_000_000, "[1, 1e12]")  # artifact + code


@dataclass(frozen=True)
class EvalConfig:
    stride: int = bounded(64, "[1, 1e6]")
    batch_seqs: int = bounded(128, "[1, 1e6]")
    tail: Literal["exact", "exp101", "pr398"] = "exact"  # quirk: both re-score the last stride in every short window
    ppm_weight: float = bounded(0.0, "[0, 1)")  # of an adaptive order-1 model mixed into all (pr398: 0.05)
    seq_len: int = bounded(0, "[0, 1e6]")  # of windows; 0 = data.seq_len, which rows to adapt on always have
    also: tuple[str, ...] = ()  # protocols that a run measures besides static, sliding and ttt


@dataclass(frozen=True)
class TTTConfig:
    order: Literal["score-first", "train-first"] = "score-first"  # quirk: train-first is not legal (pr294, pr398)
    chunk_tokens: int = bounded(65_536, "[1, 1e12]")
    epochs: int = bounded(4, "[0, 10000]")  # over each chunk once it is scored; train-first: over the whole stream
    sweeps: int = bounded(0, "[0, 10000]")  # train-first: further passes, one step a chunk (pr398's "causal TTT")
    optimizer: Literal["sgd", "adam", "muon", "lars"] = "sgd"  # lars: SGD whose steps are shares of a matrix's norm
    lr: float = bounded(0.004, "[0, 1e30]")
    lr_candidates: tuple[float, ...] = bounded((), "[0, 1e30]")  # chosen on reserved training text; () = lr as it is
    lr_shape: Literal["cosine", "constant"] = "cosine"  # over chunks
    lr_horizon: int = bounded(0, "[0, 1e12]")  # chunks in the cosine; 0 = those of the stream (published)
    momentum: float = bounded(0.9, "[0, 1)")  # of SGD; Adam has its usual 0.9 and 0.999
    batch_seqs: int = bounded(16, "[1, 1e6]")
    shards: int = bounded(1, "[1, 1e6]")  # quirk, train-first: parts of the stream that make a batch
    clip: float = bounded(1.0, "[0, 1e30]")  # joint norm of the gradient; 0 = not clipped
    adapted: Literal["all", "banks", "blocks", "mlps", "scalars", "lora"] = "all"  # blocks: their scales as well
    lora_rank: int = bounded(4, "[1, 65536]")
    lora_roles: tuple[Literal["query", "key", "value", "out", "up", "down"], ...] = ("up", "down")
    freeze_blocks: int = bounded(2, "[0, 1024]")
    freeze: Literal["all", "scalars"] = "all"  # quirk: scalars = the blocks' matrices are adapted all the same
    top_fraction: float = bounded(1.0, "(0, 1]")  # adapt only on the rows of highest recorded loss
    reset: Literal["never", "chunk", "document"] = "never"  # where adaptation starts again from the packed weights
    qat_projections: bool = False  # quirk: adaptation sees the two small projections fake-quantized


@dataclass(frozen=True)
class RunConfig:
    seed: int = bounded(42, "[0, 4294967295]")
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute; auto: bfloat16 where it is native
    graphs: Literal["auto", "always", "never"] = bounded("auto", "", hashed=False)  # of torch's compiler; auto: on CUDA
    val_every: int = bounded(500, "[0, 1e9]", hashed=False)  # 0 = only at the end; looks at weights, changes none
    log_every: int = bounded(10, "[1, 1e9]", hashed=False)
    checkpoint_every: int = bounded(250, "[1, 1e9]", hashed=False)
    keep_every: int = bounded(0, "[0, 1e9]", hashed=False)  # steps between weights that stay for analysis; 0 = none


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
        """16 hex digits over every value that changes a number."""
        return sha256_text(canonical_json(self.hashed()))[:16]

    @property
    def training_hash(self) -> str:
        """The same over what training reads: runs that agree in it, and in their data, train to the same weights.

        Left out are the sections that act on trained weights only: eval, ttt, and quant, unless training rounds by it
        (QAT) or records for it (guided bits: the scale below which, but not the shares).
        """
        values = self.hashed()
        guided = self.quant.guided_high > 0 or self.quant.guided_low > 0
        if self.optim.qat != "matrices":
            values["quant"] = {"guided_scale": self.quant.guided_scale} if guided else {}
        read = {name: of for name, of in values.items() if name not in ("eval", "ttt")}
        return sha256_text(canonical_json(read))[:16]

    def hashed(self) -> dict[str, dict[str, Any]]:
        """The plain values that change a number, by section: not the name, nor what is not `hashed`."""
        values, kept = json.loads(json.dumps(asdict(self))), dict[str, dict[str, Any]]()
        for section in fields(self):
            if section.name != "name":
                known = {f.name: f for f in fields(getattr(self, section.name))}
                of = values[section.name]
                kept[section.name] = {key: of[key] for key, f in known.items() if _is_hashed(f, of[key])}
        return kept


def _is_hashed(f: "Field[Any]", value: Any) -> bool:
    return f.metadata.get("hashed", True) and not (f.metadata.get("added") and value == f.default)
