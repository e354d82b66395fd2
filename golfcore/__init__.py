"""golfcore: the laboratory for Parameter Golf. See README.md for a map."""

__version__ = "0.1.0"
