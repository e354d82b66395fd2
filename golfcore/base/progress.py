"""Progress bars with an ETA: live on a terminal, a line now and then in a log."""

import sys

from tqdm import tqdm


def bar(total: float, label: str, unit: str, initial: float = 0, show: bool = True) -> tqdm:
    """A bar on standard error; `initial` is what an earlier, interrupted run had done. Ranks but the first hide it."""
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=unit,
        unit_scale=True,
        file=sys.stderr,
        leave=not live,
        dynamic_ncols=live,
        mininterval=0.2 if live else 15.0,
        smoothing=0.1,
        disable=not show,
    )
