"""Figures of modules that still draw rows: gone when each exports FIGURES of frames."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from golfcore.analysis import study_readings, token_readings
from golfcore.analysis.table import Table
from golfcore.plots import protocols, tokens


def _rows(frame: pd.DataFrame) -> Table:
    return Table({k: _plain(v) for k, v in row.items() if not pd.isna(v)} for row in frame.to_dict("records"))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _both(draw: Callable[[Table], Figure], say: Callable[[Table], str]) -> tuple:
    return partial(_call, draw), partial(_call, say)


def _call(function: Callable[[Table], Any], frame: pd.DataFrame) -> Any:
    return function(_rows(frame))


_NAMES = {
    (protocols, study_readings, "protocols"): "waterfall scores controls strides positions stream",
    (tokens, token_readings, "tokens"): "histogram exceedance concentration classes frequency pieces",
}
FIGURES = {
    f"{prefix}-{name.replace('_', '-')}": _both(getattr(plot, name), getattr(said, name))
    for (plot, said, prefix), names in _NAMES.items()
    for name in names.split()
}
