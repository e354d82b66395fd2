"""What this machine has, and whether the fast paths compute here what the plain ones do: `golfcore doctor`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from golfcore.base import runtime
from golfcore.base.errors import UserError
from golfcore.config import Config, load
from golfcore.data.datasets import description, open_dataset, prepare_data
from golfcore.model import params
from golfcore.model.attention import attend_blocks, attend_fa3, attend_reference, attend_sdpa, choose_compute
from golfcore.model.forward import Net, forward, graph, nll
from golfcore.model.weights import tree_map
from golfcore.optim.muon import newton_schulz
from golfcore.quant import codec

ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # a difference to the plain path that rounding explains
SHARE = 0.02  # of a loss, that bfloat16 may move it by
RANK = """
import torch
from golfcore.base import runtime
r = runtime.start("float32", 1)
t = torch.full((3,), float(r.rank)).to(r.device)
runtime.all_reduce_mean_([t])
assert t.tolist() == [0.5] * 3, t
runtime.stop()
"""


class Finding(NamedTuple):
    """One thing that was looked at. `ok` None: a fact, neither good nor bad."""

    name: str
    ok: bool | None
    said: str


def examine(cfg: Config, data: Path | None = None) -> Iterator[Finding]:
    """Findings on this machine, on its fast paths, and on what a run of `cfg` needs here, in about a minute."""
    yield from facts()
    checks: dict[str, Callable[[], str]] = {
        "attention": attention,
        "bfloat16": low_precision,
        "Newton-Schulz": orthogonal,
        "entropy coder": coder,
        "two ranks": ranks,
    }
    if torch.cuda.is_available():
        checks["compiler"] = compiler
    for name, check in checks.items():
        yield _tried(name, check)
    yield from needs(cfg)
    yield _tried("data", lambda: _data(cfg, data))


def _tried(name: str, check: Callable[[], str]) -> Finding:
    """What a check says; what it raises is its finding."""
    began = time.monotonic()
    try:
        said, ok = check(), True
    except Exception as e:
        said, ok = f"{type(e).__name__}: {e}" if not isinstance(e, UserError) else str(e), False
    return Finding(name, ok, f"{' '.join(said.split())[:200]} ({time.monotonic() - began:.0f} s)")


# -- what there is


def facts() -> Iterator[Finding]:
    """Versions, processor or GPUs, memory, disk."""
    found = runtime.describe()
    yield Finding("golfcore", None, f"{found['golfcore']}, Python {found['python']}, torch {found['torch']}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    native = "native bfloat16" if runtime.multiplies_bfloat16(device) else "no native bfloat16: float32 is taken"
    said = ", ".join(names) if names else f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    yield Finding("compute", None, f"{said}; {native}")
    known = {"FlashAttention-3": "flash_attn_interface", "Triton": "triton"}
    kernels = [name for name, module in known.items() if find_spec(module)]
    yield Finding("kernels", None, ", ".join(kernels) or "torch's own")
    yield Finding("memory", None, f"{free_memory() / 2**30:.1f} GiB free of {_memory() / 2**30:.1f}")
    yield Finding("disk", None, f"{shutil.disk_usage('.').free / 2**30:.1f} GiB free here")


def _memory() -> int:
    """Bytes of this machine, or of its first GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int:
    """Bytes that a run may take: of the first GPU, or of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info(0)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


# -- whether it computes what it should


def attention() -> str:
    """Every kernel that this machine may take, in both dtypes, at lengths that cut blocks."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    g, worst = torch.Generator().manual_seed(0), dict[str, float]()
    kernels = {"sdpa": attend_sdpa, "blocks": attend_blocks}
    if device.type == "cuda" and find_spec("flash_attn_interface"):
        kernels["FlashAttention-3"] = attend_fa3
    q, k, v = (torch.randn(2, 200, h, 32, generator=g).to(device) for h in (4, 2, 2))
    want = attend_reference(q, k, v)
    for name, kernel in kernels.items():
        for dtype, most in ROUNDING.items():
            apart = float((kernel(*(t.to(dtype) for t in (q, k, v))).float() - want).abs().max())
            worst[name] = max(worst.get(name, 0.0), apart)
            if not apart < most:
                raise UserError(f"expected {name} within {most:g} of the plain attention in {dtype}, found {apart:.2g}")
    return ", ".join(f"{name} within {apart:.1g}" for name, apart in worst.items())


def low_precision() -> str:
    """The loss of a small model in bfloat16 beside float32."""
    cfg = load("exp101", {}, "smoke").model
    g = torch.Generator().manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = tree_map(lambda t: (t + 0.1 * torch.randn(t.shape, generator=g)).to(device), params.init(cfg, 0))
    x, y = (t.to(device) for t in torch.randint(cfg.vocab_size, (2, 4, 96), generator=g))
    computes = [choose_compute(runtime.Runtime(device, 0, 1, 0, dtype)) for dtype in (torch.float32, torch.bfloat16)]
    exact, low = (float(nll(forward(Net(cfg, None, compute), weights, x), y).mean()) for compute in computes)
    if not abs(low / exact - 1) < SHARE:
        raise UserError(f"expected a loss of {exact:.4f} in bfloat16, found {low:.4f}")
    return f"a loss of {low:.4f} for {exact:.4f} in float32"


def orthogonal() -> str:
    """Muon's direction in bfloat16: singular values near one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    m = torch.randn(4, 96, 64, generator=torch.Generator().manual_seed(0)).to(device)
    values = torch.linalg.svdvals(newton_schulz(m, dtype=torch.bfloat16).float())
    low, high = float(values.min()), float(values.max())
    if not 0.4 < low < high < 1.4:
        raise UserError(f"expected singular values near one, found {low:.2f} to {high:.2f}")
    return f"singular values {low:.2f} to {high:.2f}"


def coder() -> str:
    """An artifact's codes, there and back."""
    codes = np.rint(np.random.default_rng(0).standard_normal(100_000) * 4).astype(np.int8)
    stream = codec.encode(codes, "ans")
    if not (codec.decode(stream, "ans") == codes).all():
        raise UserError("expected the codes that were encoded, found others")
    return f"{8 * len(stream.payload) / codes.size:.2f} bits a code, and back"


def compiler() -> str:
    """One graph of torch's compiler beside the plain forward."""
    cfg = load("exp101", {}, "smoke").model
    weights = tree_map(lambda t: t.cuda(), params.init(cfg, 0))
    x = torch.randint(cfg.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0)).cuda()
    apart = float((graph(forward)(Net(cfg), weights, x) - forward(Net(cfg), weights, x)).abs().max())
    if not apart < ROUNDING[torch.float32]:
        raise UserError(f"expected the plain logits, found them {apart:.2g} away")
    return f"logits within {apart:.1g}"


def ranks() -> str:
    """Two processes that share a mean."""
    parts = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            env=runtime.environment_of(rank, 2, gpus=torch.cuda.device_count() > 1),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        said = [part.communicate(timeout=60)[1] for part in parts]
    except subprocess.TimeoutExpired:
        for part in parts:
            part.kill()
        raise UserError("expected two processes to meet within a minute, found them waiting") from None
    if any(part.returncode for part in parts):
        raise UserError((said[0] or said[1]).strip().splitlines()[-1])
    return f"they meet over {'NCCL' if torch.cuda.device_count() > 1 else 'gloo'}"


# -- whether it is enough


def needs(cfg: Config) -> Iterator[Finding]:
    """Memory and disk of a run of `cfg` beside what is free."""
    kept, saved = training_bytes(cfg)
    memory, free = kept + saved, free_memory()
    cut = "" if memory <= free else "; a GPU cuts micro-batches until they fit, elsewhere raise optim.pieces"
    yield Finding(f"{cfg.name}: memory", memory <= free, f"about {memory / 2**30:.2f} GiB in training{cut}")
    disk, left = 3 * kept, shutil.disk_usage(".").free
    yield Finding(f"{cfg.name}: disk", disk <= left, f"about {disk / 2**30:.2f} GiB for its checkpoints and weights")


def training_bytes(cfg: Config) -> tuple[int, int]:
    """What training keeps (weights, gradients, moments, averages), and about what a piece of a step saves for backward.

    The second is of float32; bfloat16 takes half.
    """
    sizes, a = params.summary(cfg.model), cfg.average
    matrices, averages = sizes["groups"]["matrix"], {"none": 0, "lawa": a.keep}.get(a.kind, 1)
    by_muon = matrices if cfg.optim.matrix_optimizer == "muon" else 0
    kept = 4 * (sizes["total"] * (2 + averages) + by_muon + 2 * (sizes["total"] - by_muon))
    tokens = cfg.optim.batch_tokens // (cfg.optim.grad_accum * cfg.optim.pieces)
    m = cfg.model
    per_token = m.n_layers * (12 * m.dim + 4 * m.kv_dim + 3 * m.mlp_hidden + m.n_heads * cfg.data.seq_len // 2)
    return kept, 4 * tokens * (per_token + 4 * m.dim + 3 * m.vocab_size)


def _data(cfg: Config, data: Path | None) -> str:
    path = data or (Path(cfg.data.path) if cfg.data.path else prepare_data(cfg, lambda text: None).path)
    return f"{description(open_dataset(path, again=True)).splitlines()[0]}, every file read"


def as_text(found: Finding) -> str:
    mark = {None: "  ", True: "ok", False: "!!"}[found.ok]
    return f"{mark}  {found.name:<18} {found.said}"
