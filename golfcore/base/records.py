"""A run folder: its configuration, metrics, coverage report, and the stages that are done.

config.json    the configuration, preset name, data hash: what a resume must match
metrics.jsonl  rows of training and events, each with its step
coverage.json  what every switched-on feature really touched
stages/*.json  one a finished stage: hash of its inputs, its outputs with hashes, seconds, what the logs held then
results.json   the numbers of the tables, each with its source
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from golfcore.base import files

RESULTS = "results.json"  # written last: a run that has it is finished


@dataclass(frozen=True)
class RunFolder:
    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    def file(self, name: str) -> Path:
        return self.path / name

    def config_hash(self) -> str:
        """The configuration's hash when the run was made: a field that a later version adds does not change it."""
        return files.read_json(self.file("config.json"), "a run's configuration")["hash"]

    def data_hash(self) -> str:
        return files.read_json(self.file("config.json"), "a run's configuration")["data_hash"]

    # -- metrics: rows of {"step": ..., "kind": ...}
    def log(self, row: Mapping[str, Any]) -> None:
        files.append_jsonl(self.file("metrics.jsonl"), [dict(row)])

    def metrics(self, kind: str | None = None) -> list[dict]:
        rows = files.read_jsonl(self.file("metrics.jsonl"))
        return [r for r in rows if kind is None or r["kind"] == kind]

    def rewind(self, step: int) -> None:
        """Drop rows after `step`: what a killed run logged beyond its last checkpoint is logged again."""
        self.keep(lambda r: r["step"] <= step)

    def keep(self, wanted: Callable[[dict], bool]) -> None:
        """Drop the rows that are not `wanted`."""
        kept = [r for r in self.metrics() if wanted(r)]
        files.write_text(self.file("metrics.jsonl"), "".join(files.canonical_json(r) + "\n" for r in kept))

    # -- coverage: a switch that does nothing is an error
    def cover(self, feature: str, done: int, of: int, unit: str, note: str = "") -> None:
        """Record that `feature` touched `done` of `of` units. Zero without a `note` (a named quirk) fails the run."""
        if done == 0 and not note:
            raise RuntimeError(f"{feature} is switched on but touched 0 of {of:,} {unit}")
        report = self.coverage()
        report[feature] = {"done": done, "of": of, "unit": unit, "note": note}
        files.write_json(self.file("coverage.json"), report)

    def coverage(self) -> dict[str, dict]:
        path = self.file("coverage.json")
        return files.read_json(path, "a coverage report") if path.exists() else {}

    # -- stages
    def finished(self, stage: str, inputs: Mapping[str, object]) -> bool:
        """Whether the stage's outputs are here, whole, and made from the same inputs."""
        marker = self.file(f"stages/{stage}.json")
        if not marker.exists():
            return False
        past = files.read_json(marker, "a stage record")
        return past["inputs"] == _key(inputs) and all(self._whole(n, sha) for n, sha in past["outputs"].items())

    def finish(
        self,
        stage: str,
        inputs: Mapping[str, object],
        outputs: list[str],
        seconds: float,
        made: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Declare the stage done. `outputs` are names of files within the folder, `made` says by which code and where.

        What it was `made` by is recorded and no part of the inputs: results of another version are reused and named.
        """
        shas = {name: files.sha256_file(self.file(name)) for name in outputs}
        record = {"inputs": _key(inputs), "outputs": shas, "seconds": seconds, "made": dict(made)}
        record |= {"metrics": len(self.metrics()), "coverage": self.coverage()}
        files.write_json(self.file(f"stages/{stage}.json"), record)

    def adopt(self, stage: str, inputs: Mapping[str, object], donors: "tuple[RunFolder, ...]") -> str | None:
        """Take over the first stage of a run from one of `donors` that has it from the same inputs.

        The stage's outputs become files of both folders; metrics and coverage are copied as they were when it ended.
        Its record, written last, says "from" which run: the one that did the work, which is also returned.
        """
        if self.finished(stage, inputs):
            return None
        donor = next((d for d in donors if d.path != self.path and d.finished(stage, inputs)), None)
        if donor is None:
            return None
        record = files.read_json(donor.file(f"stages/{stage}.json"), "a stage record")
        for name in record["outputs"]:
            files.same_file(donor.file(name), self.file(name))
        rows = donor.metrics()[: record["metrics"]]
        files.write_text(self.file("metrics.jsonl"), "".join(files.canonical_json(r) + "\n" for r in rows))
        files.write_json(self.file("coverage.json"), record["coverage"])
        record = {"from": donor.id, **record}
        files.write_json(self.file(f"stages/{stage}.json"), record)
        return record["from"]

    def stages(self) -> dict[str, dict]:
        """Records of the stages done: hash of inputs, outputs with hashes, seconds; "from" if another run did it."""
        found = sorted(self.file("stages").glob("*.json"))
        return {path.stem: files.read_json(path, "a stage record") for path in found}

    def _whole(self, name: str, sha: str) -> bool:
        return self.file(name).exists() and files.sha256_file(self.file(name)) == sha


def _key(inputs: Mapping[str, object]) -> str:
    return files.sha256_text(files.canonical_json(dict(inputs)))
