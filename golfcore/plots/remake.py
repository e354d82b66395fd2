"""Figures made anew by the commands that their index records: everything is trained, measured and drawn again."""

import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from golfcore import config
from golfcore.plots import index
from golfcore.runs import forecast
from golfcore.runs.sweep import time_left

LAST, CLAIMS = "claims-ledger", "11_claims_and_figures"  # made of the other figures' tables


def remake(
    names: Sequence[str], listed: Path, place: Path, execute: Callable[[list[str]], int], size: str = "", data: str = ""
) -> int:
    """Train, measure and draw the figures `names` of the index in `listed` ("all": every one) anew, in `place`.

    A forecast comes first. What is done in `place` is reused, so that a killed remake goes on. `execute` runs a
    command, without "golfcore", and returns its exit code; the first that is not 0 ends the remake and is returned. At
    the recorded size the files are compared with those listed: 1 if one is another. With `size` and `data`, the folder
    of a text, the same studies run at another size, and nothing is compared.
    """
    known = index.read_index(listed)
    wanted = sorted(known if "all" in names else dict.fromkeys(names), key=lambda name: name == LAST)
    argvs = [argv for name in wanted for argv in index.recorded(listed, name, place)]
    commands = dict.fromkeys(tuple(at_size(argv, size, data) if size or data else argv) for argv in argvs)
    if not size:
        print(_forecast({name: known[name] for name in wanted if name != LAST}), flush=True)
    spent: list[float] = []
    for number, argv in enumerate(commands, 1):
        left = time_left(spent, len(commands) - number + 1)
        print(f"command {number} of {len(commands)}{left}: {shlex.join(argv)}", flush=True)
        began = time.monotonic()
        if code := execute(list(argv[1:])):
            return code
        spent.append(time.monotonic() - began)
    if size or data:
        print(f"figures at another size or of another text: {place / 'figures'}")
        return 0
    others = index.others(listed, wanted, place / "figures")
    print("\n".join(f"{place / 'figures' / name}: differs" for name in others) or "all files are equal to the byte")
    return int(bool(others))


def _forecast(entries: Mapping[str, Mapping]) -> str:
    runs = {str(run["config_hash"]): run["config"] for entry in entries.values() for run in entry.get("runs", [])}
    return forecast.in_words(config.from_dict(values, f"the index, run {key}") for key, values in runs.items())


def at_size(argv: Sequence[str], size: str, data: str) -> list[str]:
    """A command as `index.recorded` spells it at another size: exp105a in place of the demo, on the text in `data`.

    UserError: a size that is none.
    """
    config.keys([size or "demo"], config.size_names(), "--size")
    found, parts = list(argv[:2]), list(argv[2:])
    text = ["--data", data] if data else []
    if argv[1] == "run":
        folder = parts[parts.index("--out") + 1]
        return [*found, "exp105a", "--size", size or "demo", *text, "--out", folder]
    if argv[1] != "notebook":
        return list(argv)
    name, given = parts[0], dict(zip(parts[2:-2:3], parts[3:-2:3], strict=True))
    if given.get("size") or given.get("sweep"):
        given["size"] = size or "demo"
        given |= {"data_path": data, "overrides": ""} if data else {}
    if name == CLAIMS:
        given["source"] = given["figures"]  # what was made, not what was recorded
    return [*found, name, *(p for key, value in given.items() for p in ("-p", key, value)), *parts[-2:]]
