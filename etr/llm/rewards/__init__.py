"""Rewards: by name or your own, graded within a wall-clock limit (docs/howto/rewards.md, docs/grading.md)."""

from etr.llm.rewards.grader import Grader, Grades
from etr.llm.rewards.overlong import overlong

__all__ = ["Grader", "Grades", "overlong"]
