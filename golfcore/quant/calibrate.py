"""Calibration of GPTQ (exp101): text that the model writes itself, and the Hessians of its matrices on that text.

No training data enters the artifact's rounding. Shapes: N sequences, T tokens, C columns of a matrix.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.base.runtime import full_float32
from golfcore.config import QuantConfig
from golfcore.model.forward import Net, forward
from golfcore.model.generate import Progress, generate
from golfcore.model.weights import Weights, matrices

PROJECTIONS = ("bigram_proj", "ve_proj")


class HessianTap:
    """A tap that sums X^T X (C, C) of the inputs X (..., C) of the named matrices, in float32 on their device."""

    def __init__(self, names: Iterable[str]) -> None:
        self.sums: dict[str, Tensor | None] = dict.fromkeys(names)
        self._input: Tensor | None = None
        self._gram: Tensor | None = None

    def __call__(self, name: str, x: Tensor) -> None:
        if name not in self.sums:
            return
        if self._gram is None or x is not self._input:  # query, key and value read one tensor: one product for three
            rows = x.detach().flatten(0, -2).float()
            with full_float32():
                self._input, self._gram = x, rows.T @ rows
        total = self.sums[name]
        self.sums[name] = self._gram.clone() if total is None else total.add_(self._gram)

    def hessians(self, n_sequences: int, damping: float) -> dict[str, Tensor]:
        """H = sum / n_sequences + damping * max(mean diagonal, 1e-6) * I of each matrix (exp101).

        Raises RuntimeError if a matrix was never used.
        """
        out = {}
        for name, total in self.sums.items():
            if total is None:
                raise RuntimeError(f"no input of {name} was seen in calibration")
            h = total / n_sequences
            h.diagonal().add_(damping * h.diagonal().mean().clamp(min=1e-6))
            out[name] = h
        return out


def self_generated(q: QuantConfig, net: Net, weights: Weights, seed: int, progress: Progress | None = None) -> Tensor:
    """(quant.calib_seqs, quant.calib_len) ids sampled from the model, each from a uniformly drawn first token.

    On the weights' device, with one generator. `progress` is called with 1 after each token of a batch of sequences.
    """
    device = weights.rest["tok_emb"].device
    generator = torch.Generator(device).manual_seed(seed)
    batches = []
    for start in range(0, q.calib_seqs, q.calib_batch):
        batch = min(q.calib_batch, q.calib_seqs - start)
        first = torch.randint(net.cfg.vocab_size, (batch, 1), generator=generator, device=device)
        batches.append(generate(net, weights, first, q.calib_len, generator, q.temperature, progress))
    return torch.cat(batches)


@torch.no_grad()
def collect(
    net: Net,
    weights: Weights,
    sequences: Tensor,
    damping: float,
    *,
    projections: bool = False,
    batch: int = 8,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Hessian (C, C) of every bank matrix, and if asked of the small projections, over `sequences` (N, T) of ids.

    The last token of each is no input. `progress` is called with the sequences done in each batch. UserError:
    sequences of fewer than 2 tokens, which have no input.
    """
    if sequences.shape[1] < 2:
        raise UserError(f"quant.calib_len: expected sequences of at least 2 tokens, found {sequences.shape[1]}")
    names = [name for name, _ in matrices(weights)]
    if projections:
        names += [name for name in PROJECTIONS if name in weights.rest]
    tap = HessianTap(names)
    for part in sequences[:, :-1].split(batch):
        forward(net, weights, part, tap=tap)
        if progress:
            progress(len(part))
    return tap.hessians(len(sequences), damping)
