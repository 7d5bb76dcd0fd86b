"""First-order entropy dynamics of a softmax over V tokens, `[*R, V]`: which way does a small step in logits push H?"""

from __future__ import annotations

from torch import Tensor


def entropy_change(logits: Tensor, step: Tensor) -> Tensor:
    """dH = −Cov_{a∼π}(log π_a, dz_a) for logits z + dz, up to O(|dz|²), nats, `[*R]`.

    Source: Cui et al. 2505.22617 (the entropy's change is driven by this covariance).
    """
    log_probs = logits.double().log_softmax(-1)
    probs, step = log_probs.exp(), step.double()
    mean = (probs * log_probs).sum(-1, keepdim=True)
    return -(probs * (log_probs - mean) * step).sum(-1)


def entropy_discriminator(logits: Tensor) -> Tensor:
    """S_k = π_k (H + log π_k), nats, `[*R, V]`: dz = ε·e_k changes H by −ε·S_k, up to O(ε²).

    Positive exactly where π_k > e^{−H}: raising a likely token lowers the entropy, raising a rare one lifts it.
    Source: 2602.03392, theorem 3.2.
    """
    log_probs = logits.double().log_softmax(-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(-1, keepdim=True)
    return probs * (entropy + log_probs)


def sampled_token_push(logits: Tensor) -> Tensor:
    """dH/dα of the policy-gradient step dz = α(e_k − π) on token k: −(S_k − E_{i∼π} S_i), nats, `[*R, V]`.

    Its mean under π is 0: a reward that does not depend on the token moves the entropy by nothing at first order.
    Source: 2602.03392, theorem 3.3.
    """
    push = entropy_discriminator(logits)
    return (logits.double().softmax(-1) * push).sum(-1, keepdim=True) - push
