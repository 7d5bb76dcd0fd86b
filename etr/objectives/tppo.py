"""T-PPO: advantages for answers that are cut off before they end, from a critic.

    δ_t = γ·V(s_{t+1}) − V(s_t), with R added and V = 0 behind the end of a finished answer;
    an answer cut after l tokens: V(s_l) := V(s_{l−1});       A_t = Σ_k (γλ)^k δ_{t+k} over the tokens that are there
    J = token-mean[S(r, A; 1 − ε, 1 + ε)] over those tokens

Paper: Fan et al., "Truncated Proximal Policy Optimization", 2506.15050; the rule for V(s_l) (their extended GAE) is
read in two independent notes. With γ = 1 the last δ of a cut answer is 0, and its reward, not known yet, is not used.
`window` = W: only the first W tokens of an answer are there, longer ones count as cut; None: all are finished.
OUR choices: γ = 1 and λ = 0.95 (`gae_lambda`; the paper's was not found), ε = 0.2 on both sides (PPO's; the paper's was
not found either), the reward on the last token alone, no whitening, no dual clip, tokens beyond the window out of the
mean, and a window that begins with the answer (the paper's is of what a step generated). Left
out: going on with a cut answer in the next batch, and filling up with new prompts, are the sampler's; fitting V to
finished answers is the critic's (a toy's critic is exact).
Differs from PPO with GAE: the cut. Where nothing is cut it is PPO with a critic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, selection
from etr.batch import Batch
from etr.objective import Paper
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.shaping import Shaping


@register("tppo")
@dataclass(frozen=True)
class TPPO(Shaping, PPO):
    """PPO with extended GAE: J = token-mean[min(r·A_t, clip(r)·A_t)]."""

    aggregation: str = "token-mean"
    gamma: float = 1.0
    gae_lambda: float = 0.95
    window: int | None = None

    paper: ClassVar[Paper] = Paper("Truncated Proximal Policy Optimization", "2506.15050", "third-party")
    examples = (*PPO.examples, {"window": 2}, {"gamma": 0.9, "gae_lambda": 1.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1.0, "gamma", "gae_lambda")
        if self.window is not None:
            checks.check_ranges(self, 1, 1e9, "window")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rewards", "values"})

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.values is not None  # in `needs`
        mask, there = batch.response_mask, batch.response_mask
        if self.window is not None:
            there = mask & (mask.cumsum(-1) <= self.window)
        cut = (mask & ~there).any(-1)
        rewards = torch.where(cut, 0.0, batch.rewards.double())
        advantages = self.extended_gae(batch.values.double(), rewards, there, cut)
        weights = selection.weights(there, mask, self.aggregation)
        return (advantages * weights).to(batch.advantages.dtype)

    def extended_gae(self, values: Tensor, rewards: Tensor, mask: Tensor, cut: Tensor) -> Tensor:
        """A_t `[*R, B, T]` from V(s_t), rewards of finished answers `[*R, B]`, and which answers are cut `[*R, B]`."""
        carried, following, last = torch.zeros_like(rewards), torch.zeros_like(rewards), torch.ones_like(cut)
        found = []
        for value, kept in zip(values.unbind(-1)[::-1], mask.unbind(-1)[::-1], strict=True):
            after = torch.where(last & cut, value, following)  # behind the last token of a cut answer: V(s_{l−1})
            delta = torch.where(last, rewards, 0.0) + self.gamma * after - value
            carried = torch.where(kept, delta + self.gamma * self.gae_lambda * carried, carried)
            following, last = torch.where(kept, value, following), last & ~kept
            found.append(torch.where(kept, carried, 0.0))
        return torch.stack(found[::-1], -1)
