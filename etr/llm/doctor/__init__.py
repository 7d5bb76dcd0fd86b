"""`etr doctor`: what will go wrong, what a run will need, and how much of what it shows will be rounding."""

from etr.llm.doctor.examine import Examination, examine
from etr.llm.doctor.findings import Finding

__all__ = ["Examination", "Finding", "examine"]
