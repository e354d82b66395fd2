"""The one forward pass. Training, evaluation, meta-learning, TTT, calibration and generation are calls of it.

Shapes: B batch, T time, D width, V vocabulary, Hkv*K width of keys and values.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.data.tokens import Tables
from golfcore.model.attention import Cache, Compute, rope_angles
from golfcore.model.hashing import listed_rows, ngram_rows
from golfcore.model.pointwise import Pointwise, rms, rotate
from golfcore.model.weights import Weights, matrix, matrix_name, unbound

EMBED_REACH = 3  # position p of `embed` depends on tokens p-3 .. p (smear of the trigram)

Tap = Callable[[str, Tensor], None]  # called with a name and the input of that matrix (or the output of that layer)


class Net(NamedTuple):
    """Configuration, tokenizer tables and execution of a forward: what stays the same during a run."""

    cfg: ModelConfig
    tables: Tables | None = None  # of the tokenizer: what begins a word
    compute: Compute = Compute()


@cache
def graph(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` by torch's compiler: one graph for each shape of its arguments; what would break a graph raises.

    Compiled once a process: other weights, and other networks of equal configuration, find the graph made.
    """
    torch._dynamo.config.recompile_limit = 64  # a study trains many configurations in one process
    return torch.compile(fn, dynamic=False, fullgraph=True)


class Pass(NamedTuple):
    """What all layers of one forward share, beside the residual stream."""

    net: Net
    weights: Weights
    x0: Tensor  # (B, T, D) the first residual stream
    ve: Tensor | None  # (B, T, Hkv*K) value embedding
    rope: tuple[Tensor, Tensor]  # cos, sin
    tap: Tap | None
    cache: Cache | None

    @property
    def between(self) -> Pointwise:
        """What lies between products; written out where single products are observed or text is continued."""
        return Pointwise() if self.tap is not None or self.cache else self.net.compute.pointwise

    def product(self, role: str, block: int, x: Tensor) -> Tensor:
        return linear(x, matrix(self.weights.banks, role, block), matrix_name(role, block), self.tap)

    def update(self, role: str, block: int, x: Tensor, scale: Tensor) -> Tensor:
        """`scale` times the product: what is added to the residual stream."""
        if self.between.joined:  # the scale of a column of the output is that of a row of the matrix
            return F.linear(x, (scale[:, None] * matrix(self.weights.banks, role, block)).to(x.dtype))
        return scale.to(x.dtype) * self.product(role, block, x)


def forward(
    net: Net,
    weights: Weights,
    tokens: Tensor,
    tap: Tap | None = None,
    cache: Cache | None = None,
    last: int | None = None,
) -> Tensor:
    """(B, T) int64 token ids -> (B, T, V) float32 soft-capped logits of the next token.

    `last`: only the logits of that many last positions; of the others the last layer makes only keys and values.
    `tap(name, x)` observes the input of every matrix and the output of every layer ("layer3"). With `cache`, `tokens`
    continue the sequence that it holds; it is extended in place. Nothing else is read or written.
    """
    cfg, weights, t = net.cfg, unbound(weights), tokens.shape[1]
    start, length, context = 0, t, tokens
    if cache:
        start, length, context = cache.filled, cache.length, cache.context(tokens, EMBED_REACH)
    x = embed(net, weights, context, tap, start + t - context.shape[1])[:, -t:]
    ve = value_embedding(net, weights, tokens, tap)
    shared = Pass(net, weights, x, ve, rope_angles(cfg, start, start + t, length, tokens.device), tap, cache)
    stack: list[Tensor] = []
    n_encoder = cfg.n_layers // 2
    for i in range(cfg.n_layers):
        if i >= n_encoder and stack:
            x = x + weights.rest["skip"][i - n_encoder].to(x.dtype) * stack.pop()
        x = layer(shared, i, x, first=t - last if last is not None and i == cfg.n_layers - 1 else 0)
        if i < n_encoder:
            stack.append(x)
    if cache:
        cache.filled += t
    logits = linear(rms(x), weights.rest["tok_emb"], "head", tap).float()
    return cfg.softcap * torch.tanh(logits / cfg.softcap)


def linear(x: Tensor, weight: Tensor, name: str, tap: Tap | None) -> Tensor:
    """x @ weight.T in the dtype of x; with a tap every matrix product passes here, so that it sees every input."""
    if tap is not None:
        tap(name, x)
    return F.linear(x, weight.to(x.dtype))


def embed(net: Net, weights: Weights, tokens: Tensor, tap: Tap | None, start: int = 0) -> Tensor:
    """(B, T) ids -> (B, T, D): token + n-gram embedding, RMS norm, memory tokens, SmearGate.

    `start`: the position of the first id in its row. Memory tokens replace those of the row's first positions (pr398).
    """
    cfg, dtype = net.cfg, net.compute.dtype
    x = F.embedding(tokens, weights.rest["tok_emb"]).to(dtype)
    if cfg.bigram_rows:
        x = x + ngram(net, weights, tokens, tap)
    x = rms(x)
    if start < cfg.memory_tokens:
        memory = weights.rest["memory"][start : start + tokens.shape[1]].to(dtype)
        x = torch.cat((memory.expand(len(x), -1, -1), x[:, len(memory) :]), dim=1)
    if cfg.smear:
        gate = torch.sigmoid(weights.rest["smear"]).to(dtype)
        x = (1 - gate) * x + gate * F.pad(x, (0, 0, 1, 0))[:, :-1]
    return x


def ngram(net: Net, weights: Weights, tokens: Tensor, tap: Tap | None) -> Tensor:
    """Bigram (+ trigram) vectors, projected, scaled, and boosted at word starts: (B, T, D)."""
    rest, dtype = weights.rest, net.compute.dtype
    word_start = net.tables.word_start if net.tables is not None else None
    first, *others = table_rows(net, weights, tokens)
    e = F.embedding(first, rest["bigram"])
    for rows in others:
        e = e + F.embedding(rows, rest["bigram"])
    e = e.to(dtype)
    if "bigram_proj" in rest:
        e = linear(e, rest["bigram_proj"], "bigram_proj", tap)
    e = e * rest["bigram_scale"].to(dtype)
    if "word_start_boost" in rest and word_start is not None:
        starts = word_start[tokens].unsqueeze(-1).to(dtype)
        e = e * (1 + starts * (rest["word_start_boost"].to(dtype) - 1))
    return e


def table_rows(net: Net, weights: Weights, tokens: Tensor) -> list[Tensor]:
    """The rows of the n-gram table that each position reads: of its bigram and, with trigrams, of its trigram."""
    cfg, word_start = net.cfg, net.tables.word_start if net.tables is not None else None
    if cfg.bigram_layout == "frequent":
        return [listed_rows(tokens, weights.rest["bigram_pairs"], cfg.vocab_size)]
    split = cfg.bigram_layout == "split"
    return [ngram_rows(tokens, word_start, cfg.bigram_rows, split, order) for order in (2, 3)[: 1 + cfg.trigram]]


def value_embedding(net: Net, weights: Weights, tokens: Tensor, tap: Tap | None) -> Tensor | None:
    """(B, T) ids -> (B, T, Hkv*K), shared by all of `ve_layers` (before their own scales)."""
    rest, dtype = weights.rest, net.compute.dtype
    if not net.cfg.ve_layers:
        return None
    e = F.embedding(tokens, rest["ve"]).to(dtype)
    if "ve_proj" in rest:
        e = linear(e, rest["ve_proj"], "ve_proj", tap)
    return e * rest["ve_scale"].to(dtype)


def layer(p: Pass, i: int, x: Tensor, first: int = 0) -> Tensor:
    """Layer i of the residual stream: mix with x0, attention, MLP, the latter two with their own scales.

    Shape: (B, T, D) -> (B, T - first, D), the positions from `first` on.
    """
    cfg, rest = p.net.cfg, p.weights.rest
    c = (i + 1) ** -0.5 if cfg.ln_scale else 1.0
    x, normed = p.between.mix_norm(x, p.x0, rest["resid_mix"][i], c, first)
    x, normed = p.between.add_norm(x, attention(p, i, normed, first), c)
    x = x + mlp(p, i, normed)
    if p.tap is not None:
        p.tap(f"layer{i}", x)
    return x


def attention(p: Pass, i: int, x: Tensor, first: int = 0) -> Tensor:
    """Causal grouped-query attention with QK norm, partial RoPE, per-head gain, value embedding and XSA.

    Shape: (B, T, D) -> (B, T - first, D), the positions from `first` on.
    """
    cfg, rest, (b, t, _) = p.net.cfg, p.weights.rest, x.shape
    block, (cos, sin) = cfg.blocks[i], p.rope
    gain = rest["q_gain"][block]
    if p.between.joined and not first:
        joined = torch.cat([matrix(p.weights.banks, role, block) for role in ("query", "key", "value")])
        q, k, v = p.between.heads(F.linear(x, joined.to(x.dtype)), gain, cos, sin, cfg.n_kv_heads)
    else:
        q = p.product("query", block, x[:, first:] if first else x).view(b, t - first, cfg.n_heads, cfg.head_dim)
        k, v = (p.product(role, block, x).view(b, t, cfg.n_kv_heads, cfg.head_dim) for role in ("key", "value"))
        q, k = rotate(rms(q), cos[first:], sin[first:]) * gain.to(x.dtype)[:, None], rotate(rms(k), cos, sin)
    if p.ve is not None and i in cfg.ve_layers:
        v = v + (rest["ve_layer_scale"][cfg.ve_layers.index(i)].to(x.dtype) * p.ve).view(v.shape)
    keys, values = p.cache.extend(i, k, v) if p.cache else (k, v)
    y = p.net.compute.attend(q, keys, values)
    if i >= cfg.n_layers - cfg.xsa_last_n:
        y = p.between.exclude_self(y, v[:, first:])
    return p.update("out", block, y.flatten(2), rest["attn_scale"][i])


def mlp(p: Pass, i: int, x: Tensor) -> Tensor:
    """LeakyReLU(0.5)^2 (exp101's arithmetic), ReLU^2 (pr294, pr398), or SwiGLU (exp101's prose)."""
    block, kind = p.net.cfg.blocks[i], p.net.cfg.mlp
    up = p.product("up", block, x)
    if kind == "swiglu":
        gate, value = up.chunk(2, dim=-1)
        hidden = F.silu(gate) * value
    else:
        hidden = (F.leaky_relu(up, 0.5) if kind == "leaky_relu2" else F.relu(up)).square()
    return p.update("down", block, hidden, p.weights.rest["mlp_scale"][i])


def nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each target: (B, T, V), (B, T) -> (B, T) float32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)


def training_loss(cfg: ModelConfig, logits: Tensor, targets: Tensor, z_loss: float = 0.0) -> Tensor:
    """Mean nats of the targets after the memory tokens: (B, T, V), (B, T) -> ().

    z_loss w: with the gradient of w mean(logsumexp(logits)^2) over all positions on top (pr398's ablation; PaLM). The
    value stays the mean nats, so that losses compare.
    """
    loss = nll(logits, targets)[:, cfg.memory_tokens :].mean()
    if not z_loss:
        return loss
    z = z_loss * logits.logsumexp(-1).square().mean()
    return loss + (z - z.detach())
