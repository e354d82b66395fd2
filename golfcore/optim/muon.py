"""Muon for stacks of matrices (Jordan et al., 2024; form and constants of exp101): momentum, then orthogonalisation."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from golfcore.base.runtime import world_size

QUINTICS = {  # (a, b, c) of each step, the last repeated
    "muon": ((3.4445, -4.7750, 2.0315),),  # steepest at 0; overshoots 1 a little on purpose
    "polar-express": (  # each the best for what the one before leaves (Amsel et al. 2025, arXiv 2505.16932)
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ),
}
MARGINS = {"muon": 1.0, "polar-express": 1.02}  # how far above every singular value X begins: rounding adds to them
EPS = 1e-7


def newton_schulz(g: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16, quintics: str = "muon") -> Tensor:
    """Move every singular value of each (rows, cols) matrix in `g` (..., rows, cols) close to 1; returned in `dtype`.

    With X = g / |g|_F, `steps` times: A = X X^T, X <- a X + (b A + c A A) X. Everything is computed in `dtype`. For
    rectangular Gaussian matrices the results lie in about [0.68, 1.14], by "polar-express" in [0.85, 1.15]; zero
    matrices stay zero.
    """
    x = g.to(dtype).flatten(0, -3) if g.ndim > 2 else g.to(dtype)[None]
    if g.shape[-2] > g.shape[-1]:  # the smaller Gram matrix
        x = x.mT
    x = x / (MARGINS[quintics] * x.norm(dim=(-2, -1), keepdim=True) + EPS)
    for step in range(steps):
        a, b, c = QUINTICS[quintics][: step + 1][-1]
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if g.shape[-2] > g.shape[-1] else x).reshape(g.shape)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised matrix by matrix, with decoupled weight decay before it.

        m <- momentum m + g;   u = g + momentum m;   W <- (1 - lr wd) W;   W <- W - lr sqrt(max(1, rows / cols)) NS(u)

    Without `nesterov` u = m. Parameters have shape (..., rows, cols); those without a gradient are skipped. `dtype` is
    that of Newton-Schulz. A parameter group may say "momentum_dtype" if the buffer's is another (pr294, pr398:
    float32), "decay_after" if the last two steps change places (pr294), "quintics" of another name, "equal_rows" if
    every row of u is brought to length 1 first (MuonEq-R, arXiv 2603.28254), and "conditioning", the strength of a
    further decay (`condition_`).

    In a process group the gradients must already be the mean over ranks. Each rank keeps all of the momentum and
    orthogonalises its share of the matrices; the updates are then gathered.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        ns_steps: int = 5,
        dtype: torch.dtype = torch.bfloat16,
        nesterov: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "ns_steps": ns_steps, "dtype": dtype}
        defaults |= {"nesterov": nesterov, "momentum_dtype": dtype, "decay_after": False}
        defaults |= {"quintics": "muon", "equal_rows": False, "conditioning": 0.0}
        super().__init__(params, defaults)
        for p, group in ((p, g) for g in self.param_groups for p in g["params"]):
            if p.ndim < 2:
                raise ValueError(f"Muon: expected parameters of shape (..., rows, cols), found {tuple(p.shape)}")
            self.state[p]["momentum"] = torch.zeros_like(p, dtype=group["momentum_dtype"])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            pending = []
            for p in [p for p in group["params"] if p.grad is not None]:
                g, momentum = p.grad.to(group["momentum_dtype"]), group["momentum"]
                m = self.state[p]["momentum"].mul_(momentum).add_(g)
                # torch.add rounds once, as the original's fused multiply-add
                u = torch.add(g, m, alpha=momentum) if group["nesterov"] else m
                if group["equal_rows"]:
                    u = F.normalize(u, dim=-1, eps=EPS)
                orthogonal = partial(newton_schulz, steps=group["ns_steps"], quintics=group["quintics"])
                pending.append((p, shared(u.to(group["dtype"]), orthogonal)))
            for p, update in pending:
                rows, cols = p.shape[-2:]
                kept = 1 - group["lr"] * group["weight_decay"]
                if not group["decay_after"]:
                    p.mul_(kept)
                if group["conditioning"]:
                    condition_(p, group["lr"] * group["conditioning"])
                p.add_(update(), alpha=-group["lr"] * max(1.0, rows / cols) ** 0.5)
                if group["decay_after"]:
                    p.mul_(kept)


def condition_(w: Tensor, share: float) -> None:
    """Move the singular values s of each (rows, cols) matrix in `w` towards their root mean square r, in place.

    W <- W - share (W W^T W / r^2 - W), or s <- s - share s (s^2 / r^2 - 1): the gradient of the soft orthogonality of
    Bansal et al. (2018, arXiv 1810.09102), of the matrix at its own scale and, as weight decay is, apart from Muon.
    """
    small = w.mT if w.shape[-2] > w.shape[-1] else w
    gram = small @ small.mT
    mean_square = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp_min(EPS)
    pull = (gram / mean_square) @ small
    w.mul_(1 + share).sub_(share * (pull.mT if small is not w else pull))


def shared(u: Tensor, orthogonal: Callable[..., Tensor]) -> Callable[[], Tensor]:
    """What waits for `orthogonal(u, dtype=u.dtype)`, its matrices divided among the ranks; begins at once."""
    world = world_size()
    if world == 1:
        alone = orthogonal(u, dtype=u.dtype)
        return lambda: alone
    slots = u.reshape(-1, *u.shape[-2:])
    share = -(-len(slots) // world)
    slots = F.pad(slots, (0, 0, 0, 0, 0, share * world - len(slots)))  # every rank sends as much
    first = dist.get_rank() * share
    mine = orthogonal(slots[first : first + share], dtype=u.dtype).contiguous()
    updates = torch.empty_like(slots)
    work = dist.all_gather(list(updates.chunk(world)), mine, async_op=True)

    def result() -> Tensor:
        work.wait()
        return updates.view(-1)[: u.numel()].view(u.shape)

    return result
