"""maj@k: how often the most frequent of k answers is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import comb

from etr.llm.rewards.clusters import final_answer

RIGHT = object()  # the class of all right answers, however they are written


def votes(completions: Sequence[str], right: Sequence[bool]) -> tuple[int, list[int]]:
    """Votes for the right answer, and for each wrong one; a completion without an answer does not vote.

    Right answers are one class, since grading says so; wrong ones are the same if they are the same number or text.
    """
    counts = Counter(_class(text, good) for text, good in zip(completions, right, strict=True))
    good = counts.pop(RIGHT, 0)
    counts.pop(None, 0)
    return good, list(counts.values())


def majority(right: int, wrong: Sequence[int], abstentions: int, k: int) -> float:
    r"""Expected share of draws of k of the answers, without replacement, in which the right one has the most votes.

        maj@k = 1 / C(n, k) · Σ_j C(right, j) Σ_t N(k - j, j, t) / (t + 1)

    N(m, j, t): ways to take m of the other answers such that t wrong classes have exactly j votes and none has more. A
    tie of t + 1 classes is decided evenly; no vote at all is wrong. Exact, no sampling. Raises ValueError for k > n.

    >>> majority(right=2, wrong=[2], abstentions=0, k=4), majority(right=1, wrong=[1, 1], abstentions=0, k=1)
    (0.5, 0.3333333333333333)
    """
    n = right + sum(wrong) + abstentions
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} of {n} answers")
    won = 0.0
    for j in range(1, min(right, k) + 1):
        ways = _ways(wrong, abstentions, k - j, j)
        won += comb(right, j) * sum(count / (ties + 1) for ties, count in ways.items())
    return won / comb(n, k)


def _ways(wrong: Sequence[int], abstentions: int, picks: int, most: int) -> Counter[int]:
    """Ways to take `picks` of the wrong answers and abstentions, at most `most` of a class, by those that reach it."""
    table: Counter[tuple[int, int]] = Counter({(0, 0): 1})  # (taken, classes with `most`) -> ways
    for size in wrong:
        longer: Counter[tuple[int, int]] = Counter()
        for (taken, ties), count in table.items():
            for votes_ in range(min(size, most, picks - taken) + 1):
                longer[taken + votes_, ties + (votes_ == most)] += count * comb(size, votes_)
        table = longer
    ways: Counter[int] = Counter()
    for (taken, ties), count in table.items():
        ways[ties] += count * comb(abstentions, picks - taken)
    return ways


def _class(completion: str, right: bool) -> object:
    if right:
        return RIGHT
    return final_answer(completion)
