"""Floor 0: the tensors that enter and leave a loss, and the one place where shapes, masks and bad values are checked.

Shapes: `[*R, B, T]`, where `*R` are optional leading run dimensions (seeds, hyper-parameters) that never mix, B is
responses and T tokens, right-padded. A bandit has T = 1, a token tree T ≤ 6, an LLM T ~ 1000; nothing else changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etr.errors import InputError
from etr.groups import GroupStats

TOKEN_FIELDS = ("log_probs", "old_log_probs", "ref_log_probs", "rollout_log_probs", "entropy")


class Region(NamedTuple):
    """The interval of ratios π/π_old that an update may use: `low ≤ 1 ≤ high`, broadcastable to `[*R, B, T]`."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean kept as sum and count, `[*R]`: added over micro-batches and ranks, divided once, so it stays exact.

    >>> (Mean(torch.tensor(1.0), torch.tensor(1.0)) + Mean(torch.tensor(0.0), torch.tensor(3.0))).value.item()
    0.25
    """

    sum: Tensor
    count: Tensor

    def __add__(self, other: object) -> Mean:
        if not isinstance(other, Mean):
            return NotImplemented
        return Mean(self.sum + other.sum, self.count + other.count)

    @property
    def value(self) -> Tensor:
        """sum / count; NaN where nothing was counted."""
        return self.sum / self.count

    @staticmethod
    def of(values: Tensor, where: Tensor) -> Mean:
        """Mean over the last two dimensions of the entries selected by the bool mask `where`, in double precision."""
        return Mean(torch.where(where, values, 0.0).double().sum((-2, -1)), where.sum((-2, -1)).double())


@dataclass(frozen=True, eq=False)
class Batch:
    """One rollout batch, or a micro-batch of it. Masked positions may hold anything, NaN included.

    log_probs, old_log_probs: log π(token) of the current policy and of the policy at the start of the update, nats,
    `[*R, B, T]`; response_mask: bool, True on response tokens; advantages: `[*R, B]` or `[*R, B, T]`;
    group: statistics of each response's group; ref_log_probs, rollout_log_probs: the reference policy's and the
    sampling engine's; entropy: of the current policy over its full distribution, nats per token;
    columns: statistics that an objective took over the whole batch (`Objective.prepare`), `[*R, B]` each.
    Raises InputError when shapes or types do not fit together.
    """

    log_probs: Tensor
    old_log_probs: Tensor
    response_mask: Tensor
    advantages: Tensor
    group: GroupStats | None = None
    ref_log_probs: Tensor | None = None
    rollout_log_probs: Tensor | None = None
    entropy: Tensor | None = None
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
        for name in ("response_mask", *TOKEN_FIELDS):
            self._require_shape(name, getattr(self, name), (shape,))
        self._require_shape("advantages", self.advantages, (shape, shape[:-1]))
        group = {} if self.group is None else vars(self.group)
        for name, column in (*self.columns.items(), *group.items()):
            self._require_shape(name, column, (shape[:-1],))

    def _require_shape(self, name: str, value: Tensor | None, allowed: tuple[torch.Size, ...]) -> None:
        if value is not None and value.shape not in allowed:
            wanted = " or ".join(str(tuple(s)) for s in allowed)
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

    def clean(self) -> Batch:
        """Padding set to 0 and at least single precision, so that no later step meets NaN, infinity or bfloat16.

        Selecting happens before any exp(): multiplying by the mask afterwards would turn NaN·0 into NaN. Only the
        current policy's log-probs and entropy keep their graph: `Batch(log_probs, log_probs, ...)` would cancel it.
        """

        def token(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            wide = value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
            if value.ndim == self.response_mask.ndim:
                return torch.where(self.response_mask, wide, 0.0)
            return torch.where(self.response_mask.any(-1), wide, 0.0)

        changes: dict[str, Any] = {name: token(getattr(self, name)) for name in (*TOKEN_FIELDS, "advantages")}
        for name, value in changes.items():
            if value is not None and name not in ("log_probs", "entropy"):
                changes[name] = value.detach()  # data of this update, whatever made it
        return dataclasses.replace(self, **changes)

    def rows(self, index: slice | Tensor) -> Batch:
        """A micro-batch: the responses selected by `index`, with all their columns."""
        n = self.log_probs.ndim
        changes: dict[str, Any] = {
            name: value[..., index, :] if value.ndim == n else value[..., index]
            for name in ("response_mask", "advantages", *TOKEN_FIELDS)
            if (value := getattr(self, name)) is not None
        }
        changes["columns"] = {name: value[..., index] for name, value in self.columns.items()}
        changes["group"] = None if self.group is None else self.group.rows(index)
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, eq=False)
class LossOutput:
    """What `policy_loss` returns.

    loss `[*R]` is minimised; per_token `[*R, B, T]` is the objective before aggregation (to be maximised, 0 on
    padding, regularizers excluded); log_ratio = log π/π_old as the objective sees it, token_log_ratio = of each token
    alone; region: bounds, `[*R, B, T]`; mask: the kept tokens.
    """

    loss: Tensor
    per_token: Tensor
    log_ratio: Tensor
    region: Region
    mask: Tensor
    token_log_ratio: Tensor

    @cached_property
    def metrics(self) -> dict[str, Mean]:
        """Exact sums for logging, computed when first read. Units and meaning: `etr.diagnostics.METRICS`."""
        log_ratio = self.token_log_ratio.detach()  # a report, not part of the loss
        ratio = self.log_ratio.detach().exp()  # likewise
        return {
            "policy/kl_old_to_new_k3": Mean.of(log_ratio.exp() - 1 - log_ratio, self.mask),
            "policy/ratio": Mean.of(ratio, self.mask),
            "policy/objective": Mean.of(self.per_token.detach(), self.mask),  # a report as well
            "region/width": Mean.of(self.region.high - self.region.low, self.mask),
        }
