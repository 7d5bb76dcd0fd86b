"""Baselines and group weights (rloo, opo, OTB, gdpo, adora, seed_grpo, copo, ...) against arithmetic done by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import fmean, pstdev, stdev
from typing import Any

import pytest
import torch
from torch import Tensor

import etr
from etr.baselines import squared_scores
from etr.batch import Batch
from etr.errors import FieldError
from etr.laws import random_batch
from etr.objective import Objective

OLD = -2.0


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make(objective: Objective, rewards: Sequence[float], size: int, lengths: Sequence[int], **more: Any) -> Batch:
    """Groups of `size` responses of those lengths on-policy, with NaN on padding and the objective's advantages."""
    given, ids = double(list(rewards)), torch.arange(len(rewards) // size).repeat_interleave(size)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
    old = torch.where(mask, OLD, math.nan).double()
    columns = {"log_probs": old, "old_log_probs": old, "advantages": objective.advantage(given, ids)}
    columns |= {"rewards": given, "group_ids": ids, "group": etr.group_stats(given, ids)}
    return Batch(**{"response_mask": mask, **columns, **more})


def shaped(objective: Objective, batch: Batch) -> Tensor:
    """Token advantages as the loss sees them, 0 on padding."""
    state = objective.init_state(batch.log_probs.shape[:-2], batch.log_probs.device)
    prepared = objective.prepare(batch, state)[0]
    return torch.where(batch.response_mask, prepared.token_advantages, 0.0)


def padded(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([double(list(row)) for row in rows], batch_first=True)


def two_way(chances: Sequence[Sequence[float]]) -> dict[str, Tensor]:
    """Old log-probs and whole distributions of two tokens, from the sampled token's chance."""
    p = padded(chances)
    p = torch.where(p > 0, p, 0.5)
    return {"old_log_probs": p.log(), "log_probs": p.log(), "full_log_probs": torch.stack([p, 1 - p], -1).log()}


def test_rloo_with_the_kl_in_the_reward() -> None:
    """β = 0.5; log π_old − log π_ref summed over the tokens is 0.2, −0.4, 0 and 1, so R' = 0.9, 0.2, 0, 0.5."""
    objective = etr.get("rloo", beta=0.5)
    gap = padded([[0.1, 0.1], [-0.4], [0.3, -0.3], [1.0]])
    batch = make(objective, [1.0, 0.0, 0.0, 1.0], 4, [2, 1, 2, 1], ref_log_probs=OLD - gap)
    got = shaped(objective, batch)
    paid = [0.9, 0.2, 0.0, 0.5]
    want = [r - (sum(paid) - r) / 3 for r in paid]
    assert got[:, 0].tolist() == pytest.approx(want)
    assert want[0] == pytest.approx(4 / 3 * (0.9 - 0.4))  # G/(G−1)·(R' − mean)
    plain = etr.get("rloo")
    assert plain.advantage(batch.rewards, batch.group_ids).tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])
    assert plain.needs == frozenset()


def test_opo_weighs_by_length() -> None:
    """b = (1·1 + 3·0 + 2·1)/6 = 0.5; where lengths are equal it is Dr. GRPO's advantage."""
    objective = etr.get("opo")
    got = shaped(objective, make(objective, [1.0, 0.0, 1.0], 3, [1, 3, 2]))
    torch.testing.assert_close(got, padded([[0.5], [-0.5] * 3, [0.5] * 2]))
    equal = shaped(objective, make(objective, [1.0, 0.0, 1.0], 3, [2, 2, 2]))
    assert equal[:, 0].tolist() == pytest.approx([1 / 3, -2 / 3, 1 / 3])
    assert (shaped(objective, make(objective, [0.1, 0.1, 0.1], 3, [1, 3, 2])) == 0).all()  # exactly, whatever the sums


CHANCES = [[0.5, 0.8], [0.2]]
# 1 − 2p + Σ p²:  p = .5: 1 − 1 + .5 = .5;   p = .8: 1 − 1.6 + .68 = .08;   p = .2: 1 − .4 + .68 = 1.28
ENERGY = [[0.5, 0.08], [1.28]]


def test_squared_scores() -> None:
    two = two_way(CHANCES)
    mask = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(squared_scores(two["old_log_probs"], two["full_log_probs"], mask), padded(ENERGY))


def test_squared_score_is_the_squared_gradient() -> None:
    """‖∂ log π(y)/∂ logits‖², by autograd; its mean under π is 1 − Σ p²."""
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    log_p = logits.log_softmax(-1)
    norms = [torch.autograd.grad(x, logits, retain_graph=True)[0].square().sum() for x in log_p]
    found = squared_scores(log_p, log_p.expand(5, 5), torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(found, torch.stack(norms))
    torch.testing.assert_close((log_p.exp() * found).sum(), 1 - log_p.exp().square().sum())


def test_optimal_token_baseline() -> None:
    """W of the first: .5, .58; of the second: 1.28. B_1 = 1·.5/(.5 + 1.28); at t = 2 only the first still runs."""
    both = 0.5 / 1.78
    for tail, last in ((False, 0.0), (True, 1.0)):
        objective = etr.get("optimal_token_baseline", zero_tail=tail)
        got = shaped(objective, make(objective, [1.0, 0.0], 2, [2, 1], **two_way(CHANCES)))
        torch.testing.assert_close(got, padded([[1 - both, last], [-both]]))
    objective = etr.get("optimal_token_baseline")
    got = shaped(objective, make(objective, [1.0, 0.0], 2, [2, 2], **two_way([[0.5, 0.8], [0.2, 0.2]])))
    assert got[:, 1].tolist() == pytest.approx([1 - 0.58 / (0.58 + 2.56), -0.58 / (0.58 + 2.56)])  # W is cumulative


def test_optimal_baseline() -> None:
    """w = .58 and 1.28: b* = .58/1.86 for R = 1, 0; with one's own left out b is the other's reward."""
    objective = etr.get("optimal_baseline", leave_one_out=False)
    got = shaped(objective, make(objective, [1.0, 0.0], 2, [2, 1], **two_way(CHANCES)))
    torch.testing.assert_close(got[:, 0], double([1 - 0.58 / 1.86, -0.58 / 1.86]))
    out = etr.get("optimal_baseline")
    got = shaped(out, make(out, [1.0, 0.0, 0.5], 3, [1, 1, 1], **two_way([[0.5], [0.2], [0.8]])))
    want = [1 - 0.08 * 0.5 / 1.36, -(0.5 + 0.04) / 0.58, 0.5 - 0.5 / 1.78]
    assert got[:, 0].tolist() == pytest.approx(want)


def test_optimal_baseline_has_the_least_variance() -> None:
    """A group that holds every arm as often as π draws it: the second moment Σ w·(R − b)² is least at its b*."""
    p, rewards = [0.5, 0.5, 0.3, 0.2], [1.0, 1.0, 0.0, 0.4]
    w = [1 - 2 * x + (0.25 + 0.09 + 0.04) for x in p]
    full = double([0.5, 0.3, 0.2]).log().expand(4, 1, 3)
    old = double(p).log().unsqueeze(-1)
    objective = etr.get("optimal_baseline", leave_one_out=False)
    batch = make(objective, rewards, 4, [1] * 4, old_log_probs=old, log_probs=old, full_log_probs=full)
    best = rewards[0] - shaped(objective, batch)[0, 0].item()

    def moment(b: float) -> float:
        return sum(wi * (r - b) ** 2 for wi, r in zip(w, rewards, strict=True))

    assert all(moment(best) < moment(best + step) for step in (-0.01, 0.01, fmean(rewards) - best))


@pytest.mark.parametrize("name", ["rloo", "optimal_baseline"])
def test_leave_one_out_is_unbiased(name: str) -> None:
    """Σ over all draws of 3 of 3 arms of their chance times mean A·∇log π is ∇J = π(R − J), to rounding."""
    p, rewards, objective = double([0.5, 0.3, 0.2]), double([1.0, 0.0, 0.4]), etr.get(name)
    expected = torch.zeros(3, dtype=torch.float64)
    for arms in itertools.product(range(3), repeat=3):
        picked = torch.tensor(arms)
        old, full = p[picked].log().unsqueeze(-1), p.log().expand(3, 1, 3)
        batch = make(objective, rewards[picked].tolist(), 3, [1] * 3, old_log_probs=old, log_probs=old)
        batch = etr.Batch(**{**vars(batch), "full_log_probs": full})
        scores = torch.eye(3, dtype=torch.float64)[picked] - p
        expected += p[picked].prod() * (shaped(objective, batch) * scores).mean(0)
    torch.testing.assert_close(expected, p * (rewards - (p * rewards).sum()))


PARTS = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [3.0, 1.0], [3.0, 1.0]]


def zscores(values: Sequence[float], eps: float) -> list[float]:
    return [(x - fmean(values)) / (stdev(values) + eps) for x in values]


def test_gdpo_normalises_part_by_part() -> None:
    objective = etr.get("gdpo", weights="1, 0.5")
    batch = make(objective, [0.5] * 8, 4, [2, 1, 3, 1, 1, 1, 2, 1], components=double(PARTS))
    groups = [PARTS[:4], PARTS[4:]]
    first, second = ([x for group in groups for x in zscores([row[k] for row in group], 1e-4)] for k in (0, 1))
    total = [a + 0.5 * b for a, b in zip(first, second, strict=True)]
    want = [(s - fmean(total)) / (stdev(total) + 1e-4) for s in total]
    assert shaped(objective, batch)[:, 0].tolist() == pytest.approx(want)
    assert sum(want) == pytest.approx(0.0, abs=1e-12) and stdev(want) == pytest.approx(1.0, rel=1e-3)
    assert want[0] != pytest.approx(want[1])  # (0, 1) and (1, 0); equal weights and spreads would make them equal
    with pytest.raises(FieldError, match="numbers with commas"):
        etr.get("gdpo", weights="a, b")


def test_gdpo_over_tokens_counts_long_responses_more() -> None:
    """Mean and sample variance over the 12 tokens, 1e-8 inside the root."""
    objective, lengths = etr.get("gdpo", whiten="tokens", eps=1e-6), [2, 1, 3, 1, 1, 1, 2, 1]
    batch = make(objective, [0.5] * 8, 4, lengths, components=double(PARTS))
    first, second = ([x for g in (PARTS[:4], PARTS[4:]) for x in zscores([row[k] for row in g], 1e-6)] for k in (0, 1))
    total = [a + b for a, b in zip(first, second, strict=True)]
    tokens = [s for s, n in zip(total, lengths, strict=True) for _ in range(n)]
    want = [(s - fmean(tokens)) / math.sqrt(stdev(tokens) ** 2 + 1e-8) for s in total]
    assert shaped(objective, batch)[:, 0].tolist() == pytest.approx(want)


def test_gdpo_with_one_part_is_grpo() -> None:
    objective, rewards = etr.get("gdpo"), [1.0, 0.0, 0.0, 0.0]
    batch = make(objective, rewards, 4, [1] * 4, components=double(rewards).unsqueeze(-1))
    torch.testing.assert_close(shaped(objective, batch)[:, 0], batch.advantages, rtol=0, atol=0)


def test_adora_compares_lengths() -> None:
    """Longest right answer against the mean wrong one, group by group; GRPO's advantages are ±1 for half right."""
    lengths = [3, 1, 1, 1, *[1, 2, 2, 2], *[3, 1, 2, 5], *[1, 2, 3, 4], *[1, 2, 3, 4]]
    rewards = [1.0, 1.0, 0.0, 0.0] * 3 + [0.0] * 4 + [1.0] * 4
    full = {"llm": [1.0, 0.1, 0.1, 0.1, 1.0], "vlm": [1.0, 0.1, 0.1, 1.0, 0.1]}
    for kind, weights in full.items():
        objective = etr.get("adora", kind=kind)
        batch = make(objective, rewards, 4, lengths, advantages=torch.ones(20, dtype=torch.float64))
        assert shaped(objective, batch)[:, 0].tolist() == [w for w in weights for _ in range(4)]
    # Third group: max right 3, mean wrong (2 + 5)/2 = 3.5; without the one cut off at 5 it is 2.
    cut = etr.get("adora", max_length=5)
    batch = make(cut, rewards, 4, lengths, advantages=torch.ones(20, dtype=torch.float64))
    assert shaped(cut, batch)[8:12, 0].tolist() == [1.0] * 4


def clustered(objective: Objective, rewards: Sequence[float], clusters: Sequence[int], size: int, **more: Any) -> Batch:
    return make(objective, rewards, size, [1] * len(rewards), clusters=torch.tensor(clusters), **more)


@pytest.mark.parametrize(
    ("kind", "f"),
    [("linear", lambda x: 1 - x), ("exponential", lambda x: math.exp(-x)), ("focal", lambda x: (1 - x) ** 2)],
)
def test_seed_grpo(kind: str, f: Any) -> None:
    """Answers a, a, b, c with probabilities .4, .2, .2, .2: SE = −(ln .6 + ln .2 + ln .2)/3; one answer: f(0) = 1."""
    objective = etr.get("seed_grpo", kind=kind, alpha=0.5)
    old = double([0.4, 0.2, 0.2, 0.2, 0.1, 0.2, 0.3, 0.4]).log().unsqueeze(-1)
    rewards, clusters = [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0], [7, 7, 8, 9, 7, 7, 7, 7]
    got = shaped(objective, clustered(objective, rewards, clusters, 4, old_log_probs=old, log_probs=old))[:, 0]
    entropy = -(math.log(0.6) + 2 * math.log(0.2)) / 3
    assert got[:4].tolist() == pytest.approx([a * f(0.5 * entropy / math.log(4)) for a in (0.5, 0.5, -0.5, -0.5)])
    assert got[4:].tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])
    counted = etr.get("seed_grpo", kind=kind, alpha=0.5, estimate="frequency")
    got = shaped(
        counted, clustered(counted, [1.0, 0.0, 0.0, 0.0], [1, 2, 3, 4], 4, old_log_probs=old[:4], log_probs=old[:4])
    )
    assert got[0, 0].item() == pytest.approx(0.75 * f(0.5))  # four answers, equally often: the maximum ln 4


def test_seed_grpo_of_lengths() -> None:
    """Geometric means per token are equal here, so a long answer is as probable as a short one."""
    objective = etr.get("seed_grpo", alpha=1.0, estimate="length")
    got = shaped(objective, make(objective, [1.0, 0.0], 2, [3, 1], clusters=torch.tensor([0, 1])))
    assert (got == 0).all()  # SE = ln 2, the maximum


# Prompt 1: answers a, a, b, b, half right; prompt 2: all a, all right; prompt 3: a, b, c, d and nothing right.
COPO = {"rewards": [1.0, 1.0, 0.0, 0.0, *[1.0] * 4, *[0.0] * 4], "clusters": [0, 0, 1, 1, *[0] * 4, 0, 1, 2, 3]}


def test_copo_between_the_prompts() -> None:
    """E = 1, 0, 2 bits; λ_G = (1 − 1/4)/2, so R_g = .5·(1 − .375), 1 and 0. w = σ(E − 1)."""
    overall = [0.5 * (1 - 0.375), 1.0, 0.0]
    between = [(x - fmean(overall)) / pstdev(overall) for x in overall]
    local = [[1.0, 1.0, -1.0, -1.0], [0.0] * 4, [0.0] * 4]
    weights = {
        "soft": [1 / (1 + math.exp(-(e - 1))) for e in (1, 0, 2)],
        "forced": [0.5, 0.0, 0.0],
        "hard": [0.0, 0.0, 1.0],
    }
    for kind, w in weights.items():
        objective = etr.get("copo", kind=kind)
        batch = clustered(objective, COPO["rewards"], [int(c) for c in COPO["clusters"]], 4)
        want = [w[q] * a + (1 - w[q]) * between[q] for q in range(3) for a in local[q]]
        assert shaped(objective, batch)[:, 0].tolist() == pytest.approx(want)


def test_copo_has_two_clipped_losses() -> None:
    """A wrong answer of the half-right prompt against its good prompt: r = 2 clips the positive part, not the other."""
    objective = etr.get("copo", bits=0.0, steepness=0.0)  # w = 1/2
    batch = clustered(objective, [1.0, 0.0, 0.0, 0.0], [0, 1, 2, 2], 2)
    state = objective.init_state((), torch.device("cpu"))
    batch = objective.prepare(batch, state)[0]
    moved = Batch(**{**vars(batch), "log_probs": batch.old_log_probs + math.log(2)})
    # Prompts: R_g = .5·(1 − ½) and 0, so A_g = 1 and −1; within: 1, −1, 0, 0. Half of each.
    parts = [(0.5, 0.5), (-0.5, 0.5), (0.0, -0.5), (0.0, -0.5)]
    want = [sum(min(2 * a, 1.2 * a) for a in pair) for pair in parts]
    slope = [sum(2 * a if a < 0 else 0.0 for a in pair) for pair in parts]
    assert etr.policy_loss(objective, moved).per_token[:, 0].tolist() == pytest.approx(want)
    assert etr.gradient_coefficient(objective, moved)[:, 0].tolist() == pytest.approx(slope)


CLIPPED = ["rloo", "opo", "optimal_baseline", "optimal_token_baseline", "empg", "arm", "seed_grpo", "riskpo", "dsdr"]
CLIPPED += ["polychromic", "adora", "gdpo", "oar"]


@pytest.mark.parametrize("name", [*CLIPPED, "aepo_agentic", "gtpo"])
def test_gradient_coefficient(name: str) -> None:
    """c = r·A, and 0 beyond the bound that A pushes towards; (1 + ε)·A there with AEPO, A itself with GTPO."""
    objective = etr.get(name)
    batch = random_batch(objective)
    batch = objective.prepare(batch, objective.init_state((), torch.device("cpu")))[0]
    c, mask = etr.gradient_coefficient(objective, batch), batch.response_mask
    ratio = (batch.log_probs - batch.old_log_probs).exp()
    assert mask.any() and (ratio[mask] > 1.3).any() and (batch.token_advantages != 0).any()
    a = batch.token_advantages.expand_as(ratio)
    top = 1 + getattr(objective, "eps_high", 0.2)
    for i, t in mask.nonzero().tolist():
        r, x = ratio[i, t].item(), a[i, t].item()
        above, below = r > top and x > 0, r < 0.8 and x < 0
        factor = (top if name == "aepo_agentic" else 0.0) if above else 0.0 if below else r
        assert c[i, t].item() == pytest.approx(x if name == "gtpo" else factor * x, rel=1e-12)
