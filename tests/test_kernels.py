"""Triton kernels: on a GPU where there is one, else in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from golfcore.base.runtime import Runtime
from golfcore.model.attention import choose_compute
from golfcore.model.pointwise import Pointwise


def test_they_compute_what_they_stand_for() -> None:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    pytest.importorskip("triton")
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("kernel_cases.py")),
    ]
    done = subprocess.run(command, env={**os.environ, **interpreted}, capture_output=True, text=True)
    assert done.returncode == 0 and "9 passed" in done.stdout, done.stdout[-3000:]


def test_only_bfloat16_on_a_gpu_takes_them() -> None:
    for device, dtype in (("cpu", torch.bfloat16), ("cpu", torch.float32), ("cuda", torch.float32)):
        chosen = choose_compute(Runtime(torch.device(device), 0, 1, 0, dtype))
        assert chosen.pointwise == Pointwise() and not chosen.pointwise.joined
