"""Figures made anew from the commands that the index records: the forecast, the order, another size, what compares."""

import shlex
from pathlib import Path

import pytest

from golfcore import cli, config
from golfcore.base import files
from golfcore.base.errors import UserError
from golfcore.base.signals import Stopped
from golfcore.notebook import checked, defaults, find_notebook
from golfcore.plots import index
from golfcore.plots.remake import at_size, remake
from golfcore.runs import forecast

ROOT = Path(__file__).resolve().parents[1]


def entry(name: str, run: str = "", **more: object) -> dict:
    command = f"golfcore figures OUT/{name} --out OUT/figures"
    return {"runs": [], "train": run or command, "draw": command, "files": {}, "caption": ""} | more


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Three figures: two of one run, and the ledger, which is made of the others."""
    folder, train = tmp_path / "figures", "golfcore run smoke --out OUT/smoke"
    index.write_index(
        folder, {"claims-ledger": entry("ledger"), "a": entry("smoke", train), "b": entry("smoke", train)}
    )
    return folder


def test_each_command_runs_once_and_the_ledger_comes_last(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = list[list[str]]()
    assert remake(["all"], listed, tmp_path / "new", lambda argv: done.append(argv) or 0) == 0
    out = str(tmp_path / "new")
    assert [argv[:2] for argv in done] == [["run", "smoke"], ["figures", f"{out}/smoke"], ["figures", f"{out}/ledger"]]
    said = capsys.readouterr().out
    assert said.startswith("forecast: no run to train") and "command 2 of 3" in said and "equal to the byte" in said


def test_runs_of_one_name_and_other_settings_lie_apart(tmp_path: Path) -> None:
    folder, train = tmp_path / "figures", "golfcore run smoke --out OUT/smoke"
    other = train.replace("smoke --out", "smoke --seed 2 --out")
    index.write_index(folder, {"a": entry("smoke", train), "b": entry("smoke", other), "c": entry("smoke", train)})
    made = {name: index.recorded(folder, name, Path("new")) for name in "abc"}
    places = {name: argvs[0][-1] for name, argvs in made.items()}
    assert places["a"] == places["c"] != places["b"] and all(p.endswith("/smoke") for p in places.values())
    assert all(argvs[1][2] == places[name] for name, argvs in made.items())
    assert {argvs[1][-1] for argvs in made.values()} == {"new/figures"}


def test_the_first_command_that_fails_ends_it(listed: Path, tmp_path: Path) -> None:
    done = list[str]()
    assert remake(["a"], listed, tmp_path, lambda argv: done.append(argv[0]) or 2) == 2 and done == ["run"]
    with pytest.raises(UserError, match=r"index\.json: unknown key 'c'"):
        remake(["c"], listed, tmp_path, lambda argv: 0)


def test_being_asked_to_end_ends_the_whole_remake(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the one command that it runs: the next would begin."""
    began = list[str]()

    def asked(args: object) -> None:
        began.append("run")
        raise Stopped("SIGTERM")

    monkeypatch.setattr("golfcore.runs.folder.project_dir", lambda: listed.parent)
    monkeypatch.setitem(cli.COMMANDS, "run", (asked, *cli.COMMANDS["run"][1:]))
    assert cli.main(["figures", "--remake", "all", "--out", str(tmp_path / "new")]) == 0
    assert began == ["run"] and "asked to end (SIGTERM)" in capsys.readouterr().err


def test_a_file_that_comes_out_otherwise_is_named(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index.write_index(listed, {"a": entry("smoke", files={"a.csv": files.sha256_text("1\n")})})
    made = tmp_path / "new/figures"
    for text, code in (("1\n", 0), ("2\n", 1)):
        files.write_text(made / "a.csv", text)
        assert remake(["a"], listed, tmp_path / "new", lambda argv: 0) == code
    assert capsys.readouterr().out.rstrip().endswith("new/figures/a.csv: differs")


def test_recorded_commands_run_at_another_size_on_another_text() -> None:
    run = shlex.split("golfcore run demo --set 'data.packages=[\"large\"]' --out OUT/demo")
    assert at_size(run, "full", "DATA") == shlex.split("golfcore run exp105a --size full --data DATA --out OUT/demo")
    study = (
        "golfcore notebook 10_ablation_suite -p sweep pr398-ablation -p size demo -p seeds '' -p arms '' -p overrides "
    )
    study += "'data.packages=[\"large\"]' -p out OUT/runs -p figures OUT/figures --out OUT"
    found = at_size(shlex.split(study), "full", "DATA")
    want = study.replace("size demo", "size full").replace("'data.packages=[\"large\"]'", "''")
    assert found == shlex.split(want.replace(" --out OUT", " -p data_path DATA --out OUT"))
    draw = shlex.split("golfcore figures OUT/demo --out OUT/figures")
    assert at_size(draw, "smoke", "") == draw
    with pytest.raises(UserError, match="--size"):
        at_size(run, "huge", "")


def test_every_recorded_command_can_be_spelled_at_full_size(tmp_path: Path) -> None:
    """What the project's figures are made by is taken by the command line, as recorded and at full size."""
    for name in index.read_index(ROOT / "figures"):
        for argv in index.recorded(ROOT / "figures", name, tmp_path):
            found = at_size(argv, "full", "DATA")
            assert found[:2] == argv[:2] and found[-2:] == argv[-2:]
            for spelled in (argv, found):
                parsed = vars(cli._parser().parse_args(spelled[1:]))
                if spelled[1] == "notebook":
                    given = dict(parsed["p"])
                    checked(given, defaults(find_notebook(spelled[2])), name)
                    full = spelled is found
                    assert all(v in ("full", "") for k, v in given.items() if full and k in ("size", "overrides"))


def test_the_forecast_counts_what_runs_compute() -> None:
    """Twice the steps cost twice the training; arms that train alike train once; every score is counted."""
    cfg = config.load("demo")
    longer = config.load("demo", {"schedule.iterations": 600})
    assert forecast.training_flops(longer) == 2 * forecast.training_flops(cfg)
    adapted = config.load("demo", {"ttt.epochs": cfg.ttt.epochs + 2})
    assert forecast.scoring_flops(adapted) > forecast.scoring_flops(cfg)
    both = forecast.flops([cfg, adapted, cfg])
    assert both == forecast.training_flops(cfg) + forecast.scoring_flops(cfg) + forecast.scoring_flops(adapted)
    meta = config.load("exp101", size="demo"), config.load("exp105a", size="demo")
    assert forecast.training_flops(meta[0]) > forecast.training_flops(meta[1])
    assert forecast.pace(0.1) > 1e8 and "forecast: 1 runs" in forecast.in_words([cfg])
