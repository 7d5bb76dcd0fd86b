"""Whether what entered a recorded loss is what the recipe makes of rewards and groups: the loss itself cannot tell.

A loss under a wrong denominator, or of wrong advantages, replays bit for bit. So they are made again from what they
were made of, where the record holds it; where it does not, the check says that it was not made, and why.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from etr.batch import CURRENT, Batch
from etr.errors import InputError
from etr.groups import group_stats
from etr.objective import Objective
from etr.recorded import GROUP, Recorded
from etr.recording import STEP_GAP

CLOSE = 1e-5  # relative to the largest entry: statistics over a batch, made again in another order or precision
COUNTS = {"token-mean": "batch_num_tokens"}  # verl's own count, by aggregation; of responses otherwise
UNSEEN = "the record holds a part of the batch only"


@dataclass(frozen=True)
class Check:
    """One input of the loss. where: the first disagreement, or why it was not checked."""

    what: str
    verdict: Literal["same", "differs", "not checked"]
    where: str = ""

    @property
    def disagrees(self) -> bool:
        return self.verdict == "differs"


def check_inputs(recorded: Recorded) -> list[Check]:
    """Denominator, advantages, group statistics, weights and columns; of a toy run its step too."""
    found = [_denominator(recorded), *_made_again(recorded)]
    if (gap := recorded.settings.get(STEP_GAP)) is not None:
        limit = 1e-6 if recorded.batch.log_probs.dtype == torch.float64 else 1e-2  # Adam divides by tiny numbers
        wrong = f"the parameters moved otherwise than by the recorded gradient (by {gap:.2g} of the step)"
        found.append(Check("step", "same") if gap <= limit else Check("step", "differs", wrong))
    return found


def _denominator(recorded: Recorded) -> Check:
    objective, said = recorded.recipe.objective, recorded.settings
    own, given = float(objective.denominator(recorded.batch.response_mask)), float(recorded.denominator)
    counted = _counted(objective, said) if recorded.host == "verl" else None
    alone = recorded.host != "verl" and said.get("processes", 1) == 1
    if counted is None and alone and not said.get("micro_batches_left_out"):
        counted = own
    if counted is None:
        if given < own * (1 - CLOSE):
            return Check("denominator", "differs", f"it is {given:.9g}, but these rows alone make {own:.9g}")
        return Check("denominator", "not checked", UNSEEN)
    if math.isclose(given, counted, rel_tol=CLOSE):
        return Check("denominator", "same")
    return Check("denominator", "differs", f"it is {given:.9g}, but must be {counted:.9g}")


def _counted(objective: Objective, said: Any) -> float | None:
    """The denominator by the counts which verl gave for its whole step."""
    count = said.get(COUNTS.get(objective.aggregation, "global_batch_size"))
    scale = said.get("loss_scale_factor") if objective.aggregation == "seq-mean-token-sum-norm" else None
    return None if count is None else float(count) * float(scale or 1)


def _whole(recorded: Recorded) -> bool:
    """Does the record hold every response of the batch that statistics were taken of?"""
    said = recorded.settings
    one_step = said.get("steps_per_generation") == said.get("gradient_accumulation_steps")  # of TRL; None elsewhere
    return recorded.host != "verl" and said.get("processes", 1) == 1 and one_step and not said.get(
        "micro_batches_left_out"
    )  # fmt: skip


def _made_again(recorded: Recorded) -> list[Check]:
    batch, names = recorded.batch, ("advantages", "group statistics")
    why = "the record has no rewards and groups" if batch.rewards is None or batch.group_ids is None else ""
    if why or not _whole(recorded):
        return [Check(name, "not checked", why or UNSEEN) for name in names]
    try:
        again, prepared, reshaped = _prepared(recorded)
    except InputError as error:
        return [Check(name, "not checked", str(error)) for name in names]
    found = [_group(recorded)]
    if prepared or not reshaped:
        found.insert(0, _same("advantages", batch.clean().token_advantages, again.clean().token_advantages))
    else:
        found.insert(0, Check("advantages", "not checked", "they are shaped by what the record does not hold"))
    if again.weights is not None or (recorded.host == "llm" and batch.weights is not None):
        kept = batch.response_mask
        old, new = (
            torch.ones_like(kept, dtype=torch.float64) if x is None else x for x in (batch.weights, again.weights)
        )
        found.append(_same("weights", torch.where(kept, old, 0.0), torch.where(kept, new, 0.0)))
    for name in again.columns if prepared else ():
        found.append(_column(name, batch, again))
    if not prepared and batch.columns:
        found.append(Check("columns", "not checked", "they depend on state or policy that the record does not hold"))
    return found


def _prepared(recorded: Recorded) -> tuple[Batch, bool, bool]:
    """The batch made again from its rewards and groups; could `prepare` be repeated, and does it change advantages?"""
    recipe, objective, batch = recorded.recipe, recorded.recipe.objective, recorded.batch
    assert batch.rewards is not None and batch.group_ids is not None  # looked at by the caller
    again = dataclasses.replace(
        batch,
        log_probs=batch.old_log_probs,
        advantages=recipe.advantages(batch.rewards, batch.group_ids),
        columns={name: value for name, value in batch.columns.items() if name == "given"},  # of a sampler
    )
    if recorded.host != "toy":  # a toy's weights are those of its sampler
        again = dataclasses.replace(again, weights=None)
        if recipe.correction.active or recipe.correction.sequence_mask is not None:
            if batch.rollout_log_probs is None:
                raise InputError("the record has no log-probs of the engine, which the correction starts from")
            again = recipe.correction.apply(again)
    moving = recorded.moved > 0 and bool(objective.needs & {*CURRENT})
    state = objective.init_state((), batch.log_probs.device)
    with torch.no_grad():
        ready, _ = objective.prepare(again, state)
    reshaped = ready.advantages is not again.advantages
    return (again, False, reshaped) if moving or state else (ready, True, reshaped)


def _group(recorded: Recorded) -> Check:
    """Group statistics; of graded rewards, which a penalty for length changes."""
    batch, said, name = recorded.batch, recorded.settings, "group statistics"
    assert batch.rewards is not None and batch.group_ids is not None  # looked at by the caller
    bounds = said.get("reward_bounds", (0.0, 1.0) if recorded.host in ("toy", "llm") else None)
    if batch.group is None:
        return Check(name, "not checked", "the record has none")
    if bounds is None or said.get("overlong") == "penalty":
        return Check(name, "not checked", "they are of the graded rewards, which the record does not hold")
    try:
        again = group_stats(batch.rewards, batch.group_ids, tuple(bounds))
    except InputError as error:
        return Check(name, "differs", str(error))
    each = (_same(name, getattr(batch.group, part), getattr(again, part)) for part in GROUP)
    return next((check for check in each if check.disagrees), Check(name, "same"))


def _column(name: str, batch: Batch, again: Batch) -> Check:
    what, new = f"column {name}", again.columns[name]
    old = batch.columns.get(name)
    if old is None or old.shape != new.shape:
        return Check(what, "differs", "the record does not have it in this form")
    kept = batch.response_mask
    if new.shape == kept.shape:
        old, new = (torch.where(kept, value.double(), 0.0) for value in (old, new))
    return _same(what, old, new)


def _same(what: str, recorded: Tensor, again: Tensor) -> Check:
    """Both equal, up to `CLOSE` of the largest entry? Else the first place where not."""
    old, new = torch.broadcast_tensors(recorded.double(), again.double())
    size = torch.where(new.isfinite(), new.abs(), 0.0).max().clamp(min=torch.finfo(torch.float32).eps)
    same = (old == new) | (old.isnan() & new.isnan()) | ((old - new).abs() <= CLOSE * size)
    if bool(same.all()):
        return Check(what, "same")
    at = tuple((~same).nonzero()[0].tolist())
    return Check(what, "differs", f"at {list(at)}: recorded {old[at]:.9g}, made again {new[at]:.9g}")
