"""The legality audit: is a score the length of a code that somebody could have decoded?

    report = audit(scorer, tokens, vocab_size, chunk=128)
    print(report)            # verdicts, then each test with its evidence
    report.passed, report.verdicts, report.as_dict()

A scorer is any object with the two methods of `Scorer`; `ProtocolScorer` makes one of golfcore's protocols. Tests
change tokens and watch scores, so they see dependence that was exercised on this stream: passing is evidence, failing
is proof. About 60 passes over the stream, five over a longer one, and 2 x vocab_size over its first few targets.
"""

import secrets
import time
from collections.abc import Callable, Sequence

import numpy as np

from golfcore.base.progress import bar
from golfcore.evals.audit import checks
from golfcore.evals.audit.apart import scorer_apart
from golfcore.evals.audit.bench import Bench, Layout, layout
from golfcore.evals.audit.report import Condition, Finding, Report, Verdict
from golfcore.evals.audit.scorer import ProtocolScorer, Scorer, Scores
from golfcore.evals.ledger import Event

__all__ = ["Condition", "Event", "Finding", "ProtocolScorer", "Report", "Scorer", "Scores", "Verdict", "audit"]
__all__ += ["memory", "scorer_apart"]

C = Condition
TESTS: tuple[tuple[str, str, tuple[Condition, ...], Callable[[Bench], checks.Outcome]], ...] = (
    ("T0", "the same stream again", (C.DETERMINISM,), checks.determinism),
    ("T1", "future perturbation", (C.CAUSALITY, C.SCORE_FIRST, C.SINGLE_PASS), checks.future_perturbation),
    ("T2", "target swap", (C.CAUSALITY,), checks.target_swap),
    ("T3", "single-token influence", (C.CAUSALITY, C.SCORE_FIRST), checks.influence_map),
    ("T4", "truncation", (C.CAUSALITY,), checks.truncation),
    ("T5", "normalisation, white box", (C.NORMALISATION,), checks.white_box),
    ("T6", "normalisation, black box", (C.NORMALISATION,), checks.black_box),
    ("T7", "state commit", (C.SCORE_FIRST,), checks.state_commit),
    ("T8", "exactly-once ledger", (C.SINGLE_PASS,), checks.exactly_once),
    ("T9", "reset", (C.SINGLE_PASS,), checks.reset),
    ("T10", "random canary (Kraft)", (C.CODE_LENGTH,), checks.canary),
    ("T12", "later documents permuted", (C.CAUSALITY,), checks.shuffle_later),
    ("T13", "sealed from the text", (C.CAUSALITY,), checks.sealed),
    ("T14", "a long stream", (C.CAUSALITY,), checks.long_stream),
)


def audit(
    scorer: Scorer,
    tokens: np.ndarray,
    vocab_size: int,
    chunk: int,
    stride: int = 0,
    *,
    documents: Sequence[int] = (),
    seed: int | None = None,
) -> Report:
    """Examine copies of `scorer` on the stream `tokens` (N + 1,) of ids below `vocab_size`.

    `chunk`: targets between two changes of the scorer's state, `stride`: targets that one window scores (default: a
    quarter of the chunk). Some eight chunks of 64 targets or more tell most; a longer stream only costs. `documents`:
    tokens at which documents begin. `seed`: of all that is drawn; without one it is secret until the report says it.
    ValueError: fewer than three chunks, or answers of another shape than documented.
    """
    places = layout(len(tokens) - 1, chunk, stride or max(chunk // 4, 1), documents)
    seed = secrets.randbits(32) if seed is None else seed
    bench = Bench(scorer, np.asarray(tokens), vocab_size, places, seed)
    findings: list[Finding] = []
    with bar(len(TESTS), "audit", "test") as progress:
        for test, title, conditions, question in TESTS:
            began, before = time.perf_counter(), bench.runs
            if findings and findings[0].verdict == Verdict.FAIL:
                verdict, evidence = checks.Outcome(Verdict.NOT_TESTED, ("the scorer does not repeat itself",))
            else:
                verdict, evidence = question(bench)
            seconds = time.perf_counter() - began
            findings.append(Finding(test, title, conditions, verdict, evidence, bench.runs - before, seconds))
            progress.update()
    settings = {"stream": f"{bench.total:,} targets, vocabulary {vocab_size:,}", "seed": seed}
    return Report("scorer", findings, settings)


def memory(scorer: Scorer, tokens: np.ndarray, brought: np.ndarray, vocab_size: int) -> Finding:
    """Whether the stream `tokens` is cheaper for the scorer than `brought` (M + 1,), text that the auditor alone has.

    A finding to add to a report; its limits are in `checks.memory`.
    """
    bench, began = (
        Bench(scorer, np.asarray(tokens), vocab_size, Layout((), (), (), (), slice(0), (), ())),
        time.perf_counter(),
    )
    verdict, evidence = checks.memory(bench, np.asarray(brought))
    seconds = time.perf_counter() - began
    return Finding("T15", "text that the auditor brings", (C.CAUSALITY,), verdict, evidence, bench.runs, seconds)
