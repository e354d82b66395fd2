"""Sampling with a key/value cache."""

from collections.abc import Callable

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.model.attention import Cache
from golfcore.model.forward import Net, forward
from golfcore.model.weights import Weights

Progress = Callable[[int], object]  # called with how much more is done


@torch.no_grad()
def generate(
    net: Net,
    weights: Weights,
    prompt: Tensor,
    length: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    progress: Progress | None = None,
) -> Tensor:
    """Continue (B, P) ids to (B, length) by sampling softmax(logits / temperature).

    The rotary base is that of the final length at every step (the originals changed it with each token). UserError:
    logits that are not finite, as weights that are not finite have them.
    """
    cache = Cache(net.cfg, len(prompt), length, net.compute, prompt.device)
    tokens, new = prompt, prompt
    while tokens.shape[1] < length:
        logits = forward(net, weights, new, cache=cache, last=1)[:, -1]
        if not bool(logits.isfinite().all()):
            raise UserError(f"generating token {tokens.shape[1]}: expected finite logits, found NaN or infinite values")
        new = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        tokens = torch.cat((tokens, new), dim=1)
        if progress:
            progress(1)
    return tokens
