"""A reward of this project as one of TRL's reward functions: graded in processes that may hang or crash."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etr.llm.items import Item, user
from etr.llm.rewards import Grader


@dataclass(frozen=True)
class _Spec:
    scorer: str
    grading: Mapping[str, object] = field(default_factory=dict)


class TaskReward:
    """Grades completions against the columns `answer` and, where a library's own scorer reads it, `entry` (JSON text).

    scorer: a name of `etr.llm.rewards`, or module:function; grading: reward_weights and reward_bounds, as task options;
    timeout: seconds for one answer; workers: processes, None for as many as there are cores. A context manager: leaving
    it ends the processes. Raises InputError as `etr.llm.rewards.Grader` does.
    """

    def __init__(
        self,
        scorer: str,
        grading: Mapping[str, object] | None = None,
        timeout: float = 10.0,
        workers: int | None = None,
    ) -> None:
        self.__name__ = scorer.rpartition(":")[2]  # TRL logs rewards under it
        self._grader = Grader(_Spec(scorer, grading or {}), timeout=timeout, workers=workers)

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest reward."""
        return self._grader.bounds

    def __enter__(self) -> TaskReward:
        return self

    def __exit__(self, *error: object) -> None:
        self._grader.close()

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], entry: Any = None, **_: Any
    ) -> list[float]:
        """Rewards of completions, as TRL asks for them; prompts and completions are texts or lists of messages."""
        entries = [None] * len(prompts) if entry is None else entry
        items = [
            Item(user(p) if isinstance(p, str) else tuple(p), str(a), json.loads(e) if isinstance(e, str) and e else e)
            for p, a, e in zip(prompts, answer, entries, strict=True)
        ]
        texts = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
        return self._grader.grade(items, texts).rewards
