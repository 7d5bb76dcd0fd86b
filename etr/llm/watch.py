"""Watches a run while it goes: the observatory's alarms, each said once, as soon as it sets in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from etr.observatory import Alarm, alarms


class Watch:
    """The curves of a run so far and the kinds of alarm that were said.

    vocab_size: V, for the largest possible entropy; earlier: rows of metrics from before a resume.
    """

    def __init__(self, vocab_size: int, earlier: Iterable[Mapping[str, float]] = ()) -> None:
        self._vocab_size = vocab_size
        self._steps: list[int] = []
        self._entropy: list[float] = []
        self._reward: list[float] = []
        for row in earlier:
            self._append(int(row["step"]), row)
        self._said = {alarm.kind for alarm in self._alarms()}

    def add(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """One more step; the sentences of alarms that were not said before.

        Groups without signal are the run's own matter: it names the cure.
        """
        self._append(step, metrics)
        new = [alarm for alarm in self._alarms() if alarm.kind not in self._said]
        self._said |= {alarm.kind for alarm in new}
        return [f"{alarm.kind} at step {alarm.step}: {alarm.sentence}" for alarm in new]

    def _append(self, step: int, metrics: Mapping[str, float]) -> None:
        self._steps.append(step)
        self._entropy.append(metrics["entropy"])
        self._reward.append(metrics["reward"])

    def _alarms(self) -> list[Alarm]:
        return alarms(self._steps, self._entropy, self._reward, vocab_size=self._vocab_size)
