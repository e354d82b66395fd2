"""What the tables of losses by token say, as sentences made from their numbers."""

from golfcore.analysis.readings import Reading
from golfcore.analysis.table import Table, number
from golfcore.analysis.token_losses import THRESHOLDS


def _last(table: Table) -> tuple[str, Table]:
    """The last evaluation in a table, and its rows."""
    name = [str(row["measure"]) for row in table if row["measure"] != "published"][-1]
    return name, table.only(measure=name)


def histogram(table: Table) -> Reading:
    name, rows = _last(table)
    top = max(rows, key=lambda row: number(row, "targets"))
    below = sum(number(row, "share") for row in rows if number(row, "low") < THRESHOLDS[0])
    return Reading(
        f"Under {name} {100 * below:.1f} % of the targets cost less than {THRESHOLDS[0]:g} nat; the fullest bin starts "
        f"at {number(top, 'low'):g} nats and holds {100 * number(top, 'share'):.1f} %."
    )


def exceedance(table: Table) -> Reading:
    name, rows = _last(table)
    parts = [
        f"> {number(row, 'threshold'):g}: {100 * number(row, 'share'):.1f} % of targets, "
        f"{100 * number(row, 'share_of_loss'):.1f} % of the loss"
        for row in rows
    ]
    theirs = table.only(measure="published")
    wrong = [
        f"> {number(row, 'threshold'):g} ({100 * number(row, 'share_of_loss'):.0f} % where the counts need at least "
        f"{100 * number(row, 'bound_low'):.1f} %)"
        for row in theirs
        if row["impossible"]
    ]
    text = f"Under {name}, by nats: {'; '.join(parts)}."
    if wrong:
        return Reading(
            f"{text} {len(wrong)} of {len(theirs)} published shares contradict their own counts: {'; '.join(wrong)}."
        )
    return Reading(f"{text} No published share contradicts its own count.")


def concentration(table: Table) -> Reading:
    name, rows = _last(table)
    parts = []
    for share in (0.1, 0.25, 0.5):
        row = min(rows, key=lambda row: abs(number(row, "share") - share))
        parts.append(f"{100 * number(row, 'share'):.0f} % bring {100 * number(row, 'share_of_loss'):.1f} %")
    return Reading(f"Under {name}, of the targets the hardest {'; '.join(parts)} of the loss.")


def classes(table: Table) -> Reading:
    parts = [
        f"{row['class']}: median {number(row, 'median'):.2f} nats, {100 * number(row, 'above_5'):.1f} % above 5, "
        f"{100 * number(row, 'share_of_loss'):.1f} % of the loss on {100 * number(row, 'share'):.1f} % of the targets"
        for row in table
    ]
    return Reading(f"{'; '.join(parts)}.")


def frequency(table: Table) -> Reading:
    met = [row for row in table if row["targets"]]
    first, last = met[0], met[-1]
    saved = [
        f"group {row['group']} saves {number(row, 'unigram_bits') - number(row, 'bits_per_target'):+.2f}"
        for row in (first, last)
    ]
    return Reading(
        f"The most frequent tenth of the vocabulary is {100 * number(first, 'share'):.1f} % of the targets and "
        f"{100 * number(first, 'share_of_loss'):.1f} % of the loss, at {number(first, 'bits_per_target'):.2f} bits; "
        f"the rarest tenth that occurs costs {number(last, 'bits_per_target'):.2f}. Against frequency alone, in bits a "
        f"target: {'; '.join(saved)}."
    )


def pieces(table: Table) -> Reading:
    shares = [sum(table.numbers(column)) for column in ("share", "share_of_loss")]
    most = table[0]
    return Reading(
        f"These {len(table)} tokens are {100 * shares[0]:.1f} % of targets and {100 * shares[1]:.1f} % of the loss; "
        f"the first is {most['piece']} with {100 * number(most, 'share_of_loss'):.1f} %."
    )
