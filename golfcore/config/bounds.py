"""Fields of the configuration with what their numbers may be, and whether they belong to a run's identity."""

import re
from dataclasses import Field, field
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """The numbers that a field may hold, from "[0, 1)": a bracket includes its end, a parenthesis does not."""

    low: float
    high: float
    open_low: bool
    open_high: bool

    @classmethod
    def parse(cls, text: str) -> "Interval":
        found = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", text)
        assert found, text
        return cls(float(found[2]), float(found[3]), found[1] == "(", found[4] == ")")

    def __contains__(self, x: object) -> bool:
        """False also for NaN."""
        assert isinstance(x, (int, float))
        return (self.low < x if self.open_low else self.low <= x) and (
            x < self.high if self.open_high else x <= self.high
        )

    def __str__(self) -> str:
        low = f"more than {self.low:.10g}" if self.open_low else f"at least {self.low:.10g}"
        high = f"less than {self.high:.10g}" if self.open_high else f"at most {self.high:.10g}"
        return f"{low} and {high}"


def bounded(default: Any, interval: str, hashed: bool = True) -> Any:
    """A field whose numbers (in a tuple: each) lie in `interval`; `config.load` refuses others."""
    return field(default=default, metadata={"interval": Interval.parse(interval), "hashed": hashed})


def unhashed(default: Any, interval: str = "") -> Any:
    """A field that is recorded but changes no number of a run, so that no hash is taken of it."""
    return bounded(default, interval, hashed=False) if interval else field(default=default, metadata={"hashed": False})


def is_hashed(f: Field) -> bool:
    return f.metadata.get("hashed", True)


def interval(f: Field) -> Interval | None:
    """What the numbers of a field may be; None for one that holds none."""
    return f.metadata.get("interval")
