"""exp101's system on a GPU: parity with the CPU, step time, scoring and test-time training, sampling, GPTQ, memory.

    python benchmarks/gpu.py [--only step] [--variants compiled] [--chunks 40] [--peak TFLOPS]
    python benchmarks/gpu.py --device cpu --small [--compile]     # everything but the device, in seconds

A part that fails is reported and the others go on; exit code 1 if one did. The JSON is written after every number.
Graphs take a minute each to compile and are kept in the compiler's cache: a second start finds them.
"""

import argparse
import gc
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import cases
import gptq
import numpy as np
import timing
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from golfcore import config
from golfcore.base import runtime
from golfcore.base.runtime import Runtime, full_float32
from golfcore.config import Config, ModelConfig
from golfcore.evals import protocols
from golfcore.evals.evaluation import Subject
from golfcore.model.attention import Compute, choose_compute
from golfcore.model.forward import Net
from golfcore.model.generate import generate
from golfcore.model.weights import Weights, matrices, tree_map
from golfcore.optim.muon import newton_schulz
from golfcore.quant.grid import matrix_grid

PEAKS = {"H100": 790.0, "H200": 790.0}  # TFLOP/s in bfloat16 that a large product reaches
VALIDATION = 62_021_632  # targets of the competition's validation text
FLOORS = {"step": "0.227 s a step at 790 TFLOP/s; published 0.663 s", "ttt": "262 s; published 2,251 s"}
MOST = {"float32": 1e-3, "bfloat16": 0.1}  # distance of a gradient from float32's on the CPU, of its norm
Found = dict[str, Any]


class Bench(NamedTuple):
    cfg: Config  # a full training step, without meta-learning
    runtime: Runtime  # bfloat16
    args: argparse.Namespace

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    def subject(self, targets: int, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Subject:
        """Weights before a random text of so many targets."""
        device, weights = device or self.device, cases.weights(self.cfg.model)
        place = self.runtime._replace(device=device, dtype=dtype or self.runtime.dtype)
        return Subject(to(weights, device), cases.text(self.cfg, targets), cases.tables(self.cfg), place)


def to(weights: Weights, device: torch.device) -> Weights:
    return tree_map(lambda t: t.to(device), weights)


def flop_per_token(c: ModelConfig, length: int) -> float:
    """Of a forward and backward pass: six a weight of every product, and causal attention. exp101 at 2,048: 228 M."""
    weights = c.n_blocks * (2 * c.dim**2 + 2 * c.kv_dim * c.dim + 2 * c.dim * c.mlp_hidden) + c.vocab_size * c.dim
    projections = c.dim * c.bigram_dim * (c.bigram_dim != c.dim) + c.kv_dim * c.ve_dim * (c.ve_dim != c.kv_dim)
    return 6 * (weights + projections + c.n_layers * c.dim * length)


def repeated(work: Callable[[], object], repeats: int, warm: int = 1) -> float:
    """Median wall seconds of a call, after `warm` calls that are not counted."""
    seconds = [timing.once(work)["wall"] for _ in range(warm + repeats)][warm:]
    return float(np.median(seconds))


KINDS = {  # of kernels, by their names; the first that fits
    "fused by the compiler": r"^triton_",
    "one-pass kernels": r"^golf_",
    "attention": r"flash|fmha|sdpa|attention",
    "products": r"gemm|nvjet|cutlass|xmma|splitK",
    "copies": r"^Memcpy|^Memset",
}


def breakdown(b: Bench, work: Callable[[], object], longest: int = 40) -> Found:
    """Milliseconds of the device in a call by kind of kernel, and the longest kernels; beside them the call's own."""
    if b.device.type != "cuda":
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as p:
        wall = timing.once(work)["wall"]
    kernels = [(e.key, e.self_device_time_total / 1000, e.count) for e in p.key_averages()]
    kernels = sorted((k for k in kernels if k[1] > 0), key=lambda k: -k[1])
    found: Found = {"wall ms": 1000 * wall, "device ms": sum(ms for _, ms, _ in kernels)}
    for key, ms, _ in kernels:
        kind = next((kind for kind, names in KINDS.items() if re.search(names, key)), "others")
        found[kind] = found.get(kind, 0.0) + ms
    return found | {f"{key[:90]} x{count}": ms for key, ms, count in kernels[:longest]}


# -- the parts


def parity(b: Bench) -> Iterator[tuple[str, Found]]:
    """Distance to float32 on the CPU: of a row's loss and gradient, of nats, of Newton-Schulz and of GPTQ's codes."""
    row = replace(b.cfg.optim, batch_tokens=b.cfg.data.seq_len, grad_accum=1)
    cfg, cpu = replace(b.cfg, optim=row), torch.device("cpu")

    def losses(dtype: torch.dtype, device: torch.device) -> tuple[float, dict[str, Tensor]]:
        training = cases.Training(cfg, b.runtime._replace(device=device, dtype=dtype))
        loss = training.loss(training.state.weights, *training.batch())
        loss.backward()
        return float(loss.detach()), cases.plain.leaves(cases.gradients(training.state.weights))

    def nats(dtype: torch.dtype, device: torch.device) -> np.ndarray:
        return cases.evaluated("static", b.cfg, b.subject(2 * b.cfg.data.seq_len, dtype, device))

    with full_float32():
        loss, gradient = losses(torch.float32, cpu)
        scores = nats(torch.float32, cpu)
        g = torch.stack([m for name, m in matrices(cases.weights(cfg.model)) if name.endswith("up")])
        exact = newton_schulz(g, 5, torch.float32)
        for name, dtype in cases.DTYPES.items():
            (value, slope), theirs = losses(dtype, b.device), nats(dtype, b.device)
            found = {"loss": value - loss, "gradient": cases.distance(slope, gradient)}
            found |= {"mean nats": float((theirs - scores).mean()), "a target's": float(np.abs(theirs - scores).max())}
            found["Newton-Schulz"] = cases.distance({"": newton_schulz(g.to(b.device), 5, dtype)}, {"": exact})
            yield name, found
            if not found["gradient"] <= MOST[name]:
                raise RuntimeError(
                    f"a {name} gradient is {found['gradient']:.1e} of its norm from the CPU's in float32"
                )
    given = gptq.problems(b.cfg)[:6]
    there = gptq.ours(b.cfg, [(w.to(b.device), h.to(b.device)) for w, h in given])
    pairs = [(x.cpu() != y).float().mean() for (x, _), (y, _) in zip(there, gptq.ours(b.cfg, given), strict=True)]
    yield "GPTQ", {"share of codes that differ": float(torch.stack(pairs).mean())}


def variants(b: Bench) -> Iterator[tuple[str, bool, Compute]]:
    """Variants of a step: name, compiled or not, and how the rest is computed: in torch's own terms, or as runs do."""
    for compiled in (False, True) if b.device.type == "cuda" or b.args.compile else (False,):
        for name, compute in (("torch alone", Compute(b.runtime.dtype)), ("as runs do", choose_compute(b.runtime))):
            yield f"{('eager', 'compiled')[compiled]}, {name}", compiled, compute


def step(b: Bench) -> Iterator[tuple[str, Found]]:
    """Seconds of a step of exp105a in each variant, with the share of the peak; then the parts of the fastest."""
    tokens, best = b.cfg.optim.batch_tokens, (float("inf"), "", None)
    for variant in (v for v in variants(b) if b.args.variants in v[0]):
        name, compiled, compute = variant
        try:
            peak(b, reset=True)
            training = cases.Training(b.cfg, b.runtime, compute, compiled)
            seconds = repeated(training.step, b.args.repeats, warm=2)
        except Exception as e:  # a kernel that this card or this build of torch does not have
            yield name, failed(e)
            continue
        finally:
            training = None
            forget()
        best = min(best, (seconds, name, variant), key=lambda found: found[0])
        yield name, {"seconds": seconds, **rate(b, tokens, seconds), **peak(b), **floor(b, "step")}
    _, name, (_, compiled, compute) = best
    training = cases.Training(b.cfg, b.runtime, compute, compiled)
    for part, work in training.parts().items():
        yield f"{name}: {part}", {"seconds": repeated(work, b.args.repeats), **of_step(b, part)}
    yield f"{name}: kernels", breakdown(b, training.step)
    training.cfg = replace(b.cfg, meta=replace(b.cfg.meta, enabled=True))
    yield f"{name}: step with a meta call", {"seconds": repeated(partial(training.step, 4), b.args.repeats, warm=2)}


def of_step(b: Bench, part: str) -> Found:
    """How often a part is called in a step, where that is not once."""
    times = {"forward and backward": b.cfg.optim.grad_accum, "moving average": 1 / b.cfg.average.every}
    return {"calls a step": times[part]} if part in times else {}


def floor(b: Bench, part: str) -> Found:
    """What the arithmetic needs, and the original took, at full size."""
    return {"floor": FLOORS[part]} if part in FLOORS and not b.args.small else {}


def rate(b: Bench, tokens: int, seconds: float) -> Found:
    """Tokens a second, and with a known peak the share of it."""
    found: Found = {"tokens/s": tokens / seconds}
    if b.args.peak:
        found["MFU"] = flop_per_token(b.cfg.model, b.cfg.data.seq_len) * found["tokens/s"] / (b.args.peak * 1e12)
    return found


def scoring(b: Bench) -> Iterator[tuple[str, Found]]:
    """Seconds of sliding windows and of legal TTT, chunk by chunk; what the whole validation text would take."""
    for protocol, chunks in (("sliding", 4), ("ttt", b.args.chunks)):
        # the first warms up, one more is profiled, and the last adapts nothing
        e = protocols.begin(protocol, b.cfg, b.subject(b.cfg.ttt.chunk_tokens * (chunks + 3)))
        each = float(np.mean([timing.once(e.step)["wall"] for _ in range(chunks + 1)][1:]))
        whole = each * VALIDATION / b.cfg.ttt.chunk_tokens
        found = {"seconds a chunk": each, "targets/s": b.cfg.ttt.chunk_tokens / each, "whole text, seconds": whole}
        yield protocol, found | floor(b, protocol)
        yield f"{protocol}: kernels", breakdown(b, e.step)


def sampling(b: Bench) -> Iterator[tuple[str, Found]]:
    """Seconds a token of calibration text: rows side by side, cached."""
    net = Net(b.cfg.model, cases.tables(b.cfg).to(b.device), Compute(b.runtime.dtype))
    weights, first = to(cases.weights(b.cfg.model), b.device), torch.zeros(64, 1, dtype=torch.long, device=b.device)
    generator, length = torch.Generator(b.device).manual_seed(0), min(256, b.cfg.data.seq_len)
    seconds = repeated(lambda: generate(net, weights, first, length, generator), 1)
    yield f"64 x {length}", {"seconds": seconds, "seconds a token": seconds / (length - 1)}


def quantization(b: Bench) -> Iterator[tuple[str, Found]]:
    """Seconds of GPTQ of all matrices."""
    given = [(w.to(b.device), h.to(b.device)) for w, h in gptq.problems(b.cfg)]
    seconds = repeated(lambda: gptq.ours(b.cfg, given), b.args.repeats)
    yield f"{len(given)} matrices, quantiles {len(matrix_grid(b.cfg.quant).quantiles)}", {"seconds": seconds}


PARTS = {"parity": parity, "step": step, "scoring": scoring, "sampling": sampling, "gptq": quantization}


# -- the program


def failed(e: Exception) -> Found:
    return {"failed": " ".join(f"{type(e).__name__}: {e}".split())[:200]}


def peak(b: Bench, reset: bool = False) -> Found:
    """The most memory that was allocated since the last reset, on a GPU."""
    if b.device.type != "cuda":
        return {}
    found = {"peak GiB": torch.cuda.max_memory_allocated() / 2**30}
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return found


def forget() -> None:
    """Free what the last part left on the device, and what the compiler remembers."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(b: Bench, record: Found) -> int:
    """Every part; the number of those that failed."""
    failures = 0
    for part, work in PARTS.items():
        if b.args.only not in part:
            continue
        print(part, flush=True)
        found, began = record["parts"].setdefault(part, {}), time.perf_counter()
        peak(b, reset=True)
        try:
            for name, numbers in work(b):
                found[name] = numbers
                timing.write(b.args.out or timing.RESULTS / "gpu.json", record)  # what there is outlives a broken run
                if numbers:
                    print(f"  {name:44}{words(numbers)}", flush=True)
        except Exception as e:
            failures += 1
            found["broke off"] = failed(e)
            print(f"  broke off: {found['broke off']['failed']}", file=sys.stderr, flush=True)
        found["whole"] = {**peak(b), "took": time.perf_counter() - began}
        print(f"  {'whole':44}{words(found['whole'])}", flush=True)
        forget()
        timing.write(b.args.out or timing.RESULTS / "gpu.json", record)
    return failures


def words(numbers: Found) -> str:
    return ", ".join(f"{k} {v:,.4g}" if isinstance(v, float | int) else f"{k}: {v}" for k, v in numbers.items())


def main() -> int:
    parser = timing.arguments(__doc__, repeats=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--compile", action="store_true", help="compile on the CPU too")
    parser.add_argument("--variants", default="", metavar="TEXT", help="only such variants of a step")
    parser.add_argument("--chunks", type=int, default=40, help="chunks of text to score and adapt on")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the card (default: known for H100 and H200)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("gpu.py: expected CUDA, found none; --device cpu --small tries the program", file=sys.stderr)
        return 2
    if args.device == "cpu" and not args.small:
        parser.error("--device cpu: expected --small beside it, full size would take days")
    if args.device == "cuda":
        place, card = runtime.start("bfloat16", 0), torch.cuda.get_device_name()
        args.peak = args.peak or next((peak for name, peak in PEAKS.items() if name in card), None)
    else:
        torch.set_num_threads(args.threads)
        place, card = cases.the_runtime(torch.bfloat16), timing.processor()
    steps = {"optim.grad_accum": 2, "optim.batch_tokens": 4 * cases.LENGTHS["tiny"], "meta.enabled": False}
    cfg = cases.configuration("tiny", steps) if args.small else config.load("exp105a", {"eval.tail": "exact"})
    args.chunks = 2 if args.small else args.chunks
    record: Found = {"name": "gpu", "card": card, "arguments": timing.settings(args), "machine": timing.machine()}
    record["parts"] = {}
    print(f"{card}, torch {torch.__version__}, {runtime.code_version()}, peak {args.peak or 'unknown'} TFLOP/s")
    return min(1, run(Bench(cfg, place, args), record))


if __name__ == "__main__":
    sys.exit(main())
