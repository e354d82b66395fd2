"""Which part of a model costs how many of the bytes that are allowed."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from golfcore.analysis.frames import frame
from golfcore.base.records import RunFolder
from golfcore.model.weights import ROLES
from golfcore.quant.artifact import info
from golfcore.runs.results import ARTIFACT

LABELS = {
    "qo": "attention: query, output",
    "kv": "attention: key, value",
    "up": "MLP: up",
    "down": "MLP: down",
    "tok_emb": "token embedding",
    "bigram": "n-gram table",
    "ve": "value embedding",
    "scales": "quantization scales",
    "halves": "projections, gains, gates",
    "header": "header",
    "frame": "frame, checksum",
    "code": "code",
}
GROUPS = {"matrices": ("qo", "kv", "up", "down"), "tables": ("tok_emb", "bigram", "ve"), "code": ("code",)}


def bytes_by_component(artifact_info: Mapping[str, Any], code_bytes: int, max_bytes: int) -> pd.DataFrame:
    """Rows of kind "component", the largest first, then one of kind "total".

    `artifact_info` is what `artifact.info` says. A component is a bank, a table, or what the file needs besides;
    `share` is of the total, `of_limit` of `max_bytes`. ValueError if the parts are not all of the file.
    """
    parts = {name: n for name, n in artifact_info["components"].items() if name in ("header", "frame")}
    for stream, n_bytes in artifact_info["streams"].items():  # "block3.query" is of the bank "qo", "scales.low": scales
        first, _, second = stream.partition(".")
        component = ROLES[second][0] if second in ROLES else first
        parts[component] = parts.get(component, 0) + n_bytes
    if sum(parts.values()) != artifact_info["bytes"]:
        raise ValueError(f"components of {sum(parts.values())} bytes in a file of {artifact_info['bytes']}")
    sizes = sorted((parts | {"code": code_bytes}).items(), key=lambda part: -part[1])
    total, rows = artifact_info["bytes"] + code_bytes, []
    group_of = {name: group for group, names in GROUPS.items() for name in names}
    for name, n_bytes in sizes:
        row = {"kind": "component", "component": name, "label": LABELS.get(name, name)}
        row |= {"group": group_of.get(name, "the rest of the file")}
        rows.append(row | {"bytes": n_bytes, "share": n_bytes / total, "of_limit": n_bytes / max_bytes})
    return frame([*rows, {"kind": "total", "bytes": total, "of_limit": total / max_bytes, "limit": max_bytes}])


def run_bytes(run: RunFolder) -> pd.DataFrame:
    """`bytes_by_component` of a finished run, with the code bytes and the limit that its results state."""
    stated = run.results()["artifact"]
    return bytes_by_component(info(run.file(ARTIFACT)), stated["code_bytes"], stated["max_bytes"])
