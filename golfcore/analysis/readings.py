"""What a table says, as a sentence or two made from its numbers. Nothing here knows how an experiment should end."""

from golfcore.analysis.table import Row, Table, number


class Reading(str):
    """Text that a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return self


def curves(table: Table) -> Reading:
    train, val, events = (table.only(kind=kind) for kind in ("train", "val", "event"))
    first, last = train[0], train[-1]
    text = (
        f"{number(last, 'step'):,.0f} steps took {number(last, 'elapsed'):,.1f} s; the smoothed training score went "
        f"from {number(first, 'bpb_smooth'):.3f} to {number(last, 'bpb_smooth'):.3f} bits per byte."
    )
    if val:
        text += (
            f" Validation ended at {number(val[-1], 'bpb'):.4f}, its best was {min(val.numbers('bpb')):.4f} "
            "(the current weights, not the average that is exported)."
        )
    if events:
        text += " Events: " + ", ".join(f"{row['event']} at step {number(row, 'step'):,.0f}" for row in events) + "."
    return Reading(text)


def waterfall(table: Table) -> Reading:
    rounding, context, adaptation = (table.one(measure=name) for name in ("static", "sliding", "ttt"))
    final, bigram = number(adaptation, "bpb"), number(table.one(measure="bigram"), "bpb")
    return Reading(
        f"Rounding {_change(rounding)}; longer context (b - a) {_change(context)}; adaptation (c - b) "
        f"{_change(adaptation)}. The final {final:.4f} is {abs(final - bigram):.4f} "
        f"{'below' if final < bigram else 'ABOVE'} an interpolated bigram model of the same training text ({bigram:.4f})."
    )


def ttt(table: Table) -> Reading:
    chunks, total = table.only(kind="chunk"), table.one(kind="total")
    after = [value for row, value in zip(chunks, chunks.numbers("here"), strict=True) if row["chunk"]]
    if not after:
        return Reading("There is one chunk only: it is scored before any adaptation, so there is nothing to compare.")
    helped = sum(value < 0 for value in after)
    return Reading(
        f"Over all chunks adaptation {_change(total)}. It helped on {helped} of the {len(after)} chunks that were scored "
        f"after some adaptation; the first is scored before any, so its difference is {chunks.numbers('here')[0]:.4f}."
    )


def buckets(table: Table) -> Reading:
    shared, split = (table.one(kind="summary", hashing=hashing, part="all") for hashing in ("shared", "split"))
    start, within = (table.one(kind="summary", hashing="split", part=part) for part in ("word start", "within word"))

    def both(column: str) -> str:
        return f"{100 * number(shared, column):.1f} % shared, {100 * number(split, column):.1f} % split"

    return Reading(
        f"{number(shared, 'pairs'):,.0f} different pairs meet {number(shared, 'rows'):,.0f} rows. Occurrences in a row "
        f"that several frequent pairs want: {both('contended')}; that read another pair's row: {both('not_own')}; "
        f"that read a row of the other class: {both('other_class')}. Split, each half has "
        f"{number(start, 'rows'):,.0f} rows: word starts bring {number(start, 'pairs'):,.0f} pairs and "
        f"{100 * number(start, 'share'):.1f} % of the occurrences to theirs, the rest {number(within, 'pairs'):,.0f} "
        f"pairs and {100 * number(within, 'share'):.1f} %."
    )


def losses(table: Table) -> Reading:
    rows = table.only(measure="sliding")
    parts = [
        f"{row['class']}: {100 * number(row, 'share'):.1f} % of targets, {100 * number(row, 'share_of_loss'):.1f} % of the "
        f"loss, {number(row, 'bits_per_target'):.2f} bits each"
        for row in rows
    ]
    gains = [
        (number(table.one(measure="ttt", **{"class": row["class"]}), "bpb") - number(row, "bpb"), row["class"]) for row in rows
    ]
    change, name = max(gains, key=lambda pair: abs(pair[0]))
    return Reading(f"{'; '.join(parts)}. Adaptation moves most at {name}: {change:+.4f} of the score.")


def sizes(table: Table) -> Reading:
    parts, total = table.only(kind="component"), table.one(kind="total")
    used, limit = number(total, "bytes"), number(total, "limit")
    largest = ", ".join(f"{row['label']} {100 * number(row, 'share'):.1f} %" for row in parts[:3])
    left = f"{limit - used:,.0f} bytes are free" if used <= limit else f"{used - limit:,.0f} bytes TOO MANY"
    return Reading(f"{used:,.0f} of {limit:,.0f} bytes, {left}. The largest parts: {largest}.")


def _change(row: Row) -> str:
    """ "lowers the score by 0.0101 (95 % interval -0.0122 to -0.0080)"."""
    difference = number(row, "difference")
    verb = "lowers" if difference < 0 else "raises" if difference > 0 else "changes"
    text = f"{verb} the score by {abs(difference):.4f}"
    if row.get("low") is None:
        return f"{text} (too few chunks for an interval)"
    low, high = number(row, "low"), number(row, "high")
    doubt = ", which includes no change" if low <= 0 <= high else ""
    return f"{text} (95 % interval {low:+.4f} to {high:+.4f}{doubt})"
