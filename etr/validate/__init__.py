"""Floor 6: a fixed suite of criteria that a recipe must pass before it is promoted, and its scorecard."""

from etr.validate.base import CRITERIA, FULL, ORDER, QUICK, Criterion, Finding
from etr.validate.scorecard import FILE, PAGE, SUITE, Scorecard, default_folder, read_scorecard, write_scorecard
from etr.validate.suite import validate

__all__ = [
    "CRITERIA",
    "FILE",
    "FULL",
    "ORDER",
    "PAGE",
    "QUICK",
    "SUITE",
    "Criterion",
    "Finding",
    "Scorecard",
    "default_folder",
    "read_scorecard",
    "validate",
    "write_scorecard",
]
