"""Which pairs of tokens share a row of the n-gram table, however its rows are shared out."""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from golfcore.analysis.frames import frame
from golfcore.analysis.stats import over_rows
from golfcore.analysis.surface import row_scores
from golfcore.analysis.text import render
from golfcore.base.errors import UserError
from golfcore.data.tokens import Tables
from golfcore.model.forward import Net
from golfcore.model.hashing import frequent_pairs, listed_rows, ngram_rows
from golfcore.model.weights import Weights

CURVE_POINTS = 60


def bucket_occupancy(tokens: np.ndarray, tables: Tables, n_rows: int) -> pd.DataFrame:
    """Occupancy of the bigram table under shared and split hashing of the same text, `tokens` (N,) ids.

    Rows of kind "summary", one for each part of the table (all; the two halves of a split one):
      rows, used, pairs, pairs_per_used_row
      share        of all occurrences that fall in this part
      contended    share of the part's occurrences in a row that two or more frequent pairs want; frequent are as many
                   of the most frequent pairs as there are rows, so that a perfect hash would give each its own
      not_own      share of occurrences that read a row in which another pair is more frequent
      other_class  share of occurrences in a row whose most frequent pair is of the other class (word start or not)
    Rows of kind "row": the part's rows by falling occupancy, at about CURVE_POINTS ranks evenly spaced in log(rank).
    """
    if tables.word_start is None:
        raise ValueError("tables without word_start do not tell the classes apart")
    pairs = _count_pairs(np.asarray(tokens), tables.word_start.numpy(), n_rows)
    both = torch.from_numpy(pairs[["previous", "current"]].to_numpy(copy=True))
    half, rows = (n_rows - 1) // 2, list[dict[str, Any]]()
    parts = {"shared": {"all": (0, n_rows - 1)}, "split": {"all": (0, 2 * half)}}
    parts["split"] |= {"word start": (0, half), "within word": (half, 2 * half)}
    for hashing, spans in parts.items():
        where = ngram_rows(both, tables.word_start, n_rows, split=hashing == "split")[:, 1].numpy()
        for part, (start, stop) in spans.items():
            label, here = {"hashing": hashing, "part": part}, pairs.assign(row=where)[(start <= where) & (where < stop)]
            share = float(here["times"].sum() / pairs["times"].sum())
            rows.append({"kind": "summary", **label, "rows": stop - start, "share": share, **_summary(here)})
            falling = here.groupby("row")["times"].sum().reindex(range(start, stop), fill_value=0).sort_values()[::-1]
            ranks = np.unique(np.geomspace(1, len(falling), CURVE_POINTS).round().astype(int))
            rows += [{"kind": "row", **label, "rank": r, "occurrences": falling.iloc[r - 1]} for r in ranks]
    return frame(rows)


def _count_pairs(tokens: np.ndarray, word_start: np.ndarray, n_rows: int) -> pd.DataFrame:
    """The different pairs of neighbours; the table's last row is a sentinel that no pair can have."""
    v = len(word_start)
    counts = np.bincount(tokens[:-1] * v + tokens[1:], minlength=v * v)
    code = np.flatnonzero(counts)
    found = pd.DataFrame({"previous": code // v, "current": code % v, "times": counts[code]})
    frequent = found["times"].rank(method="first", ascending=False) < n_rows
    return found.assign(word_start=word_start[code % v], frequent=frequent)


def _summary(here: pd.DataFrame) -> dict[str, Any]:
    """Of the pairs in one part of the table, each with its `row`."""
    top = here.sort_values("times", kind="stable").drop_duplicates("row", keep="last").set_index("row")
    times, total = here["times"], max(int(here["times"].sum()), 1)
    wanted = here.groupby("row")["frequent"].transform("sum")
    other = here["word_start"] != here["row"].map(top["word_start"])
    row = {"used": len(top), "pairs": len(here), "pairs_per_used_row": len(here) / max(len(top), 1)}
    row |= {"occurrences": int(times.sum()), "contended": float(times[wanted >= 2].sum() / total)}
    not_own = float(1 - top["times"].sum() / total) if len(here) else 0.0
    return row | {"not_own": not_own, "other_class": float(times[other].sum() / total)}


class Buckets:
    """The n-gram table row by row: which pairs share one, how often, what follows them, and what the row has learned.

    tokens: (N,) ids of the text that is counted; pieces: the text of every id; `n_rows`, `layout`: as the table's
    (model.bigram_layout); `weights`: of the model whose table it is; `scored`: (M + 1,) ids, and the (M,) nats of all
    but the first.
    Everything is counted when it is first asked for, and kept.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        tables: Tables,
        n_rows: int,
        layout: str = "split",
        pieces: Sequence[str] | None = None,
        weights: Weights | None = None,
        scored: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        if tables.word_start is None or n_rows < 2:
            raise UserError(f"buckets: expected tables of the tokenizer and at least 2 rows, found {n_rows} rows")
        self.tokens, self.tables, self.n_rows, self.layout = np.asarray(tokens), tables, n_rows, layout
        self.pieces = list(pieces) if pieces is not None else [f"<{i}>" for i in range(len(tables.word_start))]
        self.weights, self.scored = weights, scored

    @cached_property
    def occupancy(self) -> pd.DataFrame:
        """`bucket_occupancy` of the text: the table shared and split."""
        return bucket_occupancy(self.tokens, self.tables, self.n_rows)

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row a pair of the text, the most frequent first.

        Columns: text, previous, current (ids), row, word_start, times, targets and nats (number and mean loss of the
        scored targets that follow the pair; NaN without).
        """
        found = _count_pairs(self.tokens, self._starts, self.n_rows).drop(columns="frequent")
        found["row"] = self._rows_of(found["previous"], found["current"])
        found["text"] = [render(self.pieces, pair) for pair in zip(found["previous"], found["current"], strict=True)]
        code = found["previous"] * len(self._starts) + found["current"]
        counted = self._losses.reindex(code).set_axis(found.index)
        found = found.assign(targets=counted["count"].fillna(0).astype(int), nats=counted["mean"])
        columns = ["text", "previous", "current", "row", "word_start", "times", "targets", "nats"]
        return found[columns].sort_values("times", ascending=False, kind="stable", ignore_index=True)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row a row of the table that is used, by number.

        Columns: row, pairs, times, word_start (share of occurrences), next_bits (entropy of the token that follows, as
        counted: the row alone is known), own_bits (the same where the pair is known), mixed_bits (their difference:
        what sharing the row hides), norm (of its vector; NaN without weights).
        """
        sized = self.pairs.assign(starts=self.pairs["times"] * self.pairs["word_start"]).groupby("row")
        found = sized.agg(pairs=("times", "size"), times=("times", "sum"), starts=("starts", "sum")).reset_index()
        found["word_start"] = found.pop("starts") / found["times"]
        previous, current, following = (self.tokens[i : len(self.tokens) - 2 + i].astype(np.int64) for i in range(3))
        row, v = self._rows_of(previous, current), len(self._starts)
        found["next_bits"] = found["row"].map(_entropies(row, following, row, v))
        found["own_bits"] = found["row"].map(_entropies(previous * v + current, following, row, v))
        found["mixed_bits"] = found["next_bits"] - found["own_bits"]
        norms = self._vectors.norm(dim=1).numpy() if self._vectors is not None else np.full(self.n_rows, np.nan)
        return found.assign(norm=norms[found["row"]])

    def row(self, number: int) -> pd.DataFrame:
        """The pairs that share a row, as `pairs`, with `share` of its occurrences. UserError: no such row."""
        if not 0 <= number < self.n_rows - (self.layout != "frequent"):
            raise UserError(
                f"row {number}: expected 0 to {self.n_rows - 2}; the last row is of positions without a pair"
            )
        here = self.pairs[self.pairs["row"] == number].reset_index(drop=True)
        return here.assign(share=here["times"] / max(here["times"].sum(), 1))

    def pair(self, previous: str, current: str) -> pd.DataFrame:
        """The row of a pair of pieces (" the", "re"), as `row`, the pair itself first and marked in the column `asked`.

        A pair that the text lacks has times 0. UserError: a piece that the tokenizer does not have.
        """
        for piece in (previous, current):
            if piece not in self.pieces:
                near = ", ".join(map(repr, get_close_matches(piece, self.pieces, 3))) or "none like it"
                raise UserError(f"{piece!r}: expected a piece of the tokenizer, found {near}")
        ids = [self.pieces.index(piece) for piece in (previous, current)]
        number = int(self._rows_of([ids[0]], [ids[1]])[0])
        here = self.row(number)
        asked = (here["previous"] == ids[0]) & (here["current"] == ids[1])
        if not asked.any():
            own = {"text": render(self.pieces, ids), "previous": ids[0], "current": ids[1], "row": number, "times": 0}
            own |= {"word_start": bool(self._starts[ids[1]]), "targets": 0, "share": 0.0}
            here = pd.concat([pd.DataFrame([own]), here], ignore_index=True)
            asked = here.index == 0
        return here.assign(asked=asked).sort_values("asked", ascending=False, kind="stable", ignore_index=True)

    def predicts(self, number: int, most: int = 10) -> pd.DataFrame:
        """The tokens that a row's vector speaks for most: piece, and `push`, its product with the token's embedding.

        In standard deviations over the vocabulary: the head is tied to the embedding, so this is what the vector alone
        adds to the logits, before any layer. UserError: no model, or a model without a table.
        """
        if self._vectors is None or self.weights is None:
            raise UserError("predicts: expected a model with an n-gram table, found tokens alone")
        push = self.weights.rest["tok_emb"].detach().float() @ self._vectors[number]
        push = (push - push.mean()) / push.std().clamp(min=1e-30)
        best = push.topk(most)
        return pd.DataFrame({"piece": [self.pieces[i] for i in best.indices.tolist()], "push": best.values.numpy()})

    def explore(self) -> Any:
        """The table by hand, in a notebook: two pieces or a number, and the row that they name.

        Where ipywidgets is not installed: a sentence that names the plain calls, which show the same.
        """
        try:
            import ipywidgets
        except ImportError:
            calls = ".pair(PIECE, PIECE), .row(NUMBER) and .predicts(NUMBER)"
            return f'{calls} show what the widget would: pip install "golfcore[widgets]"'
        first = self.pairs.iloc[0]
        named = [self.pieces[int(first[which])] for which in ("previous", "current")]
        pieces = [ipywidgets.Combobox(value=name, options=self.pieces, ensure_option=True) for name in named]
        row = ipywidgets.BoundedIntText(value=int(first["row"]), min=0, max=self.n_rows - 2)
        found = ipywidgets.interactive(self.pair, previous=pieces[0], current=pieces[1])
        return ipywidgets.HBox([found, ipywidgets.interactive(self.row, number=row)])

    def collisions(self) -> pd.Series:
        """Pairs that share their row, beside a random hash of as many pairs into as many rows (per half of a split).

        Of a layout without collisions all that are not listed share the last row.
        """
        start, half = self.pairs["word_start"], (self.n_rows - 1) // 2
        parts = [(len(self.pairs), self.n_rows - 1)]
        if self.layout == "split":
            parts = [(int(start.sum()), half), (int((~start).sum()), half)]
        expected = sum(n * (1 - (1 - 1 / m) ** (n - 1)) for n, m in parts if n) / max(len(self.pairs), 1)
        used = sum(m * (1 - (1 - 1 / m) ** n) for n, m in parts)
        sizes = self.pairs["row"].map(self.pairs["row"].value_counts())
        found = {"pairs": len(self.pairs), "rows": self.n_rows - 1, "used": self.pairs["row"].nunique()}
        found |= {"used_by_chance": used, "sharing": (sizes > 1).mean(), "sharing_by_chance": expected}
        return pd.Series(found, dtype=object)

    def __repr__(self) -> str:
        counted = f"{len(self.pairs):,} pairs of {len(self.tokens):,} tokens"
        return f"{self.layout} n-gram table of {self.n_rows - 1:,} rows, {counted}"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.rows.nlargest(10, 'times').to_html(index=False)}"

    @property
    def _starts(self) -> np.ndarray:
        assert self.tables.word_start is not None
        return self.tables.word_start.cpu().numpy()

    def _rows_of(self, previous: ArrayLike, current: ArrayLike) -> np.ndarray:
        both = torch.from_numpy(np.stack([np.asarray(previous), np.asarray(current)], axis=1).astype(np.int64))
        if self.layout == "frequent":
            return listed_rows(both, self._listed, len(self._starts))[:, 1].numpy()
        return ngram_rows(both, self.tables.word_start, self.n_rows, self.layout == "split")[:, 1].numpy()

    @cached_property
    def _listed(self) -> torch.Tensor:
        """The model's own pairs, or those that this text would list."""
        if self.weights is not None:
            return self.weights.rest["bigram_pairs"]
        return torch.from_numpy(frequent_pairs(self.tokens, len(self._starts), self.n_rows - 1))

    @cached_property
    def _vectors(self) -> torch.Tensor | None:
        """(rows, D): what each row adds to the stream, or None."""
        if self.weights is None or "bigram" not in self.weights.rest:
            return None
        rest = {name: t.detach().float() for name, t in self.weights.rest.items()}
        return (rest["bigram"] @ rest["bigram_proj"].T if "bigram_proj" in rest else rest["bigram"]) * rest[
            "bigram_scale"
        ]

    @cached_property
    def _losses(self) -> pd.DataFrame:
        """Number and mean nats of the scored targets after each pair, by previous * V + current."""
        if self.scored is None:
            return pd.DataFrame({"count": [], "mean": []})
        ids, nats = self.scored
        code = ids[:-2].astype(np.int64) * len(self._starts) + ids[1:-1]
        return pd.Series(nats[1:]).groupby(code).agg(["count", "mean"])


def sizes(tokens: np.ndarray, tables: Tables, rows: Sequence[int]) -> pd.DataFrame:
    """`Buckets.collisions` of a text for tables of so many rows, shared and split: with columns hashing and rows."""
    made = [(kind, Buckets(tokens, tables, n + 1, kind)) for n in rows for kind in ("shared", "split")]
    return frame({"hashing": kind, **one.collisions().to_dict()} for kind, one in made)


def routes(pairs: pd.DataFrame) -> pd.DataFrame:
    """Losses of the targets that follow a pair, by its class and by who shares its row.

    `pairs`: of `Buckets`. Columns: word_start, route ("alone" in its row; "leads" it, the most frequent of several;
    "follows"), pairs, times, targets, nats (mean over targets).
    """
    shared = pairs.groupby("row")["times"].transform("size") > 1
    leads = pairs.groupby("row")["times"].transform("idxmax") == pairs.index
    route = np.select([~shared, leads], ["alone", "leads"], "follows")
    cells = pairs.assign(route=route, total=pairs["nats"] * pairs["targets"]).groupby(["word_start", "route"])
    found = cells.agg(
        pairs=("times", "size"), times=("times", "sum"), targets=("targets", "sum"), total=("total", "sum")
    )
    return frame(found.assign(nats=found.pop("total") / found["targets"].where(found["targets"] > 0)).reset_index())


def removals(net: Net, weights: Weights, x: torch.Tensor, y: torch.Tensor) -> pd.DataFrame:
    """Loss on the targets y of x, (B, T), of a model as it is and without parts of its n-gram embedding.

    Columns: removed ("nothing", "word-start boost", "whole table"), nats, difference (to the model as it is), low and
    high (its 95 % interval over rows of text). What was trained with a part may miss it more than it ever gained.
    """
    score = row_scores(net, x, y)
    parts: dict[str, dict[str, torch.Tensor]] = {"nothing": {}}
    if "word_start_boost" in weights.rest:
        parts["word-start boost"] = {"word_start_boost": torch.ones(())}
    parts["whole table"] = {"bigram_scale": torch.zeros(())}
    found = {name: score(weights._replace(rest={**weights.rest, **part})) for name, part in parts.items()}
    rows = []
    for name, nats in found.items():
        rows.append({"removed": name, "nats": nats.mean()} | over_rows(nats - found["nothing"]))
    return frame(rows)


def _entropies(known: np.ndarray, following: np.ndarray, row: np.ndarray, v: int) -> pd.Series:
    """Bits of the token that follows where `known` is known, averaged over the occurrences of each row."""
    cells = pd.DataFrame({"known": known, "row": row, "following": following})
    times = cells.groupby(["row", "known", "following"], sort=False).size()
    of_known = times.groupby(["row", "known"], sort=False).transform("sum")
    bits = -(times * np.log2(times / of_known)).groupby("row").sum()
    return bits / times.groupby("row").sum()
