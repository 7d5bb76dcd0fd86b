"""Diagnostics against hand-made batches and loops, and sums that stay exact over micro-batches."""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean

import pytest
import torch
from batches import PLAIN, bandit, rewards_of, tokens
from torch import Tensor

import etr
from etr import diagnostics
from etr.batch import Batch, Mean
from etr.diagnostics import METRICS, clipped, homogeneous, width_by_success_rate
from etr.laws import random_batch
from etr.loss import prepared
from etr.objectives.grpo import GRPO

# Ratios and advantages of nine tokens under GRPO, range [0.8, 1.2]; the last response has no signal.
MOVED = [[1.5, 1.1, 0.5], [0.5, 0.9, 1.5], [1.3, 0.7], [2.0]]
SIGNS = [1.0, -1.0, 2.0, 0.0]
#        A > 0: 1.5 and 1.3 are clipped, 1.1, 0.5, 0.7 keep their gradient; A < 0: 0.5 is clipped, 0.9 and 1.5 are not


def hand_made() -> Batch:
    return tokens([[math.log(r) for r in row] for row in MOVED], SIGNS)


def test_clipped_tokens_are_those_without_gradient() -> None:
    found = clipped(etr.get("grpo"), hand_made())
    counts = {name: (mean.sum.item(), mean.count.item()) for name, mean in found.items()}
    assert counts == {
        "region/zero_grad_frac": (3, 8),
        "region/zero_grad_frac_pos": (2, 5),
        "region/zero_grad_frac_neg": (1, 3),
    }
    naive = sum(abs(r - 1) > 0.2 for row in MOVED for r in row)
    assert naive == 7  # what |r − 1| > ε counts: also the tokens that moved against their advantage, or have none


def test_clip_shares_without_tokens_of_a_sign_are_undefined() -> None:
    found = clipped(etr.get("grpo"), tokens([[0.0]], [1.0]))
    assert found["region/zero_grad_frac_pos"].value.item() == 0.0
    assert found["region/zero_grad_frac_neg"].value.isnan()


@pytest.mark.parametrize("name", [n for n in PLAIN if "splitting_is_exact" not in etr.get(n).exceptions])
def test_diagnostics_add_up_over_micro_batches(name: str) -> None:
    """Sums and counts of the parts are those of the whole: exactly for counts, to rounding for values."""
    objective = etr.get(name)
    batch = prepared(objective, random_batch(objective))
    denominator = objective.denominator(batch.response_mask)

    def measures(part: Batch) -> dict[str, Mean]:
        out = etr.policy_loss(objective, part, denominator)
        width = {"width": width_by_success_rate(part, out.region, torch.tensor([0.3, 0.6]))}
        return clipped(objective, part) | homogeneous(part) | out.metrics | width

    whole = measures(batch)
    parts = [measures(batch.rows(torch.arange(start, 16, 3))) for start in range(3)]
    for key, mean in whole.items():
        total = sum((part[key] for part in parts[1:]), parts[0][key])
        assert torch.equal(total.count, mean.count)
        if "frac" in key:
            assert torch.equal(total.sum, mean.sum)
        torch.testing.assert_close(total.sum, mean.sum, rtol=1e-12, atol=1e-12)
    assert set(whole) - {"width"} <= set(METRICS)  # every name has a meaning


def test_a_mean_is_kept_as_sum_and_count() -> None:
    values = torch.tensor([[[1.0, 9.0], [2.0, 4.0]], [[3.0, 5.0], [7.0, torch.nan]]])
    kept = torch.tensor([[[True, False], [True, True]], [[True, True], [False, False]]])
    mean = Mean.of(values, kept)
    assert mean.sum.tolist() == [7.0, 8.0] and mean.count.tolist() == [3.0, 2.0]
    assert (mean + mean).value.tolist() == mean.value.tolist() == pytest.approx([7 / 3, 4.0])
    with pytest.raises(TypeError):
        mean + 1.0
    assert Mean.of(values, kept & False).value.isnan().all()


def test_metrics_of_a_loss_equal_loops() -> None:
    objective = etr.get("dapo")
    found = {name: mean.value.item() for name, mean in etr.policy_loss(objective, hand_made()).metrics.items()}
    flat = [(r, a) for row, a in zip(MOVED, SIGNS, strict=True) for r in row]
    values = [min(r * a, min(max(r, 0.8), 1.28) * a) for r, a in flat]
    assert found == pytest.approx(
        {
            "policy/kl_old_to_new_k3": fmean(r - 1 - math.log(r) for r, _ in flat),
            "policy/ratio": fmean(r for r, _ in flat),
            "policy/objective": fmean(values),
            "region/width": 0.48,
        },
        rel=1e-12,
    )


def test_the_kl_metric_estimates_kl_of_old_to_new() -> None:
    """Every token once under a uniform old policy, so the batch mean is the expectation."""
    new = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log().unsqueeze(-1)
    old = torch.full_like(new, math.log(0.25))
    batch = Batch(new, old, torch.ones(4, 1, dtype=torch.bool), torch.zeros(4, dtype=torch.float64))
    found = etr.policy_loss(etr.get("grpo"), batch).metrics["policy/kl_old_to_new_k3"].value.item()
    assert found == pytest.approx(fmean(math.log(0.25 / p) for p in (0.1, 0.2, 0.3, 0.4)), rel=1e-12)


def test_metrics_carry_no_graph() -> None:
    batch = hand_made()
    leaf = batch.log_probs.nan_to_num().requires_grad_()
    metrics = etr.policy_loss(etr.get("etr_implicit"), dataclasses.replace(batch, log_probs=leaf)).metrics
    assert not any(mean.sum.requires_grad for mean in metrics.values())


def test_responses_of_groups_without_signal() -> None:
    objective = etr.get("grpo")
    rewards = torch.stack([rewards_of(0, 1, 4, size=4)[0], rewards_of(2, 1, 3, size=4)[0]])
    found = homogeneous(bandit(objective, rewards, torch.arange(12) // 4))["group/homogeneous_frac"]
    assert found.sum.tolist() == [8.0, 0.0] and found.count.tolist() == [12.0, 12.0]


def widths_by_loop(batch: Batch, width: Tensor, edges: list[float]) -> list[tuple[float, int]]:
    """Sum and number of the widths of tokens with A ≠ 0, by the bin of their group's p: edge < p <= next edge."""
    assert batch.group is not None
    bins = [[0.0, 0] for _ in range(len(edges) + 1)]
    for i, p in enumerate(batch.group.mean.tolist()):
        place = sum(p > edge for edge in edges)
        for t in range(batch.log_probs.shape[-1]):
            if batch.response_mask[i, t] and batch.advantages[i] != 0:
                bins[place][0] += width[i, t].item()
                bins[place][1] += 1
    return [(total, int(count)) for total, count in bins]


@pytest.mark.parametrize("name", ["etr", "grpo", "etr_proportional"])
def test_width_by_success_rate_equals_a_loop(name: str) -> None:
    objective = etr.get(name)
    base = bandit(objective, *rewards_of(1, 4, 2, 3, 0, size=4))
    mask = torch.arange(3) < torch.arange(20).remainder(3).unsqueeze(-1) + 1
    old = base.log_probs.expand(20, 3)
    batch = dataclasses.replace(base, log_probs=old, old_log_probs=old, response_mask=mask)
    region = etr.policy_loss(objective, batch).region
    edges = [0.2, 0.25, 0.5, 0.9]  # p = 1/4 and 1/2 lie on an edge: they belong to the bin below it
    found = width_by_success_rate(batch, region, torch.tensor(edges))
    width = (region.high - region.low).expand(20, 3)
    want = widths_by_loop(batch, width, edges)
    assert found.sum.tolist() == pytest.approx([total for total, _ in want], rel=1e-12)
    assert found.count.tolist() == [count for _, count in want]
    assert want[0][1] == 0 and found.value[0].isnan()  # nothing with p <= 0.2 but the dead group


def test_width_by_success_rate_keeps_runs_apart() -> None:
    objective = etr.get("etr")
    rewards = torch.stack([rewards_of(k, size=8)[0] for k in (1, 4)])
    batch = bandit(objective, rewards, torch.zeros(8, dtype=torch.long))
    found = width_by_success_rate(batch, etr.policy_loss(objective, batch).region, torch.tensor([0.25]))
    assert found.count.tolist() == [[8.0, 0.0], [0.0, 8.0]]
    assert found.value[1, 1].item() == pytest.approx(0.5)  # p = 1/2: 0.25 on either side


def test_gradient_coefficients_leave_the_callers_graph_alone() -> None:
    batch = hand_made()
    leaf = batch.log_probs.nan_to_num().requires_grad_()
    with torch.no_grad():
        found = etr.gradient_coefficient(etr.get("grpo"), dataclasses.replace(batch, log_probs=leaf * 1.0))
    assert leaf.grad is None and not found.requires_grad
    assert (found[~batch.response_mask] == 0).all() and found.abs().sum() > 0


def test_an_objective_without_gradient_has_zero_coefficients() -> None:
    class Frozen(GRPO):
        def surrogate(self, batch: Batch, log_ratio: Tensor, region: etr.Region) -> Tensor:
            return log_ratio.detach()  # the point of this test

    assert torch.equal(etr.gradient_coefficient(Frozen(), hand_made()), torch.zeros(4, 3, dtype=torch.float64))
    assert diagnostics.clipped(Frozen(), hand_made())["region/zero_grad_frac"].value.item() == 1.0
