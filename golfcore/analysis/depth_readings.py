"""What the tables of depth recurrence say, as sentences made from their numbers. Nothing here knows how it ends."""

from golfcore.analysis.claims import both
from golfcore.analysis.readings import Reading
from golfcore.analysis.table import Row, Table, number

NAMES = {"attn_scale": "attention", "mlp_scale": "MLP", "mix_x": "mix of the stream", "mix_x0": "mix of the embedding"}


def sizes(table: Table) -> Reading:
    parts = []
    for arm in dict.fromkeys(str(row["arm"]) for row in table):
        rows = table.only(arm=arm)
        held, n_bytes = sum(rows.numbers("parameters")), sum(rows.numbers("bytes"))
        share = number(rows.one(part="matrices"), "bytes") / n_bytes
        parts.append(
            f"{arm} {held:,.0f} parameters in {n_bytes:,.0f} bytes, {8 * n_bytes / held:.2f} bits each, "
            f"{100 * share:.0f} % of the bytes matrices"
        )
    return Reading(f"{'; '.join(parts)}.")


def tradeoff(table: Table) -> Reading:
    """Scores by bytes and by compute, and which arm no other beats in both."""
    means, parts = table.only(kind="arm"), []
    for row in means:
        cost = f"{number(row, 'bytes'):,.0f} bytes and {number(row, 'flops'):.2e} FLOPs"
        parts.append(f"{row['arm']} {number(row, 'ttt'):.4f} at {cost}")
    best = {name: min(means, key=lambda row: number(row, name))["arm"] for name in ("static", "sliding", "ttt")}
    lowest = ", ".join(f"({letter}) {arm}" for letter, arm in zip("abc", best.values(), strict=True))
    beaten = [f"{other['arm']} than {row['arm']}" for row in means for other in means if _dominates(other, row)]
    front = f"No larger, no dearer and by the mean better: {', '.join(beaten)}." if beaten else ""
    return Reading(f"Mean after TTT: {'; '.join(parts)}. Lowest mean: {lowest}. {front}".strip())


def _dominates(other: Row, row: Row) -> bool:
    """No larger, no dearer, and better."""
    costs = ("bytes", "flops")
    return all(number(other, c) <= number(row, c) for c in costs) and number(other, "ttt") < number(row, "ttt")


def differences(table: Table) -> Reading:
    """Each contrast of the score after TTT, and whether both kinds of chance leave it standing."""
    rows = [row for row in table if row["measure"] == "ttt"]
    if not rows:
        return Reading("There is one arm: nothing to compare it with.")
    parts = [
        f"{row['arm']} less {row['other']} (equal {row['equal']}; {number(row, 'bytes_ratio'):.2f} times the bytes, "
        f"{number(row, 'flops_ratio'):.2f} times the compute): {number(row, 'difference'):+.4f}, {_verdict(row)}"
        for row in rows
    ]
    return Reading(f"After TTT, in bits per byte. {'. '.join(parts)}.")


def _verdict(row: Row) -> str:
    found = both(row)
    if found is None:
        return "not resolved (too few seeds or chunks for an interval)"
    interval = f"{found.low:+.4f} to {found.high:+.4f}"
    if found.low <= 0 <= found.high:
        return f"not resolved ({interval} includes no difference)"
    return f"{row['arm']} is {'better' if found.high < 0 else 'worse'} ({interval})"


def curves(table: Table) -> Reading:
    val, parts = table.only(kind="val"), []
    for arm in dict.fromkeys(str(row["arm"]) for row in val):
        rows = val.only(arm=arm)
        last = max(rows.numbers("step"))
        ends = [number(row, "bpb") for row in rows if row["step"] == last]
        flops = max(rows.numbers("flops"))
        parts.append(f"{arm} {sum(ends) / len(ends):.4f} after {last:,.0f} steps and {flops:.2e} FLOPs")
    return Reading(f"Validation of the current weights, bits per byte: {'; '.join(parts)}.")


def scales(table: Table) -> Reading:
    """For the first arm, what training changed in each layer's means, beside their spread over channels."""
    arm = str(table[0]["arm"])
    layers, skips, parts = table.only(kind="layer", arm=arm), table.only(kind="skip", arm=arm), []
    for name, label in NAMES.items():
        rows = layers.only(name=name)
        changes = {i: _change(rows.only(layer=i)) for i in sorted({int(number(row, "layer")) for row in rows})}
        low, high = min(changes, key=lambda i: changes[i]), max(changes, key=lambda i: changes[i])
        spread = sum(rows.numbers("spread")) / len(rows)
        ends = f"{changes[low]:+.3f} (layer {low}) to {changes[high]:+.3f} (layer {high})"
        parts.append(f"{label} {ends}, spread over channels {spread:.3f}")
    text = f"Change of the mean since initialization, over seeds, in {arm}: {'; '.join(parts)}."
    if skips:
        found = skips.numbers("mean")
        text += f" Skip weights are {min(found):.3f} to {max(found):.3f}."
    return Reading(text)


def _change(rows: Table) -> float:
    return sum(number(row, "mean") - number(row, "start") for row in rows) / len(rows)


def specialisation(table: Table) -> Reading:
    """The share of variance that a block's applications have in common, beside layers that share nothing."""
    parts = []
    for name, label in NAMES.items():
        found = []
        for arm in dict.fromkeys(str(row["arm"]) for row in table):
            rows = table.only(arm=arm, name=name)
            common, level = rows.numbers("common"), rows.numbers("level")
            if common:
                text = f"{arm} {100 * sum(common) / len(common):.0f} % (level {100 * sum(level) / len(level):.0f} %)"
                found.append(text)
        if found:
            parts.append(f"{label}: {', '.join(found)}")
    times = max(table.numbers("applications"))
    return Reading(
        "Variance of what training changed that all applications of a block have in common (level: that their means "
        f"differ). {'; '.join(parts)}. {times:.0f} unrelated applications would have {100 / times:.0f} % in common."
    )
