"""Laws of the public face: `import golfcore as gc` is quick, offers what it names, and agrees with the files."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_run import make_run

import golfcore as gc
from golfcore import api, cli
from golfcore.analysis import runs, text
from golfcore.base.errors import UserError
from golfcore.config import Config
from golfcore.evals.audit import Condition, Scores, Verdict
from golfcore.model import params
from golfcore.model.weights import flat
from golfcore.plots import index
from golfcore.plots.figures import draw_run
from golfcore.plots.run import FIGURES
from golfcore.quant.artifact import code_bytes
from golfcore.runs.folder import open_run


@pytest.fixture
def made(small_run: Path) -> api.Run:
    return gc.open_run(small_run)


def test_every_public_name_is_there_and_no_other() -> None:
    assert all(callable(getattr(gc, name)) for name in gc.__all__) and set(gc.__all__) <= set(dir(gc))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gc.nothing


def test_a_run_is_its_frames(made: api.Run) -> None:
    report = runs.report(made.folder)
    scores = made.scores.set_index("measure")["bpb"]
    assert all(scores[name] == row["bpb"] for name, row in report["measures"].items())
    targets = made.targets
    bits = targets[list(report["measures"])].sum() / np.log(2) / targets["bytes"].sum()
    assert bits.to_dict() == pytest.approx({name: row["bpb"] for name, row in report["measures"].items()})
    assert list(targets["before"][1:]) == list(targets["token"][:-1])
    assert made.metrics["kind"].value_counts()["train"] == made.config.schedule.iterations
    assert made.bytes["bytes"].iloc[-1] == report["artifact"]["total"]
    assert set(made.coverage["feature"]) == set(made.folder.coverage())
    assert list(made.coverage) == ["feature", "done", "of", "unit", "note"]
    assert all(isinstance(f, pd.DataFrame) for f in (made.scores, made.metrics, targets, made.bytes, made.coverage))


def test_a_run_shows_its_numbers_legality_bytes_and_curve(made: api.Run) -> None:
    report, shown = runs.report(made.folder), repr(made)
    assert all(f"{row['bpb']:.4f}" in shown and row["legality"] in shown for row in report["measures"].values())
    assert f"{report['artifact']['total']:,} of 16,000,000" in shown and "█" in shown and made.id in shown
    order = [shown.index(mark) for mark in ("(a)", "(b)", "(c)")]
    assert order == sorted(order) and len(shown) < 2000 and made._repr_html_().startswith(f"<pre>run {made.id}")


def test_a_run_that_has_not_finished_says_so(tmp_path: Path) -> None:
    run = api.Run(open_run(tmp_path / "fresh", gc.load("smoke"), "d" * 64, {}))
    assert repr(run) == "run fresh: smoke, not finished"
    with pytest.raises(UserError, match=r"results.json: expected the results of a finished run"):
        _ = run.scores


def test_running_again_reuses_what_is_done(made: api.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc.run(made.config, made.path) == made and "train: reused" in capsys.readouterr().out


def test_weights_and_artifact_are_those_of_the_run(made: api.Run, tmp_path: Path) -> None:
    assert flat(made.weights).keys() == {p.name for p in params.table(made.config.model)}
    alone = gc.open_artifact(shutil.copy(made.path / "artifact.golf", tmp_path / "alone.golf"))
    assert isinstance(alone.config, Config) and alone.config.hash == made.config.hash
    assert "alone.golf: smoke" in repr(alone) and alone.bytes.iloc[-1]["limit"] == 16_000_000
    assert alone.bytes.iloc[-1]["bytes"] == alone.path.stat().st_size + code_bytes()
    difference = (alone.weights.banks.qo - made.weights.banks.qo).abs().max()
    assert 0 < difference < 0.5  # rounded
    with pytest.raises(UserError, match="gone.golf: expected an artifact, found no such file"):
        gc.open_artifact(tmp_path / "gone.golf")


def test_a_run_its_folder_and_its_artifact_score_alike(made: api.Run) -> None:
    wanted = runs.report(made.folder)["measures"]
    assert gc.evaluate(made.artifact, "ttt").bpb == wanted["ttt"]["bpb"]
    for target in (made, str(made.path)):
        found = gc.evaluate(target, "ttt", {"ttt.epochs": 0})
        assert found.bpb == wanted["sliding"]["bpb"] and found.legality == "static"
    with pytest.raises(UserError, match="unknown protocol 'tttt'"):
        gc.evaluate(made, "tttt")


class Unigram:
    """A scorer that knows how frequent each of 16 tokens is, and nothing of what stands before it."""

    log_p = np.log(np.arange(1, 17) / np.arange(1, 17).sum())

    def run(self, tokens: np.ndarray) -> Scores:
        return Scores(np.arange(len(tokens) - 1), -self.log_p[tokens[1:]])

    def log_probs(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.tile(self.log_p, (len(positions), 1))


def test_a_scorer_is_audited_on_its_tokens() -> None:
    tokens = np.random.default_rng(0).integers(0, 16, 137).astype(np.uint16)
    report = gc.audit(Unigram(), tokens, vocab_size=16, chunk=32)
    assert report.verdicts[Condition.CAUSALITY] == Verdict.PASS and not report.failed_tests
    with pytest.raises(UserError, match="expected the tokens that the scorer is to score"):
        gc.audit(Unigram())


def test_buckets_of_a_run_and_of_tokens(made: api.Run) -> None:
    """Of the run, of its artifact and of its text alone: the same pairs; only the first knows losses."""
    found = gc.buckets(made)
    its = text.text_of(made.folder)
    alone = gc.buckets(its.train, its.tables, made.config.model.bigram_rows)
    assert (found.occupancy["kind"] == "summary").sum() == 4
    assert found.pairs["nats"].notna().any() and not alone.pairs["nats"].notna().any()
    assert alone.pairs[["row", "times"]].equals(found.pairs[["row", "times"]])
    whole = gc.buckets(made.artifact).pairs.set_index(["previous", "current"])[
        "row"
    ]  # on more text than was trained on
    assert len(whole) > len(found.pairs)
    assert whole[found.pairs.set_index(["previous", "current"]).index].tolist() == found.pairs["row"].tolist()
    assert len(found.predicts(int(found.pairs["row"][0]))) == 10 and repr(found).startswith("split n-gram table of 127")
    with pytest.raises(UserError, match="expected a model with an n-gram table, found tokens alone"):
        alone.predicts(0)
    with pytest.raises(UserError, match="expected tables of the tokenizer beside tokens"):
        gc.buckets(np.arange(10))


def test_geometry_of_runs_artifacts_and_weights(made: api.Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A model against itself, rounded, and as weights; what each is is printed."""
    found = gc.geometry(made, made.artifact, made.weights, dimensions=[4])
    assert set(found["models"]) == {"run vs artifact.golf", "run vs model 3", "artifact.golf vs model 3"}
    assert found[found["models"] == "run vs model 3"]["overlap"].min() > 1 - 1e-5
    assert f"configuration {made.config.hash}" in capsys.readouterr().out


def test_runs_are_compared(tmp_path: Path) -> None:
    found = gc.compare([api.Run(make_run(tmp_path / "a")[0]), tmp_path / "a"][:1])
    assert set(found["arm"]) == {"smoke"} and isinstance(found, pd.DataFrame)


def test_a_figure_is_made_again_from_nothing_by_its_recorded_commands(made: api.Run, tmp_path, monkeypatch) -> None:
    """In another folder, with nothing of the first run left to reuse, every file is equal to the byte."""
    monkeypatch.setattr("golfcore.plots.run.FIGURES", {name: FIGURES[name] for name in ("curves", "waterfall")})
    first, second = tmp_path / "figures", tmp_path / "again"
    drawn = draw_run(made.folder, first)
    for argv in index.recorded(first, "waterfall", second, made.path.parent / "built"):
        assert cli.main(argv[1:]) == 0
    for name in drawn:
        for suffix in ("csv", "svg", "png"):
            file = f"{name}.{suffix}"
            assert (first / file).read_bytes() == (second / "figures" / file).read_bytes(), file
    a, b = index.read_index(first)["waterfall"], index.read_index(second / "figures")["waterfall"]
    assert (a["train"], a["draw"], a["files"]) == (b["train"], b["draw"], b["files"])
