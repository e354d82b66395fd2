"""Laws of the runtime: one process by default, ranks under torchrun, seeds, and where caches go."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from golfcore.base import runtime
from golfcore.base.errors import UserError

CUDA = torch.cuda.is_available()
RANK = """
import json, sys, time, torch
from pathlib import Path
from datetime import timedelta
from golfcore.base import runtime
runtime.PATIENCE = timedelta(seconds=2)
r = runtime.start("float32", 3)
import torch._dynamo  # as training does: it reads what binds the group of its time
drawn = torch.rand(2, device=r.device).tolist()
tensors = [torch.full((2, 3), float(r.rank)), torch.full((), 4.0 * r.rank), torch.tensor([1.0, r.rank]).bfloat16()]
runtime.all_reduce_mean_(tensors)
mine = torch.tensor([1.0, 10.0 * r.rank], dtype=torch.float64)
total = runtime.all_reduce_sum(mine)
time.sleep(0.5 if r.is_main else 0)
runtime.barrier()
found = dict(rank=r.rank, world=r.world, local_rank=r.local_rank, main=r.is_main, size=runtime.world_size(),
             drawn=drawn, mine=mine.tolist(), total=total.tolist(),
             means=[t.tolist() for t in tensors], dtypes=[str(t.dtype) for t in tensors])
try:
    time.sleep(3.5 if r.is_main else 0)
    if not r.is_main:
        runtime.barrier()
except RuntimeError as e:
    found["gave_up"] = str(e)
runtime.stop()
found["after"] = runtime.world_size()
found["threads"] = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
open(f"{sys.argv[1]}/{r.rank}.json", "w").write(json.dumps(found))
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No torchrun around the test, and no TF32 left behind by it."""
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(key, raising=False)
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


def test_two_ranks_of_torchrun_reduce_over_both_and_wait_as_long_as_their_patience_lasts(tmp_path, monkeypatch):
    """Which is a day, and not the ten minutes after which a collective of GPUs gives up."""
    assert runtime.PATIENCE.total_seconds() >= 24 * 3600
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # two ranks also where there is one GPU
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, script, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1)]
    for r, found in enumerate(ranks):
        assert (found["rank"], found["local_rank"], found["main"]) == (r, r, r == 0)
        assert (found["world"], found["size"], found["after"]) == (2, 2, 1)
        assert not [name for name in found["threads"] if "runloop" in name], "workers of gloo outlive the group"
        assert found["means"] == [[[0.5] * 3] * 2, 2.0, [1.0, 0.5]]
        assert found["dtypes"] == ["torch.float32", "torch.float32", "torch.bfloat16"]
        assert found["total"] == [2.0, 10.0]
        assert found["mine"] == [1.0, 10.0 * r]
    assert ranks[0]["drawn"] == ranks[1]["drawn"]
    assert "gave_up" not in ranks[0] and "imed out" in ranks[1]["gave_up"]


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_a_single_process_is_rank_0_of_1(dtype):
    found = runtime.start(dtype, 1)
    assert (found.rank, found.world, found.local_rank, found.is_main) == (0, 1, 0, True)
    assert found.device.type == ("cuda" if CUDA else "cpu")
    expected = {"auto": torch.bfloat16 if runtime.multiplies_bfloat16(found.device) else torch.float32}.get(
        dtype
    ) or getattr(torch, dtype)
    assert found.dtype == expected
    x = torch.tensor([1.0, 2.0])
    runtime.all_reduce_mean_([x])
    assert runtime.all_reduce_sum(x).tolist() == [1.0, 2.0]
    runtime.barrier()
    runtime.stop()
    assert runtime.world_size() == 1


def test_the_seed_decides_every_generator():
    drawn = []
    for seed in (5, 5, 6):
        runtime.start("float32", seed)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1] and all(a != b for a, b in zip(*drawn[1:], strict=True))


@pytest.mark.parametrize(
    "given",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"}, {"WORLD_SIZE": "2", "RANK": "1"}],
)
def test_incomplete_torchrun_variables_are_a_users_mistake(given, monkeypatch):
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match="as torchrun sets them"):
        runtime.start("auto", 1)


def test_caches_go_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("GOLFCORE_CACHE", "a")
    monkeypatch.setenv("XDG_CACHE_HOME", "b")
    assert runtime.cache_dir() == Path("a/golfcore")
    monkeypatch.delenv("GOLFCORE_CACHE")
    assert runtime.cache_dir() == Path("b/golfcore")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert runtime.cache_dir() == Path.home() / ".cache/golfcore"
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(UserError, match="GOLFCORE_CACHE: expected a folder for what can be rebuilt, found none and no"):
        runtime.cache_dir()


def test_the_description_is_plain_json_and_names_the_versions():
    found = runtime.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["device"] and found["cpus"] and found["platform"]
