"""How long runs will take here: their FLOPs, counted, at a pace that is measured."""

import time
from collections.abc import Iterable

import torch

from golfcore import config
from golfcore.base import runtime
from golfcore.config import Config
from golfcore.evals.windows import window_length
from golfcore.model import params
from golfcore.model.attention import Compute
from golfcore.model.forward import Net, forward, nll
from golfcore.model.weights import flat, tree_map
from golfcore.runs.stacks import flops_per_token
from golfcore.train.meta import counted_cost

PROBE_SECONDS = 2.0
META_SHARE = 0.5  # of the steps: meta-learning ends where the learning rate is half of its peak, at the latest
SCORES = 2  # without overlap: of the float and of the packed weights


def training_flops(cfg: Config) -> float:
    """Of training a run, meta calls included."""
    steps, o = cfg.schedule.iterations, cfg.optim
    flops = float(flops_per_token(cfg)) * steps * o.batch_tokens
    if cfg.meta.enabled:
        calls = META_SHARE * steps / cfg.meta.every
        flops += flops_per_token(cfg) * calls * counted_cost(cfg) * o.batch_tokens / o.grad_accum
    return flops


def scoring_flops(cfg: Config) -> float:
    """Of the four scores of a run: a forward is a third of a training step, adapting is as training."""
    forward_flops, targets = flops_per_token(cfg) / 3, cfg.data.val_tokens
    windows = window_length(cfg) / cfg.eval.stride
    adapting = 3 * cfg.ttt.epochs + cfg.ttt.sweeps * 3
    return forward_flops * targets * (SCORES + 2 * windows + adapting)


def flops(configs: Iterable[Config]) -> float:
    """Of all runs: what trains alike trains once, every run is scored."""
    listed = list(configs)
    trained = {(cfg.training_hash, cfg.run.seed): cfg for cfg in listed}.values()
    return sum(map(training_flops, trained)) + sum(map(scoring_flops, {cfg.hash: cfg for cfg in listed}.values()))


def pace(seconds: float = PROBE_SECONDS) -> float:
    """FLOPs a second that a training step of the demo gets here: forwards and backwards for so many seconds."""
    cfg = config.load("demo")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = tree_map(lambda t: t.to(device).requires_grad_(t.is_floating_point()), params.init(cfg.model, 0))
    dtype = torch.bfloat16 if runtime.multiplies_bfloat16(device) else torch.float32
    net = Net(cfg.model, None, Compute(dtype))
    shape = (cfg.optim.batch_tokens // cfg.data.seq_len, cfg.data.seq_len)
    x = torch.randint(cfg.model.vocab_size, shape, device=device)
    tensors = [t for t in flat(weights).values() if t.requires_grad]

    def step() -> None:
        loss = nll(forward(net, weights, x), x).mean()
        torch.autograd.grad(loss, tensors, allow_unused=True)[0].sum().item()

    step()
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        step()
        steps += 1
    return steps * x.numel() * flops_per_token(cfg) / (time.monotonic() - began)


def in_words(configs: Iterable[Config]) -> str:
    """The forecast of runs in a sentence."""
    listed = list(configs)
    if not listed:
        return "forecast: no run to train"
    total, rate = flops(listed), pace()
    minutes = total / rate / 60
    span = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return (
        f"forecast: {len(listed)} runs, {total / 1e12:,.1f} TFLOP to train and score, about {span} here at a measured "
        f"{rate / 1e9:,.0f} GFLOP/s; quantization and analysis come on top"
    )
