"""What the declared deviations are about, as functions of a case: which tokens, and which factors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Case = dict[str, Tensor]
Change = Callable[[Tensor, Case], Tensor]
LIMIT, GROUP = 20.0, 4  # etr's bound on log-ratios; responses per prompt


def log_ratio(case: Case, to: str = "old", of: str = "log_probs") -> Tensor:
    """Of the current policy (or `of`) to the `old`, `ref` or `rollout` one."""
    return case[of] - case[f"{to}_log_probs"]


def mean_log_ratio(case: Case) -> Tensor:
    """Of a response, on each of its tokens."""
    mask = case["response_mask"]
    mean = (log_ratio(case) * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return mean.expand_as(mask)


# Tokens


def far_from_old(case: Case) -> Tensor:
    return log_ratio(case).abs() > LIMIT


def far_from_either(case: Case) -> Tensor:
    return torch.maximum(log_ratio(case).abs(), log_ratio(case, "ref").abs()) > LIMIT


def far_response(case: Case) -> Tensor:
    far = far_from_old(case) & case["response_mask"]
    return far.any(-1, keepdim=True).expand_as(far)


def large_k3(case: Case) -> Tensor:
    d = log_ratio(case, "ref")
    return torch.expm1(-d) + d > 10


def covariance(case: Case, of: str) -> Tensor:
    """(A − mean A)·(log π − mean log π) over the kept tokens, −∞ on padding."""
    mask = case["response_mask"]
    advantage, log_prob = case["advantages"][:, None].expand_as(mask), case[of]
    cov = (advantage - advantage[mask].mean()) * (log_prob - log_prob[mask].mean())
    return torch.where(mask, cov, -torch.inf)


def otherwise_tied(share: float) -> Callable[[Case], Tensor]:
    """KL-Cov: the tokens that only one side ties, because covariances have changed since the start of the update."""

    def tokens(case: Case) -> Tensor:
        count = max(1, int(share * case["response_mask"].sum()))
        now, then = covariance(case, "log_probs"), covariance(case, "old_log_probs")
        theirs, ours = (cov >= cov[case["response_mask"]].topk(count).values[-1] for cov in (now, then))
        return theirs ^ (ours & (then > 0))

    return tokens


def otherwise_clipped(low: float, high: float) -> Callable[[Case], Tensor]:
    """Clip-Cov: the tokens that only one side leaves out, likewise, or that PPO's clip has left out already."""

    def tokens(case: Case) -> Tensor:
        now, then = covariance(case, "log_probs"), covariance(case, "old_log_probs")
        by_ppo = (log_ratio(case).exp() > 2) & (case["advantages"][:, None] > 0)  # its bounds there are 0 and 2
        theirs, ours = ((cov > low) & (cov < high) for cov in (now, then))
        return (theirs & ~by_ppo) ^ ours

    return tokens


# Changes


def times(factor: Callable[[Case], Tensor]) -> Change:
    """Their result is `factor` times ours."""
    return lambda ours, case: ours * factor(case)


def kept_share(case: Case) -> Tensor:
    """The share of responses with at least one token."""
    return case["response_mask"].any(-1).double().mean()


def high_entropy_share(case: Case) -> Tensor:
    """The share of tokens among the fifth with the highest entropy, ties included."""
    entropy = case["entropy"][case["response_mask"]]
    return (entropy >= torch.quantile(entropy, 0.8)).double().mean()


def inverse_kept_tokens(limit: float) -> Callable[[Case], Tensor]:
    """All tokens over those of responses whose mean ½·log²(π/π_rollout) is at most `limit`."""

    def factor(case: Case) -> Tensor:
        mask = case["response_mask"]
        k2 = log_ratio(case, "rollout").square() / 2 * mask
        return mask.sum() / mask[k2.sum(-1) <= limit * mask.sum(-1)].sum()

    return factor


def by_group(values: Tensor) -> Tensor:
    """One result per group, on each of its responses, `[B, 1]`."""
    return values.repeat_interleave(GROUP)[:, None]


def groups(case: Case) -> Tensor:
    return case["rewards"].reshape(-1, GROUP)


def centred(case: Case) -> Tensor:
    return (groups(case) - groups(case).mean(-1, keepdim=True)).flatten()


def spread_ratio(eps: float, ours: float = 0.0) -> Callable[[Case], Tensor]:
    """From a population std (plus `ours`) to a sample std plus `eps`, in each group."""
    return lambda case: by_group((groups(case).std(-1, correction=0) + ours) / (groups(case).std(-1) + eps))


def in_mixed_groups(case: Case) -> Tensor:
    """The number of responses in groups of unequal rewards."""
    return GROUP * (groups(case).std(-1) > 0).sum()


def raw_spread(case: Case) -> Tensor:
    """From the population std of centred rewards to the sample std of the rewards themselves."""
    return (centred(case).std(correction=0) + 1e-6) / (case["rewards"].std() + 1e-4)


def whitening_ratio(gamma: float = 1.0, beta: float = 0.0, baseline: bool = False) -> Callable[[Case], Tensor]:
    """From a population std plus 1e-6 to the root of a sample variance plus 1e-8, over the returns of kept tokens."""

    def factor(case: Case) -> Tensor:
        mask, rewards = case["response_mask"], centred(case) if baseline else case["rewards"]
        ahead = mask.flip(-1).cumsum(-1).flip(-1) - 1  # tokens behind this one
        penalty = beta * log_ratio(case, "ref", of="old_log_probs") * mask
        kept = (rewards[:, None] * gamma**ahead - penalty.flip(-1).cumsum(-1).flip(-1))[mask]
        return (kept.std(correction=0) + 1e-6) / (kept.var() + 1e-8).sqrt()

    return factor


def whiten_tokens(ours: Tensor, case: Case) -> Tensor:
    kept = ours[case["response_mask"]]
    return (ours - kept.mean()) / (kept.var() + 1e-8).sqrt()


def whiten_responses(ours: Tensor, case: Case) -> Tensor:
    each = ours[:, :1]
    return (ours - each.mean()) / (each.std() + 1e-4)


def mean_one_per_response(ours: Tensor, case: Case) -> Tensor:
    return ours / ours[:, :1].mean()
