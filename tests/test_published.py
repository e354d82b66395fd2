"""The published tables: they load as they are described, every source resolves, and what is said twice agrees."""

import tomllib
from pathlib import Path

import pandas as pd
import pytest

import golfcore
from golfcore import cli
from golfcore.analysis import beside, published, tables
from golfcore.analysis.frames import write_csv
from golfcore.base import files as base_files
from golfcore.base.errors import UserError
from golfcore.plots import diagrams, pages
from golfcore.plots.figures import draw_published

SWEEPS = Path(golfcore.__file__).parent / "runs/sweeps"


@pytest.mark.parametrize("name", list(published.NUMBERS))
def test_every_table_loads_typed_with_sources_that_resolve(name: str) -> None:
    found, sources = published.table(name), set(published.table("sources")["source"])
    whole, real = (columns.split() for columns in published.NUMBERS[name])
    assert len(found) > 40 and found.columns.is_unique
    assert all(found[c].dtype == "Int64" for c in whole) and all(found[c].dtype == "float64" for c in real)
    assert set(found["source"]) <= sources
    text = found.drop(columns=[*whole, *real, "number"], errors="ignore")
    assert not text.isna().any(axis=None)
    if name != "weight_space":  # no column of text is one of numbers
        numeric = {
            c for c in text if c != "commit" and pd.to_numeric(text[c].replace("", None), "coerce").notna().all()
        }
        assert numeric <= {"value"}


def test_the_folder_is_the_list_and_small() -> None:
    files = list(published.FOLDER.glob("*.csv"))
    assert {f.stem for f in files} == set(published.NUMBERS) and sum(f.stat().st_size for f in files) < 1_000_000
    readme = (published.FOLDER / "README.md").read_text()
    assert all(f"`{f.name}`" in readme for f in files)


def test_numbers_that_are_printed_with_a_sign_of_doubt_stay_numbers() -> None:
    found = published.table("weight_space").set_index("value")["number"]
    assert found["~2042"] == 2042 and (found["<0.04"] == 0.04).all() and found["not_found"].isna().all()


@pytest.mark.parametrize("call", [published.table, published.ablation])
def test_what_is_not_published_is_one_sentence(call) -> None:
    with pytest.raises(UserError, match="^published (tables|ablations): unknown key 'curves'"):
        call("curves")


def test_the_same_fact_in_two_tables_is_the_same() -> None:
    """The score after TTT stands in results, in the course and in the claims; the last step in results and curves."""
    results = published.table("results").query("basis == 'log' and reported == 1")
    facts = results[results["system"].isin(["exp101", "exp105a"])].set_index(["system", "quantity"])["value"]
    assert facts["exp101", "bpb_ttt"] == 1.11588450
    for system in ("exp101", "exp105a"):
        of = "system == @system and "
        final = published.table("ttt").query(of + "kind == 'final' and variant == 'int6'")
        assert float(final["running_bpb"].iloc[0]) == pytest.approx(facts[system, "bpb_ttt"], abs=1e-6)
        curve = published.table("training").query(of + "reported == 1 and kind == 'val'")
        assert int(curve["step"].max()) == facts[system, "steps"]
        assert float(curve["bpb"].iloc[-1]) == facts[system, "bpb_val_last"]
    assert published.table("claims").set_index("id")["values"]["C001"] == "1.11588450"


def test_courses_and_curves_are_those_of_the_reported_runs() -> None:
    ttt = published.table("ttt").query("kind != 'final'")
    course = ttt.query("system == 'exp101' and variant == 'int6'")
    assert course["chunk"].is_monotonic_increasing and (course["chunks_total"] == 947).all()
    epochs = ttt.query("system == 'pr398'")
    assert sorted(epochs["seed"].unique()) == [42, 1337, 2025] and epochs["epoch"].max() == 20
    assert epochs.groupby("seed")["loss"].is_monotonic_decreasing.all()
    curve = published.table("training").query("system == 'pr398' and reported == 1 and kind in ('train', 'val')")
    assert curve["seed"].nunique() == 3 and curve["step"].ge(0).all() and curve["loss"].notna().all()


def test_sweeps_say_what_the_tables_say() -> None:
    """The published scores beside the arms of pr398's ablation are rows of its table."""
    sweep = tomllib.loads((SWEEPS / "pr398-ablation.toml").read_text())
    rows = published.ablation("pr398_ablation").set_index("row")["published_bpb"]
    numbered = {
        int(note.split()[1].rstrip(",")): arm["published"]
        for arm in sweep["arms"].values()
        if "published" in arm and (note := arm.get("published_note", "")).startswith("row ")
    }
    assert len(numbered) >= 8
    assert {row: bpb for row, bpb in numbered.items() if rows[row] != bpb} == {}


def test_token_losses_are_the_counts_of_the_published_table() -> None:
    found = published.token_losses()
    assert found["threshold"].tolist() == [1, 3, 5, 7, 10]
    assert found["targets"].tolist() == [36_900_000, 20_300_000, 7_200_000, 1_700_000, 135_000]
    assert found["share_of_loss"].tolist() == [0.85, 0.55, 0.30, 0.15, 0.03]


def test_published_step_times_and_rotary_errors_are_those_of_logs_and_arithmetic() -> None:
    times = published.step_times()
    own = times[times["system"] == "exp101"]
    early, late = (own[rows]["ms"].median() for rows in (own["step"] < 3000, own["step"] > 6000))
    assert early > late  # meta-learning ends with the LR multiplier at one half
    found = published.angle_errors()
    fast = found[found["frequency"] == 0].set_index("position")["degrees"]
    assert fast.loc[:256].max() < 0.2 and fast.loc[257:].max() > 30  # bfloat16 holds whole numbers up to 256


def test_figures_of_an_index_are_made_again_from_nothing_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("golfcore.runs.folder.project_dir", lambda: tmp_path / "project")
    drawn = draw_published(tmp_path / "project/figures")
    remake = ["figures", "--remake", "published-steps", "--out", str(tmp_path / "new")]
    assert cli.main(remake) == 0
    said = capsys.readouterr().out
    assert "command 1 of 1: golfcore figures --published" in said and "all files are equal to the byte" in said
    base_files.write_json(path := tmp_path / "project/figures/index.json", one_byte_off(path, "published-steps.csv"))
    assert cli.main(remake) == 1 and "published-steps.csv: differs" in capsys.readouterr().out
    names = {path.stem for path in drawn}
    assert {"published-steps", "published-wiring", "beside-training", "table-sizes", "tables"} <= names
    assert cli.main(["figures", "--remake", "nothing"]) == 2


def one_byte_off(path: Path, file: str) -> dict:
    """An index whose figure was another."""
    index = base_files.read_json(path, "an index")
    index[file.removesuffix(".csv")]["files"][file] = "0" * 64
    return index


def test_published_and_ours_stand_in_one_frame(tmp_path: Path) -> None:
    """Without studies every frame is the publications' alone; a study's rows join it, told apart by their source."""
    for make in (beside.training, beside.adaptation, beside.banks, beside.costs):
        assert set(make(tmp_path)["source"]) == {beside.PUBLISHED}
    base = beside.adaptation(tmp_path).query("system == 'exp105a'")
    assert (base["difference"] == 0).all()
    ours = [{"arm": "a", "stop": s, "difference": 0.1, "low": 0.0, "high": 0.2} for s in (100, 200)]
    write_csv(tmp_path / "ablation-chunks.csv", pd.DataFrame(ours))
    found = beside.adaptation(tmp_path).query("source == 'here'")
    assert list(found["share"]) == [0.5, 1.0] and list(found["high"]) == [0.2, 0.2]
    val = beside.training(tmp_path).query("kind == 'val' and step == 6000 and system != 'pr398'")
    assert list(val.sort_values("lr_multiplier")["value"]) == sorted(val["value"])  # the order of the clock
    scores = beside.scores().query("protocol == 'adapted' and variant == 'int6'")
    assert list(scores["bpb"]) == pytest.approx([1.11588450, 1.11624195], abs=1e-7)
    rates = beside.courses(20).query("quantity == 'learning rate'")
    assert rates["value"].between(0, 1).all() and set(rates["system"]) == {"exp101", "exp105a", "exp106", "pr398"}


def test_published_tables_hold_what_was_logged(tmp_path: Path) -> None:
    found = tables.tables()
    assert found["architecture"].query("exported")["values"].sum() == 26_960_991
    settings = found["settings"].set_index("setting")
    assert settings.loc["meta.enabled", "exp101"] == "true" and settings.loc["meta.enabled", "exp105a"] == "false"
    assert found["sizes"].set_index("variant").loc["int7mix", "headroom"] == -795_370
    assert found["overlaps"].query("tensor == 'kv_bank'")["avg_cosine"].iloc[0] == pytest.approx(0.955147, abs=1e-6)
    assert all(len(rows) and not rows.isna().all().any() for rows in found.values())
    page = pages.write_tables(tmp_path)[-1].read_text()
    assert page.count("\n## ") == len(found) and "| exp101 | int6 | 42 |" in page
    assert all((tmp_path / f"table-{name}.csv").exists() for name in found)


def test_the_wiring_is_that_of_the_presets() -> None:
    edges = diagrams.wiring().query("panel == 'layers' and kind == 'edge'")
    skips = edges[edges["to"].astype(float) - edges["name"].astype(float) != 1]
    assert list(zip(skips["name"], skips["to"], strict=True)) == [("3", "6"), ("2", "7"), ("1", "8"), ("0", "9")]
    assert list(skips.query("state == 'dead'")["name"]) == ["1", "0"]  # rows 3 and 4 never learn
