"""The figures of depth recurrence: golfcore.analysis.depth makes the frames."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from golfcore.analysis.frames import one, only
from golfcore.plots import meta, parts, style
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, PINK, RED, has

PARTS = {"matrices": BLUE, "tables": GREEN, "the rest": ORANGE}
SCALES = {
    "attn_scale": "scale of attention",
    "mlp_scale": "scale of the MLP",
    "mix_x": "mix: residual stream",
    "mix_x0": "mix: embedding",
    "skip": "skip weight, at the layer it enters",
}
SHARES = {"common": ("same in all applications", BLUE), "level": ("level", ORANGE), "pattern": ("own pattern", PALE)}
BLOCKS = (RED, BLUE, GREEN, ORANGE, PINK)


def _unit(values: pd.Series) -> tuple[float, str]:
    """A power of 1000 that leaves the largest number with one to three digits, and how an axis spells it."""
    power = 3 * int(math.log10(values.max()) // 3)
    return 10.0**power, f"$10^{{{power}}}$ " if power else ""


def sizes(table: pd.DataFrame) -> Figure:
    """What is held and what it costs. Frame: `depth.sizes`."""
    arms = list(table["arm"].unique())
    fig = style.figure(1.5 + 0.28 * len(arms), "What does each arm hold, and in how many bytes?")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, column, unit in zip(axes, ("parameters", "bytes"), ("exported parameters", "artifact bytes"), strict=True):
        for y, arm in enumerate(arms):
            rows = table[table["arm"] == arm].set_index("part")
            total = rows[column].sum()
            each = f"{8 * total / rows['parameters'].sum():.2f} bits each" if column == "bytes" else f"{total:,.0f}"
            parts.stacked(ax, y, {part: (rows[column][part] / 1000, colour) for part, colour in PARTS.items()}, each)
        parts.rows_axis(ax, arms)
        ax.margins(x=0.35)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(f"{unit} (thousands)")
    parts.legend_below(fig, axes[:1])
    return fig


@parts.filled(3.3, "What does a byte buy, and what does compute buy?", 1, 2, sharey=True)
def tradeoff(axes: Any, table: pd.DataFrame) -> None:
    """Scores against bytes and against compute. Frame: `depth.summary`."""
    looks = style.arms(table["arm"])
    for ax, column, text in zip(axes, ("bytes", "flops"), ("artifact (%sbytes)", "training (%sFLOPs)"), strict=True):
        unit, spelled = _unit(table[column])
        for arm, (label, colour) in looks.items():
            runs, mean = only(table, kind="run", arm=arm), one(table, kind="arm", arm=arm)
            at = mean[column] / unit
            ax.plot(runs[column] / unit, runs["ttt"], "o", color=colour, ms=3)
            ax.plot([at], [mean["ttt"]], "D", color="white", mec=colour, ms=6, zorder=3, label=label, ls="none")
        ax.set_xlabel(text % spelled)
        ax.margins(x=0.15)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_ylabel(f"{style.measure('ttt')[0]} (bits per byte)")
    style.subtitle(axes[0], "open: mean, dots: seeds")
    style.subtitle(axes[1], "6 N + 12 L D T a token")


def differences(table: pd.DataFrame) -> Figure:
    """Shared less each other arm. Frame: `depth.differences`."""
    names, looks = list(table["measure"].unique()), style.arms(table["other"])
    fig = style.figure(0.9 + (0.5 + 0.38 * len(looks)) * -(-len(names) // 2), "Does sharing pay, and at what equality?")
    for ax, name in zip(fig.subplots(-(-len(names) // 2), 2, sharey=True, squeeze=False).flat, names, strict=True):
        rows = only(table, measure=name)
        labels = [f"{row.other}\n(equal {row.equal})" for row in rows.itertuples()]
        text = style.GAINS.get(name) or style.measure(name)[0]
        meta.forest(ax, rows, [looks[other][1] for other in rows["other"]], labels, text)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    meta.say_interval(fig, table, "shared less the other")
    return fig


@parts.filled(3.3, "Does sharing change how training goes?", 1, 2, sharey=True)
def curves(axes: Any, table: pd.DataFrame) -> None:
    """Validation against steps and against compute. Frame: `depth.curves`."""
    looks, (unit, spelled) = style.arms(table["arm"]), _unit(table["flops"])
    parts.learning_curves(axes[0], table, looks)
    parts.learning_curves(axes[1], table.assign(flops=table["flops"] / unit), looks, "flops")
    axes[0].set_xlabel("step")
    axes[1].set_xlabel(f"training ({spelled}FLOPs)")
    axes[0].set_ylabel("bits per byte")
    style.subtitle(axes[0], "validation, current weights; one line a run")


def scales(table: pd.DataFrame) -> Figure:
    """Scales, mixes and skips of the first arm by layer, coloured by block. Frame: `depth.scales`."""
    rows = table[table["arm"] == table["arm"].iloc[0]]
    shown = {name: text for name, text in SCALES.items() if name in set(rows["name"])}
    fig = style.figure(4.4, f"Do the applications of one block differ? ({table['arm'].iloc[0]})")
    axes = list(fig.subplots(2, 3).flat)
    for ax in axes[len(shown) :]:
        ax.remove()
    for ax, (name, text) in zip(axes, shown.items(), strict=False):
        for block, of_block in rows[rows["name"] == name].groupby("block"):
            _by_layer(ax, of_block, BLOCKS[int(block) % len(BLOCKS)])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel("layer")
        style.subtitle(ax, text)
    for block in sorted(rows["block"].unique()):
        axes[0].plot([], [], "o-", color=BLOCKS[int(block) % len(BLOCKS)], label=f"block {block}: mean, dots: seeds")
    axes[0].plot([], [], color=GREY, lw=3, alpha=0.5, label="spread over channels")
    axes[0].plot([], [], "_", color=GREY, ms=8, label="at initialization")
    parts.legend_below(fig, axes[:1])
    return fig


def _by_layer(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    means = rows.groupby("layer")[["mean", "spread", "start"]].mean()
    ax.vlines(means.index, means["mean"] - means["spread"], means["mean"] + means["spread"], colour, lw=3, alpha=0.25)
    ax.plot(means.index, means["start"], "_", color=GREY, ms=8)
    ax.plot(rows["layer"], rows["mean"], "o", color=colour, ms=2.5)
    ax.plot(means.index, means["mean"], color=colour, lw=0.8)


def specialisation(table: pd.DataFrame) -> Figure:
    """What the applications have in common. Frame: `depth.specialisation`."""
    arms = list(table["arm"].unique())
    fig = style.figure(1.5 + 0.28 * len(arms), "Do the applications of one block specialise?")
    axes = fig.subplots(1, 4, sharey=True)
    means = table.reindex(columns=["name", "arm", *SHARES]).groupby(["name", "arm"]).mean().fillna(0)
    for ax, name in zip(axes, [name for name in SCALES if name != "skip"], strict=True):
        for y, arm in enumerate(arms):
            parts.stacked(
                ax, y, {label: (100 * means.loc[(name, arm), c], colour) for c, (label, colour) in SHARES.items()}
            )
        unrelated = 100 / table["applications"].max()
        ax.axvline(unrelated, color=BLACK, lw=0.8, ls="--", label="same, if applications were unrelated")
        parts.rows_axis(ax, arms)
        ax.set_xlim(0, 100)
        ax.set_xticks([0, 50], ["0", "50"])
        ax.set_xlabel("% of the variance")
        style.subtitle(ax, SCALES[name])
    parts.legend_below(fig, axes[:1])
    return fig


# -- captions


def sizes_caption(table: pd.DataFrame) -> str:
    """Bits a parameter in each arm."""
    sums = table.groupby("arm", sort=False)[["parameters", "bytes"]].sum()
    listed = [
        f"{arm} {row['bytes']:,.0f} bytes, {8 * row['bytes'] / row['parameters']:.2f} bits each"
        for arm, row in sums.iterrows()
    ]
    return f"Bytes of the artifact, and bits for each exported parameter: {'; '.join(listed)}."


def tradeoff_caption(table: pd.DataFrame) -> str:
    """Scores by bytes and by compute, and which arm another beats in both."""
    means = only(table, kind="arm").to_dict("records")
    listed = [f"{r['arm']} {r['ttt']:.4f} at {r['bytes']:,.0f} bytes and {r['flops']:.2e} FLOPs" for r in means]
    beaten = [
        f"{other['arm']} than {row['arm']}"
        for row in means
        for other in means
        if all(other[c] <= row[c] for c in ("bytes", "flops")) and other["ttt"] < row["ttt"]
    ]
    front = f" No larger, no dearer and by the mean better: {', '.join(beaten)}." if beaten else ""
    return f"{style.measure('ttt')[0]}, mean over seeds: {'; '.join(listed)}.{front}"


def differences_caption(table: pd.DataFrame) -> str:
    """Each difference of the last score there is, and whether it is resolved."""
    if table.empty:
        return "There is one arm: nothing to compare it with."
    measure = "ttt" if "ttt" in set(table["measure"]) else "sliding"
    rows = only(table, measure=measure).to_dict("records")
    listed = [f"{r['other']} (equal {r['equal']}) {style.change(r)}{_found(r)}" for r in rows]
    return f"{style.measure(measure)[0]}, shared less the other, bits per byte: {'; '.join(listed)}."


def _found(row: dict) -> str:
    if not has(row, "low"):
        return meta.doubt(row)
    if row["low"] <= 0 <= row["high"]:
        return ", not resolved"
    return ", shared is better" if row["high"] < 0 else ", shared is worse"


def curves_caption(table: pd.DataFrame) -> str:
    """Where validation ended in each arm, and what it took."""
    ends = table[table["step"] == table.groupby("arm")["step"].transform("max")]
    found = ends.groupby("arm", sort=False)[["bpb", "step", "flops"]].mean()
    listed = [
        f"{arm} {r['bpb']:.4f} after {r['step']:,.0f} steps and {r['flops']:.2e} FLOPs" for arm, r in found.iterrows()
    ]
    return f"Validation of the current weights, bits per byte: {'; '.join(listed)}."


def scales_caption(table: pd.DataFrame) -> str:
    """For the first arm, the largest changes since initialization."""
    rows = table[table["arm"] == table["arm"].iloc[0]]
    change = (rows["mean"] - rows["start"]).groupby([rows["name"], rows["layer"]], sort=False).mean()
    listed = [
        f"{text} {change[name].min():+.3f} to {change[name].max():+.3f}"
        for name, text in SCALES.items()
        if name in set(rows["name"])
    ]
    return f"Change of the means over channels in training, by layer, in {rows['arm'].iloc[0]}: {'; '.join(listed)}."


def specialisation_caption(table: pd.DataFrame) -> str:
    """The share of variance that a block's applications have in common, beside layers that share nothing."""
    listed = []
    if "common" in table:
        means = table.groupby(["name", "arm"], sort=False)["common"].mean().dropna()
        for name in means.index.unique("name"):
            listed.append(f"{SCALES[name]}: " + ", ".join(f"{a} {100 * v:.0f} %" for a, v in means[name].items()))
    times = table["applications"].max()
    return f"Variance that all applications have in common ({100 / times:.0f} % if unrelated): {'; '.join(listed)}."


FIGURES = {
    "depth-sizes": (sizes, sizes_caption),
    "depth-tradeoff": (tradeoff, tradeoff_caption),
    "depth-differences": (differences, differences_caption),
    "depth-curves": (curves, curves_caption),
    "depth-scales": (scales, scales_caption),
    "depth-specialisation": (specialisation, specialisation_caption),
}
