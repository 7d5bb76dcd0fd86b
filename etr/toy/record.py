"""The toy trainer's record for the replay proof (`etr.recorded`): what the updates of one run computed themselves."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from etr.batch import CURRENT, Batch, Region
from etr.groups import GroupStats
from etr.loss import policy_loss
from etr.recorded import batch_of, tensors_of
from etr.recording import STEP_GAP, Recording
from etr.toy.rollout import Scorer
from etr.toy.update import Learner, Updater, stepped


@dataclass(frozen=True)
class KeepingScorer(Scorer):
    """A scorer that keeps the rewards and groups it was given: the check of advantages starts from them."""

    seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, GroupStats]:
        self.seen.update(rewards=rewards, group_ids=group_ids.expand(rewards.shape))
        return super().__call__(rewards, group_ids)


@dataclass(frozen=True)
class RecordingUpdater(Updater):
    """An updater of one run whose updates are recorded while the recording is active; it changes nothing of them.

    Loss and gradient are read off the run's own backward pass. That its parameters then moved by this gradient, and no
    other, is measured too (`etr.recording.STEP_GAP`). graded: rewards and group ids of the batch at hand.
    """

    recording: Recording
    graded: dict[str, Tensor]
    seen: dict[str, Tensor] = field(default_factory=dict)

    def current(self, parameters: Tensor, batch: Batch, index: Tensor) -> Batch:
        found = super().current(parameters, batch, index)
        for name in CURRENT if self.recording.active else ():
            column = getattr(found, name)
            if column is not None and column.requires_grad:
                column.register_hook(lambda gradient, name=name: self.seen.update({name: gradient}))
        return found

    def loss(self, parameters: Tensor, batch: Batch, index: Tensor, denominator: Tensor) -> Tensor:
        found = super().loss(parameters, batch, index, denominator)
        self.seen["loss"] = found.detach()
        return found

    def __call__(self, learner: Learner, batch: Batch, index: Tensor, denominator: Tensor) -> Learner:
        self.seen.clear()
        after = super().__call__(learner, batch, index, denominator)
        if self.recording.active:
            with self.recording.guarded():
                self._record(learner, after, batch, index, denominator)
        return after

    def _record(self, before: Learner, after: Learner, batch: Batch, index: Tensor, denominator: Tensor) -> None:
        leaf = before.parameters.detach().requires_grad_()
        whole, seen = Updater.current(self, leaf, batch, index), dict(self.seen)
        gradients = {name: seen[name] for name in CURRENT if name in seen}
        columns = [getattr(whole, name) for name in gradients]
        (pulled,) = torch.autograd.grad(columns, leaf, list(gradients.values()))
        self.recording.settings[STEP_GAP] = step_gap(before, after, stepped(before, pulled, self.recipe.optimizer))
        whole = dataclasses.replace(whole, **dict[str, Any](self.graded))
        gradient = gradients.get("log_probs", torch.zeros_like(whole.log_probs))
        for rows in self.parts:
            part = whole.rows(rows)
            with torch.no_grad():
                out = policy_loss(self.recipe.objective, part, denominator, check=False)
            first = batch_of({name: value[0].detach() for name, value in tensors_of(part).items()})
            bounds = Region(*(bound[0] for bound in out.region))
            self.recording.observe(first, out.loss[0], gradient[0, rows], bounds)
        self.recording.finish(denominator[0], seen["loss"])


def step_gap(before: Learner, after: Learner, expected: Learner) -> float:
    """Largest difference between two learners that one step led to, in sizes of the expected step."""
    gaps = []
    for old, found, wanted in zip(before, after, expected, strict=True):
        size = (wanted - old).abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        gaps.append(float((found - wanted).abs().max() / size))
    return max(gaps)
