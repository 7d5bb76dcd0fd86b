"""GTPO (trajectory-based): do not punish the tokens that right and wrong answers share; drop what is too random.

    P, N: (place, token) pairs of the group's responses with A > 0 and with A < 0
    conflict region of o_i: its longest beginning of pairs in both P and N; and its longest ending, counted from the end
    λ_{i,t} = w_forward·w_backward;  in a region w = 2 if A_i > 0 and 0 if A_i < 0, elsewhere 1
    J = mean_i (1/T_i) Σ_t λ_{i,t}·δ_i·(A_i − γ·H̄_i)·log π,   δ_i = 1[H̄_i ≤ ln 2],   H̄_i mean entropy per token

Paper: "GTPO: Trajectory-based policy optimization", 2508.03772; formulas, γ = 0.1 and the weights as in the authors'
code (0.7 for ln 2 there). Where the first batch has a mean entropy above ln 2 nothing is ever dropped (the paper's,
not in the code). Purely on-policy: no ratio, clip or reference, so this is REINFORCE with other advantages (A is the
group's z-score). Responses with A = 0 are in neither P nor N and keep weight 1. per_conflict: the code's further
division by the number of o_i's conflict tokens, which the formula does not have. Masked tokens end no region (ours).
With noisy rewards, or a single token, an answer that is right at times is never punished: made for sure verifiers.
Not GTPO, "Group Token Policy Optimization" (2508.04349), which gives tokens rewards by their entropy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages
from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Paper, Reduction, State
from etr.objectives.reinforce import REINFORCE
from etr.registry import register
from etr.sequences import from_end, shared_beginning
from etr.shaping import Shaping


@register("gtpo")
@dataclass(frozen=True)
class GTPO(Shaping, REINFORCE):
    """REINFORCE with λ·δ·(A − gamma·H̄): λ = right or wrong_weight per direction on tokens shared by both sides."""

    aggregation: str = "seq-mean-token-mean"
    right_weight: float = 2.0
    wrong_weight: float = 0.0
    gamma: float = 0.1
    max_entropy: float = math.log(2)
    per_conflict: bool = False

    paper: ClassVar[Paper] = Paper("GTPO: Trajectory-based policy optimization", "2508.03772", "verified")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "reinforce", {"right_weight": 1.0, "wrong_weight": 1.0, "gamma": 0.0, "max_entropy": 1e9, "per_conflict": False}
    )
    examples = ({"per_conflict": True, "max_entropy": 0.7}, {"max_entropy": 1.1})

    @property
    def exceptions(self) -> Mapping[str, str]:
        shared = "an arm that is right at times is a conflict token: pushed up four times as much, and never down"
        return {**super().exceptions, "learns_a_bandit": shared}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("right_weight", "wrong_weight", "gamma", "max_entropy"):
            check_range(self, name, 0.0, 1e9)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"group_ids", "tokens", "entropy"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "gtpo_kept")

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.group_zscore(rewards, group_ids)

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        return {"keep_all": torch.full(run_shape, -1.0, device=device)}  # −1: no batch was seen yet, else 0 or 1

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        mean, some = mean_entropy(batch.clean()), batch.response_mask.any(-1)
        first = torch.where(some, mean, 0.0).sum(-1) / some.sum(-1).clamp(min=1)
        decided = (first > self.max_entropy).to(state["keep_all"].dtype)
        keep_all = torch.where(state["keep_all"] < 0, decided, state["keep_all"])
        kept = (mean <= self.max_entropy) | (keep_all.unsqueeze(-1) > 0)
        batch, _ = super().prepare(batch.with_columns(gtpo_kept=kept.to(mean.dtype)), state)
        return batch, {"keep_all": keep_all}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.group_ids is not None and batch.tokens is not None  # in `needs`
        mask, signal = batch.response_mask, batch.token_advantages.expand_as(batch.log_probs)
        one = torch.ones_like(signal)
        inside = torch.where(signal > 0, self.right_weight * one, torch.where(signal < 0, self.wrong_weight * one, one))
        backward = from_end(mask)
        regions = [shared_beginning(batch.tokens, signal, mask, batch.group_ids)]
        tokens, turned, kept = (x.gather(-1, backward) for x in (batch.tokens, signal, mask))
        regions.append(shared_beginning(tokens, turned, kept, batch.group_ids).gather(-1, backward))
        factor = torch.where(regions[0], inside, 1.0) * torch.where(regions[1], inside, 1.0)
        if self.per_conflict:
            factor = factor / (regions[0] | regions[1]).sum(-1, keepdim=True).clamp(min=1)
        calm = signal - self.gamma * mean_entropy(batch).unsqueeze(-1)
        return torch.where(mask, factor * batch.columns["gtpo_kept"].unsqueeze(-1) * calm, 0.0)


def mean_entropy(batch: Batch) -> Tensor:
    """H̄_i, `[*R, B]`."""
    assert batch.entropy is not None  # in `needs`
    return batch.entropy.sum(-1) / batch.response_mask.sum(-1).clamp(min=1)
