"""Each policy for faults, by injection: the fault is put in, and what the run does about it is looked at."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from etr.errors import InputError
from etr.llm import faults
from etr.llm.faults import Guard, Halt, Sustained, dead_engine, exploding_kl, hanging_reward, require_finite
from etr.llm.watch import Watch

RULE = Sustained("x", 2.0, 3, "x is {value:g} at step {step}")
CALM = {"kl": 0.01, "grad_norm": 1.0, "entropy": 1.0, "entropy/change": -0.1}


def feed(guard: Guard, metric: str, values: list[float]) -> tuple[int, str]:
    """The step at which the guard stops and its sentence; (0, "") if it does not."""
    for step, value in enumerate(values, 1):
        try:
            guard.add(step, {**CALM, metric: value})
        except Halt as halt:
            return step, str(halt)
    return 0, ""


@pytest.mark.parametrize(
    ("values", "stops"),
    [
        ([3, 3, 3], 3),
        ([3, 3, 1, 3, 3, 1], 0),  # never three running
        ([3, 3, 2, 3, 3, 3], 6),  # the limit itself is allowed
        ([1, 3, math.inf, 5, 3], 4),
        ([math.nan] * 5, 0),  # not measured
    ],
)
def test_a_metric_must_stay_above_its_limit(values: list[float], stops: int) -> None:
    step, sentence = feed(Guard([RULE]), "x", values)
    assert step == stops
    assert sentence == (f"x is {values[stops - 1]:g} at step {stops}" if stops else "")


def test_while_a_rule_counts_nothing_is_saved() -> None:
    guard = Guard([RULE])
    calm = []
    for step, value in enumerate([1.0, 3.0, 3.0, 1.0], 1):
        guard.add(step, {**CALM, "x": value})
        calm.append(guard.calm)
    assert calm == [True, False, False, True]


def test_counting_goes_on_after_a_resume() -> None:
    earlier = [{**CALM, "x": value} for value in (3.0, 1.0, 3.0, 3.0)]
    guard = Guard([RULE], earlier)
    assert not guard.calm
    with pytest.raises(Halt, match="x is 9 at step 5"):
        guard.add(5, {**CALM, "x": 9.0})
    Guard([RULE], [{**CALM, "x": 3.0}] * 3)  # what stopped the run before does not stop it from starting again


def test_exploding_kl_stops_with_a_sentence() -> None:
    step, sentence = feed(Guard([exploding_kl()]), "kl", [0.1, 1.5, 0.2, 1.5, 2.5, 40.0, 50.0])
    assert step == 6
    assert "above 1 nats per token for 3 steps, 40 at step 6" in sentence and "smaller optimizer.lr" in sentence


def test_a_reward_that_hangs_stops_with_a_sentence() -> None:
    step, sentence = feed(Guard([hanging_reward(32)]), "reward/timeouts", [0, 17, 16, 17, 20, 17, 17])
    assert step == 6  # 16 of 32 is not more than half
    assert sentence.startswith("more than half of the 32 rewards of a step timed out for 3 steps, 17 at step 6")
    assert "mend the reward or raise reward_timeout" in sentence


@pytest.mark.parametrize("name", ["kl", "grad_norm", "entropy/change"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_after_an_update_stops_at_once(name: str, value: float) -> None:
    with pytest.raises(Halt, match=rf"{name} is {value} at step 3: the update broke the policy; resume from the last"):
        Guard([]).add(3, {**CALM, name: value})


def test_a_batch_without_any_kept_token_is_no_fault() -> None:
    Guard([exploding_kl()]).add(1, {"kl": math.nan, "entropy": math.nan, "entropy/change": math.nan, "grad_norm": 0.0})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_loss_and_gradient_are_checked_before_the_update(value: float) -> None:
    require_finite(1, -3.0, 0.0)
    with pytest.raises(Halt, match=rf"the loss is {value} at step 2, so the update was not made; resume from the last"):
        require_finite(2, value, 1.0)
    with pytest.raises(Halt, match=rf"the gradient is {value} at step 2, so the update was not made"):
        require_finite(2, 1.0, value)


@pytest.mark.parametrize(
    ("entropies", "kind"), [([1.0] * 8 + [0.05] * 8, "collapse"), ([1.0] * 8 + [3.0] * 8, "explosion")]
)
def test_entropy_alarms_warn_and_do_not_stop(entropies: list[float], kind: str) -> None:
    watch, guard = Watch(vocab_size=10**6), Guard([exploding_kl()])
    said = []
    for step, entropy in enumerate(entropies, 1):
        row = {**CALM, "entropy": entropy, "reward": 0.5}
        guard.add(step, row)
        said += watch.add(step, row)
    assert len(said) == 1 and said[0].startswith(f"{kind} at step ")


def test_a_dead_engine_says_what_is_saved() -> None:
    halt = dead_engine(InputError("vllm died at version 7"), 7, Path("runs/x"))
    assert str(halt) == (
        "the rollout engine failed (vllm died at version 7); everything up to step 7 is saved: continue with "
        "etr train --resume runs/x"
    )
    assert "the last checkpoint is intact: continue" in str(dead_engine(InputError("x"), None, Path("y")))
    assert isinstance(halt, InputError)  # one sentence for the reader, no trace


def test_the_table_of_policies_names_every_rule() -> None:
    text = faults.__doc__ or ""
    for name in ("KL_LIMIT", "KL_STEPS", "TIMEOUT_STEPS", "etr.llm.watch", "disk full", "engine dead"):
        assert name in text
