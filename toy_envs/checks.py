"""Is the input usable? Every function raises ValueError with one sentence: what is wrong, where, how to mend it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import pairwise

import torch
from torch import Tensor

LARGEST_TABLE = 2**24  # numbers of a table of all prompts: 128 MiB in float64
LARGEST = 6**6  # sequences per prompt: with 46,656 of them a table is still exact in milliseconds


def check_sizes(vocab_size: int, horizon: int) -> None:
    """At least two tokens and one step, and few enough sequences to enumerate."""
    if vocab_size < 2 or horizon < 1:
        raise ValueError(
            f"vocab_size {vocab_size} and horizon {horizon} leave nothing to choose; "
            "give at least 2 tokens (arms) and 1 step"
        )


def check_enumerable(vocab_size: int, horizon: int) -> None:
    """V^T sequences must be few enough for a table."""
    check_sizes(vocab_size, horizon)
    if vocab_size**horizon > LARGEST:
        raise ValueError(
            f"vocab_size {vocab_size} with horizon {horizon} has {vocab_size**horizon} sequences per prompt, too many "
            f"to enumerate; stay at {LARGEST} or below"
        )


def check_table(prompts: int, vocab_size: int, horizon: int) -> None:
    """V^T sequences for each prompt, and all of them, must be few enough for a table."""
    check_enumerable(vocab_size, horizon)
    if prompts * vocab_size**horizon > LARGEST_TABLE:
        raise ValueError(
            f"{prompts} prompts with {vocab_size**horizon} sequences each need a table of "
            f"{prompts * vocab_size**horizon} numbers; stay at {LARGEST_TABLE} or below"
        )


def check_probabilities(name: str, table: Tensor, shape: tuple[int, ...]) -> None:
    """float64 of that shape (−1: any size but 0), every number in [0, 1]. The last dimension counts sequences."""
    fits = table.ndim == len(shape) and all(
        found == wanted or (wanted < 0 < found) for found, wanted in zip(table.shape, shape, strict=True)
    )
    if not fits:
        free = ("prompts", "components")  # what the first dimensions count, where any size will do
        wanted = ", ".join(free[i] if size < 0 else str(size) for i, size in enumerate(shape))
        raise ValueError(f"{name} has shape {tuple(table.shape)}; give [{wanted}]")
    if table.dtype != torch.float64:
        raise ValueError(f"{name} has dtype {table.dtype}; give {name}.double()")
    bad = ~((table >= 0) & (table <= 1))  # also true for NaN
    if bool(bad.any()):
        prompt, *component, index = bad.nonzero()[0].tolist()
        place = "".join(f", component {k}" for k in component)
        raise ValueError(
            f"{name} of prompt {prompt}{place}, sequence (arm) {index} is "
            f"{table[prompt, *component, index].item():g}; give probabilities in [0, 1]"
        )


def check_scales(scales: tuple[float, ...], components: Tensor | None) -> None:
    """One positive number per component, and none without components."""
    count = 0 if components is None else components.shape[1]
    if len(scales) != count:
        raise ValueError(f"scales has {len(scales)} numbers for {count} components; give one per component")
    if not all(0 < scale < float("inf") for scale in scales):
        raise ValueError(f"scales are {scales}; give positive numbers")


def check_ids(name: str, ids: Tensor, shape: tuple[int, ...]) -> None:
    """int64 of that shape (−1: any size), no negative number."""
    fits = ids.ndim == len(shape) and all(b in (a, -1) for a, b in zip(ids.shape, shape, strict=True))
    if not fits or ids.dtype != torch.int64 or bool((ids < 0).any()):
        wanted = ", ".join("any" if size < 0 else str(size) for size in shape)
        raise ValueError(
            f"{name} has shape {tuple(ids.shape)} and dtype {ids.dtype}; give int64 [{wanted}] without negative numbers"
        )


def check_turns(turns: tuple[int, ...], horizon: int) -> None:
    """One turn per token, from 0 upwards, none skipped."""
    steps = [later - earlier for earlier, later in pairwise(turns)]
    if len(turns) != horizon or turns[0] != 0 or any(step not in (0, 1) for step in steps):
        raise ValueError(
            f"turns are {turns}; give {horizon} numbers, one per token, that start at 0 and rise by 0 or 1"
        )


def check_tokens(sequences: Tensor, vocab_size: int, length: int | None = None) -> None:
    """int64 `[..., length]` with tokens of the vocabulary; length None: any."""
    fits = sequences.ndim >= 1 and length in (None, sequences.shape[-1])
    if not fits or sequences.dtype != torch.int64:
        raise ValueError(
            f"sequences have shape {tuple(sequences.shape)} and dtype {sequences.dtype}; "
            f"give int64 tokens of shape [..., {length}]"
        )
    bad = (sequences < 0) | (sequences >= vocab_size)
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise ValueError(
            f"token {sequences[tuple(where)].item()} at index {where} is outside the vocabulary; "
            f"give tokens from 0 to {vocab_size - 1}"
        )


def check_groups(sequences: Tensor, prompts: int, horizon: int) -> None:
    """`[*R, P, G, T]`: a group of sequences for every prompt."""
    if sequences.ndim < 3 or sequences.shape[-3] != prompts:
        raise ValueError(f"sequences have shape {tuple(sequences.shape)}; give [..., {prompts}, group, {horizon}]")


def check_prefix(prefix: Tensor | None, given: Tensor | None, shape: tuple[int, ...], vocab_size: int) -> None:
    """Tokens `[*R, P, G, k]` for sequences of that shape `[*R, P, G, T]`; given: 0 to k, `[*R, P, G]`.

    k < T unless `given` says how many each sequence takes: then that may be all of them.
    """
    if prefix is None and given is None:
        return
    most = shape[-1] - (given is None)
    if prefix is None or prefix.shape[:-1] != shape[:-1] or prefix.shape[-1] > most:
        found = None if prefix is None else tuple(prefix.shape)
        raise ValueError(
            f"prefix has shape {found}; give {(*shape[:-1], 'k')} with k below {shape[-1]}, "
            "so that a token is left to choose"
        )
    check_tokens(prefix, vocab_size)
    if given is None:
        return
    if (
        given.shape != shape[:-1]
        or given.dtype != torch.int64
        or bool(((given < 0) | (given > prefix.shape[-1])).any())
    ):
        raise ValueError(
            f"given has shape {tuple(given.shape)} and dtype {given.dtype}; give int64 of shape {shape[:-1]}, "
            f"from 0 to the prefix's {prefix.shape[-1]} tokens"
        )


def check_uniforms(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    """Floating point numbers in [0, 1) of that shape."""
    if tuple(values.shape) != shape or not values.is_floating_point():
        raise ValueError(
            f"{name} have shape {tuple(values.shape)} and dtype {values.dtype}; "
            f"give floating point numbers of shape {shape}"
        )
    bad = ~((values >= 0) & (values < 1))  # also true for NaN
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} at index {where} is {values[tuple(where)].item():g}; "
            "give uniform numbers in [0, 1), as torch.rand does"
        )


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """One sentence for an unknown name, with the nearest valid one first."""
    names = sorted(valid)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" did you mean '{near[0]}'?" if near else ""
    return f"unknown {kind} '{name}';{hint} Valid: {', '.join(names)}"
