"""Muon for stacks of matrices (Jordan et al., 2024; form and constants of exp101): momentum, then orthogonalisation."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from golfcore.base.runtime import world_size

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic that is steepest at 0; it overshoots 1 a little on purpose
EPS = 1e-7


def newton_schulz(g: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Move every singular value of each (rows, cols) matrix in `g` (..., rows, cols) close to 1; returned in `dtype`.

    With X = g / |g|_F, `steps` times: A = X X^T, X <- a X + (b A + c A A) X. Everything is computed in `dtype`. For
    rectangular Gaussian matrices the results lie in about [0.68, 1.14]; zero matrices stay zero.
    """
    a, b, c = COEFFICIENTS
    x = g.to(dtype).flatten(0, -3) if g.ndim > 2 else g.to(dtype)[None]
    if g.shape[-2] > g.shape[-1]:  # the smaller Gram matrix
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + EPS)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if g.shape[-2] > g.shape[-1] else x).reshape(g.shape)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised matrix by matrix, with decoupled weight decay before it.

        m <- momentum m + g;   u = g + momentum m;   W <- (1 - lr wd) W;   W <- W - lr sqrt(max(1, rows / cols)) NS(u)

    Without `nesterov` u = m. Parameters have shape (..., rows, cols); those without a gradient are skipped. `dtype` is
    that of Newton-Schulz. A parameter group may say "momentum_dtype" if the buffer's is another (pr294, pr398:
    float32), and "decay_after" if the last two steps change places (pr294).

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
                pending.append((p, shared(u.to(group["dtype"]), group["ns_steps"])))
            for p, update in pending:
                rows, cols = p.shape[-2:]
                kept = 1 - group["lr"] * group["weight_decay"]
                if not group["decay_after"]:
                    p.mul_(kept)
                p.add_(update(), alpha=-group["lr"] * max(1.0, rows / cols) ** 0.5)
                if group["decay_after"]:
                    p.mul_(kept)


def shared(u: Tensor, steps: int) -> Callable[[], Tensor]:
    """What waits for `newton_schulz(u, steps, u.dtype)`, its matrices divided among the ranks; begins at once."""
    world = world_size()
    if world == 1:
        alone = newton_schulz(u, steps, u.dtype)
        return lambda: alone
    slots = u.reshape(-1, *u.shape[-2:])
    share = -(-len(slots) // world)
    slots = F.pad(slots, (0, 0, 0, 0, 0, share * world - len(slots)))  # every rank sends as much
    first = dist.get_rank() * share
    mine = newton_schulz(slots[first : first + share], steps, u.dtype).contiguous()
    updates = torch.empty_like(slots)
    work = dist.all_gather(list(updates.chunk(world)), mine, async_op=True)

    def result() -> Tensor:
        work.wait()
        return updates.view(-1)[: u.numel()].view(u.shape)

    return result
