"""Trust-region methods by hand, second part: parts of a response, cut answers, tokens left out."""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from batches import OLD, gradient, region_of, tokens
from torch import Tensor

import etr
from etr import aggregation, selection
from etr.batch import Batch
from etr.laws.base import random_batch
from etr.objectives.capo import CAPO, states
from etr.objectives.clip_b import discriminator
from etr.objectives.clip_cov import covariance, lottery


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def of_policy(chances: list[list[float]], advantages: list[float], **more: Any) -> Batch:
    """An on-policy batch with these probabilities of the sampled tokens."""
    log_probs = double(chances).log()
    kept = torch.ones_like(log_probs, dtype=torch.bool)
    return Batch(log_probs, log_probs, kept, double(advantages), **more)


# ESPO ---------------------------------------------------------------------------------------------------------------

ENTROPY = [[0.1, 1.3, 0.3, 0.2, 0.2]]  # the second token is the most uncertain fifth
MOVED = [[0.002, 0.004, -0.001, 0.003, 0.002]]


def test_espo_has_one_ratio_and_one_range_for_each_part() -> None:
    """Parts {1.3} and {0.1, 0.3, 0.2, 0.2} with mean 0.2: ε = 0.02·e/ln 4."""
    objective = etr.get("espo", vocab_size=4)
    batch = tokens(MOVED, [1.0], entropy=double(ENTROPY))
    region, out = region_of(objective, batch), etr.policy_loss(objective, batch)
    wide, narrow = 0.02 * 1.3 / math.log(4), 0.02 * 0.2 / math.log(4)  # 0.0188 and 0.0029
    assert (region.high - 1)[0].tolist() == pytest.approx([narrow, wide, narrow, narrow, narrow])
    certain, uncertain = math.exp((0.002 - 0.001 + 0.003 + 0.002) / 4), math.exp(0.004)
    assert out.log_ratio.exp()[0].tolist() == pytest.approx([certain, uncertain, certain, certain, certain])
    assert out.loss.item() == pytest.approx(-(certain + uncertain) / 2)  # both parts count the same
    _, found = gradient(objective, batch)
    want = [-certain / 8, -uncertain / 2, -certain / 8, -certain / 8, -certain / 8]  # s_τ·A/(2·|τ|)
    torch.testing.assert_close(found, double([want]))
    beyond = tokens([[0.01] * 5], [1.0], entropy=double(ENTROPY))  # above 1.0029, below 1.0188
    assert (gradient(objective, beyond)[1] != 0).tolist() == [[False, True, False, False, False]]


def test_espo_weights_average_to_one_and_a_single_part_is_gspos() -> None:
    batch = random_batch(etr.get("espo"))
    assert batch.entropy is not None
    ones = dataclasses.replace(batch, advantages=torch.ones_like(batch.advantages))
    shaped = etr.get("espo").prepare(ones, {})[0].token_advantages
    rows = torch.where(batch.response_mask, shaped, 0.0).sum(-1) / batch.response_mask.sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    whole = etr.policy_loss(etr.get("espo", share=0.0), batch)
    torch.testing.assert_close(whole.log_ratio, etr.policy_loss(etr.get("gspo"), batch).log_ratio)


# T-PPO --------------------------------------------------------------------------------------------------------------


def critic_batch(values: list[list[float]], rewards: list[float], mask: list[list[bool]] | None = None) -> Batch:
    given = double(values)
    kept = torch.ones_like(given, dtype=torch.bool) if mask is None else torch.tensor(mask)
    old = torch.full_like(given, OLD)
    return Batch(old, old, kept, double(rewards), rewards=double(rewards), values=given)


def test_tppo_extends_gae_to_cut_answers() -> None:
    """γ = 1, λ = ½, V = 0.5, 0.6, 0.8, R = 1: δ = 0.1, 0.2, 0.2 and A_2 = 0.2, A_1 = 0.2 + 0.1, A_0 = 0.1 + 0.15."""
    batch = critic_batch([[0.5, 0.6, 0.8], [0.4, 0.9, torch.nan]], [1.0, 0.0], [[True] * 3, [True, True, False]])
    shaped = etr.get("tppo", gae_lambda=0.5).prepare(batch, {})[0].token_advantages
    assert shaped[0].tolist() == pytest.approx([0.25, 0.3, 0.2])
    assert shaped[1, :2].tolist() == pytest.approx([0.5 - 0.45, -0.9])  # δ = 0.9 − 0.4 and 0 − 0.9
    # Cut after two tokens, V(s_2) := V(s_1): δ = 0.1, 0. The other answer is finished. Five tokens, four of them there.
    cut = etr.get("tppo", gae_lambda=0.5, window=2).prepare(batch, {})[0].token_advantages
    assert cut[0].tolist() == pytest.approx([0.1 * 5 / 4, 0.0, 0.0])
    assert cut[1, :2].tolist() == pytest.approx([0.05 * 5 / 4, -0.9 * 5 / 4])
    # With γ < 1 the boundary is (γ − 1)·V: δ_1 = −0.06, δ_0 = 0.54 − 0.5 = 0.04, A_0 = 0.04 − 0.9·0.06
    short = etr.get("tppo", gamma=0.9, gae_lambda=1.0, window=2).prepare(batch, {})[0].token_advantages
    assert short[0].tolist() == pytest.approx([-0.014 * 5 / 4, -0.06 * 5 / 4, 0.0])


def test_tppo_without_decay_is_the_return_minus_the_value() -> None:
    rng = torch.Generator().manual_seed(1)
    values, rewards = torch.rand(3, 4, generator=rng).tolist(), [1.0, 0.0, 0.5]
    mask = [[True, False, True, True], [True] * 4, [False, True, False, False]]  # also with gaps
    shaped = etr.get("tppo", gae_lambda=1.0).prepare(critic_batch(values, rewards, mask), {})[0].token_advantages
    want = [
        [r - v if kept else 0.0 for v, kept in zip(row, flags, strict=True)]
        for r, row, flags in zip(rewards, values, mask, strict=True)
    ]
    torch.testing.assert_close(shaped, double(want))


def test_tppo_gradient() -> None:
    """−A_t·r/N inside the region; the token behind the window has none."""
    batch = dataclasses.replace(critic_batch([[0.5, 0.6, 0.8]], [1.0]), log_probs=double([[0.1, 0.05, 0.3]]) + OLD)
    _, found = gradient(etr.get("tppo", gae_lambda=0.5, window=2), batch)
    torch.testing.assert_close(found, double([[-0.1 * math.exp(0.1) / 2, 0.0, 0.0]]))


@pytest.mark.parametrize("mode", aggregation.MODES)
def test_selection_is_the_mean_over_the_kept(mode: str) -> None:
    rng = torch.Generator().manual_seed(0)
    x, kept = torch.randn(2, 6, 5, generator=rng).double(), torch.rand(2, 6, 5, generator=rng) < 0.4
    mask = kept | (torch.rand(2, 6, 5, generator=rng) < 0.5)
    kept[:, 2] = False  # a response of which nothing is kept
    weights = selection.weights(kept, mask, mode)
    torch.testing.assert_close(
        aggregation.aggregate(x * weights, mask, mode), aggregation.aggregate(x, kept, mode), rtol=1e-12, atol=1e-12
    )
    assert (selection.weights(mask, mask, mode) == mask).all() and (
        selection.weights(mask & False, mask, mode) == 0
    ).all()


# CAPO ---------------------------------------------------------------------------------------------------------------


def bandit_table(logits: Tensor, arms: Tensor, advantages: Tensor) -> Batch:
    full = logits.log_softmax(-1).expand(len(arms), 1, logits.shape[-1])
    taken = full.gather(-1, arms[:, None, None]).squeeze(-1)
    top = full.sort(-1, descending=True)
    return Batch(
        log_probs=taken,
        old_log_probs=taken,
        response_mask=torch.ones_like(taken, dtype=torch.bool),
        advantages=advantages,
        tokens=arms.unsqueeze(-1),
        group_ids=torch.zeros(len(arms), dtype=torch.long),
        top_tokens=top.indices,
        top_log_probs=top.values,
    )


@pytest.mark.parametrize("step", [0.3, 0.03])
def test_capo_predicts_a_step_of_a_table(step: float) -> None:
    """One gradient step on the logits of the only state: A·(r − 1) to second order, (Δ log π)²/2 to first."""
    arms, advantages = torch.tensor([0, 0, 1, 3, 2, 0]), double([1.0, 1.0, -1.0, 0.5, -2.0, 0.0])
    logits = double([0.5, -0.2, 0.0, 1.0]).requires_grad_()
    mean = (advantages * logits.log_softmax(-1)[arms]).mean()
    (direction,) = torch.autograd.grad(mean, logits)
    with torch.no_grad():
        before, after = (x.log_softmax(-1)[arms] for x in (logits, logits + step * direction))
    fisher, change = CAPO(step=step).moments(bandit_table(logits.detach(), arms, advantages))
    gap = after - before
    assert (change.squeeze(-1) - advantages * (gap.exp() - 1)).abs().max() < step**3 * 0.05
    assert (fisher.squeeze(-1) - gap.square() / 2).abs().max() < step**3 * 0.05
    assert (change[0] - advantages[0] * gap[0]).abs() > step**2 * 1e-3  # the second order is seen


def test_capo_by_hand_and_its_mask() -> None:
    """Two arms of ½, taken with A = 1 and A = −2, η = 1: G = (v₀ − 2·v₁)/2 with v₀ = (½, −½) = −v₁, so u = (¾, −¾).
    vᵀu = ±¾, m_F = 9/32, uᵀFu = 9/16, and (vᵀu)² − uᵀFu = 0: m_H = ¾ and (−2)·(−¾) = 3/2."""
    batch = bandit_table(double([0.0, 0.0]), torch.tensor([0, 1]), double([1.0, -2.0]))
    fisher, change = CAPO(step=1.0).moments(batch)
    assert fisher.flatten().tolist() == pytest.approx([9 / 32, 9 / 32])
    assert change.flatten().tolist() == pytest.approx([0.75, 1.5])
    for limits, want in (((1.0, 1.0), [2.0, 0.0]), ((0.1, 9.0), [0.0, 0.0]), ((1.0, 9.0), [1.0, -2.0])):
        objective = etr.get("capo", step=1.0, fisher_limit=limits[0], objective_limit=limits[1])
        found = objective.prepare(batch, {})[0].token_advantages.flatten().tolist()
        assert found == pytest.approx(want)  # the only one kept of two counts twice in the mean over two
    down = bandit_table(double([0.0, 0.0]), torch.tensor([0, 0, 1]), double([1.0, -2.0, 0.0]))
    one_sided = etr.get("capo", step=1.0, fisher_limit=9.0, objective_limit=9.0, symmetric=False)
    # u = (v₀ − 2·v₀)/3 = (−1/6, 1/6): arm 0 goes down, so A = 1 there has m_H = −1/6 and goes; two of three stay
    assert one_sided.prepare(down, {})[0].token_advantages.flatten().tolist() == pytest.approx([0.0, -3.0, 0.0])


def test_capo_states_are_prefixes_of_a_prompt() -> None:
    ids = torch.tensor([0, 0, 0, 1])
    found = states(torch.tensor([[1, 2, 3], [1, 2, 0], [2, 2, 3], [1, 2, 3]]), ids, torch.ones(4, 3, dtype=torch.bool))
    same = found.unsqueeze(0) == found.unsqueeze(1)
    assert same[0, 1].tolist() == [True, True, True]  # the last token does not count for its own state
    assert same[0, 2].tolist() == [True, False, False] and not same[0, 3].any()
    assert len(found.unique()) == 8  # 3 + 2 more of the third (its first state is shared) + 3 of the other prompt


# Clip-Cov, KL-Cov ---------------------------------------------------------------------------------------------------

CHANCES, SIGNS = [[0.5, 0.1], [0.25, 0.8]], [2.0, -1.0]


def covariances() -> list[float]:
    logs = [math.log(p) for row in CHANCES for p in row]
    return [(a - 0.5) * (x - fmean(logs)) for a, x in zip([2.0, 2.0, -1.0, -1.0], logs, strict=True)]


def test_covariance_methods_choose_by_the_covariance() -> None:
    """Covariances 0.69, −1.73, 0.35 and −1.39: the first has the largest, the third alone lies between 0.1 and 0.5."""
    found = covariances()
    assert [round(c, 2) for c in found] == [0.69, -1.73, 0.35, -1.39]
    batch = of_policy(CHANCES, SIGNS)
    clip = etr.get("clip_cov", cov_low=0.1, cov_high=0.5)
    torch.testing.assert_close(gradient(clip, batch)[1], double([[-0.5, -0.5], [0.0, 0.25]]))  # −A/4, third dropped
    moved = dataclasses.replace(batch, log_probs=batch.log_probs + 0.1)
    r = math.exp(0.1)
    tied = etr.get("kl_cov", beta=3.0)
    torch.testing.assert_close(gradient(tied, moved)[1], double([[(3 - 2 * r) / 4, -r / 2], [r / 4, r / 4]]))
    loss = etr.policy_loss(tied, moved).loss.item()
    assert loss == pytest.approx(-(2 * r + 2 * r - r - r) / 4 + 3 * 0.1 / 4)
    none = etr.policy_loss(tied, dataclasses.replace(moved, advantages=double([0.0, 0.0]))).loss
    assert none.item() == 0.0  # no covariance, nothing to tie


def test_clip_cov_chooses_a_share_at_random() -> None:
    rng = torch.Generator().manual_seed(0)
    chances = (torch.rand(200, 10, generator=rng) * 0.9 + 0.05).tolist()
    batch = of_policy(chances, [1.0, -1.0] * 100)
    dropped = {}
    for share in (1e-4, 0.01, 0.1):
        shaped = etr.get("clip_cov", cov_low=-9.0, cov_high=9.0, share=share).prepare(batch, {})[0].token_advantages
        dropped[share] = shaped == 0
        assert int(dropped[share].sum()) == max(1, math.floor(share * 2000))
    assert abs(dropped[0.1].double().mean(0) - 0.1).max() < 0.08  # wherever in the answer
    cov = covariance(batch)
    assert (dropped[0.1] & (cov > cov.flatten().quantile(0.9))).sum() < 40  # 20 expected of 200: no order by covariance
    draw = lottery(batch)
    assert abs(draw.mean() - 0.5) < 0.02 and abs(draw.std() - math.sqrt(1 / 12)) < 0.01 and draw.max() < 1
    order = torch.randperm(200, generator=rng)
    assert torch.equal(lottery(batch.rows(order)), draw[order])
    assert abs(torch.corrcoef(torch.stack([draw[:, :-1].flatten(), draw[:, 1:].flatten()]))[0, 1]) < 0.06


# Clip_B, Clip_V -----------------------------------------------------------------------------------------------------


def test_the_discriminator_is_what_a_logit_does_to_entropy() -> None:
    """dH/dz_k = −S_k, and a step along 1_k − π, the gradient of log π(k), changes H by Σ π·S − S_k: by autograd."""
    logits = double([0.3, -0.5, 1.2, 0.0]).requires_grad_()
    full = logits.log_softmax(-1)
    entropy = -(full.exp() * full).sum()
    (slope,) = torch.autograd.grad(entropy, logits)
    full, entropy = full.detach(), entropy.detach()
    scores = discriminator(full, entropy)
    torch.testing.assert_close(scores, -slope)
    steps = torch.eye(4, dtype=torch.float64) - full.exp()
    torch.testing.assert_close(steps @ slope, (full.exp() * scores).sum() - scores)


WRONG = [[0.9, 0.02, 0.9, 0.9]]


def test_clip_b_drops_surprising_tokens_of_wrong_answers() -> None:
    """S = π·(0.5 + log π) = 0.355, −0.068, 0.355, 0.355: mean 0.249, std 0.183, so z = −1.73 std at the second."""
    scores = [p * (0.5 + math.log(p)) for p in WRONG[0]]
    z = (scores[1] - fmean(scores)) / pstdev(scores)
    assert z == pytest.approx(-math.sqrt(3))
    for advantage, threshold, kept in ((-1.0, 1.7, 0), (-1.0, 1.8, 1), (1.0, 1.7, 1)):
        batch = of_policy(WRONG, [advantage], entropy=torch.full((1, 4), 0.5, dtype=torch.float64))
        _, found = gradient(etr.get("clip_b", threshold=threshold), batch)
        assert found[0].tolist() == pytest.approx([-advantage / 4, -kept * advantage / 4, *[-advantage / 4] * 2])


def test_clip_v_drops_the_dearest_tokens_of_wrong_answers() -> None:
    """In each state π = (0.9, 0.1); the rare token costs entropy when it is lowered, the common one brings some."""
    pair = [0.9, 0.1]
    entropy = -sum(p * math.log(p) for p in pair)
    scores = [p * (entropy + math.log(p)) for p in pair]
    expected = sum(p * s for p, s in zip(pair, scores, strict=True))
    costs = [expected - s for s in scores]
    assert costs[0] < 0 < costs[1] and sum(p * c for p, c in zip(pair, costs, strict=True)) == pytest.approx(0)
    full = double(pair).log().expand(3, 4, 2)
    chances = [[0.9, 0.1, 0.9, 0.9], [0.9, 0.1, 0.9, 0.9], [0.9, 0.1, 0.9, 0.9]]
    spread = pstdev([costs[1] if p == 0.1 else costs[0] for row in chances for p in row])
    more = {"full_log_probs": full, "entropy": torch.full((3, 4), entropy, dtype=torch.float64)}
    batch = of_policy(chances, [-1.0, 1.0, -1.0], **more)
    # Both rare tokens of wrong answers cost the same: one place of two is half of each; with most = 0 there is none.
    for factor, most, left in ((0.99, 1.0, 0.0), (0.99, 1e-9, -0.5), (0.99, 0.0, -1.0), (1.01, 1.0, -1.0)):
        objective = etr.get("clip_v", threshold=factor * costs[1] / spread, most=most)
        shaped = objective.prepare(batch, {})[0].token_advantages.expand(3, 4)
        assert shaped.tolist() == [[-1.0, left, -1.0, -1.0], [1.0] * 4, [-1.0, left, -1.0, -1.0]]
