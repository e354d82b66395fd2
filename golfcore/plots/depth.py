"""The figures of depth recurrence: golfcore.analysis.depth and .depth_scales make the tables."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from golfcore.analysis.table import Row, Table, number
from golfcore.plots import style
from golfcore.plots.ablation import two_intervals
from golfcore.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PALE, PINK, RED

ARMS = {"shared": RED, "unique": BLUE, "shallow": GREEN, "shallow-long": PINK, "unique-narrow": ORANGE}
MEASURES = {
    "static": "(a) no overlap",
    "sliding": "(b) sliding",
    "ttt": "(c) sliding + TTT",
    "ttt_gain": "adaptation gain c - b",
}
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


def _arms(table: Table) -> dict[str, str]:
    """Colour of every arm in a table, in its order."""
    return {name: ARMS.get(name, GREY) for name in dict.fromkeys(str(row["arm"]) for row in table)}


def _unit(table: Table, column: str) -> tuple[float, str]:
    """A power of 1000 that leaves a column's largest number with one to three digits, and how an axis spells it."""
    power = 3 * int(math.log10(max(table.numbers(column))) // 3)
    return 10.0**power, f"$10^{{{power}}}$ " if power else ""


def sizes(table: Table) -> Figure:
    """What is held and what it costs. Table: `analysis.depth.sizes`."""
    arms = list(_arms(table))
    fig = style.figure(1.5 + 0.28 * len(arms))
    style.title(fig, "What does each arm hold, and in how many bytes?")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, column, unit in zip(axes, ("parameters", "bytes"), ("exported parameters", "artifact bytes"), strict=True):
        for y, arm in enumerate(arms):
            left = 0.0
            for part, colour in PARTS.items():
                width = number(table.one(arm=arm, part=part), column) / 1000
                ax.barh(y, width, left=left, height=0.6, color=colour, label=None if y else part)
                left += width
            total = sum(table.only(arm=arm).numbers("parameters"))
            each = f"{8000 * left / total:.2f} bits each" if column == "bytes" else f"{left:,.0f}"
            style.note(ax, each, (left, y), (4, 0))
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.margins(x=0.35)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(f"{unit} (thousands)")
        style.no_grid(ax, "y")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS))
    return fig


def tradeoff(table: Table) -> Figure:
    """Scores against bytes and against compute. Table: `analysis.depth.summary`."""
    looks, fig = _arms(table), style.figure(3.2)
    style.title(fig, "What does a byte buy, and what does compute buy?")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, column, text in zip(axes, ("bytes", "flops"), ("artifact (%sbytes)", "training (%sFLOPs)"), strict=True):
        unit, spelled = _unit(table, column)
        for arm, colour in looks.items():
            runs, mean = table.only(kind="run", arm=arm), table.one(kind="arm", arm=arm)
            at = number(mean, column) / unit
            if mean.get("ttt_low") is not None:
                ax.plot([at, at], [number(mean, "ttt_low"), number(mean, "ttt_high")], color=colour, lw=4, alpha=0.3)
            ax.plot([x / unit for x in runs.numbers(column)], runs.numbers("ttt"), "o", color=colour, ms=3)
            ax.plot([at], [number(mean, "ttt")], "D", color="white", mec=colour, ms=6, zorder=3, label=arm)
        ax.set_xlabel(text % spelled)
        ax.margins(x=0.15)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_ylabel("(c) sliding + TTT (bits per byte)")
    style.subtitle(axes[0], "dots: seeds; bar: 95 % of the mean over seeds")
    style.subtitle(axes[1], "6 N + 12 L D T a token")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(looks))
    return fig


def differences(table: Table) -> Figure:
    """Shared less each other arm. Table: `analysis.depth.differences`."""
    others = list(dict.fromkeys(str(row["other"]) for row in table))
    fig = style.figure(1.6 + 0.9 * len(others))
    style.title(fig, "Does sharing pay, and at what equality?")
    for ax, (name, text) in zip(fig.subplots(2, 2, sharey=True).flat, MEASURES.items(), strict=True):
        ax.axvline(0, color=BLACK, lw=0.8)
        for y, other in enumerate(others):
            two_intervals(ax, y, table.one(measure=name, other=other), ARMS.get(other, GREY))
        ax.set_yticks(range(len(others)), [_against(table.one(measure=name, other=other)) for other in others])
        ax.set_ylim(len(others) - 0.5, -0.5)
        ax.margins(x=0.1)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        style.subtitle(ax, text)
        style.no_grid(ax, "y")
    fig.supxlabel(
        "shared less the other (bits per byte); thick: 95 % over chunks of text, thin: over seeds", fontsize=8
    )
    return fig


def _against(row: Row) -> str:
    first, second, *rest = str(row["equal"]).split(", ")
    return f"{row['other']}\n(equal {first}, {second}" + (f",\n{', '.join(rest)})" if rest else ")")


def curves(table: Table) -> Figure:
    """Validation against steps and against compute. Table: `analysis.depth.curves`."""
    fig, looks = style.figure(3.2), _arms(table)
    style.title(fig, "Does sharing change how training goes?")
    axes = fig.subplots(1, 2, sharey=True)
    val = table.only(kind="val")
    late = [number(r, "bpb") for r in val if number(r, "step") >= 0.05 * max(val.numbers("step"))]
    margin = 0.08 * (max(late) - min(late)) or 0.01
    flops, spelled = _unit(table, "flops")
    for ax, column, unit in zip(axes, ("step", "flops"), (1.0, flops), strict=True):
        for arm, colour in looks.items():
            for i, seed in enumerate(dict.fromkeys(row["seed"] for row in val.only(arm=arm))):
                rows = val.only(arm=arm, seed=seed)
                x = [value / unit for value in rows.numbers(column)]
                ax.plot(x, rows.numbers("bpb"), "o-", color=colour, ms=2, lw=0.8, label=None if i else arm)
        ax.set_ylim(min(late) - margin, max(late) + margin)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_xlabel("step")
    axes[1].set_xlabel(f"training ({spelled}FLOPs)")
    axes[0].set_ylabel("bits per byte")
    style.subtitle(axes[0], "validation, current weights; one line a run")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(looks))
    return fig


def scales(table: Table) -> Figure:
    """Scales, mixes and skips of the first arm by layer, coloured by block. Table: `analysis.depth_scales.scales`."""
    rows = table.only(arm=table[0]["arm"])
    fig = style.figure(4.2)
    style.title(fig, f"Do the applications of one block differ? ({table[0]['arm']})")
    *axes, key = fig.subplots(2, 3).flat
    blocks = sorted({int(number(row, "block")) for row in rows})
    for ax, (name, text) in zip(axes, SCALES.items(), strict=True):
        for block in blocks:
            _by_layer(ax, rows.only(name=name, block=block), BLOCKS[block % len(BLOCKS)])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel("layer")
        style.subtitle(ax, text)
    for block in blocks:
        key.plot([], [], "o-", color=BLOCKS[block % len(BLOCKS)], label=f"block {block}")
    key.plot([], [], "_", color=GREY, ms=8, label="at initialization")
    key.set_axis_off()
    key.legend(loc="center", title="line: mean, bar: spread\nover channels; dots: seeds", title_fontsize=7.5)
    return fig


def _by_layer(ax: Axes, rows: Table, colour: str) -> None:
    layers = list(dict.fromkeys(int(number(row, "layer")) for row in rows))
    means = []
    for layer in layers:
        here = rows.only(layer=layer)
        mean, spread = (sum(here.numbers(c)) / len(here) for c in ("mean", "spread"))
        means.append(mean)
        ax.plot([layer, layer], [mean - spread, mean + spread], color=colour, lw=3, alpha=0.25)
        ax.plot([layer] * len(here), here.numbers("mean"), "o", color=colour, ms=2.5)
        ax.plot([layer], here.numbers("start")[:1], "_", color=GREY, ms=8)
    ax.plot(layers, means, color=colour, lw=0.8)


def specialisation(table: Table) -> Figure:
    """What the applications have in common. Table: `analysis.depth_scales.specialisation`."""
    arms = list(_arms(table))
    fig = style.figure(1.5 + 0.28 * len(arms))
    style.title(fig, "Do the applications of one block specialise?")
    axes = fig.subplots(1, 4, sharey=True)
    for ax, name in zip(axes, ("attn_scale", "mlp_scale", "mix_x", "mix_x0"), strict=True):
        for y, arm in enumerate(arms):
            rows, left = table.only(arm=arm, name=name), 0.0
            for column, (label, colour) in SHARES.items():
                found = rows.numbers(column)
                width = 100 * sum(found) / len(found) if found else 0.0
                ax.barh(y, width, left=left, height=0.6, color=colour, label=None if y else label)
                left += width
        unrelated = 100 / max(table.numbers("applications"))
        ax.axvline(unrelated, color=BLACK, lw=0.8, ls="--", label="same, if applications were unrelated")
        ax.set_yticks(range(len(arms)), arms)
        ax.set_ylim(len(arms) - 0.5, -0.5)
        ax.set_xlim(0, 100)
        ax.set_xticks([0, 50], ["0", "50"])
        ax.set_xlabel("% of the variance")
        style.subtitle(ax, SCALES[name])
        style.no_grid(ax, "y")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SHARES) + 1)
    return fig
