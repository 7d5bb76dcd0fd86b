"""SofT-GRPO in the small: a soft token is a mixture of tokens, and its log-density that of the Gumbel noise behind it.

    x_v = log π_v + g_v,  g ~ Gumbel(0, 1);   y = softmax(x/τ)   is fed on as Σ_v y_v·embedding_v
    log p(x) = Σ_v [−(x_v − log π_v) − exp(−(x_v − log π_v))],   ∂ log p/∂ log π_v = 1 − e^{−g_v}

It is no objective of this library: its sample is a point of the simplex and not a token, so there is no log π(token),
no ratio of it, and c = ∂J/∂log π(token) has no meaning. What its ratio exp(log p − log p_old) does can be shown here.
Two facts tie it to the discrete policy: argmax x is a token drawn from π (Gumbel-max), and the score of x averages,
given that token, to the score of the token: E[∇log p(x) | argmax x = k] = ∇log π_k. So with τ → 0 it is GRPO with
noise of its own on top.

Paper: Zheng et al., "SofT-GRPO", 2511.06411; reconstructed from its idea, the reparameterised log-density of the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = 1e-30  # of a uniform number before its logarithm


def gumbel(uniforms: Tensor) -> Tensor:
    """Gumbel(0, 1) noise from uniform numbers: −ln(−ln u)."""
    return -(-uniforms.clamp(min=LEAST).log()).clamp(min=LEAST).log()


def perturbed(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """x = log π + g: the sample, `[..., V]`."""
    return log_probs + gumbel(uniforms)


def soft_token(x: Tensor, temperature: float) -> Tensor:
    """y = softmax(x/τ), the mixture that is fed on; a single token as τ → 0."""
    return (x / temperature).softmax(-1)


def log_density(x: Tensor, log_probs: Tensor) -> Tensor:
    """log p(x) under the policy `log_probs` `[..., V]`: with `x` fixed, its gradient is the score of the soft token."""
    noise = x.detach() - log_probs  # the sample is data: a score is taken at it, not through it
    return (-noise - (-noise).exp()).sum(-1)


def score(x: Tensor, logits: Tensor) -> Tensor:
    """∇_θ log p(x) for π = softmax(θ): s_v − π_v·Σ_u s_u with s_v = 1 − e^{−(x_v − log π_v)}, `[..., V]`."""
    log_probs = logits.log_softmax(-1)
    slope = 1 - (log_probs - x).exp()
    return slope - log_probs.exp() * slope.sum(-1, keepdim=True)


def gradient(x: Tensor, rewards: Tensor, logits: Tensor) -> Tensor:
    """mean_i A_i·∇ log p(x_i), the on-policy gradient of a group of soft tokens, A_i = R_i − mean.

    x `[..., G, V]`, rewards `[..., G]`, logits `[..., V]`. Its expectation is (1 − 1/G)·∇E[R], as GRPO's is.
    """
    centred = rewards - rewards.mean(-1, keepdim=True)
    return (centred.unsqueeze(-1) * score(x, logits.unsqueeze(-2))).mean(-2)


def clipped(x: Tensor, advantages: Tensor, log_probs: Tensor, old_log_probs: Tensor, eps: float = 0.2) -> Tensor:
    """min(ρ·A, clip(ρ, 1 − ε, 1 + ε)·A) with ρ = p(x)/p_old(x) of the whole soft token."""
    ratio = (log_density(x, log_probs) - log_density(x, old_log_probs)).exp()
    return torch.minimum(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages)
