"""One run, from a configuration to its numbers: train, quantize, choose the TTT rate, pack, evaluate, report.

Every stage leaves its files in the run folder and is skipped when they are there, whole and made from the same inputs;
a run killed at any moment goes on with the same command.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from golfcore.base import files, runtime, tensors
from golfcore.base.errors import UserError
from golfcore.base.progress import bar
from golfcore.base.records import RESULTS, TRAINING, RunFolder
from golfcore.base.runtime import Runtime
from golfcore.config import Config
from golfcore.data.datasets import Dataset, prepare_data, train_stream, val_tokens
from golfcore.data.tokens import load_tables
from golfcore.evals import result
from golfcore.evals.adapt import Diverged
from golfcore.evals.bigram import fit_bigram
from golfcore.evals.evaluation import Subject
from golfcore.evals.protocols import configure, evaluate
from golfcore.evals.score import bits_per_byte, bytes_of
from golfcore.evals.windows import adapts
from golfcore.model import params
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.model.weights import Weights, flat
from golfcore.quant import artifact
from golfcore.quant.allocate import allocated
from golfcore.quant.calibrate import collect, self_generated
from golfcore.quant.quantize import check_names, coverage, guided_bits, quantize_weights
from golfcore.runs import results
from golfcore.runs.folder import default_out as default_out
from golfcore.runs.folder import held, open_run
from golfcore.runs.results import ARTIFACT, MEASURES, table
from golfcore.train import reptile, sensitivity
from golfcore.train.loop import check, train
from golfcore.train.state import TrainingData


def run(cfg: Config, out: Path, say: Callable[[str], object] = print, donors: tuple[RunFolder, ...] = ()) -> RunFolder:
    """All stages of `cfg` into the folder `out`; prints (through `say`) what was done and what was reused.

    Training is taken from the first of the runs `donors` that trained alike, if one did.
    Raises UserError if `out` holds a run of another configuration or data, or anything else.
    """
    rt = runtime.start(cfg.run.dtype, cfg.run.seed, cfg.run.graphs)
    try:
        check(cfg, rt.world)
        tell = say if rt.is_main else (lambda text: None)
        if rt.is_main:
            prepare_data(cfg, tell)
        runtime.barrier()
        dataset = prepare_data(cfg, lambda text: None)
        with held(out) if rt.is_main else nullcontext():
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
        self.tables = load_tables(dataset.tokenizer, cfg.model.vocab_size)
        self.stream = train_stream(dataset, cfg.model.vocab_size, cfg.data.reserve_tokens)
        self.val = val_tokens(dataset, cfg.model.vocab_size, cfg.data.val_tokens)
        if len(self.val) < 2:
            raise UserError(f"{dataset.path}: expected validation tokens, found {len(self.val)}")
        for _, protocol in results.measures(cfg).values():
            configure(protocol, cfg)  # what cannot be is said now, not after training
        check_names(cfg)
        # by which code and where: recorded with every stage and every number
        device = str(runtime.describe()["device"])
        self.made = {"code": runtime.code_version(), "world": rt.world, "device": device}
        self.source = {"run": folder.id, "config": cfg.hash, "preset": cfg.name, "seed": cfg.run.seed}
        self.source |= {"data": dataset.data_hash} | self.made

    def all(self, donors: tuple[RunFolder, ...]) -> None:
        base = {"config": self.cfg.hash, "data": self.dataset.data_hash}
        training = {"training": self.cfg.training_hash, "data": self.dataset.data_hash}
        others = () if self.cfg.run.keep_every else donors  # weights on the way are kept by the run that trains
        if self.rt.is_main and (donor := self.run.adopt(TRAINING, training, others)):
            self.say(f"train: from {donor}")
        runtime.barrier()
        sensed = [sensitivity.FILE] if sensitivity.wanted(self.cfg.quant) else []
        self.stage(TRAINING, training, [results.FLOAT, *sensed], partial(self.train, training))
        trained = base | {"weights": self.sha(results.FLOAT)} | {name: self.sha(name) for name in sensed}
        self.stage("quantize", trained, [results.QUANTIZED], self.quantize, alone=True)
        quantized = base | {"quantized": self.sha(results.QUANTIZED), "tokenizer": self.dataset.tokenizer_hash}
        self.stage("choose_ttt", quantized, [results.CHOICE], self.choose_ttt)
        self.stage("pack", quantized | {"choice": self.sha(results.CHOICE)}, [ARTIFACT], self.pack, alone=True)
        for name, (weights, _) in results.measures(self.cfg).items():
            inputs, outputs = (
                results.eval_inputs(self.run, self.cfg, weights),
                [f"eval/{name}.json", f"eval/{name}.npy"],
            )
            self.stage(f"eval-{name}", inputs, outputs, partial(self.measure, name))
        self.stage("baseline", base, ["baseline.json"], self.baseline, alone=True)
        if self.rt.is_main:
            self.run.coverage_after(results.last_stage(self.cfg))
            report = results.build(self.cfg, self.run, self.source, len(self.val) - 1)
            files.write_record(self.run.file(RESULTS), report)
            self.say(table(report))
        runtime.barrier()

    def stage(
        self, name: str, inputs: dict, outputs: list[str], work: Callable[[], object], alone: bool = False
    ) -> None:
        """Do `work`, on all ranks or the first alone, unless it is done; what it writes, it writes on the first."""
        done = self.run.finished(name, inputs)
        runtime.barrier()
        if done:
            by = (self.run.stage(name) or {}).get("made", {}).get("code", "of another version")
            other = "" if by == self.made["code"] else f", made by golfcore {by} and not {self.made['code']}"
            self.say(f"{name}: reused{other}")
            return
        began = time.perf_counter()
        if self.rt.is_main:
            self.run.begin(name)
        if self.rt.is_main or not alone:
            work()
        seconds = time.perf_counter() - began
        if self.rt.is_main:
            self.run.finish(name, inputs, outputs, seconds, self.made)
        runtime.barrier()
        self.say(f"{name}: done in {seconds:.1f} s")

    def sha(self, name: str) -> str:
        return files.sha256_file(self.run.file(name))

    def load(self, name: str) -> Weights:
        return results.load_weights(self.run.file(name), self.rt.device)

    # -- the stages
    def train(self, belongs: dict[str, str]) -> None:
        per_token = float(bytes_of(self.tables, self.val[:-1], self.val[1:]).mean())
        weights = train(
            self.cfg, self.run, TrainingData(self.stream, self.val, self.tables, per_token, belongs), self.rt
        )
        if self.rt.is_main:
            tensors.save(self.run.file(results.FLOAT), flat(weights), self.source)
            for path in (self.run.file(reptile.CHECKPOINT), tensors.previous(self.run.file(reptile.CHECKPOINT))):
                path.unlink(missing_ok=True)

    def quantize(self) -> None:
        """Round, with GPTQ after a calibration; the result is the same on any rank."""
        c, weights, bits = self.cfg, self.load(results.FLOAT), dict[str, int]()
        tokens, hessians = self.calibrate(weights) if c.quant.rounding == "gptq" else (None, None)
        if sensitivity.wanted(c.quant):
            what, schema = "the gradients that guide bit widths", {"mean_square": {"*": float}}
            found = files.read_json(self.run.file(sensitivity.FILE), what, schema)
            bits = guided_bits(c.quant, found["mean_square"])
        with bar(params.summary(c.model)["exported"], "quantize", "value") as progress:
            if c.quant.steps == "clip":
                quantized = quantize_weights(c, weights, hessians, progress.update, bits=bits)
            else:
                net = Net(c.model, self.tables.to(self.rt.device), choose_compute(self.rt))
                quantized, steps = allocated(c, net, weights, hessians, tokens, progress.update)
                files.write_record(self.run.file("steps.json"), steps)
        stored = coverage(c, quantized, bits)
        total, halves = sum(stored.values()), stored.get("fp16", 0)
        self.run.cover("quantized", total - halves, total, "values")  # fails where all is too small to be quantized
        for kind, done in stored.items():
            self.run.cover(f"stored as {kind}", done, total, "values")
        artifact.write(self.run.file(results.QUANTIZED), c, quantized)

    def calibrate(self, weights: Weights) -> tuple[Tensor, dict[str, Tensor]]:
        """Self-generated text, and damped Hessians of the matrices on it."""
        q, device = self.cfg.quant, self.rt.device
        net = Net(self.cfg.model, self.tables.to(device), choose_compute(self.rt))
        with bar(-(-q.calib_seqs // q.calib_batch) * (q.calib_len - 1), "calibration text", "tok") as progress:
            tokens = self_generated(q, net, weights, self.cfg.run.seed, progress.update)
        with bar(q.calib_seqs, "hessians", "seq") as progress:
            how = {"batch": q.calib_batch, "progress": progress.update, "head": q.table_gptq}
            return tokens, collect(net, weights, tokens, q.damping, **how)

    def choose_ttt(self) -> None:
        """The TTT rate, chosen on training text that was kept out of training; never on validation text.

        Rates that diverge are skipped and named. UserError: all of them do.
        """
        t, rows, scores = self.cfg.ttt, list[dict](), dict[float, float]()
        candidates = t.lr_candidates if adapts(self.cfg) else ()
        if candidates:
            subject = Subject(self.load(results.QUANTIZED), self.stream.tail(), self.tables, self.rt)
        for lr in candidates:
            trial, part = replace(self.cfg, ttt=replace(t, lr=lr)), self.run.file(f"ttt-{lr:g}.part")
            try:
                found = evaluate("ttt", trial, subject, resume=part, label=f"ttt lr {lr:g}")
            except Diverged as e:
                self.say(f"choose_ttt: rate {lr:g} is skipped: {e}")
                rows.append({"lr": lr, "diverged": str(e)})
            else:
                rows.append({"lr": lr, "bpb": found.bpb, "tokens": found.tokens})
                scores.setdefault(lr, found.bpb)
            part.unlink(missing_ok=True)
        if rows and not scores:
            raise UserError(f"ttt.lr_candidates {list(candidates)}: expected a rate that adapts, found all to diverge")
        if self.rt.is_main:
            chosen = min(scores, key=scores.__getitem__, default=t.lr)
            files.write_record(
                self.run.file(results.CHOICE), {"lr": chosen, "chosen_on": "reserved training text", "rows": rows}
            )

    def pack(self) -> None:
        """One file that needs nothing beside it: weights, configuration, the chosen rate, and which data it is for."""
        _, quantized = artifact.read_quantized(self.run.file(results.QUANTIZED))
        lr = files.read_json(self.run.file(results.CHOICE), "the chosen TTT settings", {"lr": float})["lr"]
        facts = {"ttt_lr": lr, "data": self.dataset.data_hash, "tokenizer": self.dataset.tokenizer_hash}
        artifact.write(self.run.file(ARTIFACT), self.cfg, quantized, facts)

    def measure(self, name: str) -> None:
        file, protocol = results.measures(self.cfg)[name]
        weights = self.load(file)
        found = evaluate(
            protocol,
            results.packed_facts(self.run.file(ARTIFACT)).chosen(self.cfg),
            Subject(weights, self.val, self.tables, self.rt),
            resume=self.run.file(f"eval/{name}.part"),
            source=self.source | {"weights": tensors.digest(flat(weights)), "weights_file": file},
            label=name,
        )
        if self.rt.is_main:
            result.save(found, self.run.file(f"eval/{name}.json"))
            for feature, row in found.coverage.items():
                self.run.cover(feature if name in MEASURES else f"{name}: {feature}", **row)

    def baseline(self) -> None:
        """An interpolated bigram model of the training text that the run could see, on the same validation targets."""
        nats = fit_bigram(self.stream.pieces(), self.cfg.model.vocab_size).nats(self.val)
        n_bytes = int(bytes_of(self.tables, self.val[:-1], self.val[1:]).sum())
        found = {"bpb": bits_per_byte(float(nats.sum()), n_bytes), "fitted_on_tokens": self.stream.length}
        files.write_record(self.run.file("baseline.json"), found | {"model": "bigram, Witten-Bell"})
