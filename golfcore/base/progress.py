"""Progress with an ETA: bars on a terminal, a line a stage in a log."""

import math
import sys
from typing import Any

from tqdm import tqdm

LOG_SECONDS = 60.0  # between the lines of a long stage in a log


class LogBar(tqdm):
    """The same as lines in a log: one when the work ends, and for long work one a minute. Inner bars stay silent."""

    monitor_interval = 0  # no thread that refreshes
    disable: bool

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if not self.pos and self.n:
            facts = self.format_dict
            rate = facts["rate"] or (self.n - self.initial) / max(facts["elapsed"], 1e-9)
            left = f", {tqdm.format_interval((self.total - self.n) / rate)} left" if rate else ""
            self._line(f"{self.n / self.total:.0%} of {_amount(self.total)} {self.unit}{left}")

    def close(self) -> None:
        if self.disable:
            return
        self.disable, inner = True, bool(self.pos)
        self._decr_instances(self)
        if not inner:
            of = f" of {_amount(self.total - self.initial)}" if self.n < self.total else ""
            seconds = self.format_dict["elapsed"]
            self._line(f"{_amount(self.n - self.initial)}{of} {self.unit} in {seconds:.1f} s")

    def _line(self, text: str) -> None:
        postfix = f", {self.postfix}" if self.postfix else ""
        self.fp.write(f"{self.desc.removesuffix(': ')}: {text}{postfix}\n")
        self.fp.flush()


def _amount(n: float) -> str:
    return f"{n:,.0f}" if n < 1e5 else tqdm.format_sizeof(n)


def bar(total: float, label: str, unit: str, initial: float = 0, show: bool = True) -> tqdm:
    """Progress on standard error; `initial` is what an earlier, interrupted run had done. Ranks but the first hide it.

    A terminal shows a bar, which goes when the work is done; a log gets lines.
    """
    settings: dict[str, Any] = {"total": total, "initial": initial, "desc": label, "unit": unit, "file": sys.stderr}
    if sys.stderr is None or not show:
        return tqdm(**settings, disable=True)
    settings["smoothing"] = 0.1
    if sys.stderr.isatty():
        return tqdm(**settings, unit_scale=True, leave=False, dynamic_ncols=True, mininterval=0.2)
    return LogBar(**settings, mininterval=LOG_SECONDS, maxinterval=math.inf, miniters=1, delay=1e-9)
