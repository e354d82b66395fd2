"""Input of the first block: token and n-gram embeddings, memory tokens, SmearGate; and the value embedding.

Shapes: B batch, T time, D width, V vocabulary, Hkv*K width of keys and values.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.data.tokens import Tables
from golfcore.model.hashing import bigram_rows, trigram_rows
from golfcore.model.weights import Weights

RMS_EPS = torch.finfo(torch.float32).eps  # the default of the originals' torch, for bfloat16 inputs too
EMBED_REACH = 3  # position p of `embed` depends on tokens p-3 .. p (smear of the trigram)

Tap = Callable[[str, Tensor], None]  # called with a name and the input of that matrix (or the output of that layer)


def rms(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis: float32 inside, the input's dtype outside."""
    return F.rms_norm(x.float(), (x.shape[-1],), eps=RMS_EPS).to(x.dtype)


def linear(x: Tensor, weight: Tensor, name: str, tap: Tap | None) -> Tensor:
    """x @ weight.T in the dtype of x; every matrix product of the model passes here, so a tap sees every input."""
    if tap is not None:
        tap(name, x)
    return F.linear(x, weight.to(x.dtype))


def embed(
    cfg: ModelConfig,
    weights: Weights,
    tokens: Tensor,
    tables: Tables | None,
    dtype: torch.dtype,
    tap: Tap | None,
    start: int = 0,
) -> Tensor:
    """(B, T) ids -> (B, T, D): token + n-gram embedding, RMS norm, memory tokens, SmearGate.

    `start`: the position of the first id in its row. Memory tokens replace those of the row's first positions (pr398).
    """
    x = F.embedding(tokens, weights.rest["tok_emb"]).to(dtype)
    if cfg.bigram_rows:
        x = x + ngram(cfg, weights, tokens, tables, dtype, tap)
    x = rms(x)
    if start < cfg.memory_tokens:
        memory = weights.rest["memory"][start : start + tokens.shape[1]].to(dtype)
        x = torch.cat((memory.expand(len(x), -1, -1), x[:, len(memory) :]), dim=1)
    if cfg.smear:
        gate = torch.sigmoid(weights.rest["smear"]).to(dtype)
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        x = (1 - gate) * x + gate * before
    return x


def ngram(
    cfg: ModelConfig, weights: Weights, tokens: Tensor, tables: Tables | None, dtype: torch.dtype, tap: Tap | None
) -> Tensor:
    """Hashed bigram (+ trigram) vectors, projected, scaled, and boosted at word starts: (B, T, D)."""
    rest = weights.rest
    word_start = tables.word_start if tables is not None else None
    rows = bigram_rows(tokens, word_start, cfg.bigram_rows, cfg.bigram_split)
    e = F.embedding(rows, rest["bigram"])
    if cfg.trigram:
        e = e + F.embedding(trigram_rows(tokens, word_start, cfg.bigram_rows, cfg.bigram_split), rest["bigram"])
    e = e.to(dtype)
    if "bigram_proj" in rest:
        e = linear(e, rest["bigram_proj"], "bigram_proj", tap)
    e = e * rest["bigram_scale"].to(dtype)
    if "word_start_boost" in rest and word_start is not None:
        starts = word_start[tokens].unsqueeze(-1).to(dtype)
        e = e * (1 + starts * (rest["word_start_boost"].to(dtype) - 1))
    return e


def value_embedding(
    cfg: ModelConfig, weights: Weights, tokens: Tensor, dtype: torch.dtype, tap: Tap | None
) -> Tensor | None:
    """(B, T) ids -> (B, T, Hkv*K), shared by all of `cfg.ve_layers` (before their own scales)."""
    if not cfg.ve_layers:
        return None
    rest = weights.rest
    e = F.embedding(tokens, rest["ve"]).to(dtype)
    if "ve_proj" in rest:
        e = linear(e, rest["ve_proj"], "ve_proj", tap)
    return e * rest["ve_scale"].to(dtype)
