"""What a run does when something goes wrong. Each rule is a small pure object; `Guard` holds a run's rules together.

| fault | what happens |
|---|---|
| loss or gradient NaN or infinite | the optimiser step is not taken and the run stops |
| KL of an update above `KL_LIMIT` for `KL_STEPS` steps, or not finite | the run stops |
| entropy collapses or explodes | said once (`etr.llm.watch`): a person has to judge it, beside the reward |
| rollout engine dead | a checkpoint of the weights as they are, then the run stops |
| disk full | rows of metrics wait in memory; the run stops at the next checkpoint that cannot be written |
| more than half of a batch's rewards time out, `TIMEOUT_STEPS` steps running | the run stops |

Why an exploding KL stops the run and skips nothing: to take an update back would need a copy of weights and optimiser
state at every step, and skipping hides the cause (a learning rate, a region without bounds). One step above the limit
is forgiven, since the estimate by sampled tokens has a heavy tail. While a rule counts, no checkpoint is due, and one
that is asked for (end, Ctrl-C, dead engine) leaves its forerunner: there is always one from before the trouble began.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from etr.errors import InputError

KL_LIMIT, KL_STEPS = 1.0, 3  # nats per token; healthy updates lie between 1e-5 and 1e-1
TIMEOUT_SHARE, TIMEOUT_STEPS = 0.5, 3
BROKEN = ("kl", "grad_norm", "entropy/change")  # none is finite once a weight is not


class Halt(InputError):
    """The run cannot go on, and the weights of this step are not worth saving."""


@dataclass(frozen=True)
class Sustained:
    """Stops a run when a metric stays above a limit for some steps running.

    metric: its name; limit: in its units; steps: how many; trouble: a sentence with {value} and {step}.
    """

    metric: str
    limit: float
    steps: int
    trouble: str

    def count(self, before: int, metrics: Mapping[str, float]) -> int:
        """Steps above the limit up to this one, given their number before it."""
        return before + 1 if metrics.get(self.metric, 0.0) > self.limit else 0

    def check(self, count: int, step: int, metrics: Mapping[str, float]) -> None:
        """Raises Halt when the count is reached."""
        if count >= self.steps:
            raise Halt(self.trouble.format(value=metrics[self.metric], step=step))


def exploding_kl() -> Sustained:
    """The rule for the KL of one update, old to new policy, nats per token."""
    return Sustained(
        "kl",
        KL_LIMIT,
        KL_STEPS,
        f"the KL of an update was above {KL_LIMIT:g} nats per token for {KL_STEPS} steps, {{value:.3g}} at step "
        "{step}: the policy runs away; resume from the last checkpoint with a smaller optimizer.lr or fewer "
        "optimizer.updates",
    )


def hanging_reward(batch: int) -> Sustained:
    """The rule for rewards that time out. batch: completions that are graded at every step."""
    return Sustained(
        "reward/timeouts",
        TIMEOUT_SHARE * batch,
        TIMEOUT_STEPS,
        f"more than half of the {batch} rewards of a step timed out for {TIMEOUT_STEPS} steps, {{value:.0f}} at step "
        "{step}, and counted as wrong; mend the reward or raise reward_timeout, then resume",
    )


def require_finite(step: int, loss: float, norm: float) -> None:
    """Raises Halt, before the optimiser step, when the loss or the gradient's norm is NaN or infinite."""
    for name, value in (("loss", loss), ("gradient", norm)):
        if not math.isfinite(value):
            raise Halt(
                f"the {name} is {value} at step {step}, so the update was not made; resume from the last checkpoint "
                "with a smaller optimizer.lr"
            )


class Guard:
    """The rules of one run and how far each has counted; earlier: rows of metrics from before a resume."""

    def __init__(self, rules: Iterable[Sustained], earlier: Iterable[Mapping[str, float]] = ()) -> None:
        self._counts = dict.fromkeys(rules, 0)
        for row in earlier:
            self._count(row)

    @property
    def calm(self) -> bool:
        """False while any rule counts: such weights are not saved."""
        return not any(self._counts.values())

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """One more step. Raises Halt when a rule says so, or when the update left something that is not finite."""
        for name in BROKEN if math.isfinite(metrics.get("entropy", math.nan)) else ():  # NaN without any kept token
            if not math.isfinite(metrics.get(name, 0.0)):
                raise Halt(
                    f"{name} is {metrics[name]} at step {step}: the update broke the policy; resume from the last "
                    "checkpoint with a smaller optimizer.lr"
                )
        self._count(metrics)
        for rule, count in self._counts.items():
            rule.check(count, step, metrics)

    def _count(self, metrics: Mapping[str, float]) -> None:
        self._counts = {rule: rule.count(count, metrics) for rule, count in self._counts.items()}


def dead_engine(error: Exception, saved: int | None, folder: Path) -> Halt:
    """The sentence for a rollout engine that died. saved: the step of the checkpoint that was written, if any."""
    kept = "the last checkpoint is intact" if saved is None else f"everything up to step {saved} is saved"
    return Halt(f"the rollout engine failed ({error}); {kept}: continue with etr train --resume {folder}")
