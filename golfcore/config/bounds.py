"""Fields of the configuration with what their numbers may be, and whether they belong to a run's identity."""

from dataclasses import Field, field
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """The numbers that a field may hold; an open end is not one of them."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    def __contains__(self, x: Any) -> bool:
        """False also for NaN."""
        return self.low <= x <= self.high and not (self.open_low and x == self.low or self.open_high and x == self.high)

    def __str__(self) -> str:
        low = f"more than {self.low:.10g}" if self.open_low else f"at least {self.low:.10g}"
        return f"{low} and {'less than' if self.open_high else 'at most'} {self.high:.10g}"


def bounded(default: Any, interval: str, hashed: bool = True) -> Any:
    """A field whose numbers (in a tuple: each) lie in `interval`, as "[0, 1)": without 1."""
    low, high = map(float, interval[1:-1].split(", "))
    allowed = Interval(low, high, interval[0] == "(", interval[-1] == ")")
    return field(default=default, metadata={"interval": allowed, "hashed": hashed})


def unhashed(default: Any, interval: str = "") -> Any:
    """A field that is recorded but changes no number of a run, so that no hash is taken of it."""
    return bounded(default, interval, hashed=False) if interval else field(default=default, metadata={"hashed": False})


def is_hashed(f: Field) -> bool:
    return f.metadata.get("hashed", True)


def interval(f: Field) -> Interval | None:
    """What the numbers of a field may be; None for one that holds none."""
    return f.metadata.get("interval")
