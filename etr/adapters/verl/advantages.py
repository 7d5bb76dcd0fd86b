"""This project's advantage estimators in verl's form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etr.adapters.verl_names import LOSS, estimator
from etr.errors import InputError

VerlEstimator = Callable[..., tuple[Tensor, Tensor]]


def verl_estimator(name: str) -> VerlEstimator:
    """The estimator of that name as verl calls it, by keywords, in the process that drives the run."""

    def advantages(
        token_level_rewards: Tensor, response_mask: Tensor, index: Any = None, config: Any = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Advantages and returns `[B, T]` from rewards `[B, T]`, a mask and the prompt's uid of each response `[B]`."""
        if index is None:
            raise InputError(
                f"{name} compares the answers to one prompt, but the batch has no 'uid'; give each prompt one"
            )
        rewards, ids = token_level_rewards.sum(-1), group_ids(index)
        check_binary(rewards, config)
        values = estimator(name)(rewards, ids).to(token_level_rewards.dtype).unsqueeze(-1) * response_mask
        return values, values

    return advantages


def check_binary(rewards: Tensor, config: Any) -> None:
    """Raise InputError if rewards `[B]` are declared to be 0 or 1 and are not; config: `algorithm` of the whole run's.

    Only here can that be seen: a z-score of rewards 0 and 0.5 is the same as of 0 and 1. A penalty inside the rewards
    is left alone: where it would matter, the run was refused at start.
    """
    from omegaconf import DictConfig, OmegaConf

    if not isinstance(config, DictConfig) or config.get("use_kl_in_reward"):
        return
    wrong = rewards[(rewards != 0) & (rewards != 1)]
    if len(wrong) and OmegaConf.select(config, f"..{LOSS}.binary_rewards"):
        raise InputError(
            f"{LOSS}.binary_rewards is true, but a reward is {wrong[0].item():g}; make it false, with "
            "VERL_USE_EXTERNAL_MODULES=etr.adapters.verl.trainer and columns=true, or have rewards of 0 and 1 only"
        )


def group_ids(index: Any) -> Tensor:
    """verl's uids, of any type, as numbers, int64 `[B]`."""
    return torch.from_numpy(np.unique(np.asarray(index).astype(str), return_inverse=True)[1].reshape(-1)).long()
