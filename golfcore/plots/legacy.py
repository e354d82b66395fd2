"""Figures of modules that still draw rows: gone when each exports FIGURES of frames."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from golfcore.analysis import ablation_readings, depth_readings, study_readings, token_readings
from golfcore.analysis import suite as suite_analysis
from golfcore.analysis.table import Table
from golfcore.plots import ablation, depth, protocols, suite, tokens


def _rows(frame: pd.DataFrame) -> Table:
    return Table({k: _plain(v) for k, v in row.items() if not pd.isna(v)} for row in frame.to_dict("records"))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _both(draw: Callable[[Table], Figure], say: Callable[[Table], str]) -> tuple:
    return partial(_call, draw), partial(_call, say)


def _call(function: Callable[[Table], Any], frame: pd.DataFrame) -> Any:
    return function(_rows(frame))


_NAMES = {
    (ablation, ablation_readings, "ablation"): "curves differences gains chunks meta_sgd interventions costs",
    (protocols, study_readings, "protocols"): "waterfall scores controls strides positions stream",
    (tokens, token_readings, "tokens"): "histogram exceedance concentration classes frequency pieces",
    (depth, depth_readings, "depth"): "sizes tradeoff differences curves scales specialisation",
}
FIGURES = {
    f"{prefix}-{name.replace('_', '-')}": _both(getattr(plot, name), getattr(said, name))
    for (plot, said, prefix), names in _NAMES.items()
    for name in names.split()
} | {"ablation-suite": _both(suite.suite, suite_analysis.reading)}
