"""Sampling with a key/value cache."""

from collections.abc import Callable

import torch
from torch import Tensor

from golfcore.config import ModelConfig
from golfcore.data.tokens import Tables
from golfcore.model.attention import Cache, Compute
from golfcore.model.forward import DEFAULT, forward
from golfcore.model.weights import Weights


@torch.no_grad()
def generate(
    cfg: ModelConfig,
    weights: Weights,
    prompt: Tensor,
    length: int,
    tables: Tables | None,
    generator: torch.Generator,
    temperature: float = 1.0,
    compute: Compute = DEFAULT,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Continue (B, P) ids to (B, length) by sampling softmax(logits / temperature).

    The rotary base is that of the final length at every step (the originals changed it with each token).
    """
    cache = Cache(cfg, len(prompt), length, compute, prompt.device)
    tokens, new = prompt, prompt
    while tokens.shape[1] < length:
        logits = forward(cfg, weights, new, tables, cache=cache, last=1, compute=compute)[:, -1]
        new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        tokens = torch.cat((tokens, new), dim=1)
        if progress:
            progress(1)
    return tokens
