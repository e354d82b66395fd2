"""What an audit found: evidence test by test, and one verdict for each condition."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum


class Condition(StrEnum):
    """The four conditions, what comes before them, and what follows from all of them."""

    DETERMINISM = "determinism"  # the same stream gives the same scores: else nothing below can be measured
    CAUSALITY = "strict causality"  # the distribution of a target depends on nothing but the tokens before it
    NORMALISATION = "normalisation"  # it sums to one over the vocabulary, whatever the target turns out to be
    SCORE_FIRST = "score-before-update"  # a target changes the state only after its score is final
    SINGLE_PASS = "single pass"  # every target is scored once, in order, by a scorer that saw none of them before
    CODE_LENGTH = "a code length"  # the scores are those of some probability distribution over streams


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    NOT_TESTED = "not tested"


@dataclass(frozen=True)
class Finding:
    """The outcome of one test. A failed test fails all of its conditions."""

    test: str  # T0, T1, ...
    title: str
    conditions: tuple[Condition, ...]
    verdict: Verdict
    evidence: tuple[str, ...]  # which token, which difference
    runs: int = 0  # passes of the scorer over a stream, of whatever length
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    subject: str
    findings: Sequence[Finding]
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def verdicts(self) -> dict[Condition, Verdict]:
        """fail if any test of the condition fails, pass if all of them pass."""
        seen = {c: {f.verdict for f in self.findings if c in f.conditions} for c in Condition}
        passed = {c: Verdict.PASS if found == {Verdict.PASS} else Verdict.NOT_TESTED for c, found in seen.items()}
        return {c: Verdict.FAIL if Verdict.FAIL in seen[c] else verdict for c, verdict in passed.items()}

    @property
    def passed(self) -> bool:
        return all(verdict == Verdict.PASS for verdict in self.verdicts.values())

    @property
    def failed_tests(self) -> list[str]:
        return [f.test for f in self.findings if f.verdict == Verdict.FAIL]

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        verdicts = {str(condition): str(verdict) for condition, verdict in self.verdicts.items()}
        return {**asdict(self), "passed": self.passed, "verdicts": verdicts}

    def text(self) -> str:
        """The verdicts, then every test with its cost and its evidence."""
        runs, seconds = sum(f.runs for f in self.findings), sum(f.seconds for f in self.findings)
        lines = [f"audit of {self.subject}", *(f"  {name}: {value}" for name, value in self.settings.items())]
        lines += [f"  cost: {runs:,} runs, {seconds:.1f} s", ""]
        for condition, verdict in self.verdicts.items():
            tests = [f.test for f in self.findings if condition in f.conditions and f.verdict == verdict]
            lines.append(f"{condition:22}{_shown(verdict):12}{' '.join(tests)}")
        lines.append("")
        for f in self.findings:
            lines.append(f"{f.test:5}{f.title:34}{_shown(f.verdict):12}{f.runs:>5} runs {f.seconds:6.1f} s")
            lines += [f"       {line}" for line in f.evidence]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


def _shown(verdict: Verdict) -> str:
    return verdict.upper() if verdict == Verdict.FAIL else verdict
