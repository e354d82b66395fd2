"""What the tables of a study say, as sentences made from their numbers. Nothing here knows how it should end."""

from golfcore.analysis.readings import Reading
from golfcore.analysis.table import Row, Table, number


def _with_interval(row: Row, column: str) -> str:
    """ "-0.0101 (95 % over text -0.0122 to -0.0080)"."""
    text = f"{number(row, column):+.5f}"
    if row.get("low") is None:
        return f"{text} (too few chunks for an interval)"
    low, high = number(row, "low"), number(row, "high")
    doubt = ", which includes no change" if low <= 0 <= high else ""
    return f"{text} (95 % over text {low:+.5f} to {high:+.5f}{doubt})"


def waterfall(table: Table) -> Reading:
    rows = {str(row["label"]): row for row in table}
    names = {"b": "longer context (b - a)", "c": "adaptation (c - b)"}
    parts = [f"{text} brings {_with_interval(rows[k], 'difference')}" for k, text in names.items() if k in rows]
    text = f"In bits per byte: {'; '.join(parts)}." if parts else "Neither b nor c was measured."
    if {"a", "b", "c"} <= rows.keys():
        a, b, c = (number(rows[label], "bpb") for label in "abc")
        if c != a:
            text += f" Of c - a, what was published as one number, {100 * (b - a) / (c - a):.0f} % is context."
    floats = [f"({k}) {number(row, 'difference'):+.5f}" for k, row in rows.items() if row["group"] == "float"]
    return Reading(text + (f" Without rounding: {', '.join(floats)}." if floats else ""))


def gains(table: Table) -> Reading:
    parts = [f"{row['gain']}: {_with_interval(row, 'value')}" for row in table.only(kind="gain")]
    contrasts = [f"{row['is']}: {_with_interval(row, 'value')}" for row in table.only(kind="contrast")]
    text = f"Gains in bits per byte: {'; '.join(parts)}."
    return Reading(text + (f" One gain less another: {'; '.join(contrasts)}." if contrasts else ""))


def scores(table: Table) -> Reading:
    legal = [row for row in table if row["legality"] != "train-first"]
    best = min(legal, key=lambda row: number(row, "bpb"))
    text = f"The best admissible score is {number(best, 'bpb'):.4f} ({best['label']}, {best['legality']})."
    parts = [
        f"{row['label']} {number(row, 'bpb'):.4f}, {number(row, 'bpb') - number(best, 'bpb'):+.4f} against it"
        for row in table
        if row["legality"] == "train-first"
    ]
    if parts:
        text += f" Trained on targets before they were scored, so no scores of a code: {'; '.join(parts)}."
    return Reading(text)


def controls(table: Table) -> Reading:
    parts = []
    for group in dict.fromkeys(str(row["group"]) for row in table):
        rows = [row for row in table if row["group"] == group and row.get("difference") is not None]
        if group == "abc" or not rows:
            continue
        best = min(rows, key=lambda row: number(row, "difference"))
        parts.append(f"{group}: {best['label']} {_with_interval(best, 'difference')}")
    base = table.only(label="c")
    text = f"(c) gains {_with_interval(base[0], 'difference')}." if base else "(c) was not measured."
    return Reading(f"{text} The lowest difference to its reference in each group: {'; '.join(parts)}.")


def strides(table: Table) -> Reading:
    first, best = table[0], min(table, key=lambda row: number(row, "bpb"))
    seconds = number(best, "seconds") / max(number(first, "seconds"), 1e-9)
    change = number(best, "bpb") - number(first, "bpb")
    return Reading(
        f"The lowest score is that of {best['label']}: {change:+.5f} against {first['label']}, for "
        f"{number(best, 'computed') / number(first, 'computed'):g} times the tokens computed and {seconds:.1f} times "
        "the seconds."
    )


def positions(table: Table) -> Reading:
    whole = sum(number(row, "change") * number(row, "targets") for row in table)
    targets = sum(table.numbers("targets"))
    text = f"A sliding window changes the mean target by {whole / targets:+.4f} bits."
    half = next((row for row in table if row.get("so_far") is not None and number(row, "so_far") >= 0.5), None)
    if half:
        here = sum(number(row, "targets") for row in table if number(row, "stop") <= number(half, "stop"))
        text += (
            f" Half of that comes from the first {number(half, 'stop'):,.0f} positions of a window, "
            f"{100 * here / targets:.1f} % of the targets."
        )
    first, last = table[0], table[-1]
    return Reading(
        f"{text} Under (a) a target costs {number(first, 'static'):.2f} bits in the first position and "
        f"{number(last, 'static'):.2f} in the last ones; under (b) the same targets cost "
        f"{number(first, 'sliding'):.2f} and {number(last, 'sliding'):.2f}."
    )


def stream(table: Table) -> Reading:
    parts = []
    for label in dict.fromkeys(str(row["label"]) for row in table):
        rows = table.only(label=label)
        helped = sum(value < 0 for value in rows.numbers("here"))
        parts.append(f"{label} {_with_interval(rows[-1], 'difference')}, better on {helped} of {len(rows)} chunks")
    return Reading(f"Against (b), over the whole text: {'; '.join(parts)}.")
