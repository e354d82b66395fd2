"""Every published system, scaled to seconds, through the whole pipeline; and read again from its artifact alone."""

from pathlib import Path

import pytest

from golfcore.base import files
from golfcore.base.records import RESULTS
from golfcore.config import load
from golfcore.quant import artifact
from golfcore.runs import pipeline
from golfcore.runs.reopen import evaluate_again

# What the ledger says of (c), and of the legal form that the system's preset measures beside it.
SYSTEMS = {
    "exp101": ("score-first", {}),
    "exp105a": ("score-first", {}),
    "exp106": ("score-first", {}),
    "pr398": ("train-first", {"score-first": "score-first"}),
    "pr294-recurrent": ("static", {}),
    "pr294-reptile": ("score-first", {}),
    "pr294-error-guided": ("train-first", {"error-guided-legal": "score-first"}),
}
TOUCHED = {  # what a system's own features must have touched
    "exp101": ("meta", "stored as int6"),
    "exp106": ("meta_adapted",),
    "pr398": ("ema", "stored as int6", "score-first: ttt_steps"),
    "pr294-recurrent": ("stored as int8", "stored as fp16"),
    "pr294-reptile": ("reptile", "swa", "stored as int5", "ttt_steps"),
    "pr294-error-guided": ("swa", "stored as int5", "ttt_steps"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_trains_packs_and_scores_as_its_preset_says(
    name: str, cache: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("GOLFCORE_CACHE", str(cache))
    cfg = load(name, size="smoke")
    run = pipeline.run(cfg, tmp_path / name, lambda text: None)
    report = files.read_json(run.file(RESULTS), "results")
    measures, (legality, beside) = report["measures"], SYSTEMS[name]
    assert {m: row["legality"] for m, row in measures.items()} == {
        "float": "static",
        "static": "static",
        "sliding": "static",
        "ttt": legality,
        **beside,
    }
    assert all(1 < row["bpb"] < 5 for row in measures.values()) and report["artifact"]["fits"]
    covered = run.coverage()
    assert all(covered[feature]["done"] > 0 for feature in TOUCHED.get(name, ()))
    stored, _ = artifact.read(run.file("artifact.golf"))
    assert stored == cfg
    again = evaluate_again(run.file("artifact.golf"), "sliding", {})
    assert again.bpb == measures["sliding"]["bpb"]
    if name == "pr294-reptile":  # what it never trained says so
        assert covered["ngram_trained"]["done"] == 0 < covered["ngram_trained"]["of"]
        assert "no optimizer" in covered["ngram_trained"]["note"]
