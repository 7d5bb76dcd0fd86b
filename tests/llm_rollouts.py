"""Rollouts by hand, for tests of what the trainer computes from them: no engine is involved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etr.llm.rollout import Rollout

PROMPTS = ([3, 4, 5], [6, 7], [8], [1, 8])  # [8] and [1, 8] look alike where padding is the end token, 1
PAD = 1


def made_rollout(group_size: int = 3, width: int = 6, vocabulary: int = 18, device: str = "cpu") -> Rollout:
    """Random completions of 1 to `width` tokens after each of PROMPTS; padding has the id of a real token."""
    generator = torch.Generator().manual_seed(0)
    longest = max(map(len, PROMPTS))
    rows, mask, finished = [], [], []
    for prompt in PROMPTS:
        for _ in range(group_size):
            length = int(torch.randint(1, width + 1, (), generator=generator))
            answer = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
            before, after = longest - len(prompt), width - length
            rows.append([PAD] * before + prompt + answer + [PAD] * after)
            mask.append([0] * before + [1] * (len(prompt) + length) + [0] * after)
            finished.append(length < width)
    attention = torch.tensor(mask, device=device)
    sequences = torch.tensor(rows, device=device)
    return Rollout(sequences, attention, attention[:, longest:].bool(), torch.tensor(finished), longest)


def from_full_logits(model: Any, rollout: Rollout, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies, one row at a time and without padding, so that no mask or position can be wrong."""
    log_probs, entropy = (torch.zeros(rollout.completions.shape, dtype=torch.float64) for _ in range(2))
    for row, length in enumerate(rollout.lengths.tolist()):
        real = rollout.attention_mask[row].bool()
        logits = model(input_ids=rollout.sequences[row][real][None]).logits[0]
        answer = (logits.double() / temperature).log_softmax(-1)[-length - 1 : -1]
        log_probs[row, :length] = answer.gather(-1, rollout.completions[row, :length, None])[:, 0]
        entropy[row, :length] = -(answer.exp() * answer).sum(-1)
    return log_probs, entropy
