"""When to worry: entropy that collapses or explodes, groups without signal, reward that falls while entropy rises.

Entropy alone does not tell collapse from health: it also rises without bound in runs that fall apart. So each alarm is
a sentence with the reward beside it, for a person to judge. Thresholds are rules of thumb of this project, checked on
synthetic curves and on four public logs of GRPO runs (Qwen3 0.6B on MATH, github.com/rasbt/reasoning-from-scratch).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean, median
from typing import NamedTuple

from etr.errors import InputError

COLLAPSED = 0.1  # of the entropy at the start
EXPLODED = 2.0  # times the entropy at the start; where V is known, at most half the way from there to ln V
UNIFORM = 0.9  # of ln V, reached from below
DEAD = 0.9  # share of responses in homogeneous groups
CRASHED = 0.5  # of the best reward so far, while entropy is EXPLODED times what it was at that reward
FIRST = 5  # rows whose median is the start: one prompt a step is noisy
SHORTEST, LONGEST = 3, 20  # rows of the trailing window


Found = tuple[int, str, str]  # row, kind, sentence


class Alarm(NamedTuple):
    """Where trouble set in; kind: collapse, explosion, uniform, dead groups, reward crash or not a number."""

    step: int
    kind: str
    sentence: str


def alarms(
    steps: Sequence[int],
    entropy: Sequence[float] | None = None,
    reward: Sequence[float] | None = None,
    homogeneous: Sequence[float] | None = None,
    vocab_size: int | None = None,
) -> list[Alarm]:
    """The first step of each kind of trouble in the curves of one run, in order of steps.

    entropy: nats per token; homogeneous: share of responses in groups of one reward; vocab_size: V, so that entropy can
    be compared with its largest value ln V. Curves are smoothed by a trailing median (entropy) or mean over `window`
    rows. Raises InputError for curves of unequal length.

    >>> [alarm.kind for alarm in alarms(range(6), entropy=[1.0, 1.0, 0.5, 0.2, 0.05, 0.01])]
    ['collapse']
    """
    given = {"entropy": entropy, "reward": reward, "homogeneous": homogeneous}
    for name, curve in given.items():
        if curve is not None and len(curve) != len(steps):
            raise InputError(f"{name} has {len(curve)} values for {len(steps)} steps; give one value per step")
    level, gain, dead = _smooth(entropy, median), _smooth(reward, fmean), _smooth(homogeneous, fmean)
    found = [*_of_entropy(entropy or [], level, vocab_size), *_of_groups(dead)]
    if gain:
        found = [(i, kind, f"{text}, with reward {gain[i]:.3g}") for i, kind, text in found]
        found += _of_both(steps, level or [math.nan] * len(gain), gain)
    found += [text for name, curve in given.items() for text in _not_numbers(name, curve or [])]
    return [Alarm(steps[i], kind, text) for i, kind, text in sorted(found)]


def window(rows: int) -> int:
    """Rows that are looked at together: a tenth of the log, at least 3 and at most 20."""
    return min(LONGEST, max(SHORTEST, rows // 10))


def _of_entropy(entropy: Sequence[float], level: Sequence[float], vocab_size: int | None) -> list[Found]:
    """Collapse, and rises; a policy that starts uniform stands at ln V and cannot explode."""
    start = median([value for value in entropy if not math.isnan(value)][:FIRST] or [math.nan])
    from_start = f"from {start:.3g} nats per token"
    level = [math.nan if i < FIRST else value for i, value in enumerate(level)]  # the start cannot differ from itself
    found = [
        (i, "collapse", f"entropy fell to {level[i]:.3g} {from_start}")
        for i in _first(value <= COLLAPSED * start < start for value in level)
    ]
    most = math.inf if vocab_size is None else math.log(vocab_size)
    if start < UNIFORM * most:
        for kind, bound in (("explosion", min(EXPLODED * start, (start + most) / 2)), ("uniform", UNIFORM * most)):
            for i in _first(value > bound for value in level):
                share = "" if vocab_size is None else f", {level[i] / most:.0%} of ln V"
                found.append((i, kind, f"entropy rose to {level[i]:.3g} {from_start}{share}"))
    return found


def _of_groups(dead: Sequence[float]) -> list[Found]:
    return [
        (i, "dead groups", f"{dead[i]:.0%} of the responses are in groups of one reward")
        for i in _first(value >= DEAD for value in dead)
    ]


def _of_both(steps: Sequence[int], level: Sequence[float], gain: Sequence[float]) -> list[Found]:
    """Reward that crashed while entropy rose, since the best reward."""
    best = 0
    for i, value in enumerate(gain):
        if math.isnan(gain[best]) or value > gain[best]:
            best = i
        if value < CRASHED * gain[best] and level[i] > EXPLODED * level[best]:
            text = (
                f"reward fell to {value:.3g} from {gain[best]:.3g} at step {steps[best]} "
                f"while entropy rose to {level[i]:.3g} from {level[best]:.3g} nats per token"
            )
            return [(i, "reward crash", text)]
    return []


def _not_numbers(name: str, curve: Sequence[float]) -> list[Found]:
    text = "{} is {}; look at the step before"
    return [
        (i, "not a number", text.format(name, curve[i])) for i in _first(not math.isfinite(value) for value in curve)
    ]


def _smooth(curve: Sequence[float] | None, middle: Callable[[list[float]], float]) -> list[float]:
    """Middle of the last rows up to each one, of those that are numbers; NaN before the window is full: no alarm."""
    curve = curve or []
    early = min(window(len(curve)) - 1, len(curve))
    recent = [[v for v in curve[i - early : i + 1] if not math.isnan(v)] for i in range(early, len(curve))]
    return [math.nan] * early + [middle(values) if values else math.nan for values in recent]


def _first(where: Iterable[bool]) -> list[int]:
    """The first place that is true, if there is one."""
    return [i for i, found in enumerate(where) if found][:1]
