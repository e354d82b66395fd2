"""One run, from a configuration to its numbers: train, quantize, choose the TTT rate, pack, evaluate, report.

Every stage leaves its files in the run folder and is skipped when they are there, whole and made from the same inputs;
a run killed at any moment goes on with the same command.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from golfcore.base import files, runtime, tensors
from golfcore.base.errors import UserError
from golfcore.base.progress import bar
from golfcore.base.records import RESULTS, RunFolder
from golfcore.base.runtime import Runtime
from golfcore.config import Config
from golfcore.data.datasets import Dataset, prepare_data, train_stream, val_tokens
from golfcore.data.tokens import load_tables
from golfcore.evals import result as results
from golfcore.evals.adapt import Diverged
from golfcore.evals.bigram import fit_bigram
from golfcore.evals.evaluation import Subject
from golfcore.evals.protocols import configure, evaluate
from golfcore.evals.score import bits_per_byte, bytes_of
from golfcore.evals.windows import adapts
from golfcore.model import params
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, flat, to_device, unflat
from golfcore.quant import artifact
from golfcore.quant.calibrate import collect, self_generated
from golfcore.quant.quantize import check_names, coverage, guided_bits, quantize_weights
from golfcore.runs.folder import default_out as default_out
from golfcore.runs.folder import open_run
from golfcore.runs.results import ARTIFACT, CHOICE, FLOAT, MEASURES, QUANTIZED, build, measures, packed_facts, table
from golfcore.train import reptile, sensitivity
from golfcore.train.loop import check, train
from golfcore.train.state import TrainingData


def run(cfg: Config, out: Path, say: Callable[[str], object] = print, donors: tuple[RunFolder, ...] = ()) -> RunFolder:
    """All stages of `cfg` into the folder `out`; prints (through `say`) what was done and what was reused.

    Training is taken from the first of the runs `donors` that trained alike, if one did.
    Raises UserError if `out` holds a run of another configuration or data, or anything else.
    """
    rt = runtime.start(cfg.run.dtype, cfg.run.seed)
    try:
        check(cfg, rt.world)
        tell = say if rt.is_main else (lambda text: None)
        if rt.is_main:
            prepare_data(cfg, tell)
        runtime.barrier()
        dataset = prepare_data(cfg, lambda text: None)
        if rt.is_main:
            open_run(out, cfg, dataset.data_hash, runtime.describe() | {"world": rt.world})
        runtime.barrier()
        _Stages(cfg, RunFolder(out), dataset, rt, tell).all(donors)
        return RunFolder(out)
    finally:
        runtime.stop()


class _Stages:
    def __init__(
        self, cfg: Config, folder: RunFolder, dataset: Dataset, rt: Runtime, say: Callable[[str], object]
    ) -> None:
        self.cfg, self.run, self.dataset, self.rt, self.say = cfg, folder, dataset, rt, say
        self.compute = choose_compute(rt.device, rt.dtype)
        self.tables = load_tables(dataset.tokenizer, cfg.model.vocab_size)
        self.stream = train_stream(dataset, cfg.model.vocab_size, cfg.data.reserve_tokens)
        self.val = val_tokens(dataset, cfg.model.vocab_size, cfg.data.val_tokens)
        if len(self.val) < 2:
            raise UserError(f"{dataset.path}: expected validation tokens, found {len(self.val)}")
        for _, protocol in measures(cfg).values():
            configure(protocol, cfg)  # what cannot be is said now, not after training
        check_names(cfg)

    def all(self, donors: tuple[RunFolder, ...]) -> None:
        base = {"config": self.cfg.hash, "data": self.dataset.data_hash}
        training = {"training": self.cfg.training_hash, "data": self.dataset.data_hash}
        if self.rt.is_main and (donor := self.run.adopt("train", training, donors)):
            self.say(f"train: from {donor}")
        runtime.barrier()
        sensed = [sensitivity.FILE] if sensitivity.wanted(self.cfg.quant) else []
        self.stage("train", training, [FLOAT, *sensed], self.train)
        trained = base | {"weights": self.sha(FLOAT)} | {name: self.sha(name) for name in sensed}
        self.stage("quantize", trained, [QUANTIZED], self.quantize)
        quantized = base | {"quantized": self.sha(QUANTIZED), "tokenizer": self.dataset.tokenizer_hash}
        self.stage("choose_ttt", quantized, [CHOICE], self.choose_ttt)
        self.stage("pack", quantized | {"choice": self.sha(CHOICE)}, [ARTIFACT], self.pack)
        for name, (weights, _) in measures(self.cfg).items():
            inputs = base | {"weights": self.sha(weights), "artifact": self.sha(ARTIFACT)}
            self.stage(f"eval-{name}", inputs, [f"eval/{name}.json", f"eval/{name}.npy"], partial(self.measure, name))
        self.stage("baseline", base, ["baseline.json"], self.baseline)
        if self.rt.is_main:
            report = build(self.cfg, self.run, self.source, len(self.val) - 1)
            files.write_json(self.run.file(RESULTS), report)
            self.say(table(report))
        runtime.barrier()

    def stage(self, name: str, inputs: dict, outputs: list[str], work: Callable[[], None]) -> None:
        """Do `work` on all ranks unless it is done; what it writes, it writes on the first."""
        done = self.run.finished(name, inputs)
        runtime.barrier()
        if done:
            by = (self.run.stage(name) or {}).get("made", {}).get("code", "of another version")
            other = "" if by == runtime.code_version() else f", made by golfcore {by} and not {runtime.code_version()}"
            self.say(f"{name}: reused{other}")
            return
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        if self.rt.is_main:
            self.run.finish(name, inputs, outputs, seconds, self.made)
        runtime.barrier()
        self.say(f"{name}: done in {seconds:.1f} s")

    def sha(self, name: str) -> str:
        return files.sha256_file(self.run.file(name))

    # -- the stages
    def train(self) -> None:
        per_token = float(bytes_of(self.tables, self.val[:-1], self.val[1:]).mean())
        belongs = {"training": self.cfg.training_hash, "data": self.dataset.data_hash}
        data = TrainingData(self.stream, self.val, self.tables, per_token, belongs)
        weights = train(self.cfg, self.run, data, self.rt)
        if self.rt.is_main:
            tensors.save(self.run.file(FLOAT), flat(weights), self.source)
            for path in (self.run.file(reptile.CHECKPOINT), tensors.previous(self.run.file(reptile.CHECKPOINT))):
                path.unlink(missing_ok=True)

    def quantize(self) -> None:
        """Round, with GPTQ after a calibration. One rank does it; the result is the same on any."""
        if not self.rt.is_main:
            return
        c, weights = self.cfg, self.load(FLOAT)
        hessians = self.calibrate(weights) if c.quant.rounding == "gptq" else None
        bits: dict[str, int] = {}
        if sensitivity.wanted(c.quant):
            what, schema = "the gradients that guide bit widths", {"mean_square": {"*": float}}
            found = files.read_json(self.run.file(sensitivity.FILE), what, schema)
            bits = guided_bits(c.quant, found["mean_square"])
        with bar(params.summary(c.model)["exported"], "quantize", "value") as progress:
            quantized = quantize_weights(c, weights, hessians, progress.update, bits=bits)
        stored = coverage(c, quantized, bits)
        total, halves = sum(stored.values()), stored.get("fp16", 0)
        self.run.cover("quantized", total - halves, total, "values")  # fails where all is too small to be quantized
        for kind, done in stored.items():
            self.run.cover(f"stored as {kind}", done, total, "values")
        artifact.write(self.run.file(QUANTIZED), c, quantized)

    def calibrate(self, weights: Weights) -> dict[str, Tensor]:
        """Damped Hessians of the matrices on self-generated text."""
        q, net = self.cfg.quant, Net(self.cfg.model, self.tables.to(self.rt.device), self.compute)
        with bar(-(-q.calib_seqs // q.calib_batch) * (q.calib_len - 1), "calibration text", "tok") as progress:
            tokens = self_generated(q, net, weights, self.cfg.run.seed, progress.update)
        with bar(q.calib_seqs, "hessians", "seq") as progress:
            return collect(net, weights, tokens, q.damping, batch=q.calib_batch, progress=progress.update)

    def choose_ttt(self) -> None:
        """The TTT rate, chosen on training text that was kept out of training; never on validation text.

        Rates that diverge are skipped and named. UserError: all of them do.
        """
        t, rows = self.cfg.ttt, list[dict]()
        candidates = t.lr_candidates if adapts(self.cfg) else ()
        if candidates:
            subject = Subject(self.load(QUANTIZED), self.stream.tail(), self.tables, self.rt)
        for lr in candidates:
            trial, part = replace(self.cfg, ttt=replace(t, lr=lr)), self.run.file(f"ttt-{lr:g}.part")
            try:
                found = evaluate("ttt", trial, subject, resume=part, label=f"ttt lr {lr:g}")
            except Diverged as e:
                self.say(f"choose_ttt: rate {lr:g} is skipped: {e}")
                rows.append({"lr": lr, "diverged": str(e)})
            else:
                rows.append({"lr": lr, "bpb": found.bpb, "tokens": found.tokens})
            part.unlink(missing_ok=True)
        sound = [row for row in rows if "bpb" in row]
        if rows and not sound:
            raise UserError(f"ttt.lr_candidates {list(candidates)}: expected a rate that adapts, found all to diverge")
        chosen = min(sound, key=lambda r: r["bpb"])["lr"] if sound else t.lr
        if self.rt.is_main:
            files.write_json(self.run.file(CHOICE), {"lr": chosen, "chosen_on": "reserved training text", "rows": rows})

    def pack(self) -> None:
        """One file that needs nothing beside it: weights, configuration, the chosen rate, and which data it is for."""
        if not self.rt.is_main:
            return
        _, quantized = artifact.read_quantized(self.run.file(QUANTIZED))
        lr = files.read_json(self.run.file(CHOICE), "the chosen TTT settings", {"lr": float})["lr"]
        facts = {"ttt_lr": lr, "data": self.dataset.data_hash, "tokenizer": self.dataset.tokenizer_hash}
        artifact.write(self.run.file(ARTIFACT), self.cfg, quantized, facts)

    def measure(self, name: str) -> None:
        weights, protocol = measures(self.cfg)[name]
        cfg = packed_facts(self.run.file(ARTIFACT)).chosen(self.cfg)
        found = evaluate(
            protocol,
            cfg,
            Subject(self.load(weights), self.val, self.tables, self.rt),
            resume=self.run.file(f"eval/{name}.part"),
            source=self.source | {"weights": self.sha(weights), "weights_file": weights},
            label=name,
        )
        if self.rt.is_main:
            results.save(found, self.run.file(f"eval/{name}.json"))
            for feature, row in found.coverage.items():
                self.run.cover(feature if name in MEASURES else f"{name}: {feature}", **row)

    def baseline(self) -> None:
        """An interpolated bigram model of the training text that the run could see, on the same validation targets."""
        if not self.rt.is_main:
            return
        nats = fit_bigram(self.stream.pieces(), self.cfg.model.vocab_size).nats(self.val)
        n_bytes = int(bytes_of(self.tables, self.val[:-1], self.val[1:]).sum())
        found = {"bpb": bits_per_byte(float(nats.sum()), n_bytes), "fitted_on_tokens": self.stream.length}
        files.write_json(self.run.file("baseline.json"), found | {"model": "bigram, Witten-Bell"})

    # -- what they need
    @cached_property
    def made(self) -> dict:
        """By which code and where: recorded with every stage and every number."""
        device = str(runtime.describe()["device"])
        return {"code": runtime.code_version(), "world": self.rt.world, "device": device}

    @cached_property
    def source(self) -> dict:
        c = self.cfg
        about = {"run": self.run.id, "config": c.hash, "preset": c.name, "seed": c.run.seed}
        return about | {"data": self.dataset.data_hash} | self.made

    def load(self, name: str) -> Weights:
        path = self.run.file(name)
        weights = artifact.read(path)[1] if name != FLOAT else unflat(tensors.load(path, "trained weights")[0])
        return to_device(weights, self.rt.device)
