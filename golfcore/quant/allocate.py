"""Steps by measurement: which tensors can be rounded coarsely, and how fine all can be in the bytes there are.

At high rate rounding a tensor of n values in steps of k root mean squares takes n (b0 - log2 k) bits, and moves the
predictions by c k^2 nats (a divergence is quadratic). Least sum of c k^2 for a sum of bits is where every value's share
is the same: k^2 = mu n / c.
"""

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.model.forward import Net, forward
from golfcore.model.generate import Progress
from golfcore.model.params import Param
from golfcore.model.weights import Weights, map_matrices, matrices
from golfcore.quant import artifact
from golfcore.quant.quantize import is_coded, quantize_weights
from golfcore.quant.stored import Quantized, dequantize_weights, entries

TRIAL = 0.5  # root mean squares: the step at which each tensor is rounded alone
REACH = 8.0  # times the mean step, and its inverse: as far as a measured step goes
GAUSSIAN = 0.5 * math.log2(2 * math.pi * math.e)  # bits of a normal variable of deviation 1 in steps of 1
EXTRA = 1024  # bytes for what is packed beside the weights: the chosen rate, hashes
FINEST, COARSEST = 0.05, 4.0  # root mean squares; below, codes of usual tensors would not fit a byte


def coded(cfg: Config) -> dict[str, Param]:
    """The tensors that are stored as codes, by name."""
    return {name: spec for name, spec in entries(cfg.model).items() if is_coded(cfg.quant, spec)}


def divergences(
    cfg: Config, net: Net, weights: Weights, hessians: Mapping[str, Tensor], tokens: Tensor, batch: int = 8
) -> dict[str, float]:
    """Nats a token that the predictions on `tokens` (N, T) move when one tensor alone is rounded at TRIAL, by name.

    Mean KL from the model as it is. Nothing of the validation text: `tokens` are what the model wrote itself.
    """
    alone = {name: TRIAL for name in coded(cfg)}
    made = dequantize_weights(cfg.model, quantize_weights(cfg, weights, hessians, steps=alone))
    parts = tokens[:, :-1].split(batch)
    before = [forward(net, weights, part).log_softmax(-1) for part in parts]
    found = {}
    for name in alone:
        changed = with_tensor(weights, made, name)
        after = (forward(net, changed, part).log_softmax(-1) for part in parts)
        sums = [float((p.exp() * (p - q)).sum()) for p, q in zip(before, after, strict=True)]
        found[name] = max(0.0, sum(sums) / sum(part.numel() for part in parts))  # rounding can leave less than none
    return found


def with_tensor(weights: Weights, other: Weights, name: str) -> Weights:
    """`weights` with the block matrix or tensor `name` of `other`."""
    if name in weights.rest:
        return weights._replace(rest={**weights.rest, name: other.rest[name].to(weights.rest[name].device)})
    taken = dict(matrices(other))[name]
    return map_matrices(lambda n, m: taken.to(m.device) if n == name else m, weights)


def relative_steps(cfg: Config, measured: Mapping[str, float]) -> dict[str, float]:
    """Steps over their mean, by name: the mean of their logarithms over values is 0, so that bits stay the same.

    As measured, k^2 ~ n / c, within REACH; a tensor that moved nothing gets the coarsest.
    """
    sizes = {name: math.prod(spec.shape) for name, spec in coded(cfg).items()}
    raw = {n: 0.5 * math.log(sizes[n] / max(c, 1e-12)) for n, c in measured.items()}
    low, high = min(raw.values()) - 1, max(raw.values()) + 1
    limit, total = math.log(REACH), sum(sizes.values())

    def held(shift: float) -> dict[str, float]:
        return {n: min(max(r - shift, -limit), limit) for n, r in raw.items()}

    for _ in range(60):  # the shift at which the mean over values is 0
        middle = (low + high) / 2
        mean = sum(sizes[n] * v for n, v in held(middle).items()) / total
        low, high = (middle, high) if mean > 0 else (low, middle)
    return {n: math.exp(v) for n, v in held((low + high) / 2).items()}


def finest(size: Callable[[float], int], most: int) -> float:
    """The smallest step whose file, of `size(step)` bytes, has at most `most`; sizes fall with the step.

    UserError: not even the coarsest does, by how much.
    """
    if (left := size(COARSEST)) > most:
        raise UserError(f"quant.max_bytes: expected room at steps of {COARSEST:g}, found {left - most:,} bytes too few")
    if size(FINEST) <= most:
        return FINEST
    low, high = math.log(FINEST), math.log(COARSEST)
    while high - low > 0.002:
        middle = (low + high) / 2
        low, high = (low, middle) if size(math.exp(middle)) <= most else (middle, high)
    return math.exp(high)


def allocated(
    cfg: Config,
    net: Net,
    weights: Weights,
    hessians: Mapping[str, Tensor] | None,
    tokens: Tensor | None,
    progress: Progress | None = None,
    measured: Mapping[str, float] | None = None,
) -> tuple[Quantized, dict[str, float]]:
    """The model rounded by `quant.steps`, and the step of each coded tensor in root mean squares, by name.

    `hessians` and `tokens`: of the calibration; `hessians` None rounds to nearest. With `quant.step` 0 the file has at
    most `quant.max_bytes` less the code. `measured`: the `divergences`, where they are known. UserError: as `finest`
    and `quantize_weights`.
    """
    q, relative = cfg.quant, dict.fromkeys(coded(cfg), 1.0)
    if q.steps == "measured":
        assert hessians is not None and tokens is not None
        relative = relative_steps(cfg, measured or divergences(cfg, net, weights, hessians, tokens))
    room = q.max_bytes - artifact.code_bytes() - EXTRA

    def steps(step: float) -> dict[str, float]:
        return {name: step * r for name, r in relative.items()}

    def plain(step: float) -> int:
        return artifact.size(cfg, quantize_weights(cfg, weights, None, steps=steps(step)))

    step, values = q.step or finest(plain, room), sum(math.prod(spec.shape) for spec in coded(cfg).values())
    made = quantize_weights(cfg, weights, hessians, progress, steps=steps(step))
    while not q.step and (over := artifact.size(cfg, made) - room) > 0:  # GPTQ's codes are not quite the nearest's
        step *= 2 ** (8 * over / values) * 1.001
        made = quantize_weights(cfg, weights, hessians, steps=steps(step))
    return made, steps(step)
