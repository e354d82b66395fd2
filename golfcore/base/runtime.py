"""Where a run runs: device, compute dtype, ranks and seeds. The only module that reads the environment."""

import ctypes
import importlib
import os
import platform
import random
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from golfcore.base.errors import UserError

PATIENCE = timedelta(days=1)  # how long ranks wait for each other: one may quantize or build data for hours


class Runtime(NamedTuple):
    device: torch.device
    rank: int  # 0 <= rank < world
    world: int  # processes that train together
    local_rank: int  # number of this process on its machine, and of its GPU
    dtype: torch.dtype  # of the computation
    compiled: bool = False  # whether torch's compiler makes graphs of training, adaptation and scoring

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0


def start(dtype: Literal["auto", "float32", "bfloat16"], seed: int, graphs: str = "auto") -> Runtime:
    """Choose device and dtype, join the other processes of a `torchrun`, seed every generator alike on all ranks.

    "auto" is bfloat16 on CUDA and on processors that multiply it natively, float32 elsewhere. float32 on CUDA stays
    full float32; bfloat16 runs let their remaining float32 products use TF32, as the originals did. `graphs`, whether
    torch's compiler is used: "always", "never", or "auto", on CUDA.
    UserError: torchrun variables that are incomplete.
    """
    rank, world, local_rank = _ranks()
    cuda, gpus = torch.cuda.is_available(), torch.cuda.device_count()
    if cuda and local_rank >= gpus:
        raise UserError(f"LOCAL_RANK: expected less than the {gpus} visible GPUs, found {local_rank}")
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    name = ("bfloat16" if multiplies_bfloat16(device) else "float32") if dtype == "auto" else dtype
    if not cuda:
        keep_memory()
    if cuda:
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high" if name == "bfloat16" else "highest")
    if world > 1:
        # its functions take the group that exists when it is read as a default, which would keep gloo's threads beyond
        # `stop`, into the interpreter's end, where one that frees a tensor aborts the process
        importlib.import_module("torch.distributed.nn")
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world, timeout=PATIENCE)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    compiled = cuda if graphs == "auto" else graphs == "always"
    return Runtime(device, rank, world, local_rank, getattr(torch, name), compiled)


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step: returned to the system, every page of it is zeroed again."""
    with suppress(OSError, AttributeError):  # another C library
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, 2**31 - 1)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself: GPUs, and processors with AVX512-BF16 or AMX, as torch finds."""
    if device.type != "cpu":
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def stop() -> None:
    """Leave the process group, if there is one."""
    if world_size() > 1:
        dist.destroy_process_group()


@contextmanager
def full_float32() -> Iterator[None]:
    """Within, float32 products are float32: no TF32, which keeps 10 bits of a weight and rounds small steps away."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _ranks() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun sets them; (0, 1, 0) without it."""
    if "WORLD_SIZE" not in os.environ:
        return 0, 1, 0

    def number(key: str) -> int:
        text = os.environ.get(key, "")
        if not text.isdecimal():
            raise UserError(f"{key}: expected an integer beside WORLD_SIZE, as torchrun sets them, found {text!r}")
        return int(text)

    return number("RANK"), number("WORLD_SIZE"), number("LOCAL_RANK")


def environment_of(rank: int, world: int, gpus: bool) -> dict[str, str]:
    """The environment of a process that is rank `rank` of `world` on this machine, without GPUs unless asked for."""
    found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29613}
    return {
        **os.environ,
        **{name: str(v) for name, v in found.items()},
        **({} if gpus else {"CUDA_VISIBLE_DEVICES": ""}),
    }


def world_size() -> int:
    """Processes that train together; 1 unless a process group is running."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def send(batch: Iterable[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on the device; to a GPU from pinned memory, so that the host goes on meanwhile."""
    if device.type != "cuda":
        return [t.to(device) for t in batch]
    return [t.pin_memory().to(device, non_blocking=True) for t in batch]


def all_reduce_mean_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in its own dtype; one message for each dtype."""
    world = world_size()
    if world == 1:
        return
    given = list(tensors)
    for dtype in dict.fromkeys(t.dtype for t in given):
        same = [t for t in given if t.dtype == dtype]
        message = torch.cat([t.reshape(-1) for t in same])
        dist.all_reduce(message)
        message /= world
        for t, mean in zip(same, message.split([t.numel() for t in same]), strict=True):
            t.copy_(mean.view_as(t))


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over the ranks; `x` itself is left alone, and returned if there is one rank."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total


def all_reduce_max(number: int) -> int:
    """The largest `number` of all ranks."""
    if world_size() == 1:
        return number
    largest = torch.tensor(number)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def barrier() -> None:
    """Wait until every rank is here, for up to PATIENCE. On the CPU: ranks that wait leave their GPUs alone."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(()))


def cache_dir() -> Path:
    """Folder for what can be rebuilt: golfcore/ below GOLFCORE_CACHE, else XDG_CACHE_HOME, else ~/.cache."""
    base = os.environ.get("GOLFCORE_CACHE") or os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "golfcore"
    except RuntimeError:
        raise UserError("GOLFCORE_CACHE: expected a folder for what can be rebuilt, found none and no home") from None


@cache
def code_version() -> str:
    """The release of this code, with the commit if it runs from a checkout: "0.1.0+2aabab5"."""
    root, commit = Path(__file__).resolve().parents[2], ""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        try:
            commit = "+" + subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True).strip()
        except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout it does not trust
            commit = "+unknown"
    try:
        return metadata.version("golfcore") + commit
    except metadata.PackageNotFoundError:
        return "unreleased" + commit


def describe() -> dict[str, object]:
    """What a run record says about the machine; plain JSON values."""
    cuda = torch.cuda.is_available()
    return {
        "golfcore": code_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
    }
