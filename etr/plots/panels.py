"""Numbers of a picture before it is drawn: panels of lines over a common axis, and how policies fill them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etr import exact
from etr.toy.recorder import History
from toy_envs import ExactEnv, ExactModel

Histories = Mapping[str, History]
Lines = Mapping[str, Tensor]


@dataclass(frozen=True)
class Panel:
    """Lines over `x`, one per recipe (`[seeds, len(x)]`), and if useful a grey one (its name and values).

    labels: title, name of the x axis, name of the y axis; ticks: names of the places on x that are no scale.
    """

    labels: tuple[str, str, str]
    x: Sequence[Any]  # whole numbers or not
    lines: Lines
    reference: tuple[str, Tensor] | None = None
    ticks: Sequence[str] = ()
    scale: str = "linear"


Answer = tuple[list[Panel], str]  # the panels, and a sentence on what they show
Env = ExactEnv[Any]


def final(histories: Histories, of: Callable[[Tensor], Tensor]) -> Lines:
    """`of` the logits at the end of training, by recipe."""
    return {name: of(history.logits) for name, history in histories.items()}


def value(model: ExactModel, table: Tensor, logits: Tensor) -> Tensor:
    """Expected value of a table `[P, V**T]`, mean over prompts, `[seeds]`."""
    return exact.expected_reward(logits, ExactModel(model.vocab_size, model.horizon, table)).mean(-1)


def even(name: str, size: int) -> tuple[str, Tensor]:
    """Reference line of `size` equal probabilities."""
    return name, torch.full((size,), 1 / size)


def along(env: Env, histories: Histories, title: str, prompts: slice) -> Panel:
    """π(next token of the solution | its tokens so far), mean over some prompts."""
    model = env.model
    places = model.prefix_states(model.solutions) * model.vocab_size + model.solutions  # [P, T]

    def right(logits: Tensor) -> Tensor:
        probs = exact.log_policy(logits, model).exp().flatten(-2)
        return probs.gather(-1, places.expand(len(probs), -1, -1))[:, prompts].mean(1)

    depths = range(1, model.horizon + 1)
    reference = ("uniform", torch.full((model.horizon,), 1 / model.vocab_size))
    labels = (title, "token of the answer", "probability after a right start")
    return Panel(labels, depths, final(histories, right), reference, [str(t) for t in depths])
