"""A rollout batch of ours as the dictionary of columns that TRL shuffles and splits, and back.

TRL permutes and cuts every tensor of that dictionary by rows. So group statistics, rewards, an objective's own columns
and whatever else the loss reads travel under names of their own, beside TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from etr.batch import Batch
from etr.groups import GroupStats

PREFIX = "etr/"
GROUP, COLUMN = f"{PREFIX}group.", f"{PREFIX}columns."
DENOMINATOR = f"{PREFIX}denominator"
# What TRL's own keys hold, or only the update itself makes.
ELSEWHERE = ("log_probs", "response_mask", "tokens", "entropy", "group", "columns")
# Columns of images, where there are any: TRL's forward pass wants them back.
IMAGES = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)


def pack(batch: Batch, rows: slice, length: int) -> dict[str, Tensor]:
    """The columns of those rows of a prepared batch `[B, T]`, cut to `length` tokens."""
    group = {} if batch.group is None else vars(batch.group)
    named = {f"{PREFIX}{f.name}": getattr(batch, f.name) for f in fields(batch) if f.name not in ELSEWHERE}
    named |= {f"{GROUP}{name}": value for name, value in group.items()}
    named |= {f"{COLUMN}{name}": value for name, value in batch.columns.items()}
    parts = f"{PREFIX}components"  # [B, K], whose second dimension is no token
    return {
        name: value[rows] if value.ndim == 1 or name == parts else value[rows, :length]
        for name, value in named.items()
        if value is not None
    }


def unpack(inputs: Mapping[str, Any], log_probs: Tensor, entropy: Tensor | None) -> Batch:
    """The micro-batch in TRL's `inputs` with the current policy's columns `[b, T]`.

    Without old log-probs the policy has not moved since it sampled: it is its own old policy.
    """
    own = {name: value for name, value in inputs.items() if name.startswith(PREFIX) and name != DENOMINATOR}
    group = {name.removeprefix(GROUP): own.pop(name) for name in list(own) if name.startswith(GROUP)}
    columns = {name.removeprefix(COLUMN): own.pop(name) for name in list(own) if name.startswith(COLUMN)}
    named: dict[str, Any] = {name.removeprefix(PREFIX): value for name, value in own.items()}
    named.setdefault("old_log_probs", log_probs.detach())  # data, as the old policy is
    return Batch(
        log_probs=log_probs,
        entropy=entropy,
        response_mask=mask_of(inputs),
        tokens=inputs["completion_ids"],
        group=GroupStats(**group) if group else None,
        columns=columns,
        **named,
    )


def mask_of(inputs: Mapping[str, Any]) -> Tensor:
    """The tokens that the policy itself wrote and that count, bool `[b, T]`."""
    mask: Tensor = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if inputs.get("tool_mask") is not None else mask


def known(value: Tensor, instead: Tensor) -> Tensor:
    """The engine's log-probs; where it reported none for a token, those of the trainer."""
    return torch.where(torch.isnan(value), instead, value)
