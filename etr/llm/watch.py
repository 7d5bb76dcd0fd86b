"""Watches a run while it goes: the observatory's alarms, each said once, as soon as it sets in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean, median

from etr.observatory import alarms

STEADY = 5  # steps over which the curves are smoothed: one step has few prompts


class Watch:
    """The curves of a run so far and the kinds of alarm that were said.

    vocab_size: V, for the largest possible entropy; earlier: rows of metrics from before a resume.
    """

    def __init__(self, vocab_size: int, earlier: Iterable[Mapping[str, float]] = ()) -> None:
        self._vocab_size = vocab_size
        self._steps: list[int] = []
        self._entropy: list[float] = []
        self._reward: list[float] = []
        self._said: set[str] = set()
        for row in earlier:
            self.add(int(row["step"]), row)

    def add(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """One more step; the sentences of alarms that were not said before.

        Groups without signal are the run's own matter: it names the cure.
        """
        self._steps.append(step)
        self._entropy.append(metrics["entropy"])
        self._reward.append(metrics["reward"])
        entropy = [median(window) for window in _windows(self._entropy)]
        reward = [fmean(window) for window in _windows(self._reward)]
        found = alarms(self._steps, entropy, reward, vocab_size=self._vocab_size)
        new = [alarm for alarm in found if alarm.kind not in self._said]
        self._said |= {alarm.kind for alarm in new}
        return [f"{alarm.kind} at step {alarm.step}: {alarm.sentence}" for alarm in new]


def _windows(values: list[float]) -> list[list[float]]:
    """The last values up to each place."""
    return [values[max(0, end - STEADY) : end] for end in range(1, len(values) + 1)]
