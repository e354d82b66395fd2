"""What of the published claims arithmetic or code settles at full size, without a run: one function a number.

Each returns the number that the claim's own statement is held against; tests/test_ledger.py derives each another way.
"""

import numpy as np
import torch

from golfcore import config
from golfcore.analysis import beside, published
from golfcore.analysis.published_measures import bank_spectrum, decompose
from golfcore.analysis.tokens import published as published_losses
from golfcore.analysis.weight_space import published_midpoints
from golfcore.model import params
from golfcore.model.hashing import ngram_rows
from golfcore.runs.stacks import exported
from golfcore.train import meta

CLASSES = {"word start": 325, "within word": 699}  # tokens of the competition's vocabulary of 1,024, as published
VOCABULARY = 1024
ADAM_COPIES = 4  # a value, its gradient, two moments
FLOAT_BYTES = 4


def logged(system: str, quantity: str, variant: str | None = None) -> float:
    """What the reported run of a system logged of a quantity: the mean over its seeds.

    ValueError: it logged none.
    """
    found = published.table("results")
    found = found[(found["system"] == system) & (found["quantity"] == quantity) & (found["reported"] == 1)]
    found = found if variant is None else found[found["variant"] == variant]
    if found.empty:
        raise ValueError(f"{system}: expected a logged {quantity}, found none")
    return float(found["value"].mean())


def pairs_per_row(part: str) -> float:
    """Pairs (previous, current) whose current token is of a class, over the rows that exp101's split table gives it."""
    half = (config.load("exp101").model.bigram_rows - 1) // 2
    return VOCABULARY * CLASSES[part] / half


def headroom(system: str, variant: str | None = None) -> float:
    """Bytes of the limit that the reported artifact and code leave; negative: over it."""
    return config.load("exp101").quant.max_bytes - logged(system, "total_bytes", variant)


def stated_over(system: str) -> float:
    """Bytes by which the largest artifact that prose states of a system is over the limit."""
    found = published.table("results")
    rows = found[(found["system"] == system) & (found["quantity"] == "artifact_size")]
    return 1e6 * float(rows["value"].max()) - config.load("exp101").quant.max_bytes


def later_rows_changed(rows: int = 64, length: int = 512) -> float:
    """How many n-gram rows of positions up to the middle change when every later token does, over both table modes."""
    model = config.load("exp101").model
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (2, rows, length), generator=generator)
    starts, kept = torch.rand(VOCABULARY, generator=generator) < 0.3, length // 2
    tokens[1, :, :kept] = tokens[0, :, :kept]
    changed = 0
    for split in (True, False):
        a, b = (ngram_rows(t, starts, model.bigram_rows, split)[:, :kept] for t in tokens)
        changed += int((a != b).sum())
    return float(changed)


def settings_between(one: str, other: str) -> float:
    """How many values that change a number differ between two presets."""
    return float(len(config.differing(config.load(one), config.load(other))))


def step_ms(system: str) -> float:
    """Milliseconds a step in the log of the last launch, the reported one: the mean between logged steps."""
    rows = published.step_times()
    found = rows[rows["system"] == system]
    return float(found.loc[found["run"] == found["run"].max(), "ms"].mean())


def steps_lost(system: str, other: str) -> float:
    """Steps that `system` made fewer than `other` under the same clock, as logged."""
    return logged(other, "steps") - logged(system, "steps")


def rate_lead(system: str, other: str, step: int = 6000) -> float:
    """How much larger the multiplier of the learning rate of `system` is than `other`'s, at one step of their logs."""
    rows = beside.training()
    rows = rows[(rows["step"] == step) & (rows["kind"] == "val")].set_index("system")["lr_multiplier"]
    return float(rows[system] - rows[other])


def frozen_rate() -> float:
    """Where a learned rate of exp106 that has no gradient ends: 1, decayed at every meta call of the published run.

    The product of 1 - scalar_lr adam_wd multiplier over the calls, at the logged pace.
    """
    cfg, rows = config.load("exp106"), published.table("training")
    rows = rows[rows["system"] == "exp106"]
    rate, timed = beside.multiplier(rows, "exp106", str(rows["run"].max())), rows[rows["kind"] == "train"]
    steps = np.arange(0, int(logged("exp106", "steps")), cfg.meta.every)
    seconds = np.interp(steps, timed["step"].astype(float), timed["seconds"])
    now = np.array([rate(int(step), at) for step, at in zip(steps, seconds, strict=True)])
    called = np.array([meta.due(cfg.meta, int(step), scale) for step, scale in zip(steps, now, strict=True)])
    decay = cfg.optim.scalar_lr * cfg.optim.adam_wd
    return float(np.prod(1 - decay * now[called]))


def midpoint_error() -> float:
    """How far the published norms of midpoints lie from what cosines and equal norms give, at most."""
    found = published_midpoints()
    return float((found["mid_over_a"] - found["predicted"]).abs().max())


def floor_error(bits: int = 6) -> float:
    """Mean squared error of rounding to the published floor step 1/31: step^2 / 12, whatever the weights are."""
    return (1 / (2 ** (bits - 1) - 1)) ** 2 / 12


def noise_rank(slots: int) -> float:
    """Effective rank of `slots` rows of independent noise of equal norm, as wide as a bank of exp101."""
    model = config.load("exp101").model
    noise = {"noise": torch.randn(slots, model.dim, model.dim, generator=torch.Generator().manual_seed(0))}
    return float(bank_spectrum(decompose(noise, noise)["noise"])["effective_rank"])


def distance_spread() -> float:
    """(largest - smallest) / largest of the three published distances of banks."""
    found = published.table("weight_space")
    sides = found[(found["analysis"] == "triangle") & (found["quantity"] == "bank_l2_distances")]["number"]
    return float((sides.max() - sides.min()) / sides.max())


def gap_share() -> float:
    """exp106's published spectral gap of the key and value banks over their largest singular value."""
    found = published.table("weight_space")
    rows = found[(found["analysis"] == "error_surface") & (found["model"] == "exp106") & (found["tensor"] == "kv_bank")]
    gap, largest = (float(rows.loc[rows["quantity"] == q, "number"].iloc[0]) for q in ("spectral_gap", "op_norm"))
    return gap / largest


def windows_a_second(seconds: float = 600.0) -> float:
    """Windows of the validation text at stride 64 that a second has to hold."""
    return logged("exp101", "val_tokens") / 64 / seconds


def rate_bytes() -> float:
    """Bytes that exp106's learned step sizes take while training: value, gradient and two moments of each."""
    return float(unexported("exp106") * ADAM_COPIES * FLOAT_BYTES)


def unexported(preset: str) -> float:
    """Values that a preset trains and does not export."""
    model = config.load(preset).model
    return float(params.summary(model)["total"] - exported(model))


def adapted_share(preset: str) -> float:
    """Share of the parameters that lie in the four banks, in percent."""
    found = params.summary(config.load(preset).model)
    return 100 * found["kinds"]["matrix"] / found["total"]


def parameters(preset: str) -> float:
    """Exported parameters of a preset."""
    return float(exported(config.load(preset).model))


def tail_share(threshold: float = 7.0) -> float:
    """The least share of the loss, in percent, that the published count above a threshold implies."""
    found = published_losses()
    return 100 * float(found.loc[found["threshold"] == threshold, "bound_low"].iloc[0])


def falling_epochs() -> float:
    """The share of pr398's logged epochs that end below the one before, over three seeds."""
    rows = published.table("ttt")
    rows = rows[rows["kind"] == "epoch"].sort_values(["seed", "epoch"])
    less = rows.groupby("seed")["loss"].diff().dropna()
    return float((less < 0).mean())


def overlap_alone() -> float:
    """Bits per byte between pr398's logged scores of the same weights with overlapping windows and without."""
    return logged("pr398", "bpb_ttt") - logged("pr398", "bpb_ttt_nonoverlap")


def steps_bought(system: str = "pr398", saved_ms: float = 1.4, seconds: float = 600.0) -> float:
    """Steps that fit more into the clock if each takes `saved_ms` less than it would."""
    step = step_ms(system)
    return 1000 * seconds / step - 1000 * seconds / (step + saved_ms)


def best_seed() -> float:
    """The best score of pr398's three logged seeds."""
    found = published.table("results")
    found = found[(found["system"] == "pr398") & (found["quantity"] == "bpb_ttt") & (found["basis"] == "log")]
    return float(found["value"].min())
