"""What PRs 1501 and 1502 measured of a tensor, or of one in two models; the reports are in `weight_space`.

A stack (n, r, c) counts as the matrix (n, r c), one row a slot.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golfcore.base.errors import UserError
from golfcore.quant.grid import Grid, candidate_scales, dequantize, quantize

RATES = ("meta_sgd_qo", "meta_sgd_kv", "meta_sgd_up", "meta_sgd_down")
INT6 = Grid(31, -31, (1.0,), floor=True, stored_scale_codes=False)
TINY = 1e-12

State = Mapping[str, Tensor]


class Decomposed(NamedTuple):
    """A tensor as a matrix with a row for each slot."""

    shape: list[int]  # of the tensor
    frobenius: float  # rounded to the tensor's own dtype, as published
    values: Tensor  # singular values, falling
    left: Tensor  # (slots, n) left vectors


def common(*models: State) -> list[str]:
    """Names that all models have in one shape, sorted; others are left out, as published."""
    first, *others = models
    return [n for n in sorted(first) if all(n in o and o[n].shape == first[n].shape for o in others)]


def products(*models: State) -> dict[str, Tensor]:
    """(M, M) float64 inner products of each common tensor of M models; norms, distances and cosines come of them."""
    out = {}
    for name in common(*models):
        pieces = zip(*(m[name].flatten().split(1 << 18) for m in models), strict=True)  # in the cache
        out[name] = torch.stack([(p := torch.stack(piece).double()) @ p.T for piece in pieces]).sum(0)
    return out


def deltas(a: State, inner: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Norms, distance and cosine of each tensor of two values or more, by falling relative distance.

    `inner`: the products of two models, the first of them `a`.
    """
    rows = []
    for name, p in inner.items():
        if a[name].numel() > 1:
            m = midpoint_of(name, p)
            x, y, d = m["norm_a"], m["norm_b"], m["diff"]
            row = {"a_norm": x, "b_norm": y, "diff_norm": d, "rel_l2": d / max(x, TINY)}
            row["cosine"] = float(p[0, 1]) / (max(x, TINY) * max(y, TINY))
            rows.append(row | {"name": name, "numel": a[name].numel(), "shape": list(a[name].shape)})
    return sorted(rows, key=lambda r: -r["rel_l2"])


def decompose(state: State, names: Iterable[str]) -> dict[str, Decomposed]:
    """The named tensors as matrices with a row for each slot: singular values in float32 as published, left vectors."""
    out = {}
    for name in names:
        if not bool(state[name].isfinite().all()):
            raise UserError(f"{name}: expected finite values, found NaN or infinite ones")
        m, frobenius = state[name].float().reshape(len(state[name]), -1), float(state[name].norm())
        left, values, _ = torch.linalg.svd(m, full_matrices=False)
        if state[name].ndim == 3:  # whose gaps are in the last digits: as published, without vectors
            values = torch.linalg.svdvals(m)
        out[name] = Decomposed(list(state[name].shape), frobenius, values, left)
    return out


def spectrum(found: Decomposed) -> dict[str, Any]:
    """Norms, stable rank, condition, and the five largest and smallest singular values."""
    values, top, frobenius = found.values, float(found.values[0]), found.frobenius
    return {
        "op_norm": top,
        "fro_norm": frobenius,
        "stable_rank": frobenius**2 / (top**2 + TINY),
        "cond_number": top / max(float(values[-1]), TINY),
        "min_sv": float(values[-1]),
        "top5_sv": values[:5].tolist(),
        "bottom5_sv": values[-5:].tolist(),
    }


def bank_spectrum(cut: Decomposed) -> dict[str, Any]:
    """What was called the error surface of a bank: effective rank exp(H(s / sum s)), sum of squares, gap, energy."""
    values, found = cut.values, spectrum(cut)
    share, squares = values / values.sum().clamp(min=TINY), values.square()
    return {
        "shape": cut.shape,
        **{q: found[q] for q in ("op_norm", "cond_number", "stable_rank")},
        "effective_rank": float(torch.exp(-(share * share.clamp(min=TINY).log()).sum())),
        "hessian_trace_proxy": float(squares.sum()),
        "spectral_gap": float(values[0] - values[1]) if len(values) > 1 else float(values[0]),
        "top5_energy_frac": float(squares[:5].sum() / squares.sum().clamp(min=TINY)),
        "min_sv": found["min_sv"],
        "sv_spectrum_summary": {
            "top10": values[:10].tolist(),
            "bottom5": values[-5:].tolist(),
            "median": float(values.median()),
        },
    }


def subspace_overlaps(a: Mapping[str, Decomposed], b: Mapping[str, Decomposed]) -> list[dict[str, Any]]:
    """Cosines of the principal angles between the leading left subspaces of each tensor, by falling mean."""
    rows = []
    for name, one in a.items():
        k = min(32, max(1, len(one.values) // 4))
        cosines = torch.linalg.svdvals(one.left[:, :k].T @ b[name].left[:, :k])
        near = int((cosines > 0.9).sum())
        row = {"name": name, "shape": one.shape, "k_subspace": k, "angles": cosines.tolist()}
        row |= {"avg_cosine": float(cosines.mean()), "n_near_aligned": near, "frac_near_aligned": near / k}
        rows.append(row)
    return sorted(rows, key=lambda r: -r["avg_cosine"])


def rounding_errors(tensor: Tensor) -> list[float]:
    """Summed squared errors of 6-bit rounding with the published floor, one a slot; of a vector one scale, no floor."""
    if tensor.ndim <= 1:
        scale = tensor.abs().max() / 31
        codes = (tensor / scale.clamp(min=TINY)).round().clamp(-31, 31)
        return [float((codes * scale - tensor).double().square().sum())]
    out = []
    for matrix in tensor.float().reshape(-1, *tensor.shape[-2:]):
        (scale,) = candidate_scales(matrix, INT6)
        out.append(float((dequantize(quantize(matrix, scale, INT6), scale) - matrix).square().sum(dtype=torch.float64)))
    return out


def midpoint(inner: Mapping[str, Tensor]) -> dict[str, float]:
    """Sums over tensors of norms: of the difference, of both, of the midpoint, and its ratio to the first's."""
    rows = [midpoint_of(n, p) for n, p in inner.items()]
    total = {q: sum(r[q] for r in rows) for q in ("diff", "norm_a", "norm_b", "norm_mid")}
    found = {"l2_distance": total["diff"], "norm_a": total["norm_a"], "norm_b": total["norm_b"]}
    return found | {
        "norm_midpoint": total["norm_mid"],
        "midpoint_ratio": total["norm_mid"] / max(total["norm_a"], TINY),
    }


def midpoint_of(name: str, p: Tensor) -> dict[str, Any]:
    (aa, ab), (_, bb) = p.tolist()
    norm, middle = aa**0.5, max(aa + 2 * ab + bb, 0) ** 0.5 / 2
    found = {"name": name, "norm_a": norm, "norm_b": bb**0.5, "norm_mid": middle}
    return found | {"mid_over_a": middle / max(norm, TINY), "diff": max(aa - 2 * ab + bb, 0) ** 0.5}


def centroid(inner: Mapping[str, Tensor]) -> dict[str, float]:
    """Sum over tensors of the norm of the models' mean, and its ratio to the models' mean sum of norms."""
    middle = sum(float(p.sum().clamp(min=0).sqrt()) / len(p) for p in inner.values())
    each = sum(float(p.diagonal().sqrt().mean()) for p in inner.values())
    return {"n_keys": len(inner), "centroid_norm": middle, "avg_individual_norm": each, "centroid_ratio": middle / each}


def learned_rates(state: State) -> dict[str, Any]:
    """The MetaSGD rates of each bank and of all together; "not_found" where the state has none."""
    out: dict[str, Any] = {}
    for name in RATES:
        out[name] = {"status": "not_found"}
        if name in state:
            values = state[name].double().flatten()
            out[name] = {"shape": list(state[name].shape), "values": values.tolist(), **_rates(values)}
            out[name]["all_near_one"] = float((values - 1).abs().max()) < 0.1
    if found := [state[n].double().flatten() for n in RATES if n in state]:
        values = torch.cat(found)
        out["aggregate"] = {"total_params": len(values), **{f"global_{q}": v for q, v in _rates(values).items()}}
        out["aggregate"]["converged_to_uniform"] = float((values - 1).abs().max()) < 0.1
    return out


def _rates(values: Tensor) -> dict[str, float]:
    measures: dict[str, Callable[[Tensor], Tensor]] = {"mean": torch.mean, "std": torch.std, "min": torch.min}
    measures |= {"max": torch.max, "deviation_from_init": lambda v: (v - 1).abs().mean()}
    return {name: float(measure(values)) for name, measure in measures.items()}
