"""What the tables of an ablation say, as sentences made from their numbers. Nothing here knows how it should end."""

from golfcore.analysis.claims import OPEN, REFUTED, REPRODUCED, both
from golfcore.analysis.readings import Reading
from golfcore.analysis.table import Table, number


def curves(table: Table) -> Reading:
    val = table.only(kind="val")
    last = max(val.numbers("step"))
    ends: dict[str, list[float]] = {}
    for row in val:
        if row["step"] == last:
            ends.setdefault(str(row["arm"]), []).append(number(row, "bpb"))
    parts = [f"{arm} {sum(v) / len(v):.4f} (seeds {min(v):.4f} to {max(v):.4f})" for arm, v in ends.items()]
    return Reading(f"Validation of the current weights at step {last:,.0f}, bits per byte: {'; '.join(parts)}.")


def differences(table: Table) -> Reading:
    """For the score after TTT: what differs from the reference by both intervals, and what could have been seen."""
    rows = Table(row for row in table if row["measure"] == "ttt" and row.get("difference") is not None)
    if not rows:
        return Reading("There is one arm: nothing to compare it with.")
    parts = []
    for row in rows:
        found, text = both(row), f"{row['arm']} {number(row, 'difference'):+.5f}"
        if found is None:
            parts.append(f"{text} (too few seeds or chunks for an interval)")
            continue
        doubt = ", which includes no change" if found.low <= 0 <= found.high else ""
        parts.append(f"{text} ({found.low:+.5f} to {found.high:+.5f}{doubt})")
    seen = [number(row, "mde_seeds") for row in rows if row.get("mde_seeds") is not None]
    could = (
        f" With these seeds a true difference of {min(seen):.5f} to {max(seen):.5f} would be found 4 times out of 5."
        if seen
        else ""
    )
    return Reading(
        "After TTT, against the reference, with the interval that holds those over seeds and over chunks: "
        f"{'; '.join(parts)}.{could}"
    )


def gains(table: Table) -> Reading:
    parts = []
    for row in table.only(kind="mean", measure="ttt_gain"):
        context = number(table.one(kind="mean", measure="context_gain", arm=row["arm"]), "gain")
        gain = number(row, "gain")
        share = f", {100 * gain / (gain + context):.0f} % of c - a" if gain + context else ""
        parts.append(f"{row['arm']} {gain:+.5f}{share}")
    return Reading(
        f"Adaptation alone (c - b) brings, in bits per byte: {'; '.join(parts)}. The rest of c - a is longer context."
    )


def chunks(table: Table) -> Reading:
    parts = []
    for arm in dict.fromkeys(row["arm"] for row in table):
        here = table.only(arm=arm).numbers("here")
        parts.append(f"{arm} is better on {sum(value < 0 for value in here)} of {len(here)} chunks")
    return Reading(f"Against the reference {'; '.join(parts)}.")


def meta_sgd(table: Table) -> Reading:
    last = max(table.numbers("step"))
    ends = table.only(step=int(last))
    frozen, free = (Table(row for row in ends if row["frozen"] is kind) for kind in (True, False))
    rates = free.numbers("rate")
    calls = max(ends.numbers("calls"))
    text = f"After {calls:,.0f} meta calls the rates of free slots are {min(rates):.4f} to {max(rates):.4f}."
    if frozen:
        far = max(abs(number(row, "rate") - number(row, "predicted")) for row in frozen)
        text += (
            f" Those of frozen slots are at {min(frozen.numbers('rate')):.4f}; weight decay alone predicts "
            f"{frozen.numbers('predicted')[0]:.4f}, and no frozen slot is further from it than {far:.1e}."
        )
    return Reading(text)


def interventions(table: Table) -> Reading:
    parts = []
    for arm in dict.fromkeys(row["arm"] for row in table):
        rows = table.only(arm=arm)
        gained, moved = (rows.numbers(name) for name in ("predicted_gain", "displacement"))
        cosine = sum(rows.numbers("cosine")) / len(rows.numbers("cosine"))
        inner = f"the inner step gains {sum(gained) / len(gained):.1e} nats" if max(moved) > 0 else "no inner step"
        parts.append(f"{arm}: {inner}, displacement {sum(moved) / len(moved):.1e}, gradient cosine {cosine:.2f}")
    return Reading(f"Means over all meta calls, the gain to first order. {'; '.join(parts)}.")


def costs(table: Table) -> Reading:
    parts = [
        f"{row['arm']} {1000 * number(row, 'call_seconds'):.0f} ms a call, {number(row, 'micro'):.2f} micro-batches, "
        f"+{100 * number(row, 'overhead'):.1f} % of training here, "
        f"+{100 * number(row, 'published_overhead'):.1f} % at the published cadence"
        for row in table.only(kind="arm")
        if row["calls"]
    ]
    peaks = [
        f"{row['arm']} {number(row, 'peak_bytes') / 2**20:,.0f} MiB"
        for row in table.only(kind="arm")
        if row.get("peak_bytes")
    ]
    memory = f" Peak memory of a call: {'; '.join(peaks)}." if peaks else " Memory is recorded on GPUs only."
    return Reading(f"{'; '.join(parts) or 'No arm made a meta call'}.{memory}")


def claims(table: Table) -> Reading:
    count = {verdict: sum(row["verdict"] == verdict for row in table) for verdict in (REPRODUCED, REFUTED, OPEN)}
    return Reading(f"Of {len(table)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in count.items()) + ".")
