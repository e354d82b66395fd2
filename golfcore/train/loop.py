"""The training loop: clock, validation, checkpoints, progress, stop and resume; and the phase that may follow it."""

import time

import numpy as np
import torch
from tqdm import tqdm

from golfcore.base import files, tensors
from golfcore.base.errors import UserError
from golfcore.base.progress import bar
from golfcore.base.records import KEPT, RunFolder
from golfcore.base.runtime import Runtime, all_reduce_max, all_reduce_mean_, barrier
from golfcore.base.signals import Stopped, whole
from golfcore.config import Config
from golfcore.evals.evaluation import Subject
from golfcore.evals.protocols import evaluate
from golfcore.model import params
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.model.hashing import frequent_pairs
from golfcore.model.weights import Banks, Weights, detach, flat
from golfcore.optim import average
from golfcore.optim.inner import loss_function
from golfcore.optim.schedule import Clock, lr_multiplier, ordinary
from golfcore.train import reptile, sensitivity
from golfcore.train import state as states
from golfcore.train.meta import add_gradient, due, freeze_masks, split
from golfcore.train.state import TrainingData
from golfcore.train.step import Diverged, Plan, Report, plan, train_step

CHECKPOINT = "checkpoint.safetensors"
COUNTED = 10_000_000  # first tokens of the training text, in which frequent pairs are counted


def check(cfg: Config, world: int) -> None:
    """UserError if `world` ranks cannot share a step, or if a switch of `cfg` would act at no step of training.

    Where the LR multipliers depend on time or losses, all from 0 to 1 are taken to occur.
    """
    plan(cfg, world)
    if cfg.reptile.share:
        reptile.budget(cfg)
    a, o, q, m, s = cfg.average, cfg.optim, cfg.quant, cfg.meta, ordinary(cfg)
    known = s.clock == "steps" and not s.adaptive and not s.max_seconds
    steps, snapshots = range(s.iterations), range(a.every - 1, s.iterations, a.every)

    def below(limit: float, within: range = steps) -> bool:
        return any(not known or lr_multiplier(s, Clock(i, 0.0)) < limit for i in within)

    def meta_acts() -> bool:
        return any(due(m, i, lr_multiplier(s, Clock(i, 0.0)) if known else 1.0) for i in steps)

    acts = {
        f"average.every {a.every}": a.kind == "none" or len(snapshots) > 0,
        f"average.start_scale {a.start_scale:g}": a.kind != "swa" or below(a.start_scale, snapshots),
        f"optim.qat_scale {o.qat_scale:g}": o.qat == "none" or below(o.qat_scale),
        f"quant.guided_scale {q.guided_scale:g}": not sensitivity.wanted(q) or below(q.guided_scale),
        f"meta.min_scale {m.min_scale:g}": not m.enabled or meta_acts(),
    }
    if idle := [what for what, found in acts.items() if not found]:
        raise UserError(f"{idle[0]}: expected a step at which it acts, found none among {s.iterations}")


def train(cfg: Config, run: RunFolder, data: TrainingData, runtime: Runtime) -> Weights:
    """The averaged weights of the whole training and the Reptile phase, begun or gone on with from their checkpoints.

    A run killed at any moment goes on to the same bits (CPU). `reptile.CHECKPOINT` is left for the caller to remove
    once the result is safe; with guided bits the run gets `sensitivity.FILE`. Diverged on NaN or Inf, UserError if a
    switch did nothing; the last good state stays in the checkpoint.
    """
    loop = _Loop(cfg, run, data, runtime)
    loop.go()
    weights = average.result(cfg.average, loop.state.averaged, loop.state.weights)
    return reptile.phase(cfg, run, weights, loop.state.step, data, runtime) if cfg.reptile.share else weights


def initial(cfg: Config, data: TrainingData) -> Weights:
    """The weights that training begins with; a table that lists frequent pairs takes them from the training text."""
    weights = params.init(cfg.model, cfg.run.seed)
    if cfg.model.bigram_rows and cfg.model.bigram_layout == "frequent":
        read = data.stream.read(0, min(data.stream.length, COUNTED))
        pairs = frequent_pairs(read, cfg.model.vocab_size, cfg.model.bigram_rows - 1)
        weights.rest["bigram_pairs"].copy_(torch.from_numpy(pairs))
    return weights


class _Loop:
    def __init__(self, cfg: Config, run: RunFolder, data: TrainingData, runtime: Runtime) -> None:
        self.cfg, self.run, self.data, self.runtime = cfg, run, data, runtime
        self.schedule, self.plan = ordinary(cfg), plan(cfg, runtime.world)  # may refuse the number of ranks
        self.net = Net(cfg.model, data.tables.to(runtime.device), choose_compute(runtime))
        self.loss_fn = loss_function(self.net, cfg.optim.z_loss)
        self.bits = 1 / (np.log(2) * data.bytes_per_token)
        self.state = states.start(cfg, initial(cfg, data), runtime.dtype, runtime.device)
        if run.file(CHECKPOINT).exists():
            say = tqdm.write if runtime.is_main else lambda text: None
            self.state = states.load(self.state, cfg, run.file(CHECKPOINT), data.belongs, say)
        barrier()
        if runtime.is_main:
            run.rewind(self.state.step)
        data.stream.position, self.saved = self.state.position, self.state.step

    def go(self) -> None:
        c, s, per_step = self.cfg, self.state, self.cfg.optim.batch_tokens
        if self.runtime.device.type == "cuda":
            self._warm_up()
        total = self.schedule.iterations * per_step
        with bar(total, "train", "tok", s.step * per_step, self.runtime.is_main) as progress:
            while not (s.stopped or s.step == self.schedule.iterations):
                if c.run.val_every and s.step % c.run.val_every == 0:
                    self._validate()
                with whole() as asked:
                    report = self._step()
                    progress.update(per_step)
                    progress.set_postfix_str(f"loss {report.loss:.3f} bpb {report.loss * self.bits:.3f}", refresh=False)
                    if c.run.keep_every and s.step % c.run.keep_every == 0:
                        self._keep()
                    ends = all_reduce_max(int(asked())) > 0  # on every rank, if on one
                    if ends or s.step % c.run.checkpoint_every == 0:
                        self._checkpoint()
                if ends:  # another rank was asked
                    raise Stopped(f"after step {s.step}")
        if s.position != s.step * self.plan.tokens:
            raise RuntimeError(f"expected {s.step * self.plan.tokens} tokens of text used up, found {s.position}")
        self._validate()
        self._checkpoint()
        try:
            if self.runtime.is_main:
                self._cover()
        except RuntimeError as e:  # the weights are worth keeping: they are what the other switches made of them
            raise UserError(f"{e}; the trained weights are kept in {self.run.file(CHECKPOINT)}") from None

    def _step(self) -> Report:
        s, began = self.state, time.perf_counter()
        try:
            report = train_step(self.cfg, self.net, s, self.data.stream, self.loss_fn, self.runtime, self.plan)
        except Diverged as e:
            kept = self.run.file(CHECKPOINT)
            where = f"the last good state is in {kept}" if kept.exists() else "no checkpoint had been written yet"
            raise Diverged(f"{e}; {where}") from None
        s.elapsed += time.perf_counter() - began
        if (cap := self.schedule.max_seconds) > 0:
            clock = torch.tensor(s.elapsed, dtype=torch.float64, device=self.runtime.device)
            all_reduce_mean_([clock])  # all ranks stop at the same step
            s.elapsed = float(clock)
            s.stopped = s.elapsed >= cap
        self._log(report)
        return report

    def _log(self, r: Report) -> None:
        s, c = self.state, self.cfg
        if not self.runtime.is_main:
            return
        for event in (*r.events, *(["cap"] if s.stopped else [])):
            self.run.log({"kind": "event", "step": s.step, "event": event, "elapsed": s.elapsed})
        if r.meta is not None:
            self.run.log({"kind": "meta", "step": s.step, "lr_multiplier": r.lr_multiplier, **r.meta})
        ended = s.stopped or s.step == self.schedule.iterations
        if c.model.meta_sgd and (ended or s.step % c.meta.log_rates_every == 0):
            rates = {bank: s.weights.rest[params.RATES + bank].tolist() for bank in Banks._fields}
            self.run.log({"kind": "meta_sgd", "step": s.step, **rates})
        if s.step <= 10 or s.step % c.run.log_every == 0:
            row = {"kind": "train", "step": s.step, "loss": r.loss, "lr_multiplier": r.lr_multiplier}
            row |= {"momentum": r.momentum, "grad_norm": r.grad_norm, "elapsed": s.elapsed, "tokens": s.position}
            self.run.log({**row, "bpb": r.loss * self.bits})

    def _validate(self) -> None:
        """Non-overlapping bits per byte of the raw weights; not on the training clock."""
        s = self.state
        if any(r["step"] == s.step for r in self.run.metrics("val")):
            return
        subject = Subject(detach(s.weights), self.data.val, self.data.tables, self.runtime)
        result = evaluate("static", self.cfg, subject, label=f"val @{s.step}")
        if self.runtime.is_main:
            self.run.log({"kind": "val", "step": s.step, "loss": result.loss, "bpb": result.bpb, "elapsed": s.elapsed})

    def _checkpoint(self) -> None:
        """Save what is not saved, so that the file before this one holds an earlier step."""
        if self.runtime.is_main and self.state.step != self.saved:
            states.save(self.state, self.run.file(CHECKPOINT), self.data.belongs)
        self.saved = self.state.step
        barrier()

    def _keep(self) -> None:
        """The weights of this step for analysis; a resumed run writes the same again."""
        if self.runtime.is_main:
            path = self.run.file(KEPT.format(f"{self.state.step:06}"))
            tensors.save(path, flat(self.state.weights), {"step": self.state.step}, self.data.belongs)

    def _warm_up(self) -> None:
        """Compile before the clock starts: one forward and backward, and one meta call, that change nothing.

        Micro-batches that do not fit into the GPU's memory are cut by rows until they do.
        """
        c, p, weights = self.cfg, self.plan, self.state.weights
        zeros = torch.zeros(p.rows, p.seq_len, dtype=torch.int64, device=self.runtime.device)

        def attempt(plan: Plan) -> None:
            part = zeros[: plan.rows // plan.parts]
            self.loss_fn(weights, part, part).backward()

        self.plan = self.plan.fitted(attempt)
        if c.meta.enabled:
            add_gradient(c, self.net, weights, 0, split(c.meta, zeros, zeros, (zeros, zeros)), self.loss_fn)
        self.state.optimizers.zero_grad()

    def _cover(self) -> None:
        """What every switched-on feature did, into the run record."""
        c, s, counts = self.cfg, self.state, params.summary(self.cfg.model)
        n = counts["kinds"]["matrix"]
        able = n if c.meta.adapted == "banks" else counts["adaptable"]
        moved = able - params.frozen_count(c.model, freeze_masks(c.model, c.meta)) if c.meta.inner_steps else 0
        untrained = "published: SmearGate and the n-gram embedding are in no optimizer"
        inert = "published: announced, but no bank matrix passes through it" if c.optim.qat == "inert" else ""
        placebo = "" if c.meta.inner_steps else "placebo: the outer gradient without an inner step"
        rows = {
            "ngram_trained": (not c.model.ngram_trained, 0, counts["groups"]["none"], "values", untrained),
            "qat": (c.optim.qat != "none", n if s.qat and not inert else 0, n, "matrix weights", inert),
            "meta_adapted": (c.meta.enabled, moved, able, "values", placebo),
            "meta": (c.meta.enabled, len(self.run.metrics("meta")), s.step, "steps", ""),
            c.average.kind: (c.average.kind != "none", s.averaged.taken, s.step, "steps", ""),
            "guided_bits": (sensitivity.wanted(c.quant), s.sensitivity.steps, s.step, "steps", ""),
        }
        for feature, (switched_on, *touched) in rows.items():
            if switched_on:
                self.run.cover(feature, *touched)
        if sensitivity.wanted(c.quant):
            files.write_record(self.run.file(sensitivity.FILE), sensitivity.report(s.sensitivity))
