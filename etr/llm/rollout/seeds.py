"""A seed for each completion: a pure function of (run, step, prompt, sample), so nothing need be saved to resume.

One completion has the same seed whether it is sampled alone, in another batch, or on another rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from etr.errors import InputError


def request_seeds(run_seed: int, step: int, items: Sequence[int], group_size: int) -> list[int]:
    """One seed in [0, 2⁶³) for each of `group_size` completions of each item, a group's seeds together.

    `items` names the prompts, for example by their index in the task. Equal items within one call are counted, so a
    prompt that was drawn twice gets two groups of different samples.

    >>> request_seeds(0, 1, [7, 8], 2)[:2] == request_seeds(0, 1, [7], 2)
    True
    """
    seen: dict[int, int] = {}
    seeds = []
    for item in items:
        repeat = seen[item] = seen.get(item, -1) + 1
        seeds += [_seed(run_seed, step, item, repeat, sample) for sample in range(group_size)]
    return seeds


def uniforms(seeds: Sequence[int], tokens: int) -> Tensor:
    """A uniform number in [0, 1) for each row and token, float64 [B, T] on the CPU; row i depends on `seeds[i]` alone.

    They are drawn on the CPU whatever the model's device, so that a GPU samples what a CPU would.
    """
    generator = torch.Generator()
    rows = [torch.rand(tokens, generator=generator.manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def check_seeds(seeds: Sequence[int], prompts: int, group_size: int) -> None:
    """Raise `InputError` unless there is one seed for each completion."""
    if len(seeds) != prompts * group_size:
        raise InputError(
            f"{prompts} prompts with {group_size} completions each need {prompts * group_size} seeds, not "
            f"{len(seeds)}; give request_seeds(run_seed, step, items, group_size)"
        )


def _seed(*parts: int) -> int:
    text = "etr/" + "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
