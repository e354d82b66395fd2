"""Figures of what the publications logged, or of their arithmetic alone; nothing here was measured by golfcore."""

from typing import Any

import pandas as pd

from golfcore.plots import parts
from golfcore.plots.style import BLUE, GREEN, GREY, ORANGE, RED

SYSTEMS = {"exp101": BLUE, "exp105a": GREEN, "exp106": RED, "pr398": ORANGE}


@parts.filled(2.7, "What did a step cost? (published logs)")
def steps(ax: Any, table: pd.DataFrame) -> None:
    """Published step times. Frame: `published.step_times`."""
    for system, colour in SYSTEMS.items():
        for number, (_, rows) in enumerate(table[table["system"] == system].groupby("run")):
            ax.plot(rows["step"], rows["ms"], "o-", ms=2.5, color=colour, label=None if number else system)
    ax.set_ylim(0, table["ms"].quantile(0.98) * 1.15)
    ax.set_xlabel("step")
    ax.set_ylabel("ms a step since the last log line")


def say_steps(table: pd.DataFrame) -> str:
    by = table.groupby("system")["ms"].median()
    said = ", ".join(f"{system} {ms:.0f}" for system, ms in by.items())
    return f"As published, each system on its own machine: median milliseconds a step {said}."


@parts.filled(2.7, "How wrong are bfloat16 rotary angles? (arithmetic)")
def angles(ax: Any, table: pd.DataFrame) -> None:
    """Errors of bfloat16 rotary angles by position. Frame: `published.angle_errors`."""
    n = table["frequency"].max() + 1
    for frequency, rows in table.groupby("frequency"):
        shade = BLUE if frequency == 0 else GREY
        label = {0: "fastest frequency", n - 1: "slower ones"}.get(frequency)
        near = rows.groupby(rows["position"] // 32)[["position", "degrees"]].mean()
        ax.plot(near["position"], near["degrees"], color=shade, lw=0.8, alpha=1 if frequency == 0 else 0.6, label=label)
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_ylim(0)
    ax.set_xlabel("position")
    ax.set_ylabel("degrees, mean of 32 positions")


def say_angles(table: pd.DataFrame) -> str:
    fast = table[table["frequency"] == 0]
    return (
        f"Below position 256 bfloat16 holds every position; up to {table['position'].max()} the fastest angle is wrong "
        f"by up to {fast['degrees'].max():.0f} degrees, in the mean {fast['degrees'].mean():.0f}."
    )


FIGURES = {"published-steps": (steps, say_steps), "published-angles": (angles, say_angles)}
