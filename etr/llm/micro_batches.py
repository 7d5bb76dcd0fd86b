"""What a forward pass computes in each packing, and micro-batches of a rollout batch within a budget of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Lengths:
    """Tokens of each row's prompt and completion; `runs` numbers the prompts, equal neighbours alike."""

    runs: Sequence[int]
    prompts: Sequence[int]
    answers: Sequence[int]

    def __len__(self) -> int:
        return len(self.answers)

    def rows(self, rows: slice) -> Lengths:
        """The lengths of some of the rows."""
        return Lengths(self.runs[rows], self.prompts[rows], self.answers[rows])

    @property
    def groups(self) -> list[tuple[int, list[int]]]:
        """Prompt length and completion lengths of each run of equal prompts."""
        parts = groupby(zip(self.runs, self.prompts, self.answers, strict=True), key=lambda row: row[0])
        return [(part[0][1], [row[2] for row in part]) for part in (list(rows) for _, rows in parts)]


@dataclass(frozen=True)
class Work:
    """Tokens of a forward pass, padding included, and pairs of query and key that its attention computes."""

    tokens: int
    pairs: int


def work(lengths: Lengths, packing: str) -> Work:
    """The work of one pass over all rows. packing: padded, cached, prefix (a row for each group), or flat (one row).

    The last token of a completion predicts nothing and is left out. Padding reaches to the longest row of the pass.

    >>> lengths = Lengths([0, 0], [40, 40], [32, 32])
    >>> [work(lengths, packing).tokens for packing in ("padded", "cached", "prefix")]
    [142, 102, 102]
    """
    groups, b, p, t = lengths.groups, len(lengths), max(lengths.prompts), max(lengths.answers) - 1
    if packing == "padded":
        return Work(b * (p + t), b * (p + t) ** 2)
    if packing == "cached":
        return Work(len(groups) * p + b * t, len(groups) * p**2 + b * t * (p + t))
    rows = [prompt + sum(answers) - len(answers) for prompt, answers in groups]
    if packing == "prefix":
        return Work(len(rows) * max(rows), len(rows) * max(rows) ** 2)
    pairs = sum(prompt**2 + sum(n * (prompt + n) for n in answers) for prompt, answers in groups)
    return Work(sum(rows), pairs)


def micro_batches(
    size: int, group_size: int, budget: int, tokens: Callable[[slice], int], whole_groups: bool = False
) -> list[slice]:
    """Contiguous slices of `size` rows with at most `budget` tokens each: whole groups, unless one alone exceeds it.

    tokens: what a pass over some rows computes. A group that exceeds the budget gets slices of its own; a single row is
    never cut, whatever it takes. whole_groups: nor is a group, for objectives that compare its rows (`undivided`).

    >>> micro_batches(6, 2, 40, lambda rows: 10 * (rows.stop - rows.start))
    [slice(0, 4, None), slice(4, 6, None)]
    """
    parts: list[slice] = []
    start = 0
    while start < size:
        ends = range(start + group_size, size + group_size, group_size)
        if not whole_groups and (start % group_size or tokens(slice(start, min(ends[0], size))) > budget):
            ends = range(start + 1, min((start // group_size + 1) * group_size, size) + 1)
        stop = ends[0]
        for end in ends[1:]:
            if tokens(slice(start, min(end, size))) > budget:
                break
            stop = end
        parts.append(slice(start, min(stop, size)))
        start = parts[-1].stop
    return parts
