"""Floor 6: speed, side by side in one run. Ratios are printed because absolute times depend on the machine's mood."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def timed(run: Callable[[], object], per: float = 1) -> Callable[[], float]:
    """A candidate for `paired`: runs `run` and returns its seconds divided by `per`."""

    def candidate() -> float:
        start = time.perf_counter()
        run()
        return (time.perf_counter() - start) / per

    return candidate


def paired(candidates: Mapping[str, Callable[[], float]], repeats: int, warm: bool = True) -> dict[str, list[float]]:
    """What each candidate says that it took, `repeats` times in turn (A B A B ...); `warm`: after one call of each.

    Turns share whatever slows the machine down, so their ratios hold when absolute times do not.
    """
    for candidate in candidates.values() if warm else ():
        candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, candidate in candidates.items():
            seconds[name].append(candidate())
    return seconds


def median_ratio(of: list[float], to: list[float]) -> float:
    """Median over the turns of time(of) / time(to)."""
    return statistics.median(a / b for a, b in zip(of, to, strict=True))
