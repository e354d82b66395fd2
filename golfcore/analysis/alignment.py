"""Two models in the same coordinates: the member of one's symmetry class that is nearest to the other.

Permutations by linear assignment, rotations by orthogonal Procrustes (Schoenemann 1966), scales by a search, over the
symmetries of `golfcore.analysis.symmetry` and no others; then distances that mean something.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from golfcore.analysis import symmetry
from golfcore.analysis.frames import frame
from golfcore.config import ModelConfig
from golfcore.model.weights import Weights, matrices

SCALES = 16.0  # a hidden unit's scale is looked for up to this factor from the ratio of norms


def align(
    cfg: ModelConfig,
    target: Weights,
    weights: Weights,
    stream: bool = False,
    activations: tuple[Mapping[int, Tensor], Mapping[int, Tensor]] | None = None,
) -> Weights:
    """The weights equal to `weights` in every logit (but for rounding) that the steps below bring nearest to `target`.

    For each block: groups of heads, query heads within them, rotations of values and of non-rotary queries and keys,
    hidden units and their scales. `stream`: first signed channels of the residual stream by the token embedding; models
    that began alike need none of it. `activations`: of hidden units (tokens, F) by block of the target and of `weights`
    on the same tokens; units are then matched by correlation instead of by weights.
    """
    found = _stream(target, weights) if stream else symmetry.copied(weights)
    for block in range(cfg.n_blocks):
        free = block in symmetry.free_blocks(cfg)
        if free:
            found = symmetry.permute_groups(found, cfg, block, _groups(cfg, target, found, block))
        for _ in range(2):  # rotations depend on which head is which, and the other way round
            for head in range(cfg.n_kv_heads):
                if free:
                    r = _procrustes(_values(cfg, target, block, head), _values(cfg, found, block, head))
                    found = symmetry.rotate_values(found, cfg, block, head, r)
                if cfg.rope_dims < cfg.head_dim:
                    r = _procrustes(_queries(cfg, target, block, head), _queries(cfg, found, block, head))
                    found = symmetry.rotate_queries(found, cfg, block, head, r)
            found = symmetry.permute_queries(found, cfg, block, _query_order(cfg, target, found, block))
        features = None if activations is None else (activations[0][block], activations[1][block])
        found = symmetry.permute_hidden(found, cfg, block, _hidden(cfg, target, found, block, features))
        found = symmetry.scale_hidden(found, cfg, block, _scales(cfg, target, found, block))
    return found


def distances(models: Mapping[str, Weights], to: str) -> pd.DataFrame:
    """True distances of every model to the model `to`.

    Columns: model, tensor (a block matrix, another tensor, "matrices", "others" or "all"), l2 (root of the summed
    squares of differences, over all its tensors), relative (to the norm of `to`), cosine (0 if one of both is zero).
    """

    def parts(w: Weights) -> dict[str, Tensor]:
        return {**dict(matrices(w)), **w.rest}

    out, target, inside = [], parts(models[to]), {name for name, _ in matrices(models[to])}
    for model, weights in models.items():
        if model == to:
            continue
        other = parts(weights)
        sums = {name: _sums(target[name], other[name]) for name in target if name in other}
        groups = {"matrices": inside, "others": sums.keys() - inside, "all": sums.keys()}
        totals = {group: np.sum([sums[name] for name in names], axis=0) for group, names in groups.items()}
        for name, (aa, bb, ab) in (sums | totals).items():
            l2, cosine = max(aa + bb - 2 * ab, 0.0) ** 0.5, ab / (aa * bb) ** 0.5 if aa * bb > 0 else 0.0
            relative = l2 / aa**0.5 if aa else float("nan")
            out.append({"model": model, "tensor": name, "l2": l2, "relative": relative, "cosine": cosine})
    return frame(out)


def _sums(a: Tensor, b: Tensor) -> np.ndarray:
    x, y = (t.detach().double().flatten() for t in (a, b))
    return np.array([float(x @ x), float(y @ y), float(x @ y)])


def _assign(similarity: Tensor) -> Tensor:
    """For each row the column of the assignment with the largest sum."""
    return torch.from_numpy(linear_sum_assignment(similarity.double().numpy(), maximize=True)[1])


def _procrustes(target: Tensor, found: Tensor) -> Tensor:
    """The orthogonal R (K, K) with R found nearest to target, both (K, n)."""
    u, _, vh = torch.linalg.svd(target.double() @ found.double().T)
    return (u @ vh).to(found.dtype)


def _stream(target: Weights, weights: Weights) -> Weights:
    similarity = target.rest["tok_emb"].detach().T @ weights.rest["tok_emb"].detach()
    order = _assign(similarity.abs())
    signs = similarity.gather(1, order[:, None])[:, 0].sign()
    return symmetry.permute_stream(weights, order, torch.where(signs == 0, 1.0, signs))


def _values(cfg: ModelConfig, w: Weights, block: int, head: int) -> Tensor:
    """(K, n): rows of the value head, and the columns of `out` that read it."""
    value = w.banks.kv[2 * block + 1].detach().unflatten(0, (-1, cfg.head_dim))[head]
    out = w.banks.qo[2 * block + 1].detach().unflatten(1, (-1, cfg.head_dim))
    return torch.cat([value, *(out[:, h].T for h in symmetry.query_heads(cfg, head))], dim=1)


def _queries(cfg: ModelConfig, w: Weights, block: int, head: int) -> Tensor:
    """(K - rotary, n): non-rotary rows of the key head and of its query heads."""
    key, query = (
        b[2 * block].detach().unflatten(0, (-1, cfg.head_dim))[:, cfg.rope_dims :] for b in (w.banks.kv, w.banks.qo)
    )
    return torch.cat([key[head], *(query[h] for h in symmetry.query_heads(cfg, head))], dim=1)


def _groups(cfg: ModelConfig, target: Weights, found: Weights, block: int) -> Tensor:
    """Which key/value head of `found` is nearest to each of the target's after the best rotation of either."""
    key, value = (
        (w.banks.kv[2 * block + i].detach().unflatten(0, (-1, cfg.head_dim)) for w in (target, found)) for i in (0, 1)
    )
    (k, l), (v, u), r = key, value, cfg.rope_dims  # noqa: E741
    rotary = torch.einsum("ikd,jkd->ij", k[:, :r], l[:, :r])
    turned = [_nuclear(a, b) for a, b in ((k[:, r:], l[:, r:]), (v, u))]
    return _assign(rotary + turned[0] + turned[1])


def _nuclear(a: Tensor, b: Tensor) -> Tensor:
    """(Hkv, Hkv): the largest inner product of a[i] and a rotated b[j], each (Hkv, K, D)."""
    products = torch.einsum("ikd,jld->ijkl", a, b)
    return torch.linalg.svdvals(products).sum(-1) if products.shape[-1] else products.sum((-1, -2))


def _query_order(cfg: ModelConfig, target: Weights, found: Weights, block: int) -> Tensor:
    def heads(w: Weights) -> Tensor:
        query = w.banks.qo[2 * block].detach().unflatten(0, (-1, cfg.head_dim))
        out = w.banks.qo[2 * block + 1].detach().unflatten(1, (-1, cfg.head_dim)).permute(1, 2, 0)
        return torch.cat((query, out), dim=2).flatten(1)

    similarity = heads(target) @ heads(found).T
    own = torch.zeros_like(similarity, dtype=torch.bool)
    for head in range(cfg.n_kv_heads):
        group = symmetry.query_heads(cfg, head)
        own[group[0] : group[-1] + 1, group[0] : group[-1] + 1] = True
    return _assign(similarity.masked_fill(~own, -1e30))


def _units(cfg: ModelConfig, w: Weights, block: int) -> tuple[Tensor, Tensor]:
    """(F, n) what a unit reads (SwiGLU: its gate, then its value) and (F, D) what it writes."""
    up = w.banks.up[block].detach()
    reads = torch.cat(up.chunk(2), dim=1) if cfg.mlp == "swiglu" else up
    return reads, w.banks.down[block].detach().T


def _hidden(cfg: ModelConfig, target: Weights, found: Weights, block: int, features: tuple | None) -> Tensor:
    def normed(t: Tensor) -> Tensor:
        return torch.nn.functional.normalize(t.float(), dim=1)

    if features is not None:
        a, b = (normed((f - f.mean(0)).T) for f in features)
        return _assign(a @ b.T)
    pairs = zip(_units(cfg, target, block), _units(cfg, found, block), strict=True)
    return _assign(torch.stack([normed(a) @ normed(b).T for a, b in pairs]).sum(0))


def _scales(cfg: ModelConfig, target: Weights, found: Weights, block: int) -> Tensor:
    """(F,) the a > 0 that minimises |a u - u*|^2 + |d / a^p - d*|^2 of each unit; p is 2, of SwiGLU's values 1."""
    power = 1 if cfg.mlp == "swiglu" else 2
    (read, write), (u, d) = (_units(cfg, w, block) for w in (target, found))
    if cfg.mlp == "swiglu":  # the gate has no scale
        read, u = (t.chunk(2, dim=1)[1] for t in (read, u))
    (uu, uv), (dd, dv) = (((b * b).sum(1).double(), (a * b).sum(1).double()) for a, b in ((read, u), (write, d)))

    def cost(a: Tensor) -> Tensor:
        return a.square() * uu - 2 * a * uv + a ** (-2 * power) * dd - 2 * a**-power * dv

    start = (read.square().sum(1).double() / uu.clamp(min=1e-30)).sqrt().clamp(1 / SCALES, SCALES)
    low, high = start / SCALES, start * SCALES
    for _ in range(12):  # ever finer grids around the best, which stays among them
        steps = torch.linspace(0, 1, 33, dtype=torch.float64)[:, None]
        grid = torch.cat(((low.log() + steps * (high.log() - low.log())).exp(), start[None]))
        start = grid.gather(0, cost(grid).argmin(0)[None])[0]
        width = (high.log() - low.log()) / 16
        low, high = (start.log() - width).exp(), (start.log() + width).exp()
    return torch.where((uu > 0) & (dd > 0), start, 1.0).to(u.dtype)
