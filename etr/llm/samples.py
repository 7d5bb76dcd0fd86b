"""Samples of a run, token by token: what was asked, answered and rewarded, and which tokens the method pushes.

samples.jsonl has one line for each prompt that is shown: {"step", "prompt", "answer", "completions": [...]}, and each
completion has its reward, advantage and lists over tokens: text, log_prob (when sampled, by the old policy), entropy,
ratio (after the update), coefficient (c = ∂(objective)/∂ log π there) and clipped (A ≠ 0 and c = 0).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etr.batch import Batch
from etr.llm.items import Item
from etr.llm.models import LanguageModel
from etr.llm.rollout import Rollout
from etr.loss import gradient_coefficient
from etr.objective import Objective

FILE = "samples.jsonl"
COMPLETIONS = 4  # of a group: from the least to the greatest advantage
TOKENS = 400  # of a completion
LINES = 120  # of a run, so that the file stays below some ten megabytes
DIGITS = 4  # a picture needs no more


@dataclass(frozen=True)
class Shown:
    """The rows `[n]` of a batch that are written, all answers to the prompt `item`."""

    item: int
    rows: list[int]


def due(step: int, steps: int) -> bool:
    """Is this step among the at most `LINES` that are written, the first and the last always?"""
    every = -(-steps // LINES)
    return step % every == 0 or step in (1, steps)


def choose(batch: Batch, group_size: int, step: int) -> Shown:
    """A prompt drawn by the step among those with unequal rewards, if there are any, and some of its completions."""
    advantages = mean_advantages(batch).view(-1, group_size)
    mixed = (advantages != 0).any(-1).nonzero().flatten().tolist()
    item = random.Random(f"etr/samples/{step}").choice(mixed or list(range(len(advantages))))
    order = advantages[item].argsort(stable=True).tolist()
    n = min(COMPLETIONS, group_size)
    places = [order[round(i * (group_size - 1) / max(1, n - 1))] for i in range(n)]
    return Shown(item, [item * group_size + place for place in places])


def rows(
    batch: Batch,
    rollout: Rollout,
    items: Sequence[Item],
    rewards: Tensor,
    language_model: LanguageModel,
    objective: Objective,
    step: int,
) -> list[dict[str, Any]]:
    """The lines of samples.jsonl for one step: one prompt, at most `COMPLETIONS` answers, `TOKENS` tokens of each.

    batch: prepared, `[B, T]`, log_probs of the policy after the update, entropy of the one before; items: one for each
    group, in order; rewards: `[B]`. Costs one pass over those few rows, and none of the model.
    """
    shown = choose(batch, len(rewards) // len(items), step)
    index = torch.tensor(shown.rows, device=batch.log_probs.device)
    part = dataclasses.replace(batch.rows(index), log_probs=batch.log_probs[index].detach())
    coefficient = gradient_coefficient(objective, part)
    columns = {
        "log_prob": part.old_log_probs,
        "ratio": (part.log_probs - part.old_log_probs).exp(),
        "coefficient": coefficient,
        **({} if part.entropy is None else {"entropy": part.entropy}),
    }
    clipped = part.response_mask & (part.token_advantages != 0) & (coefficient == 0)
    advantages = mean_advantages(part)
    completions = []
    for place, row in enumerate(shown.rows):
        n = min(int(rollout.response_mask[row].sum()), TOKENS)
        tokens = rollout.completions[row, :n].tolist()
        completions.append(
            {
                "reward": float(rewards[row]),
                "advantage": _rounded(advantages[place]),
                "finished": bool(rollout.finished[row]),
                "tokens": int(rollout.response_mask[row].sum()),
                "text": pieces(language_model.tokenizer, tokens),
                **{name: [_rounded(value) for value in column[place, :n]] for name, column in columns.items()},
                "clipped": clipped[place, :n].tolist(),
            }
        )
    item = items[shown.item]
    return [{"step": step, "prompt": item.prompt, "answer": item.answer, "completions": completions}]


def mean_advantages(batch: Batch) -> Tensor:
    """Mean advantage over the kept tokens of each response, `[B]`; 0 without any."""
    mask = batch.response_mask
    return torch.where(mask, batch.token_advantages, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """The text of each token, so that they join to the whole; a character of several tokens belongs to the last one.

    A token is decoded after its forerunner, since some tokenizers drop the space before a first word.
    """
    found: list[str] = []
    before: list[int] = []
    waiting: list[int] = []
    for token in tokens:
        waiting.append(token)
        known = tokenizer.decode(before, skip_special_tokens=False) if before else ""
        text = tokenizer.decode([*before, *waiting], skip_special_tokens=False)[len(known) :]
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(waiting) < 4:  # UTF-8 has at most four bytes
            found.append("")
            continue
        found.append(text)
        before, waiting = waiting, []
    return found


def _rounded(value: Tensor) -> float:
    return float(f"{float(value):.{DIGITS}g}")
