"""DCPO (dynamic clipping): the rarer a token, the wider its region; advantages smoothed over visits of a prompt.

    |r − 1|·π ≤ ε  with π = r·q, q = π_old:
    low = ½ + ½·√max(1 − 4·ε_low/q, 0),   high = min(½ + ½·√(1 + 4·ε_high/q), max(10, c))
    J = S(r, A; low, high) with dual clip c = 10
    at the i-th visit of a prompt, A_new from this visit's rewards, A_tot from those of all visits so far:
    A = the smaller in size of ((i−1)·A_new + A_tot)/i and (A_new + (i−1)·A_tot)/i

Paper: Yang et al., "DCPO: Dynamic Clipping Policy Optimization", 2509.02333. Defaults are the authors': ε_low = 0.16,
ε_high = 0.2, cap 10 (`ratio_cap`), dual clip 10. Their "only token mean" sums the responses' token means without
dividing by their number; OURS divides (the same up to the learning rate).
Smoothing knows prompts by `group_ids`, which must then be the same prompts' in every batch, 0 … `prompts` − 1: so it is
in the toys. A batch of an LLM numbers its prompts anew: `prompts` = None, the default, makes every visit the first,
A = A_new, and leaves smoothing out. Population std; a visit or a history without spread has advantage 0.
Differs from GRPO: region, and smoothing. Not DCPO-distribution (distribution-centric), another method.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, regions
from etr.batch import Batch, Region
from etr.errors import InputError
from etr.groups import Groups, found
from etr.objective import Paper, State
from etr.objectives.grpo import GRPO
from etr.registry import register

NO_SPREAD = 1e-12  # of a variance of rewards: rounding
HISTORY = ("dcpo_visits", "dcpo_count", "dcpo_mean", "dcpo_squares")  # of each prompt; squares: Σ (R − mean)²


@register("dcpo_dynamic")
@dataclass(frozen=True)
class DCPODynamic(GRPO):
    """J = S(r, A; ½ + ½√max(1 − 4ε_low/q, 0), ½ + ½√(1 + 4ε_high/q)), advantages smoothed over visits."""

    eps_low: float = 0.16
    eps_high: float = 0.2
    dual_clip: float | None = 10.0
    ratio_cap: float = 10.0
    prompts: int | None = None

    paper: ClassVar[Paper] = Paper("DCPO: Dynamic Clipping Policy Optimization", "2509.02333", "verified")
    reduces_to = None
    examples = ({"prompts": 4}, {"dual_clip": None})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 1.0, 1e9, "ratio_cap")
        if self.prompts is not None:
            checks.check_ranges(self, 1, 1e9, "prompts")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | (frozenset({"rewards", "group_ids"}) if self.prompts else frozenset())

    @property
    def columns(self) -> tuple[str, ...]:
        return ("dcpo_smoothed",) if self.prompts else ()

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        if not self.prompts:
            return {}
        return {name: torch.zeros(*run_shape, self.prompts, dtype=torch.float64, device=device) for name in HISTORY}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        if not self.prompts:
            return batch, state
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        ids, rewards = batch.group_ids.long().expand(batch.rewards.shape), batch.rewards.double()
        if found((ids < 0) | (ids >= self.prompts)):
            raise InputError(f"dcpo_dynamic.prompts is {self.prompts}, but group_ids are not in [0, {self.prompts})")
        groups = Groups(rewards, ids)
        visits, count, mean, squares = (state[name].gather(-1, ids) for name in HISTORY)
        new_mean = groups.mean(rewards)
        new_squares = torch.where(groups.homogeneous(rewards), 0.0, groups.sum((rewards - new_mean).square()))
        # The history with this visit in it, merged so that equal rewards keep a spread of 0.
        total, gap = count + groups.size, new_mean - mean
        after = {
            "dcpo_visits": visits + 1,
            "dcpo_count": total,
            "dcpo_mean": mean + gap * groups.size / total,
            "dcpo_squares": squares + new_squares + gap.square() * count * groups.size / total,
        }
        new = _standardised(rewards, new_mean, new_squares / groups.size)
        old = _standardised(rewards, after["dcpo_mean"], after["dcpo_squares"] / total)
        i = after["dcpo_visits"]
        by_new, by_total = ((i - 1) * new + old) / i, (new + (i - 1) * old) / i
        smooth = torch.where(by_new.abs() < by_total.abs(), by_new, by_total).to(batch.clean().advantages.dtype)
        state = {**state, **{name: state[name].scatter(-1, ids, value) for name, value in after.items()}}
        done = torch.ones_like(smooth)  # says to the loss that the advantages are smoothed
        return dataclasses.replace(batch, advantages=smooth).with_columns(dcpo_smoothed=done), state

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        rarity = (-batch.old_log_probs.clamp(min=-80.0)).exp()  # 1/q, finite in single precision
        low = (1 + (1 - 4 * self.eps_low * rarity).clamp(min=0.0).sqrt()) / 2
        high = (1 + (1 + 4 * self.eps_high * rarity).sqrt()) / 2
        caps = [regions.number(cap, high) for cap in (self.ratio_cap, self.dual_clip) if cap is not None]
        return Region(low, high.minimum(functools.reduce(torch.maximum, caps)))


def _standardised(rewards: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    dead = variance < NO_SPREAD
    return torch.where(dead, 0.0, (rewards - mean) / torch.where(dead, 1.0, variance).sqrt())
