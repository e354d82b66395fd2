"""A run folder and its records. One that does not hold what is said here, in the terms of `files.check`: UserError.

config.json    the configuration, preset name, data hash: what a resume must match; written first
env.json       each start: when, on what machine, with which version of the code
metrics.jsonl  rows of training and events, each with its step
coverage.json  what every switched-on feature really touched
stages/*.json  one a finished stage: hash of its inputs, its outputs with hashes, seconds, what the logs held then
results.json   the numbers of the tables, each with its source
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from golfcore.base import files
from golfcore.base.errors import UserError, shown

CONFIG, ENVIRONMENT, METRICS, COVERAGE = "config.json", "env.json", "metrics.jsonl", "coverage.json"
KEPT = "steps/{}.safetensors"  # weights after so many steps, six digits, kept for analysis
TRAINING = "train"  # the stage that logs metrics
RESULTS = "results.json"  # written last: a run that has it is finished

CONFIG_SCHEMA = {"config": {"*": (str, dict)}, "hash": str, "data_hash": str}
ENVIRONMENT_SCHEMA = {"starts": [{"started": str}]}
ROW_SCHEMA = {"kind": str, "step": int}  # of every row in metrics.jsonl; by kind:
ROW_SCHEMAS: dict[str, dict[str, Any]] = {
    "train": ROW_SCHEMA | {"loss": float, "bpb": float, "elapsed": float, "tokens": int, "*": float},
    "val": ROW_SCHEMA | {"loss": float, "bpb": float, "*": float},
    "event": ROW_SCHEMA | {"event": str},
    "meta": ROW_SCHEMA | {"*": (float, None)},
    "reptile": ROW_SCHEMA | {"*": float},
}
COVERAGE_SCHEMA = {"*": {"done": int, "of": int, "unit": str, "note": str}}
STAGE_SCHEMA = {"inputs": str, "outputs": {"*": str}, "seconds": float, "metrics": int, "coverage": COVERAGE_SCHEMA}
STAGE_SCHEMA |= {"made?": {"*": (str, int)}, "from?": str, "rows?": str}
MEASURE_SCHEMA = {"bpb": float, "tokens": int, "bytes": int, "legality": str, "seconds": float}
RESULTS_SCHEMA = {
    "source": {"run": str, "config": str, "preset": str, "seed": int, "data": str},
    "measures": dict.fromkeys(("float", "static", "sliding", "ttt", "*"), MEASURE_SCHEMA),
    "context_gain": float,
    "ttt_gain": float,
    "ttt": {"lr": float},
    "baseline": {"bpb": float},
    "steps?": int,
    "artifact": {"bytes": int, "code_bytes": int, "total": int, "max_bytes": int, "fits": bool},
}


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def id(self) -> str:
        return self.path.name or self.path.resolve().name

    def file(self, name: str) -> Path:
        return self.path / name

    def record(self) -> dict[str, Any]:
        """What config.json holds: "config" as plain values, its "hash" then, and the "data_hash"."""
        return files.read_json(self.file(CONFIG), "a run's configuration", CONFIG_SCHEMA)

    def config_hash(self) -> str:
        """The configuration's hash when the run was made: a field that a later version adds does not change it."""
        return self.record()["hash"]

    def data_hash(self) -> str:
        return self.record()["data_hash"]

    def results(self) -> dict[str, Any]:
        """The numbers that the run ended with (UserError if it has not ended)."""
        return files.read_json(self.file(RESULTS), "the results of a finished run", RESULTS_SCHEMA)

    def _read(self, name: str, what: str, schema: files.Schema) -> dict[str, Any]:
        """A record that appears as the run goes on; {} before."""
        path = self.file(name)
        return files.read_json(path, what, schema) if path.exists() else {}

    # -- starts: what machine and code did the work
    def started(self, facts: Mapping[str, object]) -> None:
        """Append the facts of this start, with its time."""
        record = {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts}
        files.write_record(self.file(ENVIRONMENT), {"starts": [*self.starts(), record]})

    def starts(self) -> list[dict[str, Any]]:
        """The facts of each start, oldest first."""
        return self._read(ENVIRONMENT, "the starts of a run", ENVIRONMENT_SCHEMA).get("starts", [])

    # -- metrics
    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row; in one write, so that a kill leaves at most one torn last line, which `metrics` drops."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.file(METRICS).open("a") as f:
            f.write(files.canonical_json(dict(row)) + "\n")

    def metrics(self, kind: str | None = None) -> list[dict]:
        path = self.file(METRICS)
        rows = files.read_jsonl(path, "a row of metrics", ROW_SCHEMA, torn=True) if path.exists() else []
        for number, row in enumerate(rows, 1):
            files.check(row, ROW_SCHEMAS.get(row["kind"], dict), f"{path}, row {number}: expected a row of metrics")
        trained = self.stage(TRAINING) or {}
        if "rows" in trained and files.sha256_json(rows[: trained["metrics"]]) != trained["rows"]:
            said = f"the {trained['metrics']} rows that training logged"
            raise UserError(f"{path}: expected {said}, found others; bring it back, or choose another --out")
        return [r for r in rows if kind is None or r["kind"] == kind]

    def rewind(self, step: int) -> None:
        """Drop rows after `step`: what a killed run logged beyond its last checkpoint is logged again."""
        self.keep(lambda r: r["step"] <= step)

    def keep(self, wanted: Callable[[dict], bool]) -> None:
        """Drop the rows that are not `wanted`."""
        self._write_metrics([r for r in self.metrics() if wanted(r)])

    def _write_metrics(self, rows: list[dict]) -> None:
        files.write_text(self.file(METRICS), "".join(files.canonical_json(r) + "\n" for r in rows))

    # -- coverage: a switch that does nothing is an error
    def cover(self, feature: str, done: int, of: int, unit: str, note: str = "") -> None:
        """Record that `feature` touched `done` of `of` units. Zero without a `note` (a named quirk) fails the run."""
        if done == 0 and not note:
            raise RuntimeError(f"{feature} is switched on but touched 0 of {of:,} {unit}")
        row = {"done": done, "of": of, "unit": unit, "note": note}
        files.write_record(self.file(COVERAGE), self.coverage() | {feature: row})

    def coverage(self) -> dict[str, dict]:
        return self._read(COVERAGE, "a coverage report", COVERAGE_SCHEMA)

    def coverage_after(self, last: str) -> dict[str, dict]:
        """The same of a run whose last stage is done. UserError: not what it was after it."""
        found, record = self.coverage(), self.stage(last) or {"coverage": {}}
        if wrong := [key for key, row in record["coverage"].items() if found.get(key) != row]:
            expected = f"{wrong[0]!r} as stages/{last}.json has it"
            raise UserError(f"{self.file(COVERAGE)}: expected {expected}, found another record")
        return found

    # -- stages
    def begin(self, stage: str) -> None:
        """Forget that the stage was done: it is being done again."""
        self.file(f"stages/{stage}.json").unlink(missing_ok=True)

    def stage(self, name: str) -> dict[str, Any] | None:
        """The record of a finished stage; None if it is not finished."""
        record = self._read(f"stages/{name}.json", "a stage record", STAGE_SCHEMA)
        for output in record.get("outputs", {}):
            parts = PurePosixPath(output).parts
            if not parts or parts[0] == "/" or ".." in parts or "\0" in output or "\\" in output:
                where = f"{self.file('stages')}/{name}.json"
                raise UserError(f"{where}: expected names of files below {self.path}, found {shown(output)!r}")
        return record or None

    def stages(self) -> dict[str, dict]:
        """The records of the stages done, by their names."""
        names = [path.stem for path in sorted(self.file("stages").glob("*.json"))]
        return {name: record for name in names if (record := self.stage(name))}

    def finished(self, stage: str, inputs: Mapping[str, object]) -> bool:
        """Whether the stage's outputs are here, whole, and made from the same inputs."""
        past = self.stage(stage)
        if past is None or past["inputs"] != files.sha256_json(inputs):
            return False
        kept = {self.file(name): sha for name, sha in past["outputs"].items()}
        return all(path.is_file() and files.sha256_file(path) == sha for path, sha in kept.items())

    def finish(
        self, stage: str, inputs: Mapping, outputs: list[str], seconds: float, made: Mapping | None = None
    ) -> None:
        """Record that `outputs`, made from `inputs`, are complete.

        `made` says by what (code version, world size), which decides nothing: results of another version are reused.
        """
        shas = {name: files.sha256_file(self.file(name)) for name in outputs}
        record = {"inputs": files.sha256_json(inputs), "outputs": shas, "seconds": seconds, "made": dict(made or {})}
        rows = self.metrics()
        record |= {"metrics": len(rows), "rows": files.sha256_json(rows), "coverage": self.coverage()}
        files.write_record(self.file(f"stages/{stage}.json"), record)

    def adopt(self, stage: str, inputs: Mapping[str, object], donors: "tuple[RunFolder, ...]") -> str | None:
        """Take over the first stage of a run from one of `donors` that has it from the same inputs.

        Its outputs become files of both folders; metrics and coverage are copied as they were when it ended. Its
        record, written last, says "from" which run: the one that did the work, which is also returned.
        """
        if self.finished(stage, inputs):
            return None
        donor = next((d for d in donors if d.path != self.path and d.finished(stage, inputs)), None)
        record = donor.stage(stage) if donor else None
        if donor is None or record is None:
            return None
        for name in record["outputs"]:
            files.same_file(donor.file(name), self.file(name))
        self._write_metrics(donor.metrics()[: record["metrics"]])
        files.write_record(self.file(COVERAGE), self.coverage() | record["coverage"])
        record = {"from": donor.id, **record}
        files.write_record(self.file(f"stages/{stage}.json"), record)
        return record["from"]
