"""Toy policies: parameters of every run to the table of logits `[R, P, S, V]` that sampling and exact metrics read.

| name | parameters | what it can show |
|---|---|---|
| prefix | a row of logits for every prompt and prefix | no interference at all: the plain softmax policy |
| prompt | one row for every prompt, the same at every position | credit that cannot be assigned to positions |
| shared-bias | the table, and one row that is added everywhere | interference between prompts: plateaus (1904.11455) |
| linear | one row per prompt, one per prefix (or per prompt token), added | features shared over prompts |

All start at zero, the uniform policy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etr.errors import InputError, unknown
from toy_envs.model import ExactModel

Logits = Callable[[Tensor], Tensor]


def prefix(model: ExactModel) -> tuple[int, Logits]:
    """z(p, s) = θ(p, s)."""
    return model.prompts * model.states, lambda rows: rows.unflatten(-2, (model.prompts, model.states))


def prompt(model: ExactModel) -> tuple[int, Logits]:
    """z(p, s) = θ(p)."""
    return model.prompts, lambda rows: rows.unsqueeze(-2).expand(*rows.shape[:-1], model.states, model.vocab_size)


def shared_bias(model: ExactModel) -> tuple[int, Logits]:
    """z(p, s) = θ(p, s) + b."""
    size, table = prefix(model)
    return size + 1, lambda rows: table(rows[..., :-1, :]) + rows[..., -1:, None, :]


def linear(model: ExactModel) -> tuple[int, Logits]:
    """z(p, s) = Σ_f φ_f(p, s) θ_f; φ: one-hot prefix, and one-hot prompt tokens where there are some, else prompt."""
    about = torch.eye(model.prompts, dtype=torch.float64)
    if model.prompt_tokens is not None:
        width = int(model.prompt_tokens.max()) + 1
        about = torch.nn.functional.one_hot(model.prompt_tokens, width).flatten(-2).double()

    def logits(rows: Tensor) -> Tensor:
        of_prompt = about.to(rows) @ rows[..., : about.shape[1], :]  # [R, P, V]
        return of_prompt.unsqueeze(-2) + rows[..., about.shape[1] :, :].unsqueeze(-3)

    return about.shape[1] + model.states, logits


POLICIES: dict[str, Callable[[ExactModel], tuple[int, Logits]]] = {
    "prefix": prefix,
    "prompt": prompt,
    "shared-bias": shared_bias,
    "linear": linear,
}


def make_policy(name: str, model: ExactModel) -> tuple[int, Logits]:
    """Number of parameter rows and the function from rows `[R, rows, V]` to logits `[R, P, S, V]`, by name.

    Raises InputError naming the nearest policy.
    """
    if name not in POLICIES:
        raise InputError(unknown("policy", name, POLICIES))
    return POLICIES[name](model)
