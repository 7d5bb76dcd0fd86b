"""Floor 0: the tensors that enter a loss, and the one place where their shapes, masks and bad values are checked.

Shapes: `[*R, B, T]`, where `*R` are optional leading run dimensions (seeds, hyper-parameters) that never mix, B is
responses and T tokens, right-padded. A bandit has T = 1, a token tree T ≤ 6, an LLM T ~ 1000; nothing else changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from etr.errors import InputError
from etr.groups import GroupStats
from etr.outputs import LossOutput, Mean, Region

__all__ = ["TOKEN_FIELDS", "Batch", "CleanBatch", "LossOutput", "Mean", "Region"]

PROBABILITIES = ("log_probs", "old_log_probs", "ref_log_probs", "rollout_log_probs")
TOKEN_FIELDS = (*PROBABILITIES, "weights", "entropy", "values", "influence")
# Of the policy that is being trained: only they carry a gradient.
CURRENT = ("log_probs", "entropy", "full_log_probs", "top_log_probs")
GRADES = ("rewards", "components")  # an answer that is masked out still counts in the statistics of its group
# Dimensions after the runs: B responses, T tokens, V vocabulary (or the K likeliest tokens), K reward components.
SHAPES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*TOKEN_FIELDS, "response_mask", "turns", "tokens"), ("BT",)),
    "advantages": ("BT", "B"),
    **dict.fromkeys(("rewards", "group_ids", "clusters"), ("B",)),
    "components": ("BK",),
    **dict.fromkeys(("full_log_probs", "top_log_probs", "top_tokens"), ("BTV",)),
}


@dataclass(frozen=True, eq=False)
class Batch:
    """One rollout batch, or a micro-batch of it. Masked positions may hold anything, NaN included.

    log_probs, old_log_probs: log π(token) of the current policy and of the policy at the start of the update, nats,
    `[*R, B, T]`; response_mask: bool, True on response tokens; advantages: `[*R, B]` or `[*R, B, T]`;
    rewards, group_ids: `[*R, B]`, what the advantages were made of; group: statistics of each response's group;
    tokens: ids of the sampled tokens, int64 `[*R, B, T]`; ref_log_probs, rollout_log_probs: the reference policy's and
    the sampling engine's; weights: factors of the per-token objective, `[*R, B, T]` (`etr.corrections`);
    entropy: of the current policy over its full distribution, nats per token;
    values: a critic's V(s_t), `[*R, B, T]`; turns: number of each token's turn, `[*R, B, T]`; clusters: id of the final
    answer, `[*R, B]`; components: parts of the reward, `[*R, B, K]`; full_log_probs: log π of the current policy for
    every token of the vocabulary, `[*R, B, T, V]`; top_tokens: ids of the K tokens that were likeliest at the start of
    the update, likeliest first, and top_log_probs: the current policy's log π of them, `[*R, B, T, K]`;
    influence: −ln P(same final answer | this token drawn anew) in nats, `[*R, B, T]`;
    columns: statistics that an objective took over the whole batch (`Objective.prepare`), `[*R, B]`, `[*R, B, T]` or
    `[*R, B, T, V]` each.
    Raises InputError when shapes or types do not fit together.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    response_mask: Tensor
    advantages: Tensor
    group: GroupStats | None = None
    rewards: Tensor | None = None
    group_ids: Tensor | None = None
    tokens: Tensor | None = None
    ref_log_probs: Tensor | None = None
    rollout_log_probs: Tensor | None = None
    weights: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    turns: Tensor | None = None
    clusters: Tensor | None = None
    components: Tensor | None = None
    full_log_probs: Tensor | None = None
    top_tokens: Tensor | None = None
    top_log_probs: Tensor | None = None
    influence: Tensor | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.log_probs.shape
        if len(shape) < 2 or 0 in shape:
            raise InputError(
                f"empty batch: log_probs have shape {tuple(shape)}; give at least one response "
                "of one token as [..., B, T]"
            )
        if self.response_mask.dtype != torch.bool:
            raise InputError(f"response_mask has dtype {self.response_mask.dtype}; give response_mask.bool()")
        for name, allowed in SHAPES.items():
            if (value := getattr(self, name)) is not None:
                self._require_shape(name, value, allowed)
        group = {} if self.group is None else vars(self.group)
        for name, column in group.items():
            self._require_shape(name, column, ("B",))
        for name, column in self.columns.items():
            self._require_shape(name, column, ("B", "BT", "BTV"))

    def _require_shape(self, name: str, value: Tensor, allowed: tuple[str, ...]) -> None:
        responses, tokens = self.log_probs.shape[:-1], self.log_probs.shape
        free = value.shape[-1:]  # vocabulary and number of components may be anything
        shapes = {"B": responses, "BT": tokens, "BK": responses + free, "BTV": tokens + free}
        if value.shape not in [shapes[dims] for dims in allowed]:
            wanted = " or ".join(str(tuple(shapes[dims])) for dims in allowed)
            raise InputError(
                f"{name} has shape {tuple(value.shape)} but log_probs {tuple(self.log_probs.shape)}; "
                f"give {name} of shape {wanted}"
            )

    @property
    def token_advantages(self) -> Tensor:
        """Advantages with a token dimension: `[*R, B, T]`, or `[*R, B, 1]` when all tokens of a response share one."""
        per_token = self.advantages.ndim == self.log_probs.ndim
        return self.advantages if per_token else self.advantages.unsqueeze(-1)

    def require_finite(self) -> None:
        """Raise InputError at the first NaN or infinity on a kept token (waits for the device once)."""
        for name in (*TOKEN_FIELDS, "advantages"):
            value = getattr(self, name)
            if value is None:
                continue
            kept = self.response_mask if value.ndim == self.response_mask.ndim else self.response_mask.any(-1)
            bad = kept & ~torch.isfinite(value)
            if bool(bad.any()):
                where = bad.nonzero()[0].tolist()
                raise InputError(
                    f"{name} is {value[tuple(where)].item()} at index {where}, a kept token "
                    f"({int(bad.sum())} such values); mask these tokens out or mend what computed them"
                )

    def clean(self) -> CleanBatch:
        """Padding set to 0 and at least single precision, so that no later step meets NaN, infinity or bfloat16.

        Selecting happens before any exp(): multiplying by the mask afterwards would turn NaN·0 into NaN. Only the
        current policy's columns keep their graph: `Batch(log_probs, log_probs, ...)` would cancel it.
        """
        names = [name for name in SHAPES if name != "response_mask"]
        columns = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return CleanBatch(**columns | {name: self._cleaned(name) for name in names})

    def with_columns(self, **columns: Tensor) -> Self:
        """The batch with further statistics in its columns."""
        return dataclasses.replace(self, columns={**self.columns, **columns})

    def _cleaned(self, name: str) -> Tensor | None:
        value: Tensor | None = getattr(self, name)
        if value is None or not value.is_floating_point():
            return value
        value = value if name in CURRENT else value.detach()  # data of this update, whatever made it
        wide = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        if name in GRADES:
            return torch.where(torch.isfinite(wide), wide, 0.0)
        per_token = value.ndim >= self.response_mask.ndim
        kept = self.response_mask if per_token else self.response_mask.any(-1)
        return torch.where(kept if kept.ndim == wide.ndim else kept.unsqueeze(-1), wide, 0.0)

    def rows(self, index: slice | Tensor) -> Self:
        """A micro-batch: the responses selected by `index`, with all their columns."""
        at = (slice(None),) * (self.log_probs.ndim - 2) + (index,)
        changes: dict[str, Any] = {name: value[at] for name in SHAPES if (value := getattr(self, name)) is not None}
        changes["columns"] = {name: value[at] for name, value in self.columns.items()}
        changes["group"] = None if self.group is None else self.group.rows(index)
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, eq=False)
class CleanBatch(Batch):
    """A clean batch: only what the current policy makes anew at every update is cleaned again."""

    def clean(self) -> CleanBatch:
        changes: dict[str, Any] = {name: self._cleaned(name) for name in CURRENT}
        return dataclasses.replace(self, **changes)
