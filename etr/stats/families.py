"""Many comparisons at once: the more one looks, the more one finds."""

from __future__ import annotations

from collections.abc import Sequence

from etr.errors import InputError


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the chance of any false alarm in the family stays below the level.

    With p_(1) ≤ … ≤ p_(m): p̃_(k) = max_{j≤k} min(1, (m − j + 1)·p_(j)). Valid however the comparisons depend on each
    other, and never weaker than Bonferroni's m·p. Source: Holm 1979, Scand. J. Statist. 6. Raises InputError outside
    [0, 1].

    >>> holm([0.01, 0.5, 0.03])
    [0.03, 0.5, 0.06]
    """
    for p in p_values:
        if not 0 <= p <= 1:  # also true for NaN
            raise InputError(f"p-value {p:g} is outside [0, 1]; leave out comparisons that have none")
    adjusted, worst, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, place in enumerate(sorted(range(m), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (m - rank) * p_values[place]))
        adjusted[place] = worst
    return adjusted
