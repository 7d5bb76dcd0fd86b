"""Floor 6: speed, side by side in one run. Ratios are printed because absolute times depend on the machine's mood."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def paired(candidates: Mapping[str, Callable[[], object]], repeats: int, warm: bool = True) -> dict[str, list[float]]:
    """Seconds of each candidate, `repeats` times in turn (A B A B ...), after one warm-up of each if `warm`.

    Turns share whatever slows the machine down, so their ratios hold when absolute times do not.
    """
    for candidate in candidates.values() if warm else ():
        candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(of: list[float], to: list[float]) -> float:
    """Median over the turns of time(of) / time(to)."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))
