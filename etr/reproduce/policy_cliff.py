"""Section 7: where rewards tie, the optimal policy jumps; an entropy bonus makes it continuous (2507.20150)."""

from __future__ import annotations

import torch

from etr import exact
from etr.oracles.policy_cliff import soft_policy
from etr.reproduce.base import Measured, Statement, Target, exactly, printed, published
from toy_envs import ExactModel

GAP, TEMPERATURES = 0.01, (0.01, 0.1, 1.0)


def greedy_jump() -> list[Measured]:
    """|Δπ|₁/2 of the greedy policy when the gap of two arms goes from −1e-12 to 1e-12."""
    arms = [torch.tensor([0.5, 0.5 + sign * 1e-12], dtype=torch.float64).argmax() for sign in (-1, 1)]
    policies = torch.nn.functional.one_hot(torch.stack(arms), 2).double()
    return exactly(float((policies[0] - policies[1]).abs().sum() / 2))


def soft_gaps() -> list[Measured]:
    """π₁ − π₂ for d = .01 at each temperature; largest distance from tanh(d/2τ); |∇(J + τH)| there."""
    rewards = torch.tensor([[0.5 + GAP, 0.5]], dtype=torch.float64)
    model = ExactModel(2, 1, rewards)
    found, error, slope = [], 0.0, 0.0
    for tau in TEMPERATURES:
        logits = (rewards / tau).unsqueeze(-2).requires_grad_()
        value = exact.expected_reward(logits, model) + tau * exact.entropy(logits, model)
        slope = max(slope, float(torch.autograd.grad(value.sum(), logits)[0].abs().max()))
        policy = soft_policy(rewards, tau)[0]
        found.append(float(policy[0] - policy[1]))
        error = max(error, abs(found[-1] - float(torch.tanh(torch.tensor(GAP / (2 * tau), dtype=torch.float64)))))
    return exactly(*found, error, slope)


def lipschitz() -> list[Measured]:
    """Largest |Δπ|₁ τ/|Δr|∞ over 20 000 random rewards and changes, 2 to 8 arms, for each temperature."""
    rng = torch.Generator().manual_seed(0)
    worst = 0.0
    for arms in (2, 4, 8):
        rewards, change = torch.rand(2, 20_000, arms, generator=rng, dtype=torch.float64)
        change = (change - 0.5) * 0.2
        for tau in TEMPERATURES:
            moved = (soft_policy(rewards + change, tau) - soft_policy(rewards, tau)).abs().sum(-1)
            worst = max(worst, float((moved * tau / change.abs().amax(-1)).max()))
    return exactly(worst)


POLICY_CLIFF = (
    Statement(
        "greedy-jump", 7, "The map from reward to optimal policy is discontinuous where optimal actions tie.",
        "2507.20150", "third-party", published({"jump at a gap of 0": 1.0}), greedy_jump,
    ),
    Statement(
        "soft-policy", 7, "With an entropy bonus τH two arms with gap d have π₁ − π₂ = tanh(d/(2τ)).", "2507.20150",
        "reconstructed",
        (*printed({"d = .01, τ = .01": "0.462", "τ = .1": "0.04996", "τ = 1": "0.0050"}),
         Target("largest distance from tanh", 1e-14, relation="<="),
         Target("gradient of J + τH there", 1e-12, relation="<=")), soft_gaps,
    ),
    Statement(
        "soft-lipschitz", 7, "|Δπ|₁ ≤ |Δr|∞/τ: continuous, at the price of randomness.", "derived here",
        "reconstructed", (Target("largest |Δπ|₁ τ/|Δr|∞", 1.0, relation="<="),), lipschitz,
    ),
)  # fmt: skip
