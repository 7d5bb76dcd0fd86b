"""Aggregation against loops over ragged rows, and the global denominator that makes splitting exact."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from etr.aggregation import MODES, aggregate, global_denominator

Rows = list[list[float]]
WIDTH = 5
ADDITIVE = [mode for mode in MODES if mode != "local-token-mean"]

LOOPS: dict[str, Callable[[Rows], float]] = {  # of the rows that keep a token
    "token-mean": lambda rows: fmean(x for row in rows for x in row),
    "seq-mean-token-mean": lambda rows: fmean(fmean(row) for row in rows),
    "seq-mean-token-sum": lambda rows: fmean(sum(row) for row in rows),
    "seq-mean-token-sum-norm": lambda rows: fmean(sum(row) / WIDTH for row in rows),
    "local-token-mean": lambda rows: fmean(x for row in rows for x in row),
}


def padded(rows: Rows, padding: float = torch.nan) -> tuple[Tensor, Tensor]:
    """Values `[B, WIDTH]` with that padding, and the mask."""
    values = torch.tensor([[*row, *[padding] * (WIDTH - len(row))] for row in rows], dtype=torch.float64)
    return values, torch.arange(WIDTH) < torch.tensor([[len(row)] for row in rows])


numbers = st.floats(-100.0, 100.0)
ragged = st.lists(st.lists(numbers, max_size=WIDTH), min_size=1, max_size=7).filter(any)


def test_every_mode_has_a_loop() -> None:
    assert set(LOOPS) == set(MODES)


@given(ragged, st.sampled_from(MODES), st.sampled_from([torch.nan, torch.inf, 123.0]))
def test_each_mode_equals_its_loop(rows: Rows, mode: str, padding: float) -> None:
    """Rows without any token count nowhere, and padding may hold anything."""
    found = aggregate(*padded(rows, padding), mode).item()
    assert found == pytest.approx(LOOPS[mode]([row for row in rows if row]), rel=1e-9, abs=1e-9)


@given(ragged, st.sampled_from(ADDITIVE), st.data())
def test_parts_with_the_global_denominator_add_up(rows: Rows, mode: str, data: st.DataObject) -> None:
    """Also for parts that keep no token at all."""
    owner = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))))
    values, mask = padded(rows)
    denominator = global_denominator(mask, mode)
    parts = sum(aggregate(values[owner == part], mask[owner == part], mode, denominator).item() for part in range(3))
    assert parts == pytest.approx(aggregate(values, mask, mode).item(), rel=1e-9, abs=1e-9)


@given(ragged, st.sampled_from(MODES))
def test_runs_are_separate(rows: Rows, mode: str) -> None:
    values, mask = padded(rows)
    many = aggregate(torch.stack([values, 2 * values, values.flip(0)]), torch.stack([mask, mask, mask.flip(0)]), mode)
    one = aggregate(values, mask, mode).item()
    assert many.tolist() == pytest.approx([one, 2 * one, one], rel=1e-9, abs=1e-9)


def test_local_token_mean_depends_on_the_split() -> None:
    """The mean of the parts' own token-means: what TRL's `bnpo` computes, and why it is not the token-mean."""
    rows = [[1.0], [2.0, 3.0, 4.0, 5.0]]
    values, mask = padded(rows)
    parts = [aggregate(values[i : i + 1], mask[i : i + 1], "local-token-mean", 2).item() for i in (0, 1)]
    assert parts == [1.0 / 2, 3.5 / 2]  # sum 2.25
    assert aggregate(values, mask, "local-token-mean").item() == 3.0  # (1 + 2 + 3 + 4 + 5)/5


def test_denominators() -> None:
    mask = padded([[1.0], [], [1.0, 2.0, 3.0]])[1]
    found = {mode: global_denominator(mask, mode).item() for mode in MODES}
    assert found == {
        "token-mean": 4,
        "seq-mean-token-mean": 2,  # the row without a token is not a response
        "seq-mean-token-sum": 2,
        "seq-mean-token-sum-norm": 2 * WIDTH,
        "local-token-mean": 1,
    }
    assert global_denominator(mask, "seq-mean-token-sum-norm", length=100).item() == 200
    runs = torch.stack([mask, mask.flip(0), torch.ones_like(mask)])
    assert global_denominator(runs, "token-mean").tolist() == [4, 4, 15]


def test_a_constant_length_is_the_divisor() -> None:
    values, mask = padded([[1.0, 2.0], [3.0]])
    assert aggregate(values, mask, "seq-mean-token-sum-norm", length=30).item() == pytest.approx(6 / (2 * 30))


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient_reaches_padding(mode: str) -> None:
    values, mask = padded([[1.0], [2.0, 3.0]])
    values.requires_grad_()
    (slope,) = torch.autograd.grad(aggregate(values, mask, mode), values)
    assert (slope[~mask] == 0).all() and (slope[mask] > 0).all()
