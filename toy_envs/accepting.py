"""Verifiers that accept a set of sequences: drawing such sets, and their tables of 0 and 1."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from itertools import product

import torch
from torch import Tensor

from toy_envs.checks import check_enumerable, check_table

Tokens = Sequence[int]
Accepting = Sequence[Collection[Tokens]]  # one collection of sequences per prompt


def draw_accepting(vocab_size: int, horizon: int, counts: Iterable[int], seed: int = 0) -> list[list[tuple[int, ...]]]:
    """For each prompt `count` accepting sequences, drawn without replacement; the same on every machine.

    >>> draw_accepting(2, 2, [1, 3])
    [[(1, 1)], [(0, 0), (0, 1), (1, 1)]]

    Raises ValueError for too many sequences to list, and for a count that is negative or more than there are.
    """
    check_enumerable(vocab_size, horizon)
    counts = list(counts)
    for prompt, count in enumerate(counts):
        if not 0 <= count <= vocab_size**horizon:
            raise ValueError(
                f"prompt {prompt} asks for {count} of {vocab_size**horizon} sequences; give a number from 0 to that"
            )
    rng = random.Random(seed)  # only .random() is used: Python promises that sequence across versions
    sequences = list(product(range(vocab_size), repeat=horizon))
    return [sorted(sorted(sequences, key=lambda _: rng.random())[:count]) for count in counts]


def accepting_table(vocab_size: int, horizon: int, accepting: Accepting, name: str = "accepting") -> Tensor:
    """1 for every accepted sequence, else 0: float64 `[P, V**T]`.

    Raises ValueError for tables that are too large, no prompt, and sequences that no episode can write.
    """
    check_table(len(accepting), vocab_size, horizon)
    if len(accepting) == 0:
        raise ValueError(f"{name} is empty; give one collection of sequences per prompt")
    table = torch.zeros([len(accepting)] + [vocab_size] * horizon, dtype=torch.float64)
    for prompt, sequences in enumerate(accepting):
        if len(sequences) == 0:
            raise ValueError(f"prompt {prompt} accepts no sequence; give at least one")
        for tokens in sequences:
            _check_sequence(prompt, tokens, vocab_size, horizon)
            table[prompt, *tokens] = 1.0
    return table.flatten(1)


def _check_sequence(prompt: int, tokens: Tokens, vocab_size: int, horizon: int) -> None:
    if len(tokens) != horizon or any(token not in range(vocab_size) for token in tokens):
        raise ValueError(
            f"prompt {prompt} accepts {tuple(tokens)}, which no episode can write; "
            f"give {horizon} tokens from 0 to {vocab_size - 1}"
        )
