"""How each letter of golden case is computed with golfcore, and compared. Helper of test_golden.py.

An option in `meta` that no case function reads fails the case: it would be another case than the one computed here. So
does a recorded output that none of them reads.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import golden_analysis
import numpy as np
import torch
from torch import Tensor

from golfcore.config import (
    AverageConfig,
    Config,
    DataConfig,
    EvalConfig,
    MetaConfig,
    ModelConfig,
    OptimConfig,
    QuantConfig,
    ScheduleConfig,
    TTTConfig,
    load,
)
from golfcore.data.tokens import Tables
from golfcore.evals.evaluation import Subject
from golfcore.evals.protocols import evaluate
from golfcore.evals.result import EvalResult
from golfcore.interop import from_reference, matrix_names, reference_config, to_reference
from golfcore.model.attention import Compute, attend_sdpa
from golfcore.model.forward import Net, forward, nll
from golfcore.model.hashing import ngram_rows
from golfcore.model.weights import Banks, Weights, flat, matrices, tree_map
from golfcore.optim import average, schedule
from golfcore.optim.muon import Muon, newton_schulz
from golfcore.quant.calibrate import collect
from golfcore.quant.gptq import solve
from golfcore.quant.grid import matrix_grid, round_to_nearest, table_grid
from golfcore.quant.quantize import quantize_weights
from golfcore.quant.stored import dequantize_weights
from golfcore.train import meta as objectives

Arrays = dict[str, np.ndarray]
Outcome = tuple[int, list[str]]

DESCRIPTIONS = re.compile(  # keys that say how arrays were drawn or named, or repeat what the arrays and `kw` hold
    r"\w*seed|lut_p|bound_p|g_std|p_std|std|out_\w+|name|note|rule|size|shape|rows|cols|vocab|dead\w*|ntok|n_tokens|nseq"
    r"|B|T|acts|grads|\w+_equals_bigram_pos0|distinct|max|min|calib_len|calib_seqs|gain|dim|heads|kv|layers|mlp_mult"
    r"|bigram_dim|bigram_vocab|ve_dim|ve_layers|val_batch_size|meta_ttt_every|meta_sgd_lr"
)
NO_OUTPUT = re.compile(  # parameters, inputs, and what repeats other arrays of the file
    r"^param/|(^|/)in(/|$)|/loss_at_100s$|_bits$|checksum"
)
REMARKS = re.compile(r"noise\w*|note\w*|findings|dtypes|qmeta|runs")  # on the top level: what came out, not options


class Options(dict):
    """Values by name, at every level of `meta` or the arrays of a file, that remember which of them were read."""

    def __init__(self, values: dict, where: str = "meta") -> None:
        super().__init__({key: _wrapped(value, f"{where}.{key}") for key, value in values.items()})
        self.where, self.read = where, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default

    def all(self) -> dict:
        """Every key and value: for what only describes, or for a reader that refuses unknown keys itself."""
        self.read.update(self)
        for key in self:
            for level in self.levels(key):
                level.all()
        return self

    def only(self, **known: object) -> None:
        """Options that golfcore has at one value only: refused at another."""
        for key, value in known.items():
            found = self.get(key, value)
            assert found == value, f"{self.where}.{key}: golfcore computes {value!r} only, the case has {found!r}"

    def levels(self, key: str) -> list["Options"]:
        value = super().__getitem__(key)
        return [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, Options)]

    def unread(self) -> Iterator[str]:
        """Dotted names of options that nothing read."""
        top = self.where == "meta"
        for key, value in self.items():
            deeper = self.levels(key)
            described = REMARKS.fullmatch(key) or isinstance(value, str | list) if top else DESCRIPTIONS.fullmatch(key)
            if key in self.read:
                for level in deeper:
                    yield from level.unread()
            elif not described or (top and deeper and not REMARKS.fullmatch(key)):
                yield f"{self.where}.{key}"


def _wrapped(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return Options(value, where)
    if isinstance(value, list):
        return [_wrapped(v, f"{where}[{i}]") for i, v in enumerate(value)]
    return value


def run(meta: dict, arrays: Arrays) -> Outcome:
    """How many outputs of a case were compared, and a sentence for each that differs and each that was not read."""
    options, recorded = Options(meta), Options(arrays)
    checked, wrong = CASES[options["case"]](options, recorded)
    wrong += [f"{name}: an option that golfcore does not know" for name in options.unread()]
    left = [key for key in arrays if key not in recorded.read and not NO_OUTPUT.search(key)]
    return checked, wrong + [f"{key}: a recorded output that was not compared" for key in left]


class Check:
    """Collects comparisons."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays, self.count, self.wrong = arrays, 0, []

    def close(self, key: str, found: object, tolerance: float) -> None:
        want = self.arrays[key].astype(np.float64)
        value = found.detach().cpu().double().numpy() if isinstance(found, Tensor) else np.asarray(found, np.float64)
        worst = float(np.abs(want - value.reshape(want.shape)).max()) if want.size else 0.0
        self.note(worst <= tolerance, f"{key}: off by {worst:.2e}, tolerance {tolerance:.1e}")

    def relative_norm(self, key: str, found: Tensor, tolerance: float) -> None:
        want = self.arrays[key].astype(np.float64)
        off = np.linalg.norm(want - found.detach().double().numpy().reshape(want.shape)) / np.linalg.norm(want)
        self.note(off <= tolerance, f"{key}: relative norm off by {off:.2e}, tolerance {tolerance:.1e}")

    def equal(self, key: str, found: Tensor | np.ndarray) -> None:
        differ = int((self.arrays[key] != np.asarray(found)).sum())
        self.note(differ == 0, f"{key}: {differ} integers differ")

    def note(self, ok: bool, message: str) -> None:
        self.count += 1
        if not ok:
            self.wrong.append(message)

    @property
    def outcome(self) -> tuple[int, list[str]]:
        return self.count, self.wrong


# -- a: hash rows


def case_a(meta: Options, arrays: Arrays) -> Outcome:
    check = Check(arrays)
    for case in meta["cases"]:
        name = case["name"]
        tokens = torch.from_numpy(arrays[f"{name}/in/tokens"])
        starts = torch.from_numpy(arrays[f"{name}/in/has_leading_space"])
        for gram, order in (("bigram", 2), ("trigram", 3)):
            for split in (0, 1):
                key = f"{name}/out/{gram}_pos{split}"
                if key in arrays:
                    check.equal(key, ngram_rows(tokens, starts, case["table"], bool(split), order))
    for split in (0, 1) if meta.get("exhaustive") else ():
        name, want = f"bigram_pos{split}", meta["exhaustive"].get(f"bigram_pos{split}")
        if want:
            found = all_pairs(meta["exhaustive"]["cfg"], split=bool(split))
            same = hashlib.sha256(found.astype("<i8").tobytes()).hexdigest() == want["sha256"]
            check.note(same and int(found.sum()) == want["sum"], f"exhaustive {name}: rows differ")
    return check.outcome


def all_pairs(cfg: Options, split: bool) -> np.ndarray:
    """Rows of every (previous, current) pair, previous-major."""
    vocab = cfg["vocab"]
    starts = torch.from_numpy(np.random.default_rng(cfg["lut_seed"]).random(vocab) < cfg["lut_p"])
    previous, current = torch.meshgrid(torch.arange(vocab), torch.arange(vocab), indexing="ij")
    pairs = torch.stack((previous.flatten(), current.flatten()), dim=1)
    return ngram_rows(pairs, starts, cfg["table"], split)[:, 1].numpy()


# -- shared by b, d, e, f: a model from its file


def family(meta: Options) -> str:
    """The original of a case: named in `ref`, else told by how its matrices are stored."""
    named = meta.get("ref") or meta["cfg"].get("ref")
    if named:
        return named
    names = [name for name, _ in meta["state"]["param_order"]]
    if "qo_bank" in names:
        return "exp101"
    return "pr294seed" if any(n.startswith("iter_") for n in names) else "pr398"


def model(meta: Options, arrays: Arrays) -> tuple[ModelConfig, Weights]:
    cfg = meta["cfg"]
    keywords = cfg.get("kw") or meta["model_kw"]
    args = cfg.get("args")
    switches = {key: cfg.get(key) for key in ("poscond", "trigram") if cfg.get(key)}
    meta_sgd = bool(args and args.get("meta_sgd_enabled"))
    config = reference_config(family(meta), switches | keywords.all(), meta_sgd=meta_sgd)
    state = {name: torch.from_numpy(value) for name, value in state_of(meta, arrays).items()}
    return config, from_reference(state, config)


def state_of(meta: Options, arrays: Arrays) -> Arrays:
    """The parameters: stored in the file, or regenerated by its stated rule (one normal stream, mean + std * z)."""
    stored = {k[len("param/") :]: v for k, v in arrays.items() if k.startswith("param/")}
    if stored:
        meta["state"].all()  # says how they were drawn
    return stored or generated(meta["state"])


def generated(state: Options) -> Arrays:
    rng = np.random.default_rng(state["seed"])
    out = {}
    for name, shape in state["param_order"]:
        z = rng.standard_normal(tuple(shape))
        _, mean, std = next(rule for rule in state["rules"] if re.search(rule[0], name))
        assert std == "fanin" or not isinstance(std, str), f"{name}: unknown standard deviation {std!r}"
        assert mean == "row0=1,row1=0" or not isinstance(mean, str), f"{name}: unknown mean {mean!r}"
        scale = 1 / np.sqrt(shape[-1]) if std == "fanin" else std
        centre = np.array([[1.0], [0.0]]) if isinstance(mean, str) else mean
        out[name] = np.asarray(centre + scale * z).astype(np.float32).reshape(shape)
    return out


def tables_of(arrays: Arrays, vocab: int) -> Tables | None:
    if "in/has_leading_space" not in arrays:
        return None
    starts = torch.from_numpy(arrays["in/has_leading_space"])
    zeros = np.zeros(vocab, dtype=np.int16)
    return Tables(
        torch.from_numpy(arrays.get("in/base_bytes", zeros)),
        starts,
        torch.from_numpy(arrays.get("in/is_boundary", zeros.astype(bool))),
    )


def shapes_of(arrays: Arrays, prefix: str) -> dict[str, tuple[int, ...]]:
    return {k[len(prefix) :]: v.shape for k, v in arrays.items() if k.startswith(prefix)}


def compare_tensors(check: Check, prefix: str, values: dict[str, Tensor], tolerance: Callable[[float], float]) -> None:
    """Every `prefix` array of the file against ours; the tolerance is a function of its largest value."""
    for name in shapes_of(check.arrays, prefix):
        key = prefix + name
        if name not in values:
            check.note(False, f"{key}: missing")
            continue
        check.close(key, values[name], tolerance(float(np.abs(check.arrays[key]).max(initial=0.0))))


# -- b: forward, loss, gradients, residual stream


def case_b(meta: Options, arrays: Arrays) -> Outcome:
    check = Check(arrays)
    config, weights = model(meta, arrays)
    tables = tables_of(arrays, config.vocab_size)
    tokens = torch.from_numpy(arrays["in/tokens"].astype(np.int64))
    x, y = tokens[:, :-1], tokens[:, 1:]
    layers: dict[str, Tensor] = {}
    leaves = tree_map(lambda t: t.requires_grad_(), weights)
    logits = forward(Net(config, tables), leaves, x, tap=lambda name, t: layers.__setitem__(name, t))
    loss = nll(logits, y).mean()
    loss.backward()
    check.close("out/logits", logits, 3e-4)
    for key in ("out/loss_eval", "out/loss_train", "out/loss_with_banks"):
        if key in arrays:
            check.close(key, loss, 1e-5 * max(1.0, float(arrays[key])))
    for name in shapes_of(arrays, "act/"):
        index = int(name.removeprefix("block").removesuffix("_out"))
        check.close(f"act/{name}", layers[f"layer{index}"], 3e-4)
    gradients = to_reference(tree_map(grad_of, leaves), config, shapes_of(arrays, "grad/"))
    compare_tensors(check, "grad/", gradients, lambda top: 1e-3 * top + 1e-9)
    if "out/logits_bf16attn" in arrays:
        half = Compute(attend=lambda q, k, v: attend_sdpa(q.bfloat16(), k.bfloat16(), v.bfloat16()).to(q.dtype))
        check.close("out/logits_bf16attn", forward(Net(config, tables, half), weights, x), 0.15)
    return check.outcome


def grad_of(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


# -- c: Newton-Schulz and Muon


def case_c(meta: Options, arrays: Arrays) -> Outcome:
    """bf16 keys are held to the rounding that differs between libraries, fp32 keys to the arithmetic."""
    check = Check(arrays)
    for spec, prefix in [*((s, "ns") for s in meta["ns"]), *((s, "ns2d_pr398") for s in meta["ns2d"])]:
        key = f"{prefix}/{spec['name']}"
        g = torch.from_numpy(arrays[f"{key}/in"])
        for name, dtype, tolerance in (("bf16_as_f32", torch.bfloat16, 6e-2), ("fp32_internal", torch.float32, 2e-4)):
            found = newton_schulz(g, spec["steps"], dtype).float()
            target = f"{key}/out_ref_{name}" if dtype == torch.bfloat16 else f"{key}/out_{name}"
            check.relative_norm(target, found, tolerance)
    for spec, prefix in [*((s, "muon") for s in meta["muon"]), *((s, "muon2d_pr398") for s in meta["muon2d"])]:
        for variant, dtype, tolerance in (("bf16", torch.bfloat16, 6e-2), ("fp32", torch.float32, 2e-4)):
            three_steps(check, spec, f"{prefix}/{spec['name']}", variant, dtype, tolerance)
    return check.outcome


def three_steps(check: Check, spec: Options, key: str, variant: str, dtype: torch.dtype, tolerance: float) -> None:
    p = torch.from_numpy(check.arrays[f"{key}/in/p0"].copy()).requires_grad_()
    muon = Muon(
        [p], spec["lr"][0], spec["momentum"][0], spec["wd"], spec["steps"], dtype, nesterov=spec.get("nesterov", True)
    )
    for step, (lr, momentum) in enumerate(zip(spec["lr"], spec["momentum"], strict=True)):
        p.grad = torch.from_numpy(check.arrays[f"{key}/in/grad{step}"])
        muon.param_groups[0].update(lr=lr, momentum=momentum)
        muon.step()
        check.relative_norm(f"{key}/out_{variant}/p{step + 1}", p, tolerance)
        (buffer,) = (t for t in muon.state[p].values() if isinstance(t, Tensor))
        check.relative_norm(f"{key}/out_{variant}/mom{step + 1}", buffer, tolerance)


# -- d: quantizers, Hessians, a whole model through them

INT6 = QuantConfig(floor=True, clip_score="mse", stored_scale_codes=False, damp_twice=True, fp16_max_numel=65_536)
PLAIN = {  # output name -> grid
    "int6": matrix_grid(INT6),
    "int8": table_grid(INT6),
    "pr398_int6": matrix_grid(load("pr398").quant),
    "pr294v2_int5": matrix_grid(load("pr294-reptile").quant),
}


def case_d(meta: Options, arrays: Arrays) -> Outcome:
    check = Check(arrays)
    for spec in meta.get("gptq", []):
        key = f"gptq/{spec['name']}"
        w, h = (torch.from_numpy(arrays[f"{key}/in/{n}"]) for n in ("weight", "hessian"))
        spec.only(clip_range=31)
        codes, scale = solve(w, h, matrix_grid(INT6), block=spec["block"], damping=INT6.damping, score="mse")
        solved(check, key + "/out/q", key + "/out/scale_f16", w, h, codes, scale)
        plain(check, key + "/out/rtn_q", key + "/out/rtn_scale_f16", *round_to_nearest(w, matrix_grid(INT6)))
    for spec in meta.get("perrow", []):
        w = torch.from_numpy(arrays[f"perrow/{spec['name']}/in/weight"])
        for name, grid in PLAIN.items():
            base = f"perrow/{spec['name']}/out/{name}"
            if base + "_q" in arrays:
                scale_key = next(k for k in (base + "_scale_f16", base + "_scale") if k in arrays)
                plain(check, base + "_q", scale_key, *round_to_nearest(w, grid))
    if shapes_of(arrays, "hessian/"):
        (whole_model if shapes_of(arrays, "quant/") else hessians)(check, meta, arrays)
    return check.outcome


def plain(check: Check, codes_key: str, scale_key: str, codes: Tensor, scale: Tensor) -> None:
    """Plain rounding: only exact ties may differ."""
    want = check.arrays[codes_key].astype(int)
    apart = np.abs(want - codes.numpy().astype(int))
    fraction = float((apart > 0).mean())
    check.note(fraction <= 2e-4 and apart.max(initial=0) <= 1, f"{codes_key}: {fraction:.2e} of symbols differ")
    scales(check, scale_key, scale)


def solved(check: Check, codes_key: str, scale_key: str, w: Tensor, h: Tensor, codes: Tensor, scale: Tensor) -> None:
    """GPTQ: the symbols, and the objective it minimises."""
    want = check.arrays[codes_key].astype(int)
    apart = np.abs(want - codes.numpy().astype(int))
    reference = weighted_error(w, want, check.arrays[scale_key], h)
    ratio = weighted_error(w, codes.numpy(), scale.numpy(), h) / reference
    fraction = float((apart > 0).mean())
    good = fraction <= 1e-2 and apart.max(initial=0) <= 2 and ratio <= 1.01
    check.note(good, f"{codes_key}: {fraction:.2e} of symbols differ by up to {apart.max()}, error ratio {ratio:.4f}")
    scales(check, scale_key, scale)


def weighted_error(w: Tensor, codes: np.ndarray, scale: np.ndarray, h: Tensor) -> float:
    e = w.double().numpy() - codes * scale.astype(np.float64)[:, None]
    return float(((e @ h.double().numpy()) * e).sum())


def scales(check: Check, key: str, scale: Tensor) -> None:
    want = check.arrays[key]
    same = np.atleast_1d(scale.numpy().astype(want.dtype) == want) if want.dtype == np.float16 else None
    if same is None:
        check.close(key, scale, 1e-5 * max(1.0, float(np.abs(want).max())))
    else:
        check.note(float((~same).mean()) <= 1e-3, f"{key}: {int((~same).sum())} scales differ")


def hessians(check: Check, meta: Options, arrays: Arrays) -> None:
    config, weights = model(meta, arrays)
    tokens = torch.from_numpy(arrays[next(k for k in arrays if k.startswith("in/") and "tokens" in k)].astype(np.int64))
    net = Net(config, tables_of(arrays, config.vocab_size))
    loss = nll(forward(net, weights, tokens[:, :-1]), tokens[:, 1:]).mean()
    for key in shapes_of(arrays, "out/"):
        check.close(f"out/{key}", loss, 1e-5 * float(arrays[f"out/{key}"]))
    found = collect(net, weights, tokens, 0.01)
    theirs = {original: found[ours] for ours, original in matrix_names(config).items() if ours in found}
    compare_tensors(check, "hessian/", theirs, lambda top: 1e-4 * top)


def whole_model(check: Check, meta: Options, arrays: Arrays) -> None:
    """Quantize with the given Hessians, dequantize, score: the published rules from end to end."""
    config, weights = model(meta, arrays)
    names = matrix_names(config)
    found = {o: torch.from_numpy(arrays[f"hessian/{t}"]) for o, t in names.items() if f"hessian/{t}" in arrays}
    hess = {name: found.get(name, torch.eye(m.shape[1])) for name, m in matrices(weights)}
    quantized = quantize_weights(Config(model=config, quant=INT6), weights, hess)
    nearest = quantize_weights(Config(model=config, quant=INT6), weights, None)
    masters = {name: (m, hess[name]) for name, m in matrices(weights)}
    for ours, theirs in names.items():
        key, other = f"quant/{theirs}", f"quant_nohessian/{theirs}"
        if key + ".q" in arrays:
            solved(check, key + ".q", key + ".scale", *masters[ours], *quantized[ours])
        if other + ".q" in arrays:
            plain(check, other + ".q", other + ".scale", *nearest[ours])
    for ours, theirs in (
        ("tok_emb", "tok_emb.weight"),
        ("bigram", "bigram.embed.weight"),
        ("ve", "ve_shared.embed.weight"),
    ):
        if f"quant/{theirs}.q" in arrays:
            plain(check, f"quant/{theirs}.q", f"quant/{theirs}.scale", *quantized[ours])
    back = dequantize_weights(config, quantized)
    stored = shapes_of(arrays, "quant/")
    codes = {name for name in stored if name.endswith(".q")}
    halves = {n: shape for n, shape in stored.items() if not {n, n.removesuffix(".scale") + ".q"} & codes}
    for name, value in to_reference(back, config, halves).items():
        check.close(f"quant/{name}", value, 0.0)
    ours = to_reference(back, config, shapes_of(arrays, "deq/"))
    for name in ours:
        want = arrays[f"deq/{name}"]
        apart = np.abs(want - ours[name].numpy()) > 1e-6 * np.abs(want).max()
        check.note(float(apart.mean()) <= 1e-2, f"deq/{name}: {apart.mean():.2e} of values differ")
    tokens = torch.from_numpy(arrays["in/calib_tokens"][:2].astype(np.int64))
    for key, used in (("out/loss_before", weights), ("out/loss_after", back)):
        if key in arrays:
            tables = tables_of(arrays, config.vocab_size)
            loss = nll(forward(Net(config, tables), used, tokens[:, :-1]), tokens[:, 1:]).mean()
            check.close(key, loss, (1e-5 if used is weights else 2e-3) * max(1.0, float(arrays[key])))


# -- e: the gradient after a meta step


def case_e(meta: Options, arrays: Arrays) -> Outcome:
    cfg, args = meta["cfg"], meta["cfg"]["args"]
    check = Check(arrays)
    config, weights = model(meta, arrays)
    leaves = tree_map(lambda t: t.requires_grad_(), weights)
    tables = tables_of(arrays, config.vocab_size)
    tokens = torch.from_numpy(arrays["in/tokens"].astype(np.int64))
    x, y = tokens[:, :-1], tokens[:, 1:]
    args.only(meta_ttt_enabled=True, meta_ttt_sam_adaptive=False)
    sam, rho = args.get("meta_ttt_sam_enabled", False), args.get("meta_ttt_sam_rho", 0.05)
    meta_cfg = MetaConfig(
        enabled=True,
        inner_lr=args["meta_ttt_inner_lr"],
        loss_weight=args["meta_ttt_loss_weight"],
        freeze_blocks=args["meta_ttt_freeze_blocks"],
        delta_weight=args.get("meta_ttt_delta_weight", 0.0),
        split={"seq": "time", "batch": "batch"}[args.get("meta_ttt_split", "seq")],
        sam_rho=rho if sam else 0.0,
    )
    if cfg["prior"]:
        (nll(forward(Net(config, tables), leaves, x), y).mean() * cfg["grad_scale"]).backward()
    data, objective = objectives.split(meta_cfg, x, y), objectives.model_loss(Net(config, tables), meta_cfg)
    outcome = objectives.evaluate(meta_cfg, objective, leaves, data, objectives.freeze_masks(config, meta_cfg))
    together = tree_map(lambda leaf, g: grad_of(leaf) + cfg["grad_scale"] * g, leaves, outcome.gradients)
    check.close("out/returned_loss", outcome.loss_post, 1e-5 * max(1.0, float(arrays["out/returned_loss"])))
    found = to_reference(together, config, shapes_of(arrays, "grad/"))
    compare_tensors(check, "grad/", found, lambda top: 1e-3 * top + 1e-9)
    return check.outcome


# -- f: evaluation and score-first adaptation


def case_f(meta: Options, arrays: Arrays) -> Outcome:
    check, (config, weights) = Check(arrays), model(meta, arrays)
    tables, tokens = tables_of(arrays, config.vocab_size), arrays["in/val_tokens"]
    first = "out/eval_val_before" in arrays  # pr398: train, then score
    whole = adapting(meta["cfg"], config, first)
    window = whole.eval.seq_len

    def compare(key: str, protocol: str, used: Weights, at: np.ndarray = tokens) -> EvalResult:
        result = evaluate(protocol, whole, Subject(used, at, tables))
        names = [name for name in (f"out/{key}_loss_bpb", f"out/{key}_val_loss_bpb", f"out/{key}") if name in arrays]
        for name in names:
            want = arrays[name]
            check.close(name, np.array([result.loss, result.bpb]), 1e-5 * max(1.0, float(np.abs(want).max())))
        return result

    if first:
        rows = tokens[: (len(tokens) - 1) // window * window + 1]  # what does not overlap
        compare("eval_val_before", "static", weights, rows)
        result = compare("eval_val_sliding_after", "ttt", weights)
        compare("eval_val_after", "static", result.adapted, rows)
        steps = result.adapt_losses
        check.note(str(result.legality) == "train-first", f"legality: {result.legality}")
    else:
        compare("eval_val", "static", weights)
        compare("sliding_epochs0", "sliding", weights)
        result = compare("ttt", "ttt", weights)
        steps = [loss for chunk in result.chunks for loss in chunk["adapt_losses"]]
    check.close("out/adapt_losses", np.array(steps), 1e-5 * max(1.0, float(arrays["out/adapt_losses"].max())))
    adapted = to_reference(result.adapted, config, shapes_of(arrays, "final/"))
    compare_tensors(check, "final/", adapted, lambda top: 5e-5)
    return check.outcome


def adapting(cfg: Options, model_cfg: ModelConfig, first: bool) -> Config:
    """The configuration of a case; `first`: pr398's, which trains on the whole stream before it scores."""
    args, length = cfg["args"], cfg["args"]["train_seq_len"]
    args.only(ttt_enabled=True, ttt_nesterov=False, ttt_weight_decay=0, ttt_dampening=0, eval_stride=cfg["stride"])
    window = cfg.get("eval_seq_len") or args.get("eval_seq_len") or length
    batch = cfg.get("batch_seqs") or args.get("eval_batch_seqs", 32)
    return Config(
        model=model_cfg,
        data=DataConfig(seq_len=length),
        eval=EvalConfig(seq_len=window, stride=cfg["stride"], batch_seqs=batch, tail="pr398" if first else "exp101"),
        ttt=TTTConfig(
            order="train-first" if first else "score-first",
            chunk_tokens=args.get("ttt_chunk_tokens", length),
            epochs=args["ttt_epochs"],
            lr=args["ttt_lr"],
            lr_shape="constant" if first else "cosine",
            momentum=args["ttt_momentum"],
            batch_seqs=args["ttt_batch_seqs"],
            clip=args.get("ttt_grad_clip", 1.0),
            freeze_blocks=args["ttt_freeze_blocks"],
            freeze="all" if first else "scalars",
        ),
    )


# -- g: schedules and the EMA


def case_g(meta: Options, arrays: Arrays) -> Outcome:
    check, cfg = Check(arrays), meta["cfg"]
    for spec in cfg["exp101"]:
        schedules(check, cfg, spec, meta["runs"][spec["name"]])
    ema = cfg["ema"]
    average_cfg = AverageConfig(kind="ema", decay=ema["decay"], every=ema["every"])
    path = torch.from_numpy(arrays["ema/params"])
    check.note(len(path) == ema["steps"] + 1, f"ema: {len(path)} rows of parameters")

    def as_weights(row: Tensor) -> Weights:
        return Weights(Banks(*(row[i : i + 1] for i in range(4))), {"rest": row[4:]})

    state = average.start(average_cfg, as_weights(path[0]))
    found = []
    for step in range(1, len(path)):
        state = average.update(average_cfg, state, as_weights(path[step]), step, 1.0)
        found.append(torch.cat(list(flat(state.copies[0]).values())))
    check.close("ema/ema_after_step", torch.stack(found), 1e-6)
    check.close("ema/decay_eff", np.float64(ema["decay"] ** ema["every"]), 1e-6)
    return check.outcome


def schedules(check: Check, cfg: Options, spec: Options, run: Options) -> None:
    name, arrays, adaptive = spec["name"], check.arrays, cfg["adaptive"]
    cap = spec["max_wallclock_seconds"]
    cosine = ScheduleConfig(
        clock="wall",
        iterations=spec["iterations"],
        max_seconds=cap,
        warmdown_steps=spec["warmdown_iters"],
        guard_steps=spec["warmup_steps"] + 5,
        adaptive=True,
        adaptive_ema=adaptive["ema"],
        adaptive_threshold=adaptive["threshold"],
        adaptive_min_steps=spec.get("min_steps") or adaptive["min_steps"],
        adaptive_every=adaptive.get("every", 100),
    )
    linear = replace(cosine, shape="linear", adaptive=False)
    state = schedule.Adaptive()
    z = np.random.default_rng(adaptive["loss_seed"]).standard_normal(spec["iterations"] + 1)
    fired: dict[int, float] = {}
    for s in range(0, spec["iterations"] + 1):
        loss = 2 + 5 * math.exp(-s / 80) - 2e-5 * s + 0.05 * z[s]
        elapsed = s * cfg["step_ms"] * (1 + 0.1 * math.sin(s / 50))
        before = state.triggered
        state = schedule.update_adaptive(cosine, state, s, elapsed, loss)
        if before is None and state.triggered is not None:
            fired[s] = state.triggered
    want_step, want_when = run.all()["trigger_step_ms"] or (spec["iterations"], None)
    step, when = next(iter(fired.items()), (spec["iterations"], None))
    same = when == want_when or None not in (when, want_when) and abs(when - want_when) < 1e-3
    check.note(step == want_step and same, f"{name}: trigger at {step}, {when}")
    steps, elapsed_ms = arrays[f"lr/{name}/step"], arrays[f"lr/{name}/elapsed_ms"]

    def curve(c: ScheduleConfig, triggered: float | None) -> np.ndarray:
        clocks = [
            schedule.Clock(int(s), float(e), triggered if triggered is None or s > want_step else None)
            for s, e in zip(steps, elapsed_ms, strict=True)
        ]
        return np.array([schedule.lr_multiplier(c, clock) for clock in clocks])

    check.close(f"lr/{name}/no_trigger", curve(cosine, None), 1e-6)
    check.close(f"lr/{name}/with_trigger", curve(cosine, want_when), 1e-6)
    for system in ("pr398", "pr294seed", "pr294v2"):
        if f"lr_{system}/{name}" in arrays:
            check.close(f"lr_{system}/{name}", curve(linear, None), 1e-6)
    m = cfg["momentum"]
    optim = OptimConfig(momentum=m["end"], momentum_start=m["start"], momentum_steps=m["warmup"])
    flat_momentum = [schedule.momentum(optim, int(s)) for s in steps]
    check.close(f"mom/{name}/noncyclic", np.array(flat_momentum), 1e-6)
    cyclic = [
        schedule.cyclic_momentum(int(s), m["cyc_min"], m["cyc_max"], m["period"]) if s >= m["warmup"] else plain_value
        for s, plain_value in zip(steps, flat_momentum, strict=True)
    ]
    check.close(f"mom/{name}/cyclic", np.array(cyclic), 1e-6)


# -- h: weight space as published


def case_h(meta: Options, arrays: Arrays) -> Outcome:
    check = Check(arrays)
    meta["cfg"].all()
    golden_analysis.compare(meta, arrays, generated, check.note)
    return check.outcome


CASES: dict[str, Callable[[dict, Arrays], Outcome]] = {
    "a": case_a,
    "b": case_b,
    "c": case_c,
    "d": case_d,
    "e": case_e,
    "f": case_f,
    "g": case_g,
    "h": case_h,
}
