"""The loss around and between models: lines and planes with barriers, and curvature by Hessian-vector products.

A point is named tensors; a loss is a function of them. `text_loss` makes one of a model on text, restricted to the
tensors that move (those that TTT adapts, say). Nothing here forms a Hessian.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import torch
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from golfcore.analysis.frames import frame
from golfcore.analysis.stats import interval
from golfcore.base import files
from golfcore.config import Config
from golfcore.evals.adapt import scope
from golfcore.model.attention import Compute, attend_reference
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import Weights, fingerprint, flat, matrices, stacked, unflat

Point = Mapping[str, Tensor]
Loss = Callable[[Point], Tensor]
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
Score = Callable[[Weights], np.ndarray]  # mean nats of each block of text, (C,)


def text_loss(net: Net, weights: Weights, x: Tensor, y: Tensor, masks: Mapping[str, Tensor] = NOTHING) -> Loss:
    """Mean nats of the targets y (B, T) with some tensors of `weights` replaced by the point; twice differentiable.

    Rows that `masks` (bool, of the first axis) holds are not part of the point: `free` makes one.
    """
    exact = net._replace(compute=Compute(torch.float32, attend_reference))
    whole = {name: t.detach() for name, t in flat(weights).items()}

    def placed(name: str, values: Tensor) -> Tensor:
        if name not in masks:
            return values
        return whole[name].to(values.dtype).index_copy(0, (~masks[name]).nonzero()[:, 0], values)

    def loss(point: Point) -> Tensor:
        moved = {name: placed(name, t) for name, t in point.items()}
        return nll(forward(exact, unflat({**whole, **moved}), x), y).mean()

    return loss


def free(weights: Weights, names: Sequence[str], masks: Mapping[str, Tensor] = NOTHING) -> dict[str, Tensor]:
    """The named tensors as a point, without the rows that `masks` holds, and without those of which nothing is left."""
    tensors = flat(weights)
    cut = {n: tensors[n].detach()[~masks[n]] if n in masks else tensors[n].detach() for n in names}
    return {name: t for name, t in cut.items() if t.numel()}


def gradient(loss: Loss, point: Point) -> dict[str, Tensor]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in point.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves), list(leaves.values())), strict=True))


def row_scores(net: Net, x: Tensor, y: Tensor, batch: int = 8) -> Score:
    """Mean nats of each row of text, (B,): the blocks of an interval over text."""

    @torch.no_grad()
    def score(weights: Weights) -> np.ndarray:
        parts = zip(x.split(batch), y.split(batch), strict=True)
        return torch.cat([nll(forward(net, weights, a), b).double().mean(1) for a, b in parts]).cpu().numpy()

    return score


def kept(score: Score, path: Path) -> Score:
    """`score`, its results kept in a file by the hash of the weights: what was cut off goes on, point by point.

    The file is of one text and network: name it after them. UserError: a file that holds something else.
    """
    schema = {"weights": str, "nats": [float]}
    rows = files.read_jsonl(path, "kept scores", schema, torn=True) if path.exists() else []
    known = {row["weights"]: np.array(row["nats"]) for row in rows}
    if rows:  # without what a kill left of the last line
        files.write_text(path, "".join(files.canonical_json(row) + "\n" for row in rows))

    def once(weights: Weights) -> np.ndarray:
        key = fingerprint(weights)
        if key not in known:
            known[key] = score(weights)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as f:
                f.write(files.canonical_json({"weights": key, "nats": known[key].tolist()}) + "\n")
        return known[key]

    return once


def line(score: Score, a: Weights, b: Weights, points: int = 11) -> pd.DataFrame:
    """Losses of (1 - t) a + t b: what lies between two models.

    Columns: t, nats, excess (above the chord between the ends), low and high (its 95 % interval over text; missing for
    fewer than eight blocks). The largest excess is the barrier: 0 where the ends lie in one convex valley.
    """
    at = np.linspace(0, 1, points)
    scores = np.stack([score(between(a, b, float(t))) for t in at])
    excess = scores - np.outer(1 - at, scores[0]) - np.outer(at, scores[-1])
    weights = np.ones(scores.shape[1])
    rows = [
        {"t": t, "nats": s.mean(), "excess": e.mean()} | _bounds(e, weights)
        for t, s, e in zip(at, scores, excess, strict=True)
    ]
    return frame(rows)


def barriers(table: pd.DataFrame) -> pd.DataFrame:
    """The highest point of every line, with its interval: models, aligned, t, barrier, low, high. `table`: of lines."""
    table = table.reset_index(drop=True)
    top = table.loc[table.groupby(["models", "aligned"], sort=False)["excess"].idxmax()]
    return frame(top.rename(columns={"excess": "barrier"})[["models", "aligned", "t", "barrier", "low", "high"]])


def plane(score: Score, a: Weights, b: Weights, c: Weights, points: int = 9, margin: float = 0.25) -> pd.DataFrame:
    """Losses on the plane through three models: columns u, v, nats of a + u (b - a) + v (c - a)."""
    at = np.linspace(-margin, 1 + margin, points)
    tensors = [flat(w) for w in (a, b, c)]

    def moved(u: float, v: float) -> Weights:
        return unflat({n: x + u * (tensors[1][n] - x) + v * (tensors[2][n] - x) for n, x in tensors[0].items()})

    return frame({"u": u, "v": v, "nats": score(moved(u, v)).mean()} for v in at for u in at)


def between(a: Weights, b: Weights, t: float) -> Weights:
    """(1 - t) a + t b."""
    other = flat(b)
    return unflat({name: torch.lerp(x, other[name].to(x.dtype), t) for name, x in flat(a).items()})


def swaps(score: Score, target: Weights, other: Weights, k: int = 0) -> pd.DataFrame:
    """Loss of `target` with one block matrix at a time taken from `other`: are they interchangeable?

    With k > 0 only the leading k-dimensional part (of the singular value decomposition) is exchanged. Columns: matrix,
    block, role, difference (nats more), low and high (its 95 % interval over blocks of text).
    """
    before, theirs, rows = score(target), dict(matrices(other)), []
    for name, m in matrices(target):
        new = theirs[name] if not k else m - leading(m, k) + leading(theirs[name], k)
        mixed = stacked({**dict(matrices(target)), name: new.to(m.dtype)}, len(target.banks.up))
        less = score(target._replace(banks=mixed)) - before
        block, role = name.removeprefix("block").split(".")
        row = {"matrix": name, "block": int(block), "role": role, "difference": less.mean()}
        rows.append(row | _bounds(less, np.ones(len(less))))
    return frame(rows)


def leading(m: Tensor, k: int) -> Tensor:
    """The best approximation of rank k."""
    u, s, vh = torch.linalg.svd(m.detach(), full_matrices=False)
    return (u[:, :k] * s[:k]) @ vh[:k]


def midpoint_ratio(cosine: float, ratio: float = 1.0) -> float:
    """|(a + b) / 2| / |a| of two tensors with this cosine and |b| / |a| = ratio: the published "interpolation proxy"
    in closed form, which says nothing that the cosine does not."""
    return float(np.sqrt(1 + ratio**2 + 2 * ratio * cosine) / 2)


# -- curvature


def hessian(loss: Loss, point: Point) -> LinearOperator:
    """The Hessian of `loss` at `point` as an operator on flat vectors, in the order of the point's names."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in point.items()}
    gradient = _flat(torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True))

    def product(vector: np.ndarray) -> np.ndarray:
        v = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(gradient)
        found = torch.autograd.grad(gradient, list(leaves.values()), v, retain_graph=True, materialize_grads=True)
        return _flat(found).double().cpu().numpy()

    n = gradient.numel()
    return LinearOperator((n, n), matvec=product, dtype=np.float64)


def top_eigenvalues(operator: LinearOperator, k: int = 4, seed: int = 0) -> np.ndarray:
    """The k largest eigenvalues of a symmetric operator, falling, to 1e-4 of each (ARPACK's Lanczos)."""
    start = np.random.default_rng(seed).standard_normal(operator.shape[0])
    return np.sort(eigsh(operator, k, which="LA", v0=start, tol=1e-4, return_eigenvectors=False))[::-1]


def trace(operator: LinearOperator, draws: int = 32, seed: int = 0) -> tuple[float, float]:
    """The trace of an operator and its standard error: the mean of v H v over random signs (Hutchinson 1990)."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], (draws, operator.shape[0]))
    found = np.array([v @ operator.matvec(v) for v in signs])
    return float(found.mean()), float(found.std(ddof=1) / draws**0.5)


def density(operator: LinearOperator, steps: int = 32, draws: int = 4, seed: int = 0) -> pd.DataFrame:
    """The spectrum of a symmetric operator as weighted points (stochastic Lanczos quadrature, Ubaru et al. 2017).

    Columns: draw, value (an eigenvalue of the tridiagonal matrix), weight (of it; all weights sum to 1).
    """
    rng, rows, n = np.random.default_rng(seed), [], operator.shape[0]
    for draw in range(draws):
        v = rng.standard_normal(n)
        basis, diagonal, beside = [v / np.linalg.norm(v)], list[float](), list[float]()
        while True:
            w = operator.matvec(basis[-1])
            diagonal.append(float(w @ basis[-1]))
            for _ in range(2):  # against all before, or rounding brings eigenvalues twice
                w = w - np.stack(basis, 1) @ (np.stack(basis) @ w)
            length = float(np.linalg.norm(w))
            if len(basis) == min(steps, n) or length < 1e-10 * max(map(abs, diagonal)):
                break
            beside.append(length)
            basis.append(w / length)
        values, vectors = eigh_tridiagonal(diagonal, beside)
        pairs = zip(values, vectors[0] ** 2 / draws, strict=True)
        rows += [{"draw": draw, "value": float(x), "weight": float(p)} for x, p in pairs]
    return frame(rows)


def along(loss: Loss, point: Point, direction: Point, steps: Sequence[float]) -> pd.DataFrame:
    """The loss at point + s direction beside its quadratic model: does curvature predict what a step of TTT gains?

    Columns: step, change (measured), linear (s g.d), quadratic (linear + s^2/2 d.H d).
    """
    start = {name: t.detach().clone().requires_grad_() for name, t in point.items()}
    value = loss(start)
    d = _flat([direction[name].to(t) for name, t in start.items()])
    slope = float(_flat(torch.autograd.grad(value, list(start.values()))) @ d)
    curvature = float(hessian(loss, point).matvec(d.double().cpu().numpy()) @ d.double().cpu().numpy())
    rows = []
    with torch.no_grad():
        for s in steps:
            moved = loss({name: t + s * direction[name].to(t) for name, t in start.items()})
            linear = s * slope
            row = {"step": s, "change": float(moved) - float(value), "linear": linear}
            rows.append(row | {"quadratic": linear + s**2 / 2 * curvature})
    return frame(rows)


def noise_scale(small: Sequence[Point], tokens: int) -> float:
    """Tokens of a batch whose gradient is as much signal as noise, tr(S) / |G|^2 (McCandlish et al. 2018).

    `small`: gradients of batches of `tokens` each; their mean stands for a batch of all. NaN if no signal is found.
    """
    gradients = torch.stack([_flat(list(g.values())).double() for g in small])
    n, of_mean = len(gradients), float(gradients.mean(0).square().sum())
    square = float(gradients.square().sum(1).mean())
    signal, noise = (n * of_mean - square) / (n - 1), (square - of_mean) * tokens * n / (n - 1)
    return noise / signal if signal > 0 else float("nan")


def adaptation(cfg: Config, net: Net, weights: Weights, x: Tensor, y: Tensor, lr: float) -> dict[str, pd.DataFrame]:
    """The loss around a model in the directions that its TTT adapts, on the rows (x, y).

    eigenvalues: the largest, with their rank. density: `density` of that Hessian. step: `along` the negative gradient
    of all rows, at multiples of the rate `lr`. facts: one row; values that adapt, largest (eigenvalue), trace and
    trace_error, squared norm of the gradient, curvature along it (g.H g / g.g), tokens, noise_scale (of gradients of
    single rows, in tokens).
    """
    names, masks = scope(cfg)
    point, loss = free(weights, names, masks), text_loss(net, weights, x, y, masks)
    operator, slope = hessian(loss, point), gradient(loss, point)
    g = _flat(list(slope.values())).double().cpu().numpy()
    top, (total, error) = top_eigenvalues(operator), trace(operator, draws=16)
    single = [gradient(text_loss(net, weights, a[None], b[None], masks), point) for a, b in zip(x, y, strict=True)]
    facts = {
        "values": len(g),
        "largest": float(top[0]),
        "trace": total,
        "trace_error": error,
        "gradient_squared": float(g @ g),
    }
    facts |= {"curvature_along": float(g @ operator.matvec(g) / (g @ g)), "tokens": y.numel()}
    facts["noise_scale"] = noise_scale(single, y.shape[1]) if len(single) > 1 else float("nan")
    steps = [lr * multiple for multiple in (1, 3, 10, 30, 100, 300, 1000)]
    return {
        "eigenvalues": frame({"rank": i, "value": float(v)} for i, v in enumerate(top, 1)),
        "density": density(operator, steps=24, draws=2),
        "step": along(loss, point, {name: -t for name, t in slope.items()}, steps),
        "facts": frame([facts]),
    }


def _bounds(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    found = interval(values[None], weights)
    return {"low": found["low"], "high": found["high"]}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
