"""Statistics over kept tokens against numpy on the kept values alone: ragged masks, runs, and runs without any."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from etr import masked

RNG = torch.Generator().manual_seed(3)
VALUES = torch.randn(4, 3, 5, generator=RNG, dtype=torch.float64)
MASK = torch.rand(4, 3, 5, generator=RNG) < 0.6
MASK[2], MASK[3] = False, False
MASK[3, 1, 2] = True  # run 2 keeps nothing, run 3 one token
HOLED = torch.where(MASK, VALUES, torch.nan)  # whatever is masked does not matter
NONE, ONE = 2, 3


def kept(run: int) -> np.ndarray:
    found: np.ndarray = VALUES[run][MASK[run]].numpy()
    return found


def by_run(found: Tensor, want: Callable[[np.ndarray], float]) -> None:
    assert found.shape == (4, 1, 1)
    for run in range(4):
        expected = 0.0 if run == NONE else want(kept(run))
        assert found[run].item() == pytest.approx(expected, abs=1e-14)


def test_the_masks_are_ragged() -> None:
    counts = MASK.sum((-2, -1)).tolist()
    assert counts[NONE] == 0 and counts[ONE] == 1 and 3 < counts[0] < 15 and 3 < counts[1] < 15
    assert MASK[0].sum(-1).unique().numel() > 1


def test_mean_and_std_of_runs() -> None:
    by_run(masked.mean(HOLED, MASK), np.mean)
    by_run(masked.std(HOLED, MASK), np.std)
    by_run(masked.std(HOLED, MASK, ddof=1), lambda x: float(np.std(x, ddof=1)) if x.size > 1 else 0.0)


def test_mean_and_std_of_rows() -> None:
    means, stds = masked.mean(HOLED, MASK, dim=-1), masked.std(HOLED, MASK, dim=-1)
    assert means.shape == stds.shape == (4, 3, 1)
    for run, row in np.ndindex(4, 3):
        values = VALUES[run, row][MASK[run, row]].numpy()
        assert means[run, row].item() == pytest.approx(values.mean() if values.size else 0.0)
        assert stds[run, row].item() == pytest.approx(values.std() if values.size else 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [0.1, -0.7, 1e-30, 3e30])
def test_equal_values_have_no_spread(number: float, dtype: torch.dtype) -> None:
    """Three times 0.1 have the mean 0.10000000000000002 and a computed spread of 1e-17."""
    values, mask = torch.full((2, 7, 3), number, dtype=dtype), torch.ones(2, 7, 3, dtype=torch.bool)
    mask[0, 0, :] = False
    values[0, 0, :] = 5.0  # masked out
    for some in (mask, mask & (torch.arange(21).view(7, 3) < 6)):
        assert masked.std(values, some).tolist() == [[[0.0]]] * 2
    assert masked.std(torch.full((1, 3), 0.1).double(), torch.ones(1, 3).bool()).item() == 0.0
    values[1, 0, 0] *= 2
    assert masked.std(values, mask)[1].item() > 0 and masked.std(values, mask)[0].item() == 0


def test_means_are_taken_in_double_precision() -> None:
    values = torch.tensor([[1e8, 1.0, -1e8, 1.0]])
    found = masked.mean(values, torch.ones(1, 4, dtype=torch.bool))
    assert found.dtype == torch.float32 and found.item() == 0.5  # in single precision 1e8 + 1 is 1e8


def test_least_largest_and_unit() -> None:
    by_run(masked.least(HOLED, MASK), np.min)
    by_run(masked.largest(HOLED, MASK), np.max)
    unit = masked.unit(HOLED, MASK)
    assert not unit[~MASK].any()
    for run in (0, 1):
        values = kept(run)
        want = (values - values.min()) / (values.max() - values.min())
        assert unit[run][MASK[run]].tolist() == pytest.approx(want.tolist())
    assert not unit[NONE].any() and not unit[ONE].any()  # nothing, and nothing to compare with
    assert not masked.unit(torch.full((2, 2), 0.3), torch.ones(2, 2, dtype=torch.bool)).any()


@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.8, 0.95, 1.0])
def test_quantiles_are_numpys(q: float) -> None:
    by_run(masked.quantile(HOLED, MASK, q), lambda x: float(np.quantile(x, q)))


def ranked(run: int, count: int) -> set[tuple[int, int]]:
    places = [(int(r), int(c)) for r, c in MASK[run].nonzero()]
    return set(sorted(places, key=lambda at: -VALUES[run][at].item())[:count])


@pytest.mark.parametrize("count", [0, 1, 3, 99])
def test_top(count: int) -> None:
    wanted = torch.full((4, 1, 1), count)
    found, shares = masked.top(HOLED, MASK, wanted), masked.top_shares(HOLED, MASK, wanted)
    for run in range(4):
        assert {(int(r), int(c)) for r, c in found[run].nonzero()} == ranked(run, count)
    assert torch.equal(shares, found.double())  # no two are alike


def test_top_takes_another_number_in_every_run() -> None:
    wanted = torch.tensor([2, 4, 1, 1]).view(4, 1, 1)
    found = masked.top(HOLED, MASK, wanted)
    assert found.sum((-2, -1)).tolist() == [2, 4, 0, 1]
    assert torch.equal(masked.top_shares(HOLED, MASK, wanted)[:2], found[:2].double())


def test_ties_at_the_cut() -> None:
    """5 3 3 3 1, of which two are wanted: the first of the 3s, or a third of each."""
    values, mask = torch.tensor([[3.0, 5.0, 3.0], [1.0, 3.0, 9.0]]), torch.ones(2, 3, dtype=torch.bool)
    mask[1, 2] = False
    count = torch.tensor([[2]])
    assert masked.top(values, mask, count).tolist() == [[True, True, False], [False, False, False]]
    shares = masked.top_shares(values, mask, count)
    assert shares.flatten().tolist() == pytest.approx([1 / 3, 1, 1 / 3, 0, 1 / 3, 0])
    assert shares.sum().item() == pytest.approx(2)
    assert masked.top_shares(values, mask, torch.tensor([[5]])).tolist() == mask.double().tolist()
