"""The report: every number in it stands in a table of the figures it names, every figure in it is in the index."""

import re
from functools import cache
from pathlib import Path

import pytest

from golfcore.analysis.frames import read_csv
from golfcore.plots import index

FIGURES = Path(__file__).resolve().parents[1] / "figures"
REPORT = FIGURES / "REPORT.md"
CODE = re.compile(r"`[^`]*`|```.*?```", re.S)
LINK = re.compile(r"\]\([^)]*\)|<img[^>]*>")
NAMED = re.compile(r"`([\w.-]+)`|\]\(([\w.-]+?)\.(?:csv|svg|png)\)")
# Words that hold digits but no measurement: a pull request, a system, a level of an interval, a processor.
WORDS = re.compile(
    r"PRs? \d+(?:(?:, | and )\d+)*|95 %|H100|int\d|exp\d+a?|pr\d{3}|\d+M\b|C\d{3}|16,000,000|bfloat16|float16"
    r"|PPM-C|#+ \d+\."
)
NUMBER = re.compile(r"(?<![\w.,])[+\u2212-]?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
LEAST = 10  # whole numbers below it are words of the text


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Each paragraph, list or table of the report with the figures that it names, a table also with those before it."""
    found, before = [], list[str]()
    for part in re.split(r"\n\s*\n", re.sub(r"```.*?```", "", text, flags=re.S)):
        names = [a or b for a, b in NAMED.findall(part)]
        known = [name for name in names if (FIGURES / f"{name}.csv").exists()]
        if part.lstrip().startswith("|"):
            known += before
        found.append((part, known))
        before = known
    return found


def numbers(part: str) -> list[str]:
    return [n.rstrip(",") for n in NUMBER.findall(WORDS.sub(" ", LINK.sub("]", CODE.sub(" ", part))))]


@cache
def values(name: str) -> tuple[float, ...]:
    """All numbers in a figure's table, in its texts and in its caption, as they are and as percent."""
    table = read_csv(FIGURES / f"{name}.csv")
    caption = str(index.read_index(FIGURES).get(name, {}).get("caption", ""))
    found = [float(v) for c in table.select_dtypes("number") for v in table[c].dropna()]
    texts = [str(v) for c in table.select_dtypes(exclude="number") for v in table[c].dropna().unique()]
    found += [parsed(n) for text in [caption, *texts] for n in NUMBER.findall(text)]
    found += [float(len(table))] + [
        float(n) for c in table for n in table[c].value_counts() if len(table[c].unique()) < 30
    ]
    return tuple({abs(v) for v in found} | {abs(100 * v) for v in found})


def parsed(text: str) -> float:
    return float(text.replace(",", "").replace("\u2212", "-").rstrip("."))


def stands(text: str, pool: tuple[float, ...]) -> bool:
    wanted, digits = abs(parsed(text)), len(text.partition(".")[2])
    return any(abs(v - wanted) <= 0.5000001 * 10**-digits for v in pool)


@pytest.fixture(scope="module")
def report() -> str:
    return REPORT.read_text()


def test_every_number_of_the_report_stands_in_a_table_that_it_names(report: str) -> None:
    missing = []
    for part, names in blocks(report):
        pool = tuple(v for name in dict.fromkeys(names) for v in values(name))
        for text in numbers(part):
            small = re.fullmatch(r"\d+", text) and int(text) < LEAST
            if not small and not stands(text, pool):
                missing.append(f"{text} in {part[:60]!r}, which names {', '.join(names) or 'no figure'}")
    assert not missing, "\n".join(missing)


def test_every_figure_of_the_report_is_in_the_index(report: str) -> None:
    shown = re.findall(r'src="([\w.-]+)\.svg"', report)
    known = index.read_index(FIGURES)
    assert len(shown) >= 10 and set(shown) <= set(known)
    links = re.findall(r"\]\(([\w./-]+)\)", report)
    assert all((FIGURES / link).exists() for link in links)
    named = [name for _, names in blocks(report) for name in names]
    assert len(set(named)) >= 20


def test_the_check_would_find_a_number_that_is_in_no_table() -> None:
    name = "waterfall"
    bpb = read_csv(FIGURES / f"{name}.csv")["bpb"].iloc[0]
    good, bad = f"`{name}`: {bpb:.4f} bits", f"`{name}`: {bpb + 0.0007:.4f} bits"
    (part, names), (wrong, _) = blocks(good)[0], blocks(bad)[0]
    assert names == [name] and all(stands(n, values(name)) for n in numbers(part))
    assert not all(stands(n, values(name)) for n in numbers(wrong))
    assert numbers("exp101 and PR 1501 at 95 %, 1,228 of them, \u22120.0123") == ["1,228", "\u22120.0123"]


def test_the_report_is_as_long_as_people_read(report: str) -> None:
    words = len(re.sub(r"<[^>]*>|\|", " ", report).split())
    assert 1800 <= words <= 4500
