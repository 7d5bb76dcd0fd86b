"""MAESTRO: a small Conductor learns which parts of the reward to weigh, from the advantages that its choices bring.

    a_i ∼ π_φ = softmax(b/τ),  R'_i = R_i + Σ_k (w^{(a_i)}_k − 1/K)·c_ik,  A = z-score of R' in the group
    b ← b + η·( mean_i A_i·∇_b ln π_φ(a_i) + λ·∇_b H(π_φ) )                once per rollout batch

Paper: "MAESTRO", 2601.07208, read in a note: third-party for the scheme (softmax Conductor, meta-reward = the group
advantage, actions drawn for each response by itself, since A has mean 0 for a common one), ours for the rest:
* the paper's Conductor is linear in the last hidden state, which no batch has; this one has the bias alone;
* action 0 weighs all K parts alike, action a ≥ 1 moves the share `focus` to part (a − 1) mod K: small and fixed;
* R' is w·c where the reward is the mean of its parts, and keeps other scales and penalties that are in R;
* the paper's R' also has − KL, which is dropped here (`beta` is GRPO's penalty in the loss);
* there is no chance in this core: the responses of a prompt, ordered by a hash of their tokens, get the numbers
  frac((rank + 1/2 + step)/golden ratio) in [0, 1), which fill it evenly, and the action is where they fall in π_φ;
* b moves with every batch by a small η, in place of a buffer and a slower clock. No coefficient was found.
With focus = 0, and where a reward has one part only, it is GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import alike
from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

PRIME, GOLDEN = 2147483647, (5**0.5 - 1) / 2


def order(tokens: Tensor, mask: Tensor, group_ids: Tensor) -> Tensor:
    """Rank of each response among those to its prompt, by a hash of its tokens; equal ones in batch order."""
    place = torch.arange(tokens.shape[-1], device=tokens.device)
    mixed = ((tokens + 1) * 1_000_003 + (place + 1) * 7_919) % PRIME
    code = torch.where(mask, mixed * mixed % PRIME, 0).sum(-1) * 48_271 % PRIME
    number = torch.arange(code.shape[-1], device=code.device)
    lower = code.unsqueeze(-2) < code.unsqueeze(-1)
    first = (code.unsqueeze(-2) == code.unsqueeze(-1)) & (number < number.unsqueeze(-1))
    return (alike.same(group_ids) & (lower | first)).sum(-1)


@register("maestro")
@dataclass(frozen=True)
class MAESTRO(Shaping, GRPO):
    """GRPO's loss with rewards whose weights a Conductor chooses for each response."""

    actions: int = 3
    focus: float = 0.5
    temperature: float = 1.0
    meta_lr: float = 0.1
    meta_entropy: float = 0.01

    paper: ClassVar[Paper] = Paper("MAESTRO", "2601.07208", "third-party")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"focus": 0.0})
    examples = ({"focus": 1.0},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "actions", 1, 1000)
        check_range(self, "focus", 0.0, 1.0)
        check_range(self, "temperature", 0.0, 1000.0, open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "components", "tokens"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "action")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        logits = torch.zeros(*run_shape, self.actions, dtype=torch.float64, device=device)
        return {"conductor": logits, "step": torch.zeros(run_shape, dtype=torch.float64, device=device)}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        assert batch.tokens is not None and batch.group_ids is not None  # in `needs`
        policy = (state["conductor"] / self.temperature).softmax(-1)
        rank = order(batch.tokens, batch.response_mask, batch.group_ids)
        even = (rank + 0.5 + state["step"].unsqueeze(-1)) * GOLDEN % 1
        action = (even.unsqueeze(-1) >= policy.cumsum(-1)[..., :-1].unsqueeze(-2)).sum(-1)
        batch, state = super().prepare(batch.with_columns(action=action.double()), state)
        chosen = torch.nn.functional.one_hot(action, self.actions).double()
        push = (batch.advantages.double().unsqueeze(-1) * (chosen - policy.unsqueeze(-2))).mean(-2)
        surprise = -policy.clamp(min=1e-300).log()
        spread = policy * (surprise - (policy * surprise).sum(-1, keepdim=True))  # ∇H
        moved = state["conductor"] + self.meta_lr * (push + self.meta_entropy * spread) / self.temperature
        return batch, {**state, "conductor": moved, "step": state["step"] + 1}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None and batch.components is not None  # in `needs`
        parts, action = batch.components.to(batch.rewards.dtype), batch.columns["action"].long().unsqueeze(-1)
        count = parts.shape[-1]
        focused = parts.gather(-1, (action - 1).clamp(min=0) % count).squeeze(-1) - parts.mean(-1)
        more = torch.where(action.squeeze(-1) > 0, self.focus * focused, 0.0)
        return self.advantage(batch.rewards + more, batch.group_ids)
