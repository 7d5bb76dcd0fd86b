"""One reward out of several components, and the check that it is one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from etr.errors import InputError, unknown

OPTIONS = ("reward_weights", "reward_bounds")  # the task options that are read here
TOTAL = "reward"  # the component of a reward that is a single number


@dataclass(frozen=True)
class Combination:
    r"""reward = Σ_k w_k c_k / Σ_k w_k over the components c_k, each inside `bounds`.

    Without weights all components count the same. Weights are relative, so the reward stays inside the bounds.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    bounds: tuple[float, float] = (0.0, 1.0)

    @staticmethod
    def from_options(options: Mapping[str, object]) -> Combination:
        """From the task options reward_weights ("right=0.8,form=0.2") and reward_bounds ("-1,1"). Raises InputError."""
        bounds = _pair(str(options.get("reward_bounds", "0,1")))
        return Combination(_weights(str(options.get("reward_weights", ""))), bounds)

    def total(self, parts: Mapping[str, float], source: str) -> float:
        """The reward of one answer. Raises InputError for a component out of bounds or without a weight."""
        low, high = self.bounds
        for name, value in parts.items():
            if not low <= value <= high:
                what = source if name == TOTAL else f"component '{name}' of {source}"
                raise InputError(
                    f"{what} gave {value:g}, outside [{low:g}, {high:g}]; declare other bounds with the task option "
                    "reward_bounds=LOW,HIGH, or mend it"
                )
        if not self.weights:
            return math.fsum(parts.values()) / len(parts)
        for name in (*parts, *self.weights):
            if name not in self.weights or name not in parts:
                raise InputError(
                    f"reward_weights of {source}: " + unknown("component", name, {*parts} & {*self.weights})
                )
        return math.fsum(self.weights[name] * parts[name] for name in parts) / math.fsum(self.weights.values())


def _weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.partition("=")
        weight = _number(value)
        if weight is None or weight < 0 or not name:
            raise InputError(f"reward_weights has '{part}'; write component=WEIGHT, such as right=0.8,form=0.2")
        weights[name.strip()] = weight
    if weights and not any(weights.values()):
        raise InputError("reward_weights are all 0; give at least one component a positive weight")
    return weights


def _pair(text: str) -> tuple[float, float]:
    numbers = [_number(part) for part in text.split(",")]
    low, high = numbers if len(numbers) == 2 else (None, None)
    if low is None or high is None or low >= high:
        raise InputError(f"reward_bounds is '{text}'; write LOW,HIGH, such as -1,1")
    return low, high


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
