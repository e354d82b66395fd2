"""Bytes and cost of every rule of rounding on a trained run, and the coder on as many codes as exp101 has.

    python benchmarks/quantization.py [RUN]

RUN: a finished run's folder (default: the demo's, trained if need be). Rules are calibrated on text that the model
wrote and scored on validation text; the published rule stands under LZMA, as published. The coder's 25,952,256 codes
are of normal rows of root mean square 0.138 in steps of 1/31.
"""

import lzma
import sys
import time
from pathlib import Path

import numpy as np

import golfcore as gc
from golfcore import api
from golfcore.analysis import rates
from golfcore.analysis.frames import to_text
from golfcore.config import load
from golfcore.quant import allocate, codec
from golfcore.quant.calibrate import self_generated

CODES, RMS, STEP = 25_952_256, 0.138, 1 / 31
ROWS = 128  # of validation text
STEPS = (0.1, 0.15, 0.25, 0.35, 0.5)


def rules(run: api.Run) -> None:
    cfg, (net, x, y) = run.config, run.rows(ROWS)
    tokens = self_generated(cfg.quant, net, run.weights, cfg.run.seed)
    table = rates.curve(cfg, net, run.weights, tokens, x, y, STEPS)
    print(to_text(table))
    base = table[table["rule"] == "published"].iloc[0]
    for rule in rates.RULES:
        gap, bits = rates.at_equal(table, rule) / base["difference"], rates.at_equal(table, rule, "bits")
        print(f"{rule}: {gap:.2f} of the published cost at its bytes; {1 - bits / base['bits']:.1%} fewer at its cost")
    step = table[table["rule"] == "sigma"]
    predicted = allocate.GAUSSIAN - np.log2(step["step"].astype(float))
    apart = (step["entropy_bits"] / predicted - 1).map("{:+.1%}".format)
    print("entropy of sigma's codes against the prediction for normal weights:", ", ".join(apart))


def coder() -> None:
    codes = np.rint(np.random.default_rng(0).standard_normal(CODES) * (RMS / STEP)).clip(-31, 31).astype(np.int8)
    share = np.bincount(codes.astype(int) + 31) / CODES
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() * CODES / 8
    began = time.perf_counter()
    stream = codec.encode(codes, "ans")
    encoded = time.perf_counter()
    assert (codec.decode(stream, "ans") == codes).all()
    decoded = time.perf_counter()
    size = len(stream.payload) + 2 * len(stream.counts)
    packed = len(lzma.compress(codes.tobytes(), preset=9))
    print(f"{CODES:,} codes: entropy {entropy:,.0f}, ours {size:,} bytes ({size / entropy:.4f}), LZMA {packed:,}")
    there, back = encoded - began, decoded - encoded
    print(f"{1 - size / packed:.1%} less than LZMA; encoded in {there:.2f} s, decoded in {back:.2f} s")


if __name__ == "__main__":
    coder()
    rules(gc.open_run(Path(sys.argv[1])) if len(sys.argv) > 1 else gc.run(load("demo")))
