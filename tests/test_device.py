"""Laws of devices without a GPU: on torch's meta device a tensor made elsewhere, or read by the host, raises."""

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny import RUNTIME, lively, tables, with_
from torch.utils._python_dispatch import TorchDispatchMode

from golfcore.config import Config, load
from golfcore.data.stream import TokenStream
from golfcore.evals import adapt, score
from golfcore.model.attention import Compute, attend_blocks
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, flat, to_device, tree_map
from golfcore.optim import average
from golfcore.optim.build import clip_
from golfcore.optim.inner import loss_function, open_gradient
from golfcore.optim.muon import Muon
from golfcore.quant import calibrate, gptq
from golfcore.quant.grid import matrix_grid
from golfcore.train import meta, sensitivity, step

META = torch.device("meta")
SYSTEMS = ["exp101", "exp106", "exp107", "pr294-recurrent", "pr398"]


def system(name: str, dtype: torch.dtype = torch.bfloat16, **sections: dict) -> tuple[Config, Net, Weights]:
    cfg = with_(load(name, {}, "smoke"), **sections)
    net = Net(cfg.model, tables(cfg).to(META), Compute(dtype, attend_blocks))
    return cfg, net, tree_map(lambda t: t.detach().requires_grad_(), to_device(lively(cfg), META))


def batch(cfg: Config, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = torch.zeros(2, rows, 32, dtype=torch.int64, device=META)
    return x, y


def require_there(tensors: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> int:
    """How many tensors there are, all of them on the device and as those of their names in `like`."""
    for name, t in tensors.items():
        assert (t.device, t.shape, t.dtype) == (META, like[name].shape, like[name].dtype), name
    return len(tensors)


@pytest.mark.parametrize("name", SYSTEMS)
def test_training_and_scoring(name: str) -> None:
    cfg, net, weights = system(name)
    loss = loss_function(net, z_loss=1e-4)(weights, *batch(cfg))
    loss.backward()
    require_there({n: t.grad for n, t in flat(weights).items() if t.grad is not None}, flat(weights))
    logits, nats = score._scored(net, weights, *batch(cfg), 8)
    assert logits.shape == (2, 8, cfg.model.vocab_size) and logits.dtype == nats.dtype == torch.float32
    assert (logits.device, nats.device) == (META, META)


@pytest.mark.parametrize(
    "changes", [{}, {"split": "batch"}, {"order": "second"}, {"sam_rho": 0.1}, {"delta_weight": 1}]
)
@pytest.mark.parametrize("name", ["exp101", "exp106"])
def test_the_meta_objective(name: str, changes: dict) -> None:
    cfg, net, weights = system(name, meta=changes)
    loss = meta.model_loss(net, cfg.meta)
    found = meta.evaluate(
        cfg.meta, loss, weights, meta.split(cfg.meta, *batch(cfg, 4)), meta.freeze_masks(cfg.model, cfg.meta)
    )
    assert require_there(flat(found.gradients), flat(weights)) == len(flat(weights))
    assert require_there(found.moved, flat(weights)) > 0


@pytest.mark.parametrize("changes", [{}, {"qat": "matrices"}])
def test_a_step_up_to_where_the_host_waits(stream: TokenStream, changes: dict) -> None:
    """Micro-batches, clipping, what is sensed, Muon and averaging; AdamW's fused form has no meta device."""
    cfg, net, weights = system("exp101", optim={"equal_rows": True, **changes}, quant={"guided_high": 0.1})
    runtime = RUNTIME._replace(device=META, dtype=torch.bfloat16)
    state = SimpleNamespace(weights=weights, qat=bool(changes))
    loss = step.main_gradient(cfg, state, stream, loss_function(net), runtime, step.plan(cfg, 1))
    norm = clip_(weights, cfg.optim.grad_clip)
    sensed = sensitivity.update(cfg.quant, sensitivity.start(cfg.quant, weights), weights, 0.0)
    assert {loss.device, norm.device, *(t.device for t in sensed.sums.values())} == {META}
    banks = list(weights.banks)
    Muon([{"params": banks, "equal_rows": True, "quintics": "polar-express"}], 0.1, 0.9, 0.1).step()
    averaged = average.update(cfg.average, average.start(cfg.average, weights), weights, cfg.average.every, 1.0)
    require_there(flat(averaged.copies[0]), flat(weights))


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adam"}, {"adapted": "lora"}, {"qat_projections": True}])
def test_adaptation(changes: dict) -> None:
    cfg, net, weights = system("exp101", ttt={"clip": 1.0, **changes})
    adapter = adapt.start(cfg, weights)
    rounded = adapt.projections(cfg) if cfg.ttt.qat_projections else ()
    loss = partial(adapt.sum_of_nats, net, rounded)
    for _ in range(2):
        _, gradients = open_gradient(loss, adapter.weights, *adapter.scope, batch(cfg))
        adapt.update(cfg.ttt, adapter, gradients, 0.01)
    assert require_there(flat(adapter.folded()), flat(weights)) == len(flat(weights))


def test_calibration_and_error_feedback() -> None:
    cfg, net, weights = system("exp101")
    found = calibrate.collect(net, weights, torch.zeros(2, 17, dtype=torch.int64, device=META), 0.01)
    columns, scale = torch.empty(3, 40, 24, device=META), torch.empty(3, 24, device=META)
    codes, errors = gptq._feed_back(columns, scale, torch.empty(3, 40, 40, device=META), matrix_grid(cfg.quant), 32)
    assert {h.device for h in found.values()} == {codes.device, errors.device} == {META}
    assert {h.dtype for h in found.values()} == {torch.float32}


class Precision(TorchDispatchMode):
    """Notes the precision of float32 products as they are made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if (
            func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm", "baddbmm_")
            and args[-1].dtype == torch.float32
        ):
            self.seen.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 allowed, as in a bfloat16 run on CUDA."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


def test_what_says_float32_does_not_use_tf32(tf32: None) -> None:
    """Hessians, GPTQ, and the meta objective with its small steps; what surrounds them keeps what it had."""
    cfg = load("exp101", {"meta.dtype": "float32"}, "smoke")
    net, weights = Net(cfg.model, tables(cfg), Compute(torch.bfloat16, attend_blocks)), lively(cfg)
    x, y = torch.randint(cfg.model.vocab_size, (2, 2, 32))
    w, h = torch.randn(8, 24), torch.eye(24)
    works = {
        "Hessians": lambda: calibrate.collect(net, weights, x, 0.01),
        "GPTQ": lambda: gptq.solve(w, h, matrix_grid(cfg.quant)),
        "meta": lambda: meta.add_gradient(cfg, net, weights, 0, meta.split(cfg.meta, x, y), loss_function(net)),
    }
    for name, work in works.items():
        with Precision() as noted:
            work()
        assert set(noted.seen) == {"highest"}, name
    assert torch.get_float32_matmul_precision() == "high"
