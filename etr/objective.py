"""Floor 2: the base class of every objective: hyper-parameters as fields, the equation as a few pure hooks.

    rewards --advantage--> A                       never inside a loss
    log-probs --ratio--> log r --region--> [low, high] --surrogate--> per-token objective (to maximise)
    per-token --aggregate--> one number, with an explicit global denominator;  + regularizer

A subclass overrides the hooks in which its paper differs, and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from etr import advantages, aggregation, ratios, regions, surrogates
from etr.batch import Batch, Region
from etr.errors import FieldError, InputError
from etr.fields import check_field

State = dict[str, Tensor]
Scope = Literal["token", "row", "batch"]
Evidence = Literal["verified", "third-party", "reconstructed"]
Category = Literal["trust region", "advantage", "entropy", "sampling"]


class Paper(NamedTuple):
    """Where the equation comes from, and how far that can be trusted.

    evidence: `verified` (read in the paper or in published code of verl, TRL or the authors, and agreeing with it by
    test), `third-party` (read only in others' notes or re-implementations), `reconstructed` (this project's own).
    """

    title: str
    arxiv: str
    evidence: Evidence


class Reduction(NamedTuple):
    """With `fields` set, the objective is bit-equal to `parent` with `parent_fields` (for `single_token`: at T = 1)."""

    parent: str
    fields: Mapping[str, object]
    parent_fields: Mapping[str, object] = {}
    single_token: bool = False


NEEDS: dict[str, str] = {
    "group": "group statistics (group=etr.group_stats(rewards, group_ids))",
    "rewards": "the rewards (rewards=...)",
    "group_ids": "the number of each response's prompt (group_ids=...)",
    "tokens": "the ids of the sampled tokens (tokens=...)",
    "binary_rewards": "rewards that are 0 or 1 (and group=etr.group_stats(rewards, group_ids))",
    "ref_log_probs": "log-probs of a reference policy (ref_log_probs=...)",
    "rollout_log_probs": "log-probs of the sampling engine (rollout_log_probs=...)",
    "entropy": "the policy's entropy per token (entropy=...)",
    "full_log_probs": "the policy's log-probs of the whole vocabulary (full_log_probs=...)",
    "top_log_probs": "log-probs of the likeliest tokens (top_tokens=..., top_log_probs=...)",
    "influence": "how much each token decides the final answer (influence=...)",
    "values": "a critic's state values (values=...)",
    "turns": "the number of each token's turn (turns=...)",
    "clusters": "the final answer of each response as a number (clusters=...)",
    "components": "the reward in its parts (components=...)",
    "hints": "the first tokens of right answers while it samples (etr.samplers)",
    "resets": "completions that begin behind given tokens (etr.samplers)",
}
SAMPLING = frozenset({"hints", "resets"})  # what whoever samples must have; a batch has its sampling behind it


@dataclass(frozen=True)
class Objective:
    """A policy objective as data. Hooks take clean batches (`Batch.clean`) of shape `[*R, B, T]` and return the same.

    Raises FieldError when a field has the wrong type or lies outside its range.
    """

    aggregation: str = "seq-mean-token-mean"

    name: ClassVar[str]
    paper: ClassVar[Paper]
    category: ClassVar[Category] = "trust region"  # what its paper changes first of all
    undivided: ClassVar[Literal["", "group", "batch"]] = ""  # what its micro-batches must not cut
    reduces_to: ClassVar[Reduction | None] = None
    examples: ClassVar[tuple[Mapping[str, object], ...]] = ()  # further settings for which the laws are checked

    def __init_subclass__(cls) -> None:
        if "name" not in vars(cls):
            cls.name = cls.__name__  # until it is registered under another

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
            check_field(type(self).__name__, kind, field.name, getattr(self, field.name))
        low, high = getattr(self, "eps_min", 0.0), getattr(self, "eps_max", math.inf)
        if low > high:
            raise FieldError(
                f"{type(self).__name__}.eps_min is {low:g}, above eps_max {high:g}; give eps_min <= eps_max"
            )

    # Declarations -------------------------------------------------------------------------------------------------

    @property
    def needs(self) -> frozenset[str]:
        """Inputs beyond log-probs, mask and advantages; names in `NEEDS`."""
        return frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the whole-batch statistics that `prepare` adds as columns."""
        return ()

    @property
    def reads_policy(self) -> bool:
        """Does `prepare` read columns of the policy? If not, a trainer may prepare a batch before its first pass."""
        return type(self).prepare is not Objective.prepare

    @property
    def scope(self) -> Scope:
        """What a token's objective depends on: the token, its row (response), or the whole batch."""
        return "batch" if self.columns else "token"

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Laws that this objective breaks by design, each with the reason."""
        return {}

    # Whole-batch statistics and state across steps ----------------------------------------------------------------

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        """Tensors carried from step to step (adaptive bounds, dual variables), each `[*R]`; saved in checkpoints."""
        return {}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        """Called once per rollout batch, before it is split: adds `columns`, advances the state.

        The batch is not clean, and has the whole groups. Its policy is still the old one: its entropy and whole
        distribution are those at the start of the update. Statistics are made of `old_log_probs`, not `log_probs`.
        """
        return batch, state

    # The equation -------------------------------------------------------------------------------------------------

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        """Rewards `[*R, B]` to advantages `[*R, B]`."""
        return advantages.group_zscore(rewards, group_ids)

    def ratio(self, batch: Batch) -> Tensor:
        """log r, 0 on padding."""
        return ratios.token(batch)

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        """Bounds on r, broadcastable to `[*R, B, T]`."""
        return regions.unbounded(log_ratio)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        """The per-token objective, to be maximised."""
        return surrogates.pessimistic_clip(log_ratio, batch.token_advantages, region)

    def regularizer(self, batch: Batch) -> Tensor | None:
        """A per-token penalty to be minimised, aggregated as the objective is; None for no penalty."""
        return None

    def denominator(self, mask: Tensor) -> Tensor:
        """The global denominator of a whole batch, `[*R]`."""
        return aggregation.global_denominator(mask, self.aggregation)

    def aggregate(self, x: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
        """Per-token values to one number per run, `[*R]`."""
        return aggregation.aggregate(x, mask, self.aggregation, denominator)

    def require(self, available: Iterable[str], who: str) -> None:
        """Raise InputError when `who` (a trainer, a batch) cannot supply what this objective needs."""
        missing = sorted(self.needs - set(available))
        if missing:
            what = "; ".join(NEEDS.get(name, f"'{name}'") for name in missing)
            raise InputError(f"objective '{self.name}' needs {what}, which {who} does not have")
