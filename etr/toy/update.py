"""One update of all toy runs at once, as a pure function of parameters and batch, so that it can be compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from etr.batch import Batch
from etr.loss import policy_loss
from etr.objective import SAMPLING
from etr.recipe import OptimizerSettings, Recipe
from etr.toy.answers import current_columns, taken_log_probs
from etr.toy.policies import Logits

LEARNING_RATES = {
    "adam": 0.1,  # about one tenth of a nat per update, so that four updates reach a region of 0.2
    "sgd": 1.0,
}
FIRST, SECOND, EPS = 0.9, 0.999, 1e-8  # Adam's own defaults (1412.6980)


class Learner(NamedTuple):
    """Parameters `[R, rows, V]`, Adam's running means of the gradient and of its square, and the number of steps."""

    parameters: Tensor
    first: Tensor
    second: Tensor
    steps: Tensor


def new_learner(parameters: Tensor) -> Learner:
    """Before the first step."""
    zeros = torch.zeros_like(parameters)
    return Learner(parameters, zeros, zeros, torch.zeros((), dtype=torch.float64))


@dataclass(frozen=True)
class Updater:
    """The rule of an update.

    logits: from parameters to the table `[R, P, S, V]`; parts: rows of each micro-batch; needs: the objective's, read
    beforehand, because a compiler cannot.
    """

    recipe: Recipe
    logits: Logits
    parts: Sequence[slice]
    needs: frozenset[str]

    def current(self, parameters: Tensor, batch: Batch, index: Tensor) -> Batch:
        """The batch as the policy with these parameters sees it; index: where its tokens stand in the table."""
        logits = self.logits(parameters)
        columns = current_columns(self.needs, logits, index, batch.top_tokens)
        log_probs = taken_log_probs(logits, index)
        # Unless some were given all tokens are kept; a compiler that sees the mask made can leave it out.
        mask = batch.response_mask if self.needs & SAMPLING else torch.ones_like(log_probs, dtype=torch.bool)
        return dataclasses.replace(batch, log_probs=log_probs, response_mask=mask, **columns)

    def loss(self, parameters: Tensor, batch: Batch, index: Tensor, denominator: Tensor) -> Tensor:
        """The loss summed over runs; they do not mix, so the gradient of the sum is each run's own."""
        return self.loss_of(self.current(parameters, batch, index), denominator)

    def loss_of(self, whole: Batch, denominator: Tensor) -> Tensor:
        """The same for a batch that holds the current policy's columns already."""
        parts = [whole] if len(self.parts) == 1 else [whole.rows(rows) for rows in self.parts]
        losses = [policy_loss(self.recipe.objective, part, denominator, check=False).loss.sum() for part in parts]
        return sum(losses[1:], losses[0])

    def __call__(self, learner: Learner, batch: Batch, index: Tensor, denominator: Tensor) -> Learner:
        def loss(parameters: Tensor) -> Tensor:
            return self.loss(parameters, batch, index, denominator)

        return stepped(learner, gradient(loss, learner.parameters), self.recipe.optimizer)


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """∂loss/∂parameters. A compiler can trace the functional form only; uncompiled the other is a quarter faster."""
    if torch.compiler.is_compiling():
        found: Tensor = torch.func.grad(loss)(at)
        return found
    leaf = at.detach().requires_grad_()  # a fresh leaf: earlier updates are not walked
    return torch.autograd.grad(loss(leaf), leaf)[0]


def stepped(learner: Learner, gradient: Tensor, settings: OptimizerSettings) -> Learner:
    """θ − η·g (sgd) or θ − η·m̂/(√v̂ + ε) (adam), as `torch.optim` does, but as a function that can be compiled."""
    rate = LEARNING_RATES[settings.method] if settings.lr is None else settings.lr
    if settings.method == "sgd":
        return learner._replace(parameters=learner.parameters - rate * gradient)
    steps = learner.steps + 1
    first = torch.lerp(learner.first, gradient, 1 - FIRST)
    second = torch.addcmul(SECOND * learner.second, gradient, gradient, value=1 - SECOND)
    scale = (1 - SECOND**steps).sqrt()
    length = (rate * scale / (1 - FIRST**steps)).to(gradient.dtype)
    direction = first / (second.sqrt() + (EPS * scale).to(gradient.dtype))
    return Learner(learner.parameters - length * direction, first, second, steps)
