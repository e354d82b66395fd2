"""The figures of a study of meta-learning: golfcore.analysis.meta and .compare make the frames."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from golfcore.analysis.frames import one, only
from golfcore.plots import parts, style
from golfcore.plots.style import BLACK, YELLOW, has

MEASURES = {name: style.MEASURES[name][0] for name in ("static", "sliding", "ttt")} | style.GAINS


def curves(table: pd.DataFrame) -> Figure:
    """Validation of all runs, and their smoothed training loss less the reference's. Frame: `meta.learning_curves`."""
    fig, looks = style.figure(3.2, "Does meta-learning change how training goes?"), style.arms(table["arm"])
    compared = table[table["difference"].notna()] if "difference" in table else table[:0]
    axes = fig.subplots(1, 2 if len(compared) else 1, squeeze=False)[0]
    parts.learning_curves(axes[0], only(table, kind="val"), looks)
    axes[0].set_ylabel("bits per byte")
    style.subtitle(axes[0], "validation, current weights; one line a run")
    if len(compared):
        rows, reference = only(compared, kind="train"), next(iter(looks.values()))[0]
        for (arm, _), line in rows.groupby(["arm", "seed"], sort=False):
            axes[1].plot(line["step"], line["difference"], color=looks[arm][1], lw=0.8)
        axes[1].axhline(0, color=BLACK, lw=0.8)
        axes[1].set_ylim(*parts.settled(rows, "difference", 0.1))
        axes[1].xaxis.set_major_locator(MaxNLocator(5))
        axes[1].set_ylabel("difference (bits per byte)")
        style.subtitle(axes[1], f"smoothed training loss, less {reference}'s")
    for ax in axes:
        ax.set_xlabel("step")
    parts.legend_below(fig, axes[:1])
    return fig


def differences(table: pd.DataFrame) -> Figure:
    """Differences to the reference arm with their intervals. Frame: `compare.compare`."""
    looks = style.arms(table["arm"])
    (reference, _), *others = looks.values()
    fig = style.figure(1.4 + 0.4 * len(others) * 2, "Do the arms score differently?")
    for ax, (name, text) in zip(fig.subplots(2, 3, sharey=True).flat, MEASURES.items(), strict=True):
        rows = only(table, measure=name).iloc[1:]
        forest(ax, rows, [looks[arm][1] for arm in rows["arm"]], [label for label, _ in others], text)
        ax.xaxis.set_major_locator(MaxNLocator(3))
    say_interval(fig, table, f"difference to {reference}")
    return fig


def forest(
    ax: Axes, rows: pd.DataFrame, colours: Sequence[str], labels: Sequence[str], text: str, value: str = "difference"
) -> None:
    """A panel under `text`: `value` with its interval in every row, coloured and labelled."""
    parts.forest(ax, rows, [parts.Mark(colour) for colour in colours], value)
    parts.rows_axis(ax, labels)
    style.subtitle(ax, text)


def say_interval(fig: Figure, table: pd.DataFrame, text: str) -> None:
    """Below the figure what it shows and what its intervals are over."""
    over = next(iter(table["over"].dropna()), None) if "over" in table else None
    interval = f"line: 95 % interval for other {over}" if over else "too little text for intervals"
    fig.supxlabel(f"{text} (bits per byte); {interval}", fontsize=8)


def gains(table: pd.DataFrame) -> Figure:
    """What context and adaptation bring in each arm. Frame: `meta.gains`."""
    looks = style.arms(table["arm"])
    fig = style.figure(1.1 + 0.28 * len(looks), "Does meta-learning change what test-time training can do?")
    for ax, name in zip(fig.subplots(1, 2, sharey=True), ("context_gain", "ttt_gain"), strict=True):
        rows = only(table, measure=name, kind="mean")
        labels, colours = [label for label, _ in looks.values()], [looks[arm][1] for arm in rows["arm"]]
        forest(ax, rows, colours, labels, style.GAINS[name], "gain")
        for y, arm in enumerate(looks):
            dots = only(table, measure=name, kind="seed", arm=arm)["gain"]
            ax.plot(dots, [y] * len(dots), "o", color="white", mec=looks[arm][1], ms=3, zorder=3)
    fig.supxlabel("bits per byte; filled: mean, open: seeds; line: 95 % interval of the mean", fontsize=8)
    return fig


def chunks(table: pd.DataFrame) -> Figure:
    """The score after TTT less the reference arm's, along the text. Frame: `meta.chunk_differences`."""
    looks = style.arms(table["arm"])
    n = -(-len(looks) // 2)
    fig = style.figure(1.4 + 1.5 * n, "Where in the text do the arms differ?")
    axes = list(fig.subplots(n, 2, sharex=True, sharey=True, squeeze=False).flat)
    for ax, (arm, (label, colour)) in zip(axes, looks.items(), strict=False):
        parts.course(ax, only(table, arm=arm), colour, "", "on the chunk alone")
        style.subtitle(ax, label)
    for ax in axes[len(looks) :]:
        ax.remove()
    for ax in axes[: len(looks)][-2:]:
        ax.set_xlabel("validation targets scored (thousands)")
        ax.tick_params(labelbottom=True)
    axes[0].plot([], [], color=BLACK, label="all chunks so far, band: 95 % interval")
    fig.supylabel("(c) less the reference's (bits per byte)", fontsize=8)
    parts.legend_below(fig, axes[:1])
    return fig


@parts.filled(2.8, "Do the learned inner rates stay at 1?", 1, 4, sharey=True)
def meta_sgd(axes: Any, table: pd.DataFrame) -> None:
    """The learned inner rates of all bank slots. Frame: `meta.meta_sgd`."""
    for ax, (bank, (label, _)) in zip(axes, style.BANKS.items(), strict=True):
        rows = table[table["bank"] == bank]
        looks = ((False, style.BLUE, 0.7, "free slots, every seed"), (True, BLACK, 1.6, "slots of frozen blocks"))
        for frozen, colour, width, entry in looks:
            for _, line in rows[rows["frozen"] == frozen].groupby(["arm", "seed", "slot"], sort=False):
                ax.plot([0, *line["step"]], [1.0, *line["rate"]], color=colour, lw=width, label=entry)
                if frozen:
                    alone = "weight decay alone (predicted)"
                    ax.plot([0, *line["step"]], [1.0, *line["predicted"]], color=YELLOW, lw=1, ls="--", label=alone)
        ax.set_xlabel("step")
        ax.xaxis.set_major_locator(MaxNLocator(3, integer=True))
        style.subtitle(ax, label)
    axes[0].set_ylabel("learned rate")


def interventions(table: pd.DataFrame) -> Figure:
    """What a meta call does to the loss and to the gradient. Frame: `meta.interventions`.

    Lines are means over seeds; the gain's to first order, its dots the difference of the two losses.
    """
    fig, looks = style.figure(4.6, "How large an intervention is a meta step?"), style.arms(table["arm"])
    panels = {
        "predicted_gain": "gain of the inner step (nats)\ndots: measured, line: first order",
        "displacement": "norm of the inner step",
        "meta_norm": "norm of the added gradient",
    }
    grid = fig.add_gridspec(2, 12)
    top = [fig.add_subplot(grid[0, 4 * i : 4 * i + 4]) for i in range(3)]
    for ax, (column, text) in zip(top, panels.items(), strict=True):
        _means(ax, table, column, text)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for arm, (_, colour) in looks.items():
        known = table[(table["arm"] == arm) & table["gained"].notna()]
        top[0].plot(known["step"], known["gained"], "o", color=colour, ms=2, alpha=0.5)
    for i, (bank, (text, _)) in enumerate(style.BANKS.items()):
        ax = fig.add_subplot(grid[1, 3 * i : 3 * i + 3], sharey=fig.axes[3] if i else None)
        ax.tick_params(labelleft=not i)
        _means(ax, table, f"cosine_{bank}", text)
        ax.axhline(0, color=BLACK, lw=0.8)
        ax.set_xlabel("step")
    fig.axes[3].set_ylabel("cosine of main\nand added gradient")
    parts.legend_below(fig, top[:1])
    return fig


def _means(ax: Axes, table: pd.DataFrame, column: str, text: str) -> None:
    """A panel under `text`: for each arm the mean over seeds at each step, where there is a value."""
    for arm, (label, colour) in style.arms(table["arm"]).items():
        means = table[table["arm"] == arm].dropna(subset=[column]).groupby("step")[column].mean()
        ax.plot(means.index, means, color=colour, lw=1, label=label)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    style.subtitle(ax, text)


def costs(table: pd.DataFrame) -> Figure:
    """What the meta calls compute, by counting. Frame: `meta.costs`."""
    looks = style.arms(table["arm"])
    fig = style.figure(1.1 + 0.28 * len(looks), "What does meta-learning cost?")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, column, scale in zip(axes, ("micro", "published_overhead"), (1, 100), strict=True):
        for y, row in enumerate(table.to_dict("records")):
            value = scale * row[column]
            ax.barh(y, value, height=0.6, color=looks[row["arm"]][1])
            text = "no calls" if not row["calls"] else f"{value:.2f}" if scale == 1 else f"+{value:.1f} %"
            style.note(ax, text, (value, y), (4, 0))
        parts.rows_axis(ax, [label for label, _ in looks.values()])
        ax.margins(x=0.25)
        ax.xaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_xlabel("micro-batches, forward and backward")
    axes[1].set_xlabel("% of all micro-batches")
    style.subtitle(axes[0], "a meta call, counted")
    style.subtitle(axes[1], "at the published cadence, 1,141 calls in 7,020 steps")
    return fig


# -- captions


def curves_caption(table: pd.DataFrame) -> str:
    """Where validation ended in each arm."""
    val = only(table, kind="val")
    ends = val[val["step"] == val["step"].max()].groupby("arm", sort=False)["bpb"].mean()
    looks = style.arms(table["arm"])
    text = ", ".join(f"{looks[str(arm)][0]} {bpb:.4f}" for arm, bpb in ends.items())
    return f"Validation of the current weights at step {val['step'].max():,}, bits per byte, mean over seeds: {text}."


def differences_caption(table: pd.DataFrame) -> str:
    """The differences of the score after TTT, and the smallest that would have been seen."""
    rows = only(table, measure="ttt").iloc[1:]
    if rows.empty:
        return "There is one arm: nothing to compare it with."
    listed = [f"{row['arm']} {style.change(row)}{doubt(row)}" for row in rows.to_dict("records")]
    text = f"After TTT, less the reference, bits per byte: {'; '.join(listed)}."
    seen = rows["detectable"].dropna() if "detectable" in rows else []
    return f"{text} Found 4 times out of 5: {min(seen):.4f} to {max(seen):.4f}." if len(seen) else text


def doubt(row: Mapping[str, Any]) -> str:
    """What to add to a difference without an interval."""
    return "" if has(row, "low") else ", too little text for an interval"


def gains_caption(table: pd.DataFrame) -> str:
    """The gain of adaptation in each arm, and its share of what is published as the TTT delta."""
    listed = []
    for row in only(table, kind="mean", measure="ttt_gain").to_dict("records"):
        context = one(table, kind="mean", measure="context_gain", arm=row["arm"])["gain"]
        both = row["gain"] + context
        share = f" ({100 * row['gain'] / both:.0f} % of c \u2212 a)" if both else ""
        listed.append(f"{row['arm']} {style.signed(row['gain'])}{share}")
    return f"Adaptation alone (c \u2212 b), bits per byte: {'; '.join(listed)}."


def chunks_caption(table: pd.DataFrame) -> str:
    """On how many chunks each arm is better."""
    better = table.groupby("arm", sort=False)["here"].agg(lambda here: f"{(here < 0).sum()} of {len(here)}")
    return f"Chunks on which an arm is better than the reference: {'; '.join(f'{a} {t}' for a, t in better.items())}."


def meta_sgd_caption(table: pd.DataFrame) -> str:
    """Where the rates end."""
    ends = table[table["step"] == table["step"].max()]
    free, frozen = (ends[ends["frozen"] == kind] for kind in (False, True))
    text = f"After {ends['calls'].max():,} meta calls rates of free slots are {free['rate'].min():.4f} to "
    text += f"{free['rate'].max():.4f}"
    if len(frozen):
        far = (frozen["rate"] - frozen["predicted"].astype(float)).abs().max()
        text += f"; those of frozen slots are within {far:.1e} of {frozen['predicted'].iloc[0]:.4f}, weight decay alone"
    return f"{text}."


def interventions_caption(table: pd.DataFrame) -> str:
    """The means over all meta calls."""
    listed = []
    for arm, rows in table.groupby("arm", sort=False):
        gain = f"gain {rows['predicted_gain'].mean():.1e}" if rows["displacement"].max() > 0 else "no inner step"
        listed.append(f"{arm} {gain}, gradient cosine {rows['cosine'].mean():.2f}")
    return f"Means over all meta calls, the gain to first order in nats: {'; '.join(listed)}."


def costs_caption(table: pd.DataFrame) -> str:
    """What a call computes, and that at the published cadence."""
    listed = [
        f"{row['arm']} {row['micro']:.2f} micro-batches (+{100 * row['published_overhead']:.1f} %)"
        for row in table.to_dict("records")
        if row["calls"]
    ]
    return f"A meta call, and all calls at the published cadence: {'; '.join(listed)}." if listed else "No meta calls."


FIGURES = {
    "ablation-curves": (curves, curves_caption),
    "ablation-differences": (differences, differences_caption),
    "ablation-gains": (gains, gains_caption),
    "ablation-chunks": (chunks, chunks_caption),
    "ablation-meta-sgd": (meta_sgd, meta_sgd_caption),
    "ablation-interventions": (interventions, interventions_caption),
    "ablation-costs": (costs, costs_caption),
}
