"""exp101's published arithmetic as its description reads: what golfcore is compared with, and held against first.

Eager, one matrix after another, every position of every window. Nothing here is golfcore's but the configuration and
the names of tensors. `W` is a dict: "block0.query" and so on, each matrix a leaf of its own, and the other tensors by
name.
"""

import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from golfcore.config import Config, ModelConfig, OptimConfig
from golfcore.model.weights import Weights, matrices

W = dict[str, Tensor]
EPS = torch.finfo(torch.float32).eps
TABLES = ("tok_emb", "bigram", "ve")
PER_LAYER = ("attn_scale", "mlp_scale", "resid_mix", "q_gain")


def leaves(weights: Weights) -> W:
    """A float32 copy of golfcore's weights, every matrix apart."""
    named = {**dict(matrices(weights)), **weights.rest}
    return {name: t.detach().float().clone().requires_grad_() for name, t in named.items()}


def is_matrix(name: str) -> bool:
    return name.startswith("block")


# -- the network: B batch, T time, D width, H heads


class Model:
    """The forward of a configuration. `word_start` (V,) bool; `dtype` is that of the activations."""

    def __init__(self, cfg: ModelConfig, word_start: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.cfg, self.word_start, self.dtype = cfg, word_start, dtype

    def logits(self, w: W, tokens: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) float32, capped in the dtype of the activations."""
        x = rms(F.embedding(tokens, w["tok_emb"]).to(self.dtype) + self.bigram(w, tokens))
        gate = torch.sigmoid(w["smear"]).to(self.dtype)
        x = x0 = (1 - gate) * x + gate * F.pad(x, (0, 0, 1, 0))[:, :-1]
        ve = w["ve_scale"].to(self.dtype) * product(F.embedding(tokens, w["ve"]).to(self.dtype), w, "ve_proj")
        cos, sin = (t.to(self.dtype) for t in self.rotary(tokens.shape[1], tokens.device))
        encoded: list[Tensor] = []
        n = len(self.cfg.blocks)
        for i in range(n):
            if i >= n // 2 and encoded:
                x = x + w["skip"][i - n // 2].to(self.dtype) * encoded.pop()
            mix, c = w["resid_mix"][i].to(self.dtype), (i + 1) ** -0.5
            x = mix[0] * x + mix[1] * x0
            x = x + w["attn_scale"][i].to(self.dtype) * self.attention(w, i, c * rms(x), ve, (cos, sin))
            hidden = F.leaky_relu(product(c * rms(x), w, f"block{i}.up"), 0.5).square()
            x = x + w["mlp_scale"][i].to(self.dtype) * product(hidden, w, f"block{i}.down")
            if i < n // 2:
                encoded.append(x)
        cap = self.cfg.softcap
        return (cap * torch.tanh(product(rms(x), w, "tok_emb") / cap)).float()

    def loss(self, w: W, x: Tensor, y: Tensor) -> Tensor:
        """Mean nats of (B, T) targets."""
        return F.cross_entropy(self.logits(w, x).flatten(0, 1), y.flatten())

    def bigram(self, w: W, tokens: Tensor) -> Tensor:
        ids, rows = tokens.int(), torch.full_like(tokens, self.cfg.bigram_rows - 1)
        half = (self.cfg.bigram_rows - 1) // 2
        mixed = (36313 * ids[:, 1:]) ^ (27191 * ids[:, :-1])
        rows[:, 1:] = mixed % half + torch.where(self.word_start[tokens[:, 1:]], 0, half)
        h = w["bigram_scale"].to(self.dtype) * product(F.embedding(rows, w["bigram"]).to(self.dtype), w, "bigram_proj")
        starts = self.word_start[tokens].unsqueeze(-1).to(self.dtype)
        return h * (1 + starts * (w["word_start_boost"].to(self.dtype) - 1))

    def rotary(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin (T, dims / 2); up to the reference length in bfloat16, beyond it with a larger base."""
        c, dims = self.cfg, self.cfg.rope_dims
        base, low = c.rope_base, c.rope_angles == "bfloat16" and length <= c.rope_ntk_len
        if c.rope_ntk_len and length > c.rope_ntk_len:
            base *= (length / c.rope_ntk_len) ** (dims / (dims - 2))
        frequency = base ** (-torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims)
        position = torch.arange(length, dtype=torch.float32, device=device)
        if low:
            frequency, position = frequency.bfloat16(), position.bfloat16()
        angle = torch.outer(position, frequency).float()
        return angle.cos(), angle.sin()

    def attention(self, w: W, i: int, z: Tensor, ve: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        c, (b, t, _) = self.cfg, z.shape
        q = product(z, w, f"block{i}.query").view(b, t, c.n_heads, c.head_dim)
        k = product(z, w, f"block{i}.key").view(b, t, c.n_kv_heads, c.head_dim)
        v = product(z, w, f"block{i}.value")
        if i in c.ve_layers:
            v = v + w["ve_layer_scale"][c.ve_layers.index(i)].to(self.dtype) * ve
        v = v.view(b, t, c.n_kv_heads, c.head_dim)
        q = rotate(rms(q), *rope) * w["q_gain"][i].to(self.dtype)[:, None]
        k = rotate(rms(k), *rope)
        heads = (h.transpose(1, 2) for h in (q, k, v))
        y = F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True).transpose(1, 2).float()
        own = F.normalize(v.float(), dim=-1).repeat_interleave(c.n_heads // c.n_kv_heads, dim=2)
        y = y - (y * own).sum(-1, keepdim=True) * own
        return product(y.to(self.dtype).reshape(b, t, -1), w, f"block{i}.out")


def rms(x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), (x.shape[-1],), eps=EPS).to(x.dtype)


def product(x: Tensor, w: W, name: str) -> Tensor:
    """x @ w[name].T; x itself where widths agree and the model has no such projection."""
    return F.linear(x, w[name].to(x.dtype)) if name in w else x


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    a, b, c, s = x[..., :half], x[..., half : 2 * half], cos[:, None], sin[:, None]
    return torch.cat((a * c + b * s, b * c - a * s, x[..., 2 * half :]), dim=-1)


@torch.no_grad()
def sample(model: Model, w: W, prompt: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """(B, P) ids continued to (B, length): a whole forward of all tokens so far for every new one."""
    tokens = prompt
    while tokens.shape[1] < length:
        chances = model.logits(w, tokens)[:, -1].softmax(-1)
        tokens = torch.cat((tokens, torch.multinomial(chances, 1, generator=generator)), dim=1)
    return tokens


# -- a training step


def newton_schulz(g: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    x = g.to(dtype)
    x = x.T if len(g) > g.shape[1] else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x.T if len(g) > g.shape[1] else x


class Optimizer:
    """AdamW of the tables, AdamW of the scalars, Muon of the matrices, in that order; one tensor after another."""

    def __init__(self, cfg: OptimConfig, w: W) -> None:
        self.cfg, self.w, self.steps = cfg, w, 0
        self.momentum = {n: torch.zeros_like(t, dtype=torch.bfloat16) for n, t in w.items() if is_matrix(n)}
        self.mean = {n: torch.zeros_like(t) for n, t in w.items() if not is_matrix(n)}
        self.square = {n: torch.zeros_like(t) for n, t in w.items() if not is_matrix(n)}

    @torch.no_grad()
    def step(self, multiplier: float, momentum: float) -> None:
        self.steps += 1
        for name in sorted(self.mean, key=lambda n: n not in TABLES):
            self._adam(name, multiplier * (self.cfg.table_lr if name in TABLES else self.cfg.scalar_lr))
        for name in self.momentum:
            self._muon(name, multiplier * self.cfg.matrix_lr, momentum)

    def _adam(self, name: str, lr: float) -> None:
        c, w, g, m, v = self.cfg, self.w[name], self.w[name].grad, self.mean[name], self.square[name]
        if g is None:
            return
        w.mul_(1 - lr * c.adam_wd)
        m.mul_(c.beta1).add_(g, alpha=1 - c.beta1)
        v.mul_(c.beta2).addcmul_(g, g, value=1 - c.beta2)
        root = (v / (1 - c.beta2**self.steps)).sqrt() + c.eps
        w.sub_(lr / (1 - c.beta1**self.steps) * m / root)

    def _muon(self, name: str, lr: float, momentum: float) -> None:
        w, m = self.w[name], self.momentum[name]
        assert w.grad is not None
        g = w.grad.bfloat16()
        m.mul_(momentum).add_(g)
        update = newton_schulz(torch.add(g, m, alpha=momentum))
        w.mul_(1 - lr * self.cfg.matrix_wd)
        w.sub_(lr * max(1.0, w.shape[0] / w.shape[1]) ** 0.5 * update.float())


def train_step(cfg: Config, model: Model, optimizer: Optimizer, x: Tensor, y: Tensor, meta: bool) -> float:
    """A step of one micro-batch at full rates; its loss."""
    w = optimizer.w
    for t in w.values():
        t.grad = None
    loss = model.loss(w, x, y)
    loss.backward()
    if meta:
        meta_gradient(cfg, model, w, x, y)
    w["skip"].grad[list(cfg.model.frozen_skips)] = 0
    clip(w.values(), cfg.optim.grad_clip)
    optimizer.step(1.0, cfg.optim.momentum_start)
    return float(loss.detach())


def meta_gradient(cfg: Config, model: Model, w: W, x: Tensor, y: Tensor) -> None:
    """FOMAML over the two halves of every row: a step of SGD on the first, the gradient after it on the second."""
    half, names = x.shape[1] // 2, [n for n in w if is_matrix(n)]
    start = {n: w[n].detach().requires_grad_() for n in names}
    inner = torch.autograd.grad(model.loss({**w, **start}, x[:, :half], y[:, :half]), list(start.values()))
    still = {n for n in names if int(n[5:].split(".")[0]) < cfg.meta.freeze_blocks}
    rates = [0.0 if n in still else cfg.meta.inner_lr for n in names]
    moved = {n: (w[n] - r * g).detach().requires_grad_() for n, r, g in zip(names, rates, inner, strict=True)}
    loss = model.loss({**w, **moved}, x[:, half:], y[:, half:])
    (cfg.meta.loss_weight / cfg.optim.grad_accum * loss).backward()
    for n in names:
        w[n].grad += moved[n].grad


def clip(tensors: Iterable[Tensor], most: float) -> None:
    """Scale the gradients to a joint norm of at most `most`."""
    grads = [t.grad for t in tensors if t.grad is not None]
    norm = float(torch.stack([g.norm() for g in grads]).norm())
    for g in grads:
        g.mul_(min(1.0, most / (norm + 1e-6)))


@torch.no_grad()
def average(ema: W, w: Mapping[str, Tensor], decay: float) -> None:
    for name, e in ema.items():
        e.mul_(decay).add_(w[name], alpha=1 - decay)


# -- scoring and test-time training


@torch.no_grad()
def score(model: Model, w: W, tokens: Tensor, windows: list[tuple[int, int, int]], batch: int) -> Tensor:
    """Nats of the positions [score_from, stop) of the windows (start, stop, score_from), all of one length."""
    out = []
    for at in range(0, len(windows), batch):
        part = windows[at : at + batch]
        x = torch.stack([tokens[start:stop] for start, stop, _ in part])
        y = torch.stack([tokens[start + 1 : stop + 1] for start, stop, _ in part])
        nats = F.cross_entropy(model.logits(w, x).transpose(1, 2), y, reduction="none")
        out += [row[first - start :] for row, (start, _, first) in zip(nats, part, strict=True)]
    return torch.cat(out)


def sliding(cfg: Config, total: int) -> list[tuple[int, int, int]]:
    """Windows of one length that cover `total` targets; every one but the first scores its last stride."""
    length, stride = cfg.data.seq_len, cfg.eval.stride
    assert (total - length) % stride == 0
    return [(s, s + length, s + length - stride if s else 0) for s in range(0, total - length + 1, stride)]


def legal_ttt(cfg: Config, model: Model, w: W, tokens: Tensor) -> Tensor:
    """Nats of all targets: score a chunk, train on it, go on. SGD with momentum; changes `w`."""
    total, c = len(tokens) - 1, cfg.ttt
    windows, length, momentum = sliding(cfg, total), cfg.data.seq_len, dict[str, Tensor]()
    n_chunks = -(-total // c.chunk_tokens)
    out = []
    for chunk in range(n_chunks):
        own = [row for row in windows if row[2] // c.chunk_tokens == chunk]
        out.append(score(model, w, tokens, own, cfg.eval.batch_seqs))
        lr = c.lr * 0.5 * (1 + math.cos(math.pi * chunk / max(n_chunks - 1, 1)))
        first = chunk * c.chunk_tokens
        starts = range(first, first + c.chunk_tokens - length + 1, length) if chunk < n_chunks - 1 else ()
        for _ in range(c.epochs):
            for at in range(0, len(starts), c.batch_seqs):
                rows = starts[at : at + c.batch_seqs]
                x, y = (torch.stack([tokens[s + k : s + k + length] for s in rows]) for k in (0, 1))
                sgd_step(cfg, w, model.loss(w, x, y), momentum, lr)
    return torch.cat(out)


def sgd_step(cfg: Config, w: W, loss: Tensor, momentum: W, lr: float) -> None:
    for t in w.values():
        t.grad = None
    loss.backward()
    for name in PER_LAYER:  # the published freeze: of the first blocks no matrix, only the scales
        w[name].grad[: cfg.ttt.freeze_blocks] = 0
    clip(w.values(), cfg.ttt.clip)
    with torch.no_grad():
        for name, t in w.items():
            if t.grad is not None:
                momentum[name] = (
                    momentum[name].mul_(cfg.ttt.momentum).add_(t.grad) if name in momentum else t.grad.clone()
                )
                t.sub_(momentum[name], alpha=lr)


# -- GPTQ


def gptq(
    weight: Tensor,
    hessian: Tensor,
    quantiles: tuple[float, ...],
    qmax: int = 31,
    block: int = 128,
    damping: float = 0.01,
) -> tuple[Tensor, Tensor]:
    """Codes (R, C) and float16 scales (R,): the whole pass again for each quantile, column after column."""
    h = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), device=hessian.device)
    order = h.diagonal().argsort(descending=True)
    w, h = weight[:, order], h[order][:, order]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    best, chosen, least = torch.empty(0), torch.empty(0), math.inf
    for quantile in quantiles:
        top = weight.abs().amax(1) if quantile == 1 else torch.quantile(weight.abs(), quantile, dim=1)
        scale = (top / qmax).clamp_min(1 / qmax).half()
        s, rest, codes = scale.float(), w.clone(), torch.zeros_like(w)
        for start in range(0, w.shape[1], block):
            stop = min(start + block, w.shape[1])
            errors = torch.zeros(len(w), stop - start, device=w.device)
            for j in range(start, stop):
                codes[:, j] = (rest[:, j] / s).round().clamp(-qmax, qmax)
                errors[:, j - start] = (rest[:, j] - codes[:, j] * s) / upper[j, j]
                rest[:, j:stop] -= torch.outer(errors[:, j - start], upper[j, j:stop])
            rest[:, stop:] -= errors @ upper[start:stop, stop:]
        error = float((w - codes * s[:, None]).square().mean())
        if error < least:
            best, chosen, least = codes, scale, error
    return best[:, order.argsort()].to(torch.int8), chosen
