"""The program of a submission: train, or score what was trained, with one configuration and nothing else to choose.

It runs as part of the package, and as the single file that `golfcore.runs.bundle` makes.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from golfcore import config
from golfcore.base import runtime
from golfcore.base.errors import UserError
from golfcore.config import Config, override
from golfcore.data.datasets import Dataset, prepare_data, train_stream, val_tokens
from golfcore.data.tokens import load_tables
from golfcore.model.attention import choose_compute
from golfcore.model.forward import Net
from golfcore.optim.inner import loss_function
from golfcore.runs import pipeline
from golfcore.runs.reopen import evaluate_again
from golfcore.train import state
from golfcore.train.loop import initial
from golfcore.train.state import TrainingData
from golfcore.train.step import plan, train_step


def main(values: Mapping[str, Any], argv: Sequence[str] | None = None) -> int:
    """Exit code of its command line: 0, or 2 after a sentence on a mistake in the input. `values`: a configuration."""
    parser = argparse.ArgumentParser(description="Train the model of this submission, or score an artifact of it.")
    parser.add_argument("--data", default="", help="folder of shards and a tokenizer")
    parser.add_argument("--seed", type=int, help="default: the configuration's")
    parser.add_argument("--out", type=Path, default=Path("run"), help="folder of the training run")
    parser.add_argument("--evaluate", type=Path, metavar="FILE", help="score this artifact instead of training")
    parser.add_argument("--protocol", default="ttt", help="of that score (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=0, help="only the losses of so many first steps, in hexadecimal")
    args = parser.parse_args(argv)
    try:
        cfg = config.from_dict(dict(values), "the configuration of this file")
        cfg = override(cfg, {"data.path": args.data} if args.data else {}, cfg.name)
        cfg = override(cfg, {"run.seed": args.seed} if args.seed is not None else {}, cfg.name)
        if args.evaluate:
            found = evaluate_again(args.evaluate, args.protocol, {"data.path": args.data} if args.data else {})
            said = {"bpb": found.bpb, "tokens": found.tokens, "legality": str(found.legality)}
            print(json.dumps(said | {"data": found.source["data"]}))
        elif args.steps:
            print("\n".join(first_losses(cfg, args.steps)))
        else:
            pipeline.run(cfg, args.out)
    except UserError as e:
        print(e)
        return 2
    return 0


def first_losses(cfg: Config, steps: int) -> Iterator[str]:
    """The losses of a run's first steps, every bit of them: what another machine or copy of the code must repeat."""
    rt = runtime.start(cfg.run.dtype, cfg.run.seed, cfg.run.graphs)
    data, shared = _data(cfg, prepare_data(cfg, lambda text: None)), plan(cfg, rt.world)
    net = Net(cfg.model, data.tables.to(rt.device), choose_compute(rt))
    begun, loss = state.start(cfg, initial(cfg, data), rt.dtype, rt.device), loss_function(net, cfg.optim.z_loss)
    for _ in range(steps):
        yield train_step(cfg, net, begun, data.stream, loss, rt, shared).loss.hex()


def _data(cfg: Config, dataset: Dataset) -> TrainingData:
    vocab = cfg.model.vocab_size
    stream, val = train_stream(dataset, vocab, cfg.data.reserve_tokens), val_tokens(dataset, vocab, 2)
    return TrainingData(stream, val, load_tables(dataset.tokenizer, vocab), 1.0, {})
