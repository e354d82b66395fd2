"""The golden case of the weight-space reports: every number of the originals' JSON."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from golfcore.analysis.published_measures import RATES, State
from golfcore.analysis.weight_space import three_way, two_way

# of singular values, which float32 gives within 7e-6 on one processor or another: their squares to twice that
SQUARES = ("stable_rank", "stable_rank_101", "stable_rank_105", "hessian_trace_proxy")
LOOSE = ("angles", "cosine", "delta_mse", "spectral_gap")  # small differences of large numbers, in the originals too


def states(meta: dict, arrays: dict, generate: Callable[[dict], dict]) -> list[State]:
    """The three models as recorded, or made by the file's rule from its seeds."""
    if any(key.startswith("sd0/") for key in arrays):
        keys = [[k for k in arrays if k.startswith(f"sd{i}/")] for i in range(3)]
        return [{k.split("/", 1)[1]: torch.from_numpy(arrays[k]) for k in group} for group in keys]
    rules, order = meta["rules"], [tuple(x) for x in meta["state_order"]]
    first = generate({"seed": meta["cfg"]["seed_base"], "param_order": order, "rules": rules})
    made = [first]
    for seed, amplitude in meta["cfg"]["noise"]:
        noise = generate({"seed": seed, "param_order": order, "rules": rules})
        moved = {n: np.float32(first[n] + np.float32(amplitude) * noise[n]) for n in first}
        made.append(moved | {"bigram.scale": noise["bigram.scale"]})
    made[-1] |= generate({"seed": seed + 1, "param_order": meta["meta_sgd_order"], "rules": rules})
    return [{n: torch.from_numpy(np.asarray(v)) for n, v in model.items()} for model in made]


def differences(want: Any, found: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, what is wrong, or "") of every leaf of the recorded report."""
    if isinstance(want, dict):
        for key in want:
            yield from differences(want[key], found.get(key), f"{path}/{key}")
    elif isinstance(want, list):
        if len(want) != len(found):
            yield path, f"{len(found)} entries instead of {len(want)}"
        for i, pair in enumerate(zip(want, found, strict=False)):
            yield from differences(*pair, f"{path}[{i}]")
    elif isinstance(want, bool | str) or want is None:
        yield path, "" if want == found else f"{found!r} instead of {want!r}"
    else:
        relative = 5e-3 if any(word in path for word in LOOSE) else 2e-5 if path.endswith(SQUARES) else 1e-5
        close = isinstance(found, int | float) and abs(found - want) <= relative * abs(want) + 1e-12
        yield path, "" if close else f"{found!r} instead of {want!r}"


def compare(meta: dict, arrays: dict, generate: Callable[[dict], dict], note: Callable[[bool, str], None]) -> None:
    models = states(meta, arrays, generate)
    report = {"two_way": two_way(*models[:2])}
    report["three_way"] = three_way(dict(zip(("exp101", "exp105a", "exp106"), models, strict=True)))
    assert set(RATES) <= models[2].keys()
    for path, wrong in differences(json.loads(str(arrays["out/json"])), report):
        note(not wrong, f"{path}: {wrong}")
