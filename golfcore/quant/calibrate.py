"""Calibration of GPTQ (exp101): text that the model writes itself, and the Hessians of its matrices on that text.

No training data enters the artifact's rounding. Shapes: N sequences, T tokens, C columns of a matrix.
"""

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.base.runtime import full_float32
from golfcore.config import QuantConfig
from golfcore.model.forward import Net, forward
from golfcore.model.generate import Progress, generate
from golfcore.model.weights import Weights
from golfcore.quant.stored import entries


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
    batch: int = 8,
    progress: Progress | None = None,
    head: bool = False,
) -> dict[str, Tensor]:
    """H = sum X^T X / N + damping * max(mean diagonal, 1e-6) * I, (C, C), of each matrix's inputs X (..., C) (exp101).

    Over `sequences` (N, T) of ids, the last token of each left out; in float32, on the weights' device; of the block
    matrices and the small projections; those that read one input share one tensor. `progress` is called with the
    sequences done in each batch. `head`: of its inputs too, as "tok_emb", which it multiplies. UserError: sequences of
    fewer than 2 tokens, which have no input. RuntimeError: a matrix was never used.
    """
    if sequences.shape[1] < 2:
        raise UserError(f"quant.calib_len: expected sequences of at least 2 tokens, found {sequences.shape[1]}")
    names = [name for name, spec in entries(net.cfg).items() if spec.kind in ("matrix", "projection")]
    names += ["tok_emb"] if head else []
    sums: dict[str, Tensor] = {}  # by the first reader of an input: query, key and value read one tensor
    reader: dict[str, str] = {}
    last: tuple[Tensor, str] | None = None

    def tap(name: str, x: Tensor) -> None:
        nonlocal last
        name = "tok_emb" if name == "head" else name
        if name not in names:
            return
        if last is not None and x is last[0]:
            reader[name] = last[1]
            return
        reader[name], last, rows = name, (x, name), x.flatten(0, -2).float()
        with full_float32():
            products = rows.T @ rows
        sums[name] = sums[name].add_(products) if name in sums else products

    for part in sequences[:, :-1].split(batch):
        forward(net, weights, part, tap=tap)
        if progress:
            progress(len(part))
    if unused := [name for name in names if name not in reader]:
        raise RuntimeError(f"no input of {unused[0]} was seen in calibration")
    for total in sums.values():
        total /= len(sequences)
        total.diagonal().add_(damping * total.diagonal().mean().clamp(min=1e-6))
    return {name: sums[reader[name]] for name in names}
