"""Floor 6: a recorded update (`etr.recorded`) computed again by every path, and whether they agree.

What entered the loss is made again where the record holds what it was made of.
toy and llm are the loss functions of this project's two trainers; verl and trl call what those packages call.
"""

from etr.replays.agreement import Outcome, compare, rounding, run_all
from etr.replays.inputs import Check, check_inputs
from etr.replays.paths import PATHS, find_record, replay

__all__ = ["PATHS", "Check", "Outcome", "check_inputs", "compare", "find_record", "replay", "rounding", "run_all"]
