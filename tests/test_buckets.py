"""Laws of the n-gram table seen row by row, on a text whose counts are known."""

import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from golfcore.analysis.buckets import Buckets, removals, routes, sizes
from golfcore.base.errors import UserError
from golfcore.config import load
from golfcore.data.tokens import Tables
from golfcore.model import params
from golfcore.model.forward import Net, forward, nll
from golfcore.model.hashing import frequent_pairs, listed_rows, ngram_rows
from golfcore.model.weights import tree_map

PIECES = [" a", "b", " c", "d", "e"]
STARTS = torch.tensor([p.startswith(" ") for p in PIECES])
TABLES = Tables(torch.ones(5, dtype=torch.int16), STARTS, torch.zeros(5, dtype=torch.bool))
TOKENS = np.array([0, 1, 2, 0, 1, 3, 0, 1, 2, 4, 0, 1, 3], dtype=np.int64)  # " a" then "b" four times


def buckets(n_rows: int = 8, layout: str = "split", **more) -> Buckets:
    return Buckets(TOKENS, TABLES, n_rows, layout, PIECES, **more)


def test_pairs_are_counted_with_their_rows_and_losses() -> None:
    nats = np.arange(12.0)
    found = buckets(scored=(TOKENS, nats)).pairs
    first = found.iloc[0]
    assert (first["text"], first["times"], first["word_start"]) == (" ab", 4, False)
    assert found["times"].sum() == 12 and not found.duplicated(["previous", "current"]).any()
    # " ab" ends at positions 1, 4, 7 and 11; the targets that follow are numbers 1, 4, 7 and 11 of `nats`
    assert (first["targets"], first["nats"]) == (4, 5.75)
    want = ngram_rows(torch.from_numpy(TOKENS)[None], STARTS, 8, True)[0, 1].item()
    assert first["row"] == want


def test_a_row_lists_who_shares_it_and_a_pair_finds_its_row() -> None:
    made = buckets(4)  # three rows for nine pairs
    for number in range(3):
        here = made.row(number)
        assert set(here["row"]) <= {number} and here["share"].sum() == pytest.approx(1 if len(here) else 0)
    found = made.pair(" a", "b")
    assert found["asked"].tolist() == [True] + [False] * (len(found) - 1)
    assert found.loc[0, "text"] == " ab" and len(found) == len(made.row(int(found.loc[0, "row"])))
    unseen = made.pair("e", "e")
    assert (unseen.loc[0, "text"], unseen.loc[0, "times"]) == ("ee", 0) and unseen["asked"].sum() == 1
    with pytest.raises(UserError, match="' x': expected a piece of the tokenizer, found ' a', ' c'|none like it"):
        made.pair(" x", "b")
    with pytest.raises(UserError, match="row 3: expected 0 to 2"):
        made.row(3)


def test_a_row_is_explored_by_widgets_or_named_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # as if it were not installed
    assert ".pair(PIECE, PIECE)" in buckets().explore() and "golfcore[widgets]" in buckets().explore()

    class Parts(ModuleType):
        """What a notebook's user sets by hand: here the values that the widget begins with."""

        Combobox = BoundedIntText = staticmethod(lambda value, **options: value)
        HBox = staticmethod(list)
        interactive = staticmethod(lambda show, **values: show(**values))

    monkeypatch.setitem(sys.modules, "ipywidgets", Parts("ipywidgets"))
    made = buckets()
    by_pair, by_row = made.explore()
    assert by_pair.equals(made.pair(" a", "b")) and by_row.equals(made.row(int(by_pair["row"][0])))


def test_split_rows_hold_one_class_and_shared_rows_both() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 5, 4000)
    split, shared = (Buckets(tokens, TABLES, 9, kind, PIECES).rows for kind in ("split", "shared"))
    assert set(split["word_start"]) <= {0.0, 1.0} and shared["word_start"].between(0.01, 0.99).any()


def test_bits_hidden_by_sharing_are_those_of_the_closed_form() -> None:
    """Two pairs in one row, each followed by one token always: nothing to know of the pair, one bit of the row."""
    tokens = np.tile([0, 1, 2, 3, 1, 4], 50)  # "ab" -> " c", "db" -> "e"
    found = Buckets(tokens, TABLES, 2, "shared", PIECES).rows  # one row
    assert len(found) == 1
    made = Buckets(tokens, TABLES, 2, "shared", PIECES)
    row = made.rows.iloc[0]
    assert row["own_bits"] == pytest.approx(0, abs=1e-9) and row["mixed_bits"] == pytest.approx(row["next_bits"])
    share = np.bincount(tokens[2:], minlength=5) / len(tokens[2:])
    assert row["next_bits"] == pytest.approx(-(share[share > 0] * np.log2(share[share > 0])).sum())


def test_sharing_by_chance_is_that_of_random_hashes() -> None:
    rng = np.random.default_rng(0)
    tables = Tables(torch.ones(64, dtype=torch.int16), torch.arange(64) % 2 == 0, torch.zeros(64, dtype=torch.bool))
    found = Buckets(rng.integers(0, 64, 3000), tables, 1001, "shared").collisions()
    n, drawn = int(found["pairs"]), []
    for _ in range(50):
        rows = rng.integers(0, 1000, n)
        drawn.append([len(set(rows)), (np.bincount(rows)[rows] > 1).mean()])
    used, sharing = np.mean(drawn, axis=0)
    assert found["used_by_chance"] == pytest.approx(used, rel=0.01)
    assert found["sharing_by_chance"] == pytest.approx(sharing, rel=0.01)


def test_a_vector_speaks_for_the_tokens_that_it_points_to() -> None:
    cfg = load("exp101", {"model.vocab_size": 5, "model.bigram_rows": 8}, "smoke").model
    weights = params.init(cfg, 0)
    weights.rest["bigram_proj"] = torch.eye(cfg.dim)[:, : cfg.bigram_dim]
    weights.rest["tok_emb"] = torch.eye(5, cfg.dim)
    weights.rest["bigram"][3] = torch.eye(8)[2] * 7
    made = buckets(weights=weights)
    assert made.predicts(3, 2)["piece"][0] == " c"
    scale = float(weights.rest["bigram_scale"])
    assert made.rows["norm"].tolist() == pytest.approx([7 * scale * (row == 3) for row in made.rows["row"]])


def test_routes_tell_who_is_alone_leads_or_follows() -> None:
    rows = [(0, 5, True, 2, 1.0), (0, 3, True, 4, 2.0), (1, 2, True, 1, 7.0), (0, 1, False, 0, np.nan)]
    pairs = pd.DataFrame(rows, columns=["row", "times", "word_start", "targets", "nats"])
    found = routes(pairs).set_index(["word_start", "route"])
    assert found.loc[(True, "leads"), ["pairs", "times", "nats"]].tolist() == [1, 5, 1.0]
    assert found.loc[(True, "follows"), "nats"] == 2.0 and found.loc[(True, "alone"), "nats"] == 7.0
    assert found.loc[(False, "follows"), "targets"] == 0 and np.isnan(found.loc[(False, "follows"), "nats"])


def test_a_listed_table_has_a_row_for_each_frequent_pair_and_one_for_the_rest() -> None:
    made = buckets(4, "frequent")  # three rows with a pair each, and the last
    listed = frequent_pairs(TOKENS, 5, 3)
    assert listed.tolist() == [[0, 1], [1, 2], [1, 3]]  # 4, 2 and 2 times; " c a" as often, and later in code
    assert made.pairs.set_index("text").loc[[" ab", "b c", "bd"], "row"].tolist() == [0, 1, 2]
    assert set(made.row(3)["times"]) <= {1, 2} and len(made.row(3)) == len(made.pairs) - 3
    rows = listed_rows(torch.tensor([[0, 1, 2, 2], [1, 3, 0, 1]]), torch.from_numpy(listed), 5)
    assert rows.tolist() == [[3, 0, 1, 3], [3, 2, 3, 0]]


def test_larger_tables_share_less_and_as_much_as_chance() -> None:
    found = sizes(np.random.default_rng(0).integers(0, 5, 500), TABLES, [8, 512])
    assert found.groupby("rows")["sharing"].mean().is_monotonic_decreasing and len(found) == 4


def test_removals_are_scores_without_the_part() -> None:
    cfg = load("exp101", {"model.vocab_size": 5, "model.bigram_rows": 8}, "smoke").model
    g = torch.Generator().manual_seed(0)
    weights = tree_map(lambda t: t + 0.3 * torch.randn(t.shape, generator=g), params.init(cfg, 0))
    x, y = torch.randint(5, (2, 9, 12), generator=g)
    found = removals(Net(cfg, TABLES), weights, x, y).set_index("removed")
    bare = weights._replace(rest=weights.rest | {"bigram": torch.zeros_like(weights.rest["bigram"])})
    want = float(nll(forward(Net(cfg, TABLES), bare, x), y).double().mean())
    assert found.loc["whole table", "nats"] == pytest.approx(want, rel=1e-6)
    assert found.loc["nothing", "difference"] == 0 and abs(found.loc["word-start boost", "difference"]) > 1e-6
