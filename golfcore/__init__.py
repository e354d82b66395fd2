"""golfcore: the laboratory for Parameter Golf. The names below are what `import golfcore as gc` offers.

What they need (torch, pandas, ...) is imported when one of them is first used; `gc.load` needs none of it.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["audit", "buckets", "geometry", "compare", "evaluate", "load", "open_artifact", "open_run", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'golfcore' has no attribute {name!r}")
    return getattr(import_module("golfcore.config" if name == "load" else "golfcore.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
