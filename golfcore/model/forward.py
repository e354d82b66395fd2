"""The one forward pass. Training, evaluation, meta-learning, TTT, calibration and generation are calls of it.

Shapes: B batch, T time, D width, V vocabulary, U blocks, L layers.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.data.tokens import Tables
from golfcore.model import params
from golfcore.model.attention import Cache, Compute, exclude_self, rope_angles, rotate
from golfcore.model.embed import EMBED_REACH, Tap, embed, linear, rms, value_embedding
from golfcore.model.weights import Weights, matrix, matrix_name, unbound

init = params.init


class Net(NamedTuple):
    """Configuration, tokenizer tables and execution of a forward: what stays the same during a run."""

    cfg: ModelConfig
    tables: Tables | None = None  # of the tokenizer: what begins a word
    compute: Compute = Compute()


class Stream(NamedTuple):
    """Inputs that all layers of one forward share, beside the residual stream."""

    x0: Tensor  # (B, T, D) the first residual stream
    ve: Tensor | None  # (B, T, Hkv*K) value embedding
    rope: tuple[Tensor, Tensor]  # cos, sin
    tap: Tap | None
    cache: Cache | None


def forward(
    net: Net,
    weights: Weights,
    tokens: Tensor,
    tap: Tap | None = None,
    cache: Cache | None = None,
    last: int | None = None,
) -> Tensor:
    """(B, T) int64 token ids -> (B, T, V) float32 soft-capped logits of the next token.

    `last`: only the logits of that many last positions. `tap(name, x)` observes the input of every matrix and the
    output of every layer ("layer3"). With `cache`, `tokens` continue the sequence that it holds; it is extended in
    place. Nothing else is read or written.
    """
    cfg, weights = net.cfg, unbound(weights)
    start = cache.filled if cache else 0
    length = cache.length if cache else tokens.shape[1]
    x, ve = _inputs(net, weights, tokens, tap, cache)
    rope = rope_angles(cfg, start, start + tokens.shape[1], length, tokens.device)
    stream = Stream(x, ve, rope, tap, cache)
    stack: list[Tensor] = []
    n_encoder = cfg.n_layers // 2
    for i in range(cfg.n_layers):
        if i >= n_encoder and stack:
            x = x + weights.rest["skip"][i - n_encoder].to(x.dtype) * stack.pop()
        x = layer(net, weights, i, x, stream)
        if i < n_encoder:
            stack.append(x)
    if cache:
        cache.filled += tokens.shape[1]
    if last is not None:
        x = x[:, x.shape[1] - last :]
    logits = linear(rms(x), weights.rest["tok_emb"], "head", tap).float()
    return cfg.softcap * torch.tanh(logits / cfg.softcap)


def _inputs(
    net: Net, weights: Weights, tokens: Tensor, tap: Tap | None, cache: Cache | None
) -> tuple[Tensor, Tensor | None]:
    """First residual stream (B, T, D) and value embedding, with the predecessors that the n-grams need."""
    t, start = tokens.shape[1], 0
    if cache:
        start = max(0, cache.filled - EMBED_REACH)
        cache.tokens[:, cache.filled : cache.filled + t] = tokens
        tokens = cache.tokens[:, start : cache.filled + t]
    dtype = net.compute.dtype
    x = embed(net.cfg, weights, tokens, net.tables, dtype, tap, start)[:, -t:]
    ve = value_embedding(net.cfg, weights, tokens[:, -t:], dtype, tap)
    return x, ve


def layer(net: Net, weights: Weights, i: int, x: Tensor, stream: Stream) -> Tensor:
    """Layer i of the residual stream: mix with x0, attention, MLP, each with its own scale. (B, T, D) -> same."""
    cfg, rest = net.cfg, weights.rest
    c = (i + 1) ** -0.5 if cfg.ln_scale else 1.0
    mix = rest["resid_mix"][i].to(x.dtype)
    x = mix[0] * x + mix[1] * stream.x0
    x = x + rest["attn_scale"][i].to(x.dtype) * attention(net, weights, i, c * rms(x), stream)
    x = x + rest["mlp_scale"][i].to(x.dtype) * mlp(cfg, weights, cfg.blocks[i], c * rms(x), stream.tap)
    if stream.tap is not None:
        stream.tap(f"layer{i}", x)
    return x


def attention(net: Net, weights: Weights, i: int, x: Tensor, stream: Stream) -> Tensor:
    """Causal grouped-query attention with QK norm, partial RoPE, per-head gain, value embedding and XSA."""
    cfg, (b, t, _) = net.cfg, x.shape
    block, ve = cfg.blocks[i], stream.ve

    def product(role: str, y: Tensor) -> Tensor:
        return linear(y, matrix(weights.banks, role, block), matrix_name(role, block), stream.tap)

    q = product("query", x).view(b, t, cfg.n_heads, cfg.head_dim)
    k = product("key", x).view(b, t, cfg.n_kv_heads, cfg.head_dim)
    v = product("value", x)
    if ve is not None and i in cfg.ve_layers:
        v = v + weights.rest["ve_layer_scale"][cfg.ve_layers.index(i)].to(x.dtype) * ve
    v = v.view(b, t, cfg.n_kv_heads, cfg.head_dim)
    q, k = rotate(rms(q), *stream.rope), rotate(rms(k), *stream.rope)
    q = q * weights.rest["q_gain"][block].to(x.dtype)[:, None]
    keys, values = stream.cache.extend(i, k, v) if stream.cache else (k, v)
    y = net.compute.attend(q, keys, values)
    if i >= cfg.n_layers - cfg.xsa_last_n:
        y = exclude_self(y, v)
    return product("out", y.reshape(b, t, -1))


def mlp(cfg: ModelConfig, weights: Weights, block: int, x: Tensor, tap: Tap | None) -> Tensor:
    """LeakyReLU(0.5)^2 (exp101's arithmetic), ReLU^2 (pr294, pr398), or SwiGLU (exp101's prose)."""
    up = linear(x, matrix(weights.banks, "up", block), matrix_name("up", block), tap)
    if cfg.mlp == "swiglu":
        gate, value = up.chunk(2, dim=-1)
        hidden = F.silu(gate) * value
    else:
        hidden = (F.leaky_relu(up, 0.5) if cfg.mlp == "leaky_relu2" else F.relu(up)).square()
    return linear(hidden, matrix(weights.banks, "down", block), matrix_name("down", block), tap)


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
