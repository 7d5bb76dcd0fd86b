"""HPT: prompts that are (nearly) never answered right learn from a demonstration, all others from their own answers.

    number of right answers ≤ gate  ->  all G answers become the demonstration:  J = sft·log π        (SFT)
    otherwise                           J = r·A with A = R − mean, not clipped                        (RL)

Paper: "Towards a unified view of large language model post-training", 2509.04419, and its code (Unify-Post-Training).
Default: gate 0 (their Qwen models; 2 for Llama), sft 1.0 (0.3 for the smallest), RL is Dr. GRPO without its clip, with
entropy weight 0.001. `soft` keeps both signals: one answer becomes the demonstration, the others stay and are compared
among themselves (its R is in no baseline).
OURS: "without clip" is a region that no ratio leaves (ε_low = 1, ε_high = 10⁹); an answer is right from R = 1; the G
copies of the demonstration give such a prompt the weight of any other. As advantages: A = sft on demonstrated tokens,
with the current policy as reference: the SFT line of the paper's unified estimator (`etr.unified`).
Against `dr_grpo`: the gate, no clip, the entropy bonus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import surrogates
from etr.batch import Batch, Region
from etr.checks import check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction
from etr.objectives.dr_grpo import DrGRPO
from etr.registry import register
from etr.samplers import Attempt, Start
from etr.sampling import Demonstrated, center_among, given
from etr.shaping import Shaping


@register("hpt")
@dataclass(frozen=True)
class HPT(Shaping, Demonstrated, DrGRPO):
    """Dr. GRPO without clip where a group has more than `gate` right answers, SFT on a right one elsewhere."""

    eps_low: float = 1.0
    eps_high: float = 1e9
    gate: int = 0
    sft: float = 1.0
    entropy_bonus: float = 0.001
    soft: bool = False

    paper: ClassVar[Paper] = Paper("Towards a unified view of LLM post-training (HPT)", "2509.04419", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "dr_grpo", {"gate": -1, "entropy_bonus": 0.0, "eps_low": 0.2, "eps_high": 0.2}
    )
    examples = ({"length": 3000}, {"soft": True})  # type: ignore[assignment]  # the parent has a single one

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "gate", -1, 1024)
        check_range(self, "sft", 0.0, 1e6)
        check_range(self, "entropy_bonus", 0.0, 1e6)

    @property
    def needs(self) -> frozenset[str]:
        more = {"entropy"} if self.entropy_bonus > 0 else set()
        return super().needs | {"hints"} | more | ({"rewards", "group_ids"} if self.soft else set())

    def start(self, attempt: Attempt) -> Start | None:
        assert attempt.hints is not None  # in `needs`
        if attempt.round:
            return None
        size, horizon = attempt.tokens.shape[-2:]
        hard = (attempt.rewards >= 1).sum(-1, keepdim=True) <= self.gate
        replaced = hard & (torch.arange(size) >= size - (1 if self.soft else size))
        return Start(attempt.hints.unsqueeze(-2), torch.where(replaced, horizon, 0), trained=True)

    def shape(self, batch: Batch) -> Tensor:
        own = self.beside(batch) if self.soft else batch.token_advantages
        return torch.where(self.demonstrated(batch), self.sft, own)

    def beside(self, batch: Batch) -> Tensor:
        """A with the baseline of the sampled answers alone, in groups with a demonstration, `[*R, B, 1]`."""
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        shown = given(batch) > 0
        some = Groups(batch.rewards, batch.group_ids).sum(shown.to(batch.rewards.dtype)) > 0
        alone = center_among(batch.rewards, batch.group_ids, ~shown).to(batch.advantages.dtype)
        return torch.where(some.unsqueeze(-1), alone.unsqueeze(-1), batch.token_advantages)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        imitation = surrogates.policy_gradient(batch.log_probs, batch.token_advantages)
        return torch.where(self.demonstrated(batch), imitation, super().surrogate(batch, log_ratio, region))

    def regularizer(self, batch: Batch) -> Tensor | None:
        penalty = super().regularizer(batch)
        if self.entropy_bonus == 0:
            return penalty
        assert batch.entropy is not None  # in `needs`
        bonus = -self.entropy_bonus * batch.entropy
        return bonus if penalty is None else penalty + bonus
