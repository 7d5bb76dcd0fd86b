"""Section 4: what clipping does to entropy. Exact statements; the simulation is in `clip_simulation`."""

from __future__ import annotations

import torch
from torch import Tensor

import etr
from etr.batch import Batch
from etr.reproduce.base import Measured, Statement, Target, exactly, printed, published

EPS_HIGH = (0.2, 0.28)


def coefficients(log_ratio: Tensor, advantages: Tensor, eps_low: float = 0.2, eps_high: float = 0.2) -> Tensor:
    """The clipped objective's coefficient of tokens with these log-ratios, `[R, B, 1]`."""
    batch = Batch(
        log_probs=log_ratio - 1.0,
        old_log_probs=torch.full_like(log_ratio, -1.0),
        response_mask=torch.ones_like(log_ratio, dtype=torch.bool),
        advantages=advantages,
    )
    return etr.gradient_coefficient(etr.get("ppo", eps_low=eps_low, eps_high=eps_high), batch)


def mean_clipped_gradient() -> list[Measured]:
    """Largest distance of E[c]/r from μ·[1(r < 1+ε) − 1(r > 1−ε)] for A = ±a, fair, over ratios and sizes a."""
    sizes = torch.tensor([0.25, 1.0, 3.0], dtype=torch.float64).reshape(3, 1)
    ratio = torch.linspace(0.5, 1.6, 221, dtype=torch.float64)
    ratio = ratio[((ratio - 0.8).abs() > 1e-9) & ((ratio - 1.2).abs() > 1e-9)]  # the kinks themselves
    log_ratio = ratio.log().reshape(1, -1, 1).expand(3, -1, -1)
    positive, negative = (coefficients(log_ratio, sign * sizes.expand(3, len(ratio))) for sign in (1, -1))
    mean = ((positive + negative) / 2).squeeze(-1) / ratio
    want = sizes / 2 * ((ratio < 1.2).double() - (ratio > 0.8).double())  # E[A⁺] = a/2
    below, inside, above = mean[1, ratio < 0.8], mean[1, (ratio > 0.8) & (ratio < 1.2)], mean[1, ratio > 1.2]
    return exactly(float((mean - want).abs().max()), *(float(part.mean()) for part in (below, inside, above)))


def highest_probability() -> list[Measured]:
    """The largest π_old, on a grid of 1e-6, whose token still loses its gradient at π = 1, for both upper bounds."""
    old = torch.arange(1, 1_000_000, dtype=torch.float64) / 1_000_000
    found = []
    for eps in EPS_HIGH:
        c = coefficients(-old.log().reshape(1, -1, 1), torch.ones(1, len(old), dtype=torch.float64), eps_high=eps)
        found.append(float(old[c.flatten() == 0].max()))
    return exactly(*found)


def reach() -> list[Measured]:
    """The highest π with a gradient for A > 0 at π_old = .01 and .9, ε = .2; for .9 the bound is beyond 1."""
    bounds = etr.get("grpo").region(_single(), torch.zeros(1, 1, dtype=torch.float64))
    return exactly(*(float(old * bounds.high) for old in (0.01, 0.9)))


def _single() -> Batch:
    one = torch.zeros(1, 1, dtype=torch.float64)
    return Batch(one, one, one == 0, one[:, 0])


def unbounded_ratio() -> list[Measured]:
    """Largest ratio after 8 epochs of SGD on one batch with ε = 0.2, and the share of clipped tokens beyond 1.2.

    16 answers over 8 arms, rewards by a fair coin; a token's ratio is moved by the other tokens' gradients.
    """
    rng = torch.Generator().manual_seed(0)
    objective, ids = etr.get("grpo"), torch.zeros(16, dtype=torch.long)
    logits = torch.zeros(64, 8, dtype=torch.float64)
    arms = torch.randint(8, (64, 16), generator=rng)
    rewards = torch.randint(2, (64, 16), generator=rng).double()
    old = logits.log_softmax(-1).gather(-1, arms).unsqueeze(-1)
    for _ in range(8):
        leaf = logits.requires_grad_()
        taken = leaf.log_softmax(-1).gather(-1, arms).unsqueeze(-1)
        mask = torch.ones_like(taken, dtype=torch.bool)
        batch = Batch(taken, old, mask, objective.advantage(rewards, ids))
        gradient = torch.autograd.grad(etr.policy_loss(objective, batch).loss.sum(), leaf)[0]
        logits = (logits - 2.0 * gradient).detach()  # the next point
    ratio = (logits.log_softmax(-1).gather(-1, arms).unsqueeze(-1) - old).exp()
    return exactly(float(ratio.max()), float((ratio > 1.2).double().mean()))


CLIPPING = (
    Statement(
        "clip-mean", 4, "For advantages that are symmetric and ignore the action, the clipped gradient per token has "
        "mean μ·∇r·[1(r < 1+ε) − 1(r > 1−ε)], μ = E[A⁺].", "2506.10947, formula derived here", "reconstructed",
        (Target("largest error", 1e-12, relation="<="),
         *published({"μ = ½: below 1−ε": 0.5, "inside": 0.0, "above 1+ε": -0.5}, 1e-12)), mean_clipped_gradient,
        note="By `etr.gradient_coefficient`, divided by the ratio.",
    ),
    Statement(
        "never-clipped", 4, "A token with π_old > 1/(1+ε_high) can never be clipped above.", "derived here",
        "reconstructed", printed({"ε = .2": "0.8333", "ε = .28": "0.78125"}), highest_probability,
    ),
    Statement(
        "dapo-example", 4, "At ε = .2 a token at .01 may reach .012, one at .9 could go to 1.08: it never clips.",
        "2503.14476, from memory", "reconstructed", printed({".01 →": "0.012", ".9 →": "1.08"}), reach,
    ),
    Statement(
        "ratio-unbounded", 4, "PPO's clip does not bound the ratio: it only zeroes a sample's gradient.",
        "1903.07940, from memory", "reconstructed",
        (Target("largest ratio after 8 epochs, bound 1.2", 1.3, relation=">="),
         Target("share of tokens beyond 1.2", 0.05, relation=">=")), unbounded_ratio,
        note="Plain SGD, step 2, 64 batches at once.",
    ),
)  # fmt: skip
