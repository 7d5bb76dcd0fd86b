"""What to do with completions that the length limit cut off, or nearly did."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from etr.errors import InputError

Overlong = Literal["keep", "mask", "penalty"]
SOFT_SHARE = 0.2  # of the limit: DAPO's 4096 of 20480 tokens


def overlong(
    kind: str, rewards: Tensor, lengths: Tensor, finished: Tensor, max_new_tokens: int
) -> tuple[Tensor, Tensor]:
    r"""Rewards `[B]` with the overlong rule applied, and the mask `[B]` of completions that get a gradient.

    keep: nothing changes. mask: completions that were cut off (`finished` is False) get no gradient; their rewards
    still count in the statistics of their group. penalty: DAPO's soft overlong punishment, added to the reward, with
    L = `max_new_tokens` and C = L/5:

        R(y) = 0                      |y| ≤ L - C
               (L - C - |y|) / C      L - C < |y| ≤ L

    which falls linearly to -1 at the limit, also for a completion that ends by itself just there.

    Source: DAPO, arXiv 2503.14476, as its reference implementation in verl has it (third-party). Raises InputError for
    an unknown kind.
    """
    if kind not in get_args(Overlong):
        raise InputError(f"overlong is '{kind}'; write keep, mask or penalty")
    everything = finished.new_ones(finished.shape)
    if kind == "mask":
        return rewards, finished
    if kind == "penalty":
        soft = SOFT_SHARE * max_new_tokens
        return rewards + ((max_new_tokens - soft - lengths) / soft).clamp(-1.0, 0.0), everything
    return rewards, everything
