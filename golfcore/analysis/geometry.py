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
from scipy.linalg import subspace_angles
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
    found = {side: np.degrees(subspace_angles(x[:, :k].numpy(), y[:, :k].numpy())) for side, (x, y) in pairs.items()}
    return pd.DataFrame({"angle": range(1, k + 1), **found})


@cache
def chance(d: int, k: int) -> tuple[float, float]:
    """Mean and standard deviation of the overlap of two random (Haar) k-dimensional subspaces of d dimensions."""
    rng = np.random.default_rng((d, k))
    found = []
    for _ in range(DRAWS):
        q, p = (np.linalg.qr(rng.standard_normal((d, k)))[0] for _ in range(2))
        found.append(np.linalg.svd(q.T @ p, compute_uv=False).mean())
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
