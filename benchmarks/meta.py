"""What a meta call every 4 steps costs at the size of exp101, beside the same steps without it (exp105a).

A step is timed as its parts, alternately in one run: forward and backward of a micro-batch (8 a step, as published),
the optimizer (once), and the meta call of each objective without what only the log needs, beside the passes counted in
it. Micro-batches are small, which only makes the optimizer's share larger than it was; the last column counts no
optimizer at all.
"""

import argparse
import time
from collections.abc import Callable

import torch

from golfcore import config
from golfcore.data.tokens import Tables
from golfcore.model import params
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights
from golfcore.optim import build
from golfcore.optim.inner import loss_function
from golfcore.train.meta import MetaReport, add_gradient, counted_cost, split

MICRO, EVERY = 8, 4
PUBLISHED = {  # ms a step while meta-learning is active, and over the run; steps that it was active for, of all steps
    "exp101": (691.6, 683.79, 4564 / 7020),
    "exp106": (745.2, 718.02, 4330 / 6686),
}
PLAIN_MS = (663.3, 664.29)  # exp105a


def seconds(parts: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median time of each part over `repeats` rounds of all parts; one round beforehand does not count."""
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repeats + 1):
        for name, run in parts.items():
            synchronize()
            began = time.perf_counter()
            report = run()
            synchronize()
            apart = report.instrument_seconds if isinstance(report, MetaReport) else 0.0
            times[name].append(time.perf_counter() - began - apart)
    return {name: sorted(found[1:])[repeats // 2] for name, found in times.items()}


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def parts(rows: int, seq_len: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """A micro-batch and an optimizer step of exp101, and the meta call of each objective, on the same weights."""
    cfg = config.load("exp106")
    compute = choose_compute(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    weights = build.leaves(cfg.model, cfg.optim, params.init(cfg.model, 0), compute.dtype, device)
    without_rates = Weights(weights.banks, {k: v for k, v in weights.rest.items() if not k.startswith(params.RATES)})
    plain = config.load("exp101")
    optimizers = build.build(plain.model, plain.optim, without_rates, compute.dtype)
    starts = torch.arange(cfg.model.vocab_size) % 3 == 0
    tables = Tables(torch.ones(len(starts), dtype=torch.int16), starts, torch.zeros_like(starts)).to(device)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(cfg.model.vocab_size, (2, rows, seq_len), generator=generator).to(device)
    loss = loss_function(Net(plain.model, tables, compute), plain.optim.z_loss, compiled=device.type == "cuda")

    def micro_batch() -> None:
        (loss(without_rates, x, y) / MICRO).backward()

    def call(name: str) -> Callable[[], object]:
        c = config.load(name)
        w = weights if c.model.meta_sgd else without_rates
        data = split(c.meta, x, y)
        return lambda: add_gradient(c, Net(c.model, tables, compute), w, EVERY, data, loss)

    return {"micro": micro_batch, "optimizer": lambda: optimizers.step(1.0, 0.99), **{n: call(n) for n in PUBLISHED}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2, help="rows of a micro-batch (published: 48)")
    parser.add_argument("--seq-len", type=int, default=256, help="published: 2048")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    t = seconds(parts(args.rows, args.seq_len, device), args.repeats)
    step = MICRO * t["micro"] + t["optimizer"]
    print(f"{device.type}, {torch.get_num_threads()} threads, micro-batches of {args.rows} x {args.seq_len}")
    print(f"a step without: {step:.2f} s = {MICRO} x {t['micro']:.3f} s + optimizer {t['optimizer']:.2f} s")
    for name, (active_ms, run_ms, share) in PUBLISHED.items():
        active, bare = (t[name] / EVERY / whole for whole in (step, MICRO * t["micro"]))
        theirs = active_ms / PLAIN_MS[0] - 1, run_ms / PLAIN_MS[1] - 1
        print(
            f"{name}: a call {t[name]:.3f} s = {t[name] / t['micro']:.2f} micro-batches "
            f"({counted_cost(config.load(name)):.2f} counted); while active {active:+.1%} "
            f"(published {theirs[0]:+.1%}), over a run {share * active:+.1%} (published {theirs[1]:+.1%}); "
            f"of forward and backward alone {bare:+.1%} while active, {share * bare:+.1%} over a run"
        )


if __name__ == "__main__":
    main()
