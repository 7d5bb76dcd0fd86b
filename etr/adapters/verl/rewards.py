"""This project's rewards as verl's custom reward function: `reward.custom_reward_function.path=pkg://etr.adapters.verl.rewards`.

    reward.custom_reward_function.name=compute_score

Each row of the data says in `extra_info` how it is graded: `scorer`, a name of `etr.llm.rewards.scores` or
`module:function`, and for reasoning-gym items `entry`, as JSON text.
"""

from __future__ import annotations

import atexit
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from threading import Lock
from typing import Any

from etr.errors import InputError
from etr.llm.items import Item, user
from etr.llm.rewards.combine import TOTAL, Combination
from etr.llm.rewards.pool import Job, Outcome, Pool
from etr.llm.rewards.scores import CHEAP, find

SECONDS = 10.0  # for one answer; a slower one counts 0, as in `etr train`
_ONE_AT_A_TIME = Lock()  # verl grades in threads, a worker answers one at a time


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> float:
    """The reward of one answer, graded as `etr train` grades it: in a process that is killed when it takes too long.

    An answer whose grading fails counts 0, with a warning. Raises InputError when the row does not say how it is
    graded, its scorer cannot be built, or returns no number.
    """
    info = extra_info or {}
    scorer = info.get("scorer")
    if not isinstance(scorer, str):
        raise InputError(
            f"a row of '{data_source}' has no extra_info.scorer; write the data with etr promote --to verl"
        )
    entry = info.get("entry")
    item = Item(user(str(info.get("question", ""))), str(ground_truth), json.loads(entry) if entry else None)
    with _ONE_AT_A_TIME:
        kind, value = _grade(scorer)((item, solution_str))
    if kind == "wrong":
        raise InputError(f"reward '{scorer}' returned {value}; return a finite number or a dict of them, name: number")
    if kind != "value":
        warnings.warn(f"reward '{scorer}' failed ({kind}: {value}); this answer counts 0", stacklevel=2)
        return 0.0
    parts = value if isinstance(value, dict) else {TOTAL: value}
    return Combination.from_options({}).total(parts, f"reward '{scorer}'")


@cache
def _grade(scorer: str) -> Callable[[Job], Outcome]:
    """One grader for each scorer and process: starting its worker takes longer than grading."""
    if scorer in CHEAP:
        score = find(scorer)
        return lambda job: ("value", score(*job))
    pool = Pool(scorer, 1, SECONDS)
    atexit.register(pool.close)
    return lambda job: pool.map([job])[0]
