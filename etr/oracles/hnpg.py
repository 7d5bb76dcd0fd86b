"""Hybrid natural policy gradient: a critic from on-policy and offline data, and one mirror step along it.

Source: Zhou et al., "Offline data enhanced on-policy policy gradient", 2311.08384. RECONSTRUCTED, and of it the bandit:
with a horizon the offline errors are Bellman errors; at γ = 0 both are squared errors of the reward.

    f = argmin_f  Σ_a n_a (f_a − r̄_a)² + λ Σ_a m_a (f_a − r̄ᵒᶠᶠ_a)²
    π_{t+1}(a) ∝ π_t(a)·exp(η f_a)

On-policy data say nothing of an arm that the policy never takes; offline data may, and the step then finds it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hybrid_critic(counts: Tensor, means: Tensor, offline_counts: Tensor, offline_means: Tensor, share: float) -> Tensor:
    """f `[*R, A]` from how often each arm was taken and its mean reward, on-policy and offline (weight `share` = λ).

    An arm without data gets 0, the least reward; `share` = 0 is the on-policy critic of NPG.
    """
    weight = counts + share * offline_counts
    total = counts * means + share * offline_counts * offline_means
    return torch.where(weight > 0, total / torch.where(weight > 0, weight, 1.0), 0.0)


def npg_step(log_policy: Tensor, critic: Tensor, rate: float) -> Tensor:
    """ln π_{t+1} = ln π_t + η·f − ln Z, `[*R, A]`: the natural gradient of a softmax table moves its logits by f.

    With the true rewards in [0, 1] as critic, J rises at every step and r* − mean J(π_1 … π_T) ≤ ln(1/π_0(a*))/(ηT).
    """
    return (log_policy + rate * critic).log_softmax(-1)
