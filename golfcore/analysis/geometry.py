"""Weight space per matrix: spectra, and overlaps of leading subspaces on both sides beside what chance would give.

Every block matrix (rows, columns) is a matrix here, never a row of a stack. Models are `Weights` by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from golfcore.analysis.frames import frame
from golfcore.base.errors import UserError
from golfcore.model.weights import Weights, matrices

DIMENSIONS = (8, 16, 32, 64)  # of the leading subspaces
DRAWS = 40  # pairs of random subspaces that a null is the mean of


def spectra(models: Mapping[str, Weights]) -> pd.DataFrame:
    """Singular values of every block matrix in numbers.

    Columns: model, matrix ("block0.query"), block, role, rows, columns, norm (Frobenius), operator_norm, stable_rank
    (norm^2 / operator_norm^2), effective_rank (exp of the entropy of s / sum s), condition (inf if singular). A matrix
    of zeros has rank 0. UserError: values that are not finite.
    """
    out = []
    for model, weights in models.items():
        for name, block, role, m in _named(weights):
            s = torch.linalg.svdvals(m)
            share = s / s.sum().clamp(min=torch.finfo(s.dtype).tiny)
            entropy = -torch.special.xlogy(share, share).sum()
            row = {"model": model, "matrix": name, "block": block, "role": role, "rows": len(m), "columns": m.shape[1]}
            row |= {"norm": float(m.norm()), "operator_norm": float(s[0])}
            row["stable_rank"] = float(m.square().sum() / s[0].square()) if s[0] else 0.0
            row["effective_rank"] = float(entropy.exp()) if s[0] else 0.0
            out.append(row | {"condition": float(s[0] / s[-1]) if s[0] else float("nan")})
    return frame(out)


def overlaps(models: Mapping[str, Weights], dimensions: Sequence[int] = DIMENSIONS) -> pd.DataFrame:
    """Leading left and right subspaces of every block matrix, compared between every two models.

    Columns: models ("a vs b"), matrix, block, role, side ("left": of outputs, "right": of inputs), k (smaller than both
    sides), of (dimensions of the whole space), overlap (mean cosine of the principal angles), energy (share of each
    model's leading k-dimensional part that lies in the other's leading subspace, mean of both), chance and chance_sd
    (overlap of random subspaces: the null of noise of any norm too, whose subspaces are random), score ((overlap -
    chance) / (1 - chance): 0 by chance, 1 for equal subspaces). UserError: values that are not finite, or models of
    different shapes.
    """
    cut = {name: {n: (b, r, *_svd(m)) for n, b, r, m in _named(weights)} for name, weights in models.items()}
    out = []
    for a, b in combinations(models, 2):
        for name, (block, role, *first) in cut[a].items():
            second = cut[b][name][2:]
            if first[0].shape != second[0].shape or first[2].shape != second[2].shape:
                raise UserError(f"{b}, {name}: expected the shape of {a}'s, found another")
            for side, at in (("left", 0), ("right", 2)):
                for k in (k for k in dimensions if k < len(first[1])):
                    cosines = first[at][:, :k].T @ second[at][:, :k]
                    row: dict[str, Any] = {"models": f"{a} vs {b}", "matrix": name, "block": block, "role": role}
                    row |= {"side": side, "k": k}
                    row |= {"of": len(first[at]), "overlap": float(torch.linalg.svdvals(cosines).mean())}
                    row["energy"] = _energy(cosines.square(), first[1][:k].square(), second[1][:k].square())
                    expected, row["chance_sd"] = chance(len(first[at]), k)
                    score = (row["overlap"] - expected) / (1 - expected)
                    out.append(row | {"chance": expected, "score": score})
    return frame(out)


def principal_angles(a: Tensor, b: Tensor, k: int) -> pd.DataFrame:
    """Degrees between the leading k-dimensional subspaces of two matrices (rows, columns), the largest first.

    Columns: angle (its number, from 1), left (of the spaces of outputs), right (of inputs).
    """
    (u, _, v), (p, _, q) = (_svd(m.detach().double()) for m in (a, b))
    pairs = {"left": (u, p), "right": (v, q)}
    found = {side: torch.rad2deg(subspace_angles(x[:, :k], y[:, :k])).numpy() for side, (x, y) in pairs.items()}
    return pd.DataFrame({"angle": range(1, k + 1), **found})


def subspace_angles(x: Tensor, y: Tensor) -> Tensor:
    """Radians between the spaces of orthonormal columns (n, k), the largest first: Knyazev and Argentati (2002).

    From sines below 45 degrees and from cosines above, so that every angle has all its digits. (scipy.linalg's chooses
    for the angles in reverse order, and gives 0 as 2e-8 beside an angle above 45 degrees.)
    """
    products = x.T @ y
    cosines = torch.linalg.svdvals(products).flip(0).clamp(max=1)
    sines = torch.linalg.svdvals(y - x @ products).clamp(max=1)
    return torch.where(cosines.square() >= 0.5, sines.asin(), cosines.acos())


def singular_values(models: Mapping[str, Weights]) -> pd.DataFrame:
    """Every singular value, of each block matrix and of each bank as published (a row for each slot).

    Columns: model, role (or bank: "qo" ...), block (missing for banks), rank (from 1), value, share (of the largest).
    """
    out = []
    for model, weights in models.items():
        found: list[tuple[str, int | None, Tensor]]
        found = [(role, block, torch.linalg.svdvals(m)) for _, block, role, m in _named(weights)]
        banks = zip(weights.banks._fields, weights.banks, strict=True)
        found += [(bank, None, torch.linalg.svdvals(stack.detach().float().flatten(1))) for bank, stack in banks]
        for role, where, values in found:
            row = {"model": model, "role": role, "block": where}
            top = max(float(values[0]), torch.finfo(values.dtype).tiny)
            out += [row | {"rank": i, "value": v, "share": v / top} for i, v in enumerate(values.tolist(), 1)]
    return frame(out)


def slot_norms(models: Mapping[str, Weights]) -> pd.DataFrame:
    """Frobenius norm of every slot, of which published ranks and conditions are made: model, bank, slot, norm."""
    return frame(
        {"model": model, "bank": bank, "slot": slot, "norm": norm}
        for model, weights in models.items()
        for bank, stack in zip(weights.banks._fields, weights.banks, strict=True)
        for slot, norm in enumerate(stack.detach().float().flatten(1).norm(dim=1).tolist())
    )


def angle_spectra(models: Mapping[str, Weights], k: int = 16) -> pd.DataFrame:
    """Cosines of all principal angles of the leading spaces of outputs, between every two models, beside chance.

    Columns: models, role, block, index (from 1, falling cosines), cosine, chance_low and chance_high (2.5 and 97.5 % of
    random subspaces of these dimensions). Spaces have `k` dimensions, or half of the smaller side where that is less.
    """
    out = []
    for a, b in combinations(models, 2):
        second = {name: m for name, _, _, m in _named(models[b])}
        for name, block, role, m in _named(models[a]):
            n = min(k, min(m.shape) // 2)
            bases = [_svd(x)[0][:, :n] for x in (m, second[name])]
            low, high = _cosine_band(len(m), n)
            row = {"models": f"{a} vs {b}", "role": role, "block": block}
            for i, cosine in enumerate(torch.linalg.svdvals(bases[0].T @ bases[1]).tolist()):
                out.append(row | {"index": i + 1, "cosine": cosine, "chance_low": low[i], "chance_high": high[i]})
    return frame(out)


@cache
def _cosine_band(d: int, k: int) -> tuple[list[float], list[float]]:
    low, high = np.quantile([np.sort(draw)[::-1] for draw in _random_cosines(d, k)], (0.025, 0.975), axis=0)
    return low.tolist(), high.tolist()


def _random_cosines(d: int, k: int) -> list[np.ndarray]:
    """Cosines between DRAWS pairs of random (Haar) k-dimensional subspaces of d dimensions."""
    rng, found = np.random.default_rng((d, k)), []
    for _ in range(DRAWS):
        q, p = (np.linalg.qr(rng.standard_normal((d, k)))[0] for _ in range(2))
        found.append(np.linalg.svd(q.T @ p, compute_uv=False))
    return found


@cache
def chance(d: int, k: int) -> tuple[float, float]:
    """Mean and standard deviation of the overlap of two random (Haar) k-dimensional subspaces of d dimensions."""
    found = [cosines.mean() for cosines in _random_cosines(d, k)]
    return float(np.mean(found)), float(np.std(found, ddof=1))


def _energy(squares: Tensor, first: Tensor, second: Tensor) -> float:
    """Of squared cosines (k, k) between leading directions with squared singular values (k,) each."""
    shares = [w @ s / w.sum() for w, s in ((first, squares.sum(1)), (second, squares.sum(0))) if w.sum() > 0]
    return float(torch.stack(shares).mean()) if shares else 0.0


def _named(weights: Weights) -> Iterator[tuple[str, int, str, Tensor]]:
    for name, m in matrices(weights):
        if not bool(m.isfinite().all()):
            raise UserError(f"{name}: expected finite values, found NaN or infinite ones")
        block, role = name.removeprefix("block").split(".")
        yield name, int(block), role, m.detach().float()


def _svd(m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors, singular values, right vectors as columns."""
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    return u, s, vh.T
