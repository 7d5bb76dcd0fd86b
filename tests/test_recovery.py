"""Group statistics read back from advantages are the true ones, bit by bit of the count."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import etr
from etr.adapters.recovery import recovery
from etr.advantages import batch_whiten, group_center, group_zscore, leave_one_out
from etr.errors import InputError

# name: estimator; the eps are those of ours, of verl, of TRL, and one so large that approximations fail
ESTIMATORS = {
    "population": group_zscore,
    "unbiased, verl's eps": partial(group_zscore, ddof=1, eps=1e-6),
    "unbiased, TRL's eps": partial(group_zscore, ddof=1, eps=1e-4),
    "population, large eps": partial(group_zscore, ddof=0, eps=0.1),
    "centred": group_center,
    "leave one out": leave_one_out,
}
SIZES = st.integers(2, 64)


def rewards_of(counts: list[int], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups with that many successes, in an order of their own, and their ids."""
    rows = [torch.tensor([1.0] * k + [0.0] * (size - k)).roll(7 * i) for i, k in enumerate(counts)]
    return torch.cat(rows), torch.arange(len(counts)).repeat_interleave(size)


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=40)
@given(size=SIZES, data=st.data())
def test_statistics_are_exact_for_every_count(name, size, data):
    counts = data.draw(st.lists(st.integers(0, size), min_size=1, max_size=5))
    rewards, ids = rewards_of(counts, size)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(size))
    rewards, ids = rewards[order], ids[order]
    mask = torch.arange(3) < torch.randint(1, 4, (len(rewards), 1), generator=torch.Generator().manual_seed(1))
    advantages = torch.where(mask, ESTIMATORS[name](rewards, ids)[:, None], torch.nan)  # padding may hold anything
    found, true = recovery(ESTIMATORS[name], size)(advantages, mask), etr.group_stats(rewards.double(), ids)
    torch.testing.assert_close(found.var, true.var.float(), rtol=2e-7, atol=0)  # one rounding of single precision
    live = true.var > 0
    torch.testing.assert_close(found.mean[live], true.mean[live].float(), rtol=2e-7, atol=0)
    assert (found.size == size).all() and (found.mean[~live] == 0).all()


@pytest.mark.parametrize("size", range(2, 65))
def test_no_two_counts_are_confused(size):
    rewards, ids = rewards_of(list(range(size + 1)), size)
    for estimator in ESTIMATORS.values():
        found = recovery(estimator, size)(estimator(rewards, ids)[:, None], torch.ones(len(rewards), 1).bool())
        counts = (found.mean * size).round().long().unflatten(0, (-1, size))
        assert counts[1:-1].tolist() == [[k] * size for k in range(1, size)]


@given(size=st.integers(3, 32), value=st.floats(0.05, 0.95))
def test_one_reward_in_between_is_found_out(size, value):
    rewards, ids = rewards_of([1], size)
    rewards[-1] = value
    estimator = ESTIMATORS["unbiased, verl's eps"]
    with pytest.raises(InputError, match=r"is no advantage of .* rewards that are 0 or 1"):
        recovery(estimator, size)(estimator(rewards, ids)[:, None], torch.ones(size, 1).bool())


@pytest.mark.parametrize("low, high", [(0.0, 0.5), (0.0, 2.0), (-1.0, 1.0)])
def test_the_scale_of_two_rewards_cannot_be_seen_in_a_z_score(low, high):
    """Why `etr.adapters.verl.advantages.check_binary` looks at the rewards themselves."""
    binary, ids = rewards_of([3], 8)
    estimator, mask = ESTIMATORS["unbiased, verl's eps"], torch.ones(8, 1).bool()
    found = recovery(estimator, 8)(estimator(low + (high - low) * binary, ids)[:, None], mask)
    assert (found.mean == 3 / 8).all()  # not that of these rewards


def test_another_group_size_is_found_out():
    rewards, ids = rewards_of([2, 3], 5)
    with pytest.raises(InputError, match=r"a group had another size"):
        recovery(group_zscore, 8)(group_zscore(rewards, ids)[:, None], torch.ones(10, 1).bool())


def test_bfloat16_advantages_are_too_coarse_and_said_to_be():
    rewards, ids = rewards_of([3], 64)
    values = group_zscore(rewards, ids).bfloat16().float()[:, None]
    with pytest.raises(InputError, match=r"is no advantage of 64 rewards"):
        recovery(group_zscore, 64)(values, torch.ones(64, 1).bool())


@pytest.mark.parametrize(
    ("estimator", "size", "message"),
    [
        (batch_whiten, 4, "looks beyond the group"),
        (group_zscore, 1, "a group has 1 responses"),
        (lambda rewards, ids: rewards, 4, "gives different groups of 4 the same one"),
        (lambda rewards, ids: group_center(rewards, ids).sign(), 4, "gives different groups of 4 the same one"),
    ],
)
def test_what_cannot_be_read_backwards_is_refused_before_any_batch(estimator, size, message):
    with pytest.raises(InputError, match=message):
        recovery(estimator, size)


def test_token_level_advantages_are_refused():
    advantages = torch.tensor([[0.5, -0.5]])
    with pytest.raises(InputError, match=r"tokens of one response have several"):
        recovery(group_center, 2)(advantages, torch.tensor([[True, True]]))
