"""Depth recurrence: what applying the same blocks several times buys, per byte and per unit of compute (pr294).

One arm shares blocks; each of the others has no sharing and equals it in all but what it gives up:

    arm            layers  blocks  width    against "shared"
    shared         L       U       D
    unique         L       L       D        equal compute, depth and width; the bytes of L/U times as many blocks
    shallow        U       U       D        equal blocks, width and so bytes; U/L of the compute and of the depth
    shallow-long   U       U       D        the same trained for more steps: equal bytes and equal compute of training
    unique-narrow  L       L       smaller  equal exported parameters and so about equal bytes, at equal depth

No arm without sharing can have the bytes, depth and compute a token of "shared" at once: at equal bytes sharing costs
about L/U times the compute. A narrow arm rather than a wider shared one because it is the cheaper one to train.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from golfcore import config
from golfcore.analysis import ablation, runs
from golfcore.analysis.compare import EVALUATIONS, MEASURES, Arm, Scored, contrast, over_seeds
from golfcore.analysis.sizes import run_bytes
from golfcore.analysis.table import Row, Table, number
from golfcore.base.errors import UserError
from golfcore.config import Config, ModelConfig
from golfcore.model import params
from golfcore.model.weights import Banks

SHARED = "shared"
EQUAL = {  # arm -> what "shared" has in common with it
    "unique": "compute, depth, width, tokens",
    "shallow": "bytes, width, tokens",
    "shallow-long": "bytes, width, compute",
    "unique-narrow": "bytes, depth, tokens",
}
ARMS = (SHARED, *EQUAL)
CONTRASTS = (*EVALUATIONS, "ttt_gain")
PARTS = {"matrices": ("matrix",), "tables": ("table",), "the rest": ("projection", "control")}


# -- arms


def arms(
    preset: str,
    changes: Mapping[str, object],
    size: str = "full",
    repeats: int = 0,
    steps: int = 0,
    names: Sequence[str] = ARMS,
) -> dict[str, Config]:
    """The arms of this module on `preset` at `size` with dotted `changes`, in the order of `names`.

    `repeats`: the preset's blocks in turn, so many times (pr294's order); 0: as `model.blocks` has them. `steps`: of
    the optimizer, the warmdown in proportion; 0: as many as the schedule has. UserError: errors of `config.load`, an
    unknown arm or one twice, "shared" not the first, or no block that is applied twice.
    """
    config.keys(names, list(ARMS), "arms")
    if len(set(names)) < len(names) or not names or names[0] != SHARED:
        raise UserError(f"arms: expected {SHARED} and then different others, found {', '.join(names) or 'none'}")
    base = config.load(preset, changes, size)
    base = lasting(base, steps) if steps else base
    shared = restack(base, tuple(range(base.model.n_blocks)) * repeats) if repeats else base
    n_layers, n_blocks = shared.model.n_layers, shared.model.n_blocks
    if n_layers == n_blocks:
        found = f"model.blocks {list(shared.model.blocks)}"
        raise UserError(f"{preset}: expected blocks that are applied more than once, found {found}")
    unique, shallow = (restack(shared, tuple(range(n))) for n in (n_layers, n_blocks))
    longer = round(shallow.schedule.iterations * flops_per_token(shared) / flops_per_token(shallow))
    found_arms = {
        SHARED: shared,
        "unique": unique,
        "shallow": shallow,
        "shallow-long": lasting(shallow, longer),
        "unique-narrow": narrowed(unique, exported(shared.model)),
    }
    return {n: config.from_dict({**config.to_dict(found_arms[n]), "name": n}, f"{preset}, arm {n}") for n in names}


def lasting(cfg: Config, steps: int) -> Config:
    """`cfg` with so many steps of the optimizer, and the warmdown in proportion."""
    s = cfg.schedule
    warmdown = round(s.warmdown_steps * steps / s.iterations)
    return replace(cfg, schedule=replace(s, iterations=steps, warmdown_steps=warmdown))


def restack(cfg: Config, blocks: tuple[int, ...]) -> Config:
    """`cfg` with another stack of layers, and what names layers or blocks carried over.

    Value embeddings keep their distance from the last layer where there is such a layer, and go to the last if there
    is none; exclusive self-attention stays on as many last layers, or on all; skip rows that no longer exist are not
    frozen; the first blocks that adaptation leaves alone stay the same share of all blocks.
    """
    m, n = cfg.model, len(blocks)
    shift, share = n - m.n_layers, len(set(blocks)) / m.n_blocks
    ve_layers = tuple(i + shift for i in m.ve_layers if i + shift >= 0)
    model = replace(
        m,
        blocks=blocks,
        ve_layers=ve_layers or (n - 1,) * bool(m.ve_layers),
        xsa_last_n=n if m.xsa_last_n >= m.n_layers else min(m.xsa_last_n, n),
        frozen_skips=tuple(row for row in m.frozen_skips if row < n // 2),
    )
    return replace(
        cfg,
        model=model,
        meta=replace(cfg.meta, freeze_blocks=round(cfg.meta.freeze_blocks * share)),
        ttt=replace(cfg.ttt, freeze_blocks=round(cfg.ttt.freeze_blocks * share)),
        reptile=replace(cfg.reptile, freeze_blocks=round(cfg.reptile.freeze_blocks * share)),
    )


def narrowed(cfg: Config, wanted: int) -> Config:
    """`cfg` at the width whose exported parameters come nearest to `wanted`, heads as wide as they were.

    Heads and the MLP's width go down in proportion to choose the width; then the MLP's width alone is fitted, in steps
    that keep it even (and divisible by 3 for SwiGLU).
    """
    m = cfg.model
    widths = range(m.head_dim, m.dim + 1, m.head_dim)
    model = min((_at_width(m, dim) for dim in widths), key=lambda c: abs(exported(c) - wanted))
    step = 6 if m.mlp == "swiglu" else 2
    per_unit = (exported(replace(model, mlp_hidden=model.mlp_hidden + step)) - exported(model)) / step
    hidden = model.mlp_hidden + (wanted - exported(model)) / per_unit
    return replace(cfg, model=replace(model, mlp_hidden=max(step, step * round(hidden / step))))


def _at_width(m: ModelConfig, dim: int) -> ModelConfig:
    heads, step = dim // m.head_dim, 6 if m.mlp == "swiglu" else 2
    divisors = [n for n in range(1, heads + 1) if heads % n == 0]
    kv = min(divisors, key=lambda n: abs(n - heads * m.n_kv_heads / m.n_heads))
    hidden = max(step, step * round(m.mlp_hidden * dim / m.dim / step))
    return replace(m, dim=dim, n_heads=heads, n_kv_heads=kv, mlp_hidden=hidden)


# -- size and compute


def exported(m: ModelConfig) -> int:
    """Scalars that an artifact of this model holds."""
    return params.summary(m)["exported"]


def applied(m: ModelConfig) -> int:
    """Weights that a token is multiplied with: each block once for every layer that reads it, the head, projections.

    Lookups of embeddings, gains and scales are left out.
    """
    sizes = {p.name: int(np.prod(p.shape)) for p in params.table(m) if p.kind in ("matrix", "projection")}
    blocks = sum(sizes.pop(bank) for bank in Banks._fields)
    return blocks // m.n_blocks * m.n_layers + sum(sizes.values()) + m.vocab_size * m.dim


def flops_per_token(cfg: Config) -> int:
    """FLOPs of forward and backward for a token in training: 6 N + 12 L D T.

    N: `applied`, L layers of width D (heads x head width) on rows of T tokens. Chowdhery et al. 2022 (PaLM), appendix
    B, which counts attention as if it were not causal. Inner steps of meta-learning and fake quantization are not in
    it, nor are a Reptile phase and element-wise operations.
    """
    m = cfg.model
    return 6 * applied(m) + 12 * m.n_layers * m.dim * cfg.data.seq_len


# -- tables


def summary(found: Sequence[Arm]) -> Table:
    """Size, compute and scores: rows of kind "run", and of kind "arm" with means over seeds.

    `bytes`: of the artifact, without code, and `matrix_bytes` of it the blocks' matrices; `bits_per_parameter`: 8 bytes
    over exported parameters; `applied_per_byte`: weights that a token is multiplied with, over bytes;
    `flops_per_token`: as the function; `flops`: of the whole training. `step_seconds` is of the machine. Scores in bits
    per byte; `MEASURE_low`, `MEASURE_high`: Student's interval of the mean, for 2 seeds or more.
    """
    table = Table(_run_row(arm, run) for arm in found for run in arm.runs)
    for arm in found:
        rows = table.only(kind="run", arm=arm.label)
        row: Row = {"kind": "arm", "arm": arm.label, **source(arm), **_shape(arm.config)}
        means = ("bytes", "matrix_bytes", "bits_per_parameter", "applied_per_byte", "flops", "step_seconds")
        row |= {name: float(np.mean(rows.numbers(name))) for name in (*means, *EVALUATIONS)}
        for name in EVALUATIONS:
            interval = over_seeds(arm, MEASURES[name])
            row |= {f"{name}_low": interval.low, f"{name}_high": interval.high} if interval else {}
        table.append(row)
    return table


def _shape(cfg: Config) -> Row:
    m = cfg.model
    row: Row = {"blocks": m.n_blocks, "layers": m.n_layers, "dim": m.dim, "mlp_hidden": m.mlp_hidden}
    row |= {"parameters": exported(m), "applied": applied(m), "flops_per_token": flops_per_token(cfg)}
    return row


def _run_row(arm: Arm, run: Scored) -> Row:
    last, shape = run.run.metrics("train")[-1], _shape(run.config)
    n_bytes, steps = runs.report(run.run)["artifact"]["bytes"], max(r["step"] for r in run.run.metrics("val"))
    row: Row = {"kind": "run", "arm": arm.label, **run_source(run), **shape, "bytes": n_bytes}
    row["matrix_bytes"] = sum(int(number(r, "bytes")) for r in run_bytes(run.run) if r.get("group") == "matrices")
    row["bits_per_parameter"] = 8 * n_bytes / number(shape, "parameters")
    row["applied_per_byte"] = number(shape, "applied") / n_bytes
    row["flops"] = number(shape, "flops_per_token") * steps * run.config.optim.batch_tokens
    return row | {"step_seconds": last["elapsed"] / last["step"], **{name: run.bpb[name] for name in EVALUATIONS}}


def sizes(found: Sequence[Arm]) -> Table:
    """Exported parameters of each arm by part, and their artifact bytes (mean over seeds; scales are in the rest)."""
    table = Table()
    for arm in found:
        kinds = params.summary(arm.config.model)["kinds"]
        train_only = params.summary(arm.config.model)["total"] - exported(arm.config.model)
        components = [run_bytes(run.run).only(kind="component") for run in arm.runs]
        for part, names in PARTS.items():
            held = sum(kinds[kind] for kind in names) - (train_only if "control" in names else 0)
            group = part if part in ("matrices", "tables") else "the rest of the file"
            n_bytes = [sum(rows.only(group=group).numbers("bytes")) for rows in components]
            row: Row = {"arm": arm.label, "part": part, "parameters": held, "bytes": float(np.mean(n_bytes))}
            table.append(row | source(arm))
    return table


def differences(found: Sequence[Arm]) -> Table:
    """ "shared" less every other arm, by measure, with the columns of `compare.contrast`.

    `equal`: what the two arms have in common by construction; `bytes_ratio`, `flops_ratio`: of shared to the other,
    the bytes as measured.
    """
    shared, table = found[0], Table()
    means = summary(found).only(kind="arm")
    ours = means.one(arm=shared.label)
    for other in found[1:]:
        theirs = means.one(arm=other.label)
        ratios: Row = {
            f"{name}_ratio": number(ours, column) / number(theirs, column)
            for name, column in (("bytes", "bytes"), ("flops", "flops"))
        }
        against: Row = {f"other_{name}": value for name, value in source(other).items() if name != "data"}
        for name in CONTRASTS:
            row: Row = {"measure": name, "arm": shared.label, "other": other.label, "equal": EQUAL.get(other.label)}
            table.append(row | ratios | contrast(other, shared, MEASURES[name]) | source(shared) | against)
    return table


def curves(found: Sequence[Arm]) -> Table:
    """`ablation.learning_curves` with the training FLOPs so far, and where each row is from."""
    known = {(arm.label, run.seed): run for arm in found for run in arm.runs}
    table = Table()
    for row in ablation.learning_curves(found):
        run = known[str(row["arm"]), int(number(row, "seed"))]
        per_step = flops_per_token(run.config) * run.config.optim.batch_tokens
        table.append({**row, "flops": float(number(row, "step") * per_step), **run_source(run)})
    return table


def run_source(run: Scored) -> Row:
    """Run id, configuration hash, seed and data hash of one run."""
    known = runs.provenance(run.run)
    return {name: known[name] for name in ("run", "config", "seed", "data")}


def source(arm: Arm) -> Row:
    """The same for an arm: its runs, the hash of its configuration with seed 0, its seeds, its data."""
    row: Row = {"runs": " ".join(run.run.id for run in arm.runs), "config": arm.config.hash}
    return row | {"seeds": " ".join(map(str, arm.seeds)), "data": arm.runs[0].data}
