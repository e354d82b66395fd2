"""Weight space as PRs 1501 and 1502 computed it, flaws included: every two-way and three-way number, for any models.

Models are state dicts under the originals' names (`golfcore.interop.to_reference`). A stack (n, r, c) counts as the
matrix (n, r c), one row a slot: its singular values are in effect the slots' norms, sorted, and `noise` shows that
random numbers with those norms give the published ranks, conditions and overlaps. What is corrected is in
`golfcore.analysis.geometry`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import wishart

from golfcore.analysis.frames import frame
from golfcore.analysis.published import table
from golfcore.analysis.published_measures import (
    RATES,
    TINY,
    Decomposed,
    State,
    bank_spectrum,
    centroid,
    common,
    decompose,
    deltas,
    learned_rates,
    midpoint,
    midpoint_of,
    products,
    rounding_errors,
    spectrum,
    subspace_overlaps,
)

BANKS = ("qo_bank", "kv_bank", "mlp_up_bank", "mlp_down_bank")
LARGE = 65_536  # values of a tensor that spectra and overlaps look at


def two_way(a: State, b: State, least: int = LARGE) -> dict[str, Any]:
    """The report of exp101 (a) against exp105a (b): five analyses, nested and named as in the published JSON.

    `least`: values of the smallest tensor whose spectrum, overlap and rounding are looked at.
    """
    inner, large = products(a, b), _large(least, a, b)
    entries = deltas(a, inner)
    first, second = (decompose(s, large) for s in (a, b))
    overlaps = subspace_overlaps(first, second)
    errors = {x: {n: rounding_errors(s[n]) for n in _weights(least, a, b)} for x, s in (("101", a), ("105", b))}
    spectra = {x: {n: spectrum(d[n]) for n in large} for x, d in (("101", first), ("105", second))}
    mid = midpoint(inner)
    return {
        "analysis_1_weight_deltas": {
            "n_common": len(inner),
            "n_compared": len(entries),
            "top10_most_different": entries[:10],
            "bottom10_most_similar": entries[-10:],
            "all_entries": entries,
        },
        "analysis_2_quant_sensitivity": _sensitivity(a, errors),
        "analysis_3_regularizer_signature": {
            "n_layers": len(spectra["101"]),
            **{f"avg_{n}_{x}": v for x, s in spectra.items() for n, v in _averages(s, "cond").items()},
            **{f"log_lipschitz_{x}": _log_lipschitz(s) for x, s in spectra.items()},
            "per_layer": [
                {"name": n, "shape": list(a[n].shape)}
                | {f"{_short(q)}_{x}": v for x, s in spectra.items() for q, v in s[n].items() if q != "bottom5_sv"}
                for n in spectra["101"]
            ],
        },
        "analysis_4_subspace_overlap": {
            "n_layers": len(overlaps),
            "avg_avg_cosine": _mean(o["avg_cosine"] for o in overlaps),
            "avg_frac_near_aligned": _mean(o["frac_near_aligned"] for o in overlaps),
            "top5_most_aligned": overlaps[:5],
            "bottom5_most_divergent": overlaps[-5:],
            "per_layer": overlaps,
        },
        "analysis_5_interp_distance": {
            "n_layers": len(inner),
            "total_l2_distance": mid["l2_distance"],
            "total_norm_101": mid["norm_a"],
            "total_norm_105": mid["norm_b"],
            "total_norm_midpoint": mid["norm_midpoint"],
            "midpoint_norm_ratio": mid["midpoint_ratio"],
            "per_layer": [midpoint_of(n, p) for n, p in list(inner.items())[:10]],
        },
    }


def three_way(models: Mapping[str, State], least: int = LARGE) -> dict[str, Any]:
    """The report of any number of models in pairs and one by one: eight analyses, nested and named as published."""
    inner, names = products(*models.values()), list(models)
    pairs = {f"{names[i]}_vs_{names[j]}": (i, j) for i, j in combinations(range(len(names)), 2)}
    between = {pair: {n: p[list(ij)][:, list(ij)] for n, p in inner.items()} for pair, ij in pairs.items()}
    cut = {name: decompose(state, _large(least, *models.values())) for name, state in models.items()}
    overlaps = {pair: subspace_overlaps(cut[names[i]], cut[names[j]]) for pair, (i, j) in pairs.items()}
    rounded = _weights(least, *models.values())
    midpoints = {pair: midpoint(p) for pair, p in between.items()}
    deltas_of = {pair: deltas(models[names[i]], between[pair]) for pair, (i, j) in pairs.items()}
    cosines = {pair: _mean(e["cosine"] for e in es if e["name"] in BANKS) for pair, es in deltas_of.items()}
    sums: dict[str, dict[str, float]] = {"bank": {}, "nonbank": {}, "total": {}}
    for pair, p in between.items():
        sums["bank"][pair] = midpoint({n: x for n, x in p.items() if n in BANKS})["l2_distance"]
        sums["total"][pair] = midpoints[pair]["l2_distance"]
        sums["nonbank"][pair] = sums["total"][pair] - sums["bank"][pair]
    return {
        "analysis_1_pairwise_deltas": {pair: _delta_summary(entries) for pair, entries in deltas_of.items()},
        "analysis_2_pairwise_subspace": {pair: _overlap_summary(rows) for pair, rows in overlaps.items()},
        "analysis_3_spectral": {name: _spectral_summary(found) for name, found in cut.items()},
        "analysis_4_quant": {name: _rounding_summary(s, rounded) for name, s in models.items()},
        "analysis_5_mode_connectivity": {"pairwise": midpoints, "centroid": centroid(inner)},
        "analysis_6_error_surface": {n: {b: bank_spectrum(s[b]) for b in BANKS if b in s} for n, s in cut.items()},
        "analysis_7_metasgd": learned_rates(next((s for s in models.values() if RATES[0] in s), {})),
        "analysis_8_triangle": {
            **{f"{part}_l2_distances": found for part, found in sums.items()},
            "bank_avg_cosines": cosines,
            "triangle_shape": triangle(list(sums["total"].values())),
        },
    }


def beside_published(models: Mapping[str, State], least: int = LARGE) -> pd.DataFrame:
    """Every number of `two_way` (of the first two models) and `three_way`, beside that of the publications.

    Columns: report ("two-way", "three-way"), path (list entries by the tensor's name), here, published (NaN: it has
    none). Pairs and models are matched by their names: exp101, exp105a, exp106.
    """
    a, b, *_ = models.values()
    reports = {"two-way": two_way(a, b, least), "three-way": three_way(models, least)}
    rows = [
        {"report": kind, "path": path, "here": float(value)}
        for kind, report in reports.items()
        for path, value in flattened(report)
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    theirs = table("weight_space")
    theirs = theirs[(theirs["basis"] == "json") & theirs["number"].notna()]
    paths = [re.sub(r"\[\d+\](?=\.)", f"[{t}]", p) for p, t in zip(theirs["json_path"], theirs["tensor"], strict=True)]
    keys = theirs.assign(path=paths, report=theirs["comparison"].str.split(":").str[0])
    published = keys.drop_duplicates(["report", "path"])[["report", "path", "number"]]
    ours = frame(rows).drop_duplicates(["report", "path"])
    return ours.merge(published.rename(columns={"number": "published"}), how="left", on=["report", "path"])


def flattened(tree: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    """(path, value) of every leaf; an entry of a list goes by its "name", a bare value by its index."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flattened(value, f"{path}.{key}" if path else key)
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            label = value["name"] if isinstance(value, Mapping) and "name" in value else i
            yield from flattened(value, f"{path}[{label}]")
    else:
        yield path, tree


def noise(models: Mapping[str, State], repeats: int = 200, seed: int = 0) -> pd.DataFrame:
    """What independent Gaussian noise with each model's slot norms gives for the published measures of the banks.

    A row a bank and pair of models: `overlap` as measured between them; `noise_overlap`, the mean of `repeats` pairs of
    noise, with `noise_low` and `noise_high`, their extremes, and `z`, the distance from it in their standard
    deviations; `effective_rank`, `cond_number` of the first model and of noise with its norms. An overlap within the
    extremes says nothing of the models but the norms of their layers. Noise is drawn as its slots' inner products,
    which are Wishart distributed.
    """
    rng, rows = np.random.default_rng(seed), []

    def like(cut: Decomposed, norms: np.ndarray) -> Decomposed:
        n, columns = cut.shape[0], math.prod(cut.shape[1:])
        drawn = wishart.rvs(columns, np.eye(n), random_state=rng).reshape(n, n)
        scale = norms / np.sqrt(np.diag(drawn))
        squares, left = np.linalg.eigh(scale[:, None] * drawn * scale)
        values = torch.from_numpy(np.sqrt(squares.clip(0))[::-1].copy())
        return cut._replace(values=values, left=torch.from_numpy(left[:, ::-1].copy()))

    for bank in (b for b in BANKS if all(b in m for m in models.values())):
        cuts = {name: decompose(m, [bank])[bank] for name, m in models.items()}
        norms = {name: m[bank].flatten(1).double().norm(dim=1).numpy() for name, m in models.items()}
        fakes = {name: [like(cuts[name], norms[name]) for _ in range(repeats)] for name in models}
        for x, y in combinations(models, 2):
            drawn = [_mean_overlap(p, q) for p, q in zip(fakes[x], fakes[y], strict=True)]
            overlap = _mean_overlap(cuts[x], cuts[y])
            row = {"models": f"{x}_vs_{y}", "bank": bank, "overlap": overlap}
            row |= {"noise_overlap": _mean(drawn), "noise_low": min(drawn), "noise_high": max(drawn)}
            row["z"] = (overlap - _mean(drawn)) / max(float(np.std(drawn, ddof=1)), TINY)
            real, fake = bank_spectrum(cuts[x]), bank_spectrum(fakes[x][0])
            for quantity in ("effective_rank", "cond_number"):
                row |= {quantity: real[quantity], f"noise_{quantity}": fake[quantity]}
            rows.append(row)
    return frame(rows)


def tables(models: Mapping[str, State]) -> dict[str, pd.DataFrame]:
    """The published tables of banks, for any models, with what they left out.

    deltas: models, tensor (a bank, or "all"), l2, rel_l2, cosine. spectra: model, tensor, and the measures of
    `bank_spectrum`. overlaps: `noise`, its `z` (distance from the mean of noise in its standard deviations). midpoints:
    models, tensor, cosine, mid_over_a as published and `predicted` from cosine and norms alone.
    """
    deltas_of, middles = list[dict[str, Any]](), list[dict[str, Any]]()
    for x, y in combinations(models, 2):
        inner = products(models[x], models[y])
        whole = torch.stack(list(inner.values())).sum(0)
        for name, p in {**{n: q for n, q in inner.items() if n in BANKS}, "all": whole}.items():
            found, (aa, ab), bb = midpoint_of(name, p), p[0].tolist(), float(p[1, 1])
            row = {"models": f"{x}_vs_{y}", "tensor": name}
            cosine = ab / max((aa * bb) ** 0.5, TINY)
            deltas_of.append(
                row | {"l2": found["diff"], "rel_l2": found["diff"] / max(aa**0.5, TINY), "cosine": cosine}
            )
            predicted = (1 + bb / aa + 2 * cosine * (bb / aa) ** 0.5) ** 0.5 / 2 if aa else float("nan")
            middles.append(row | {"cosine": cosine, "mid_over_a": found["mid_over_a"], "predicted": predicted})
    cuts = {name: decompose(state, [b for b in BANKS if b in state]) for name, state in models.items()}
    kept = ("op_norm", "stable_rank", "cond_number", "effective_rank", "spectral_gap", "top5_energy_frac")
    spectra = [
        {"model": model, "tensor": bank} | {q: bank_spectrum(one)[q] for q in kept}
        for model, found in cuts.items()
        for bank, one in found.items()
    ]
    rows = {"deltas": deltas_of, "spectra": spectra, "midpoints": middles}
    return {name: frame(found) for name, found in rows.items()} | {"overlaps": noise(models)}


def published_midpoints() -> pd.DataFrame:
    """The published midpoints of tensors, with their cosine: tensor, cosine, mid_over_a, predicted (of equal norms)."""
    theirs = table("weight_space")
    two = theirs[theirs["comparison"].str.startswith("two-way") & (theirs["tensor"] != "")]
    cells = two[two["quantity"].isin(("cosine", "mid_over_a"))].drop_duplicates(["tensor", "quantity"])
    found = cells.pivot(index="tensor", columns="quantity", values="number").dropna().reset_index()
    return frame(found.assign(predicted=((1 + found["cosine"]) / 2) ** 0.5))


def _mean_overlap(a: Decomposed, b: Decomposed) -> float:
    return subspace_overlaps({"": a}, {"": b})[0]["avg_cosine"]


def triangle(sides: list[float]) -> str:
    """The published word for three distances."""
    short, middle, long = sorted(sides) if len(sides) == 3 else (0.0, 0.0, 1.0)
    if min(short, middle) / long > 0.85:
        return "near-equilateral (all three equally far)"
    return "elongated (two close, one far)" if short / long < 0.6 else "scalene (unequal but not extreme)"


# -- how the reports are put together


def _weights(least: int, *models: State) -> list[str]:
    wanted = (*BANKS, ".mlp.", ".attn.")
    return [n for n in common(*models) if any(w in n for w in wanted) and models[0][n].numel() > least]


def _large(least: int, *models: State) -> list[str]:
    return [n for n in common(*models) if models[0][n].numel() >= least]


def _sensitivity(a: State, errors: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    sizes = {name: a[name].numel() for name in errors["101"]}
    total, rows = max(sum(sizes.values()), 1), list[dict[str, Any]]()
    slots: dict[str, dict[str, Any]] = {}
    means = [sum(sum(es) for es in errors[m].values()) / total for m in ("101", "105")]
    for name, size in sizes.items():
        x, y = errors["101"][name], errors["105"][name]
        mse = {"mse_101": sum(x) / size, "mse_105": sum(y) / size, "delta_mse": (sum(y) - sum(x)) / size}
        row = {"name": name, "shape": list(a[name].shape), "numel": size}
        rows.append(row | mse | {"ratio_101_over_105": sum(x) / max(sum(y), TINY)})
        if a[name].ndim == 3:
            slots[name] = {f"slots_{m}": [e * len(x) / size for e in errors[m][name]] for m in errors}
            slots[name] |= {"n_slots_101_lower": sum(map(float.__lt__, x, y)), "n_slots_total": len(x)}
    return {
        "total_numel": total,
        "avg_mse_101": means[0],
        "avg_mse_105": means[1],
        "ratio_101_over_105": means[0] / max(means[1], TINY),
        "n_tensors_101_lower": sum(r["mse_101"] < r["mse_105"] for r in rows),
        "n_tensors_101_higher": sum(r["mse_101"] > r["mse_105"] for r in rows),
        "n_total": len(rows),
        "per_tensor": sorted(rows, key=lambda r: -r["ratio_101_over_105"]),
        "per_slot_banks": slots,
    }


def _delta_summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    banks, others = ([e for e in entries if (e["name"] in BANKS) == inside] for inside in (True, False))
    parts = {"bank": banks, "scalar": others}
    means = {f"{p}_avg_{q}": _mean(e[q] for e in es) for p, es in parts.items() for q in ("cosine", "rel_l2")}
    return {"n_compared": len(entries), **means, "top5_divergent": entries[:5], "top5_similar": entries[-5:]}


def _overlap_summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    keys = {"name": "name", "k": "k_subspace", "avg_cosine": "avg_cosine", "frac_aligned": "frac_near_aligned"}
    return {
        "n_layers": len(found),
        "avg_subspace_cosine": _mean(o["avg_cosine"] for o in found),
        "avg_frac_aligned": _mean(o["frac_near_aligned"] for o in found),
        "per_layer": [{key: o[of] for key, of in keys.items()} for o in found],
    }


def _spectral_summary(cut: Mapping[str, Decomposed]) -> dict[str, Any]:
    found = {name: spectrum(one) for name, one in cut.items()}
    rows = [{**s, "name": n, "shape": cut[n].shape} for n, s in found.items()]
    averages = {f"avg_{q}": v for q, v in _averages(found, "cond_number").items()}
    return {"n_layers": len(rows), **averages, "log_lipschitz": _log_lipschitz(found), "per_layer": rows}


def _rounding_summary(state: State, names: list[str]) -> dict[str, Any]:
    errors = {n: sum(rounding_errors(state[n])) for n in names}
    rows = [{"name": n, "mse": e / state[n].numel(), "numel": state[n].numel()} for n, e in errors.items()]
    total = sum(state[n].numel() for n in errors)
    return {"avg_mse": sum(errors.values()) / max(total, 1), "total_numel": total, "per_tensor": rows}


def _averages(spectra: Mapping[str, dict[str, Any]], condition: str) -> dict[str, float]:
    keys = {"op_norm": "op_norm", "fro_norm": "fro_norm", "stable_rank": "stable_rank", condition: "cond_number"}
    return {key: _mean(s[of] for s in spectra.values()) for key, of in keys.items()}


def _log_lipschitz(spectra: Mapping[str, dict[str, Any]]) -> float:
    return float(torch.tensor([s["op_norm"] for s in spectra.values()], dtype=torch.float64).log().sum())


def _short(quantity: str) -> str:
    return "cond" if quantity == "cond_number" else quantity


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
