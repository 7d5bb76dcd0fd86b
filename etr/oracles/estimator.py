"""What an objective's sampled gradient is on average, and how noisy: every group enumerated as one run of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etr import exact
from etr.advantages import Estimator
from etr.batch import Batch
from etr.exact import TreeModel
from etr.groups import group_stats
from etr.loss import policy_loss
from etr.objective import Objective
from etr.oracles.critic import state_values
from etr.oracles.groups import GroupLaw, enumerate_groups

CHUNK = 2**22  # numbers in the largest tensor of one pass: about 30 MB


@dataclass(frozen=True, eq=False)
class GradientMoments:
    """Exact moments of g = −∂loss/∂logits of one group of one prompt.

    mean: E g, `[S, V]`; covariance_trace: tr Cov g = E|g − E g|², scalar; target: ∇J of that prompt at the current
    logits, `[S, V]`. float64.
    """

    mean: Tensor
    covariance_trace: Tensor
    target: Tensor

    @property
    def bias(self) -> Tensor:
        """E g − ∇J, `[S, V]`; a different length alone (a normalised advantage, a mean over tokens) counts as well."""
        return self.mean - self.target

    @property
    def cosine(self) -> Tensor:
        """Cosine of the angle between E g and ∇J: bias of the direction alone. NaN where one of them is 0."""
        lengths = self.mean.square().sum() * self.target.square().sum()
        return (self.mean * self.target).sum() / lengths.sqrt()

    @property
    def signal_to_noise(self) -> Tensor:
        """|E g|² / tr Cov g of a single group; n independent groups have n times as much."""
        return self.mean.square().sum() / self.covariance_trace


def gradient_moments(
    objective: Objective,
    model: TreeModel,
    logits: Tensor,
    group_size: int,
    *,
    old_logits: Tensor | None = None,
    ref_logits: Tensor | None = None,
    advantage: Estimator | None = None,
    prompt: int = 0,
    verdict: Tensor | None = None,
) -> GradientMoments:
    """E g, tr Cov g and ∇J for g = −∂policy_loss/∂logits on a group of `group_size` answers to one prompt.

    logits: the current policy `[P, S, V]`; old_logits: the one that sampled the group, by default the same (the first
    update); ref_logits: the reference policy, by default the old one; advantage: by default the objective's own;
    verdict: P(the verifier says 1), `[P, V**T]`, by default the model's own; J is always that of the success.
    What else the objective needs is supplied as the toy trainer does: values of the policy that sampled, and turns,
    clusters and reward components of a model that has them.
    Each group is a batch of its own: a statistic over the whole batch (grpo_wide, etr_surprise) is taken over that one
    group, which is not what a batch of many prompts gives.
    Raises InputError when the groups are too many to enumerate, or the objective needs what the model does not have.
    """
    old = logits if old_logits is None else old_logits
    ref = old if ref_logits is None else ref_logits
    law = enumerate_groups(old, model, group_size, prompt=prompt, verdict=verdict)
    tables = tuple(exact.log_policy(z, model)[prompt].detach() for z in (old, ref))  # constants of the update
    critic = state_values(old, model)[prompt].detach()
    leaf = logits[prompt].detach().double()  # the point at which the gradient is taken
    first, second = torch.zeros_like(leaf), leaf.new_zeros(())
    size = max(1, CHUNK // max(leaf.numel(), law.index[0].numel() * leaf.shape[-1]))
    for start in range(0, len(law.probability), size):
        chosen = law.rows(slice(start, start + size))
        given = _given(objective, model, chosen, critic, prompt)
        gradients = _gradients(objective, chosen, leaf, tables, advantage or objective.advantage, given)
        first += torch.einsum("n,nsv->sv", chosen.probability, gradients)
        second += (chosen.probability * gradients.square().sum((-2, -1))).sum()
    spread = (second - first.square().sum()).clamp(min=0.0)  # rounding must not make a variance negative
    target = exact.policy_gradient(logits, model)[prompt].detach() * model.success.shape[0]
    return GradientMoments(first, spread, target)


def _gradients(
    objective: Objective,
    law: GroupLaw,
    logits: Tensor,
    tables: tuple[Tensor, ...],
    advantage: Estimator,
    given: dict[str, Tensor],
) -> Tensor:
    """−∂loss/∂logits of every group on its own, `[N, S, V]`: groups are runs, and runs never mix."""
    runs = logits.expand(len(law.index), *logits.shape).clone().requires_grad_()
    with torch.enable_grad():
        rows = runs.log_softmax(-1)
        taken = rows.flatten(-2).gather(-1, law.index.flatten(-2)).reshape(law.index.shape)
        old, ref = (table.flatten()[law.index] for table in tables)
        ids = torch.zeros(law.rewards.shape[-1], dtype=torch.long)
        extras: dict[str, Any] = given | _whole_distribution(objective, rows, law.index)
        batch = Batch(
            log_probs=taken,
            old_log_probs=old,
            ref_log_probs=ref,
            rollout_log_probs=old,
            response_mask=torch.ones_like(taken, dtype=torch.bool),
            advantages=advantage(law.rewards, ids),
            group=group_stats(law.rewards, ids),
            **extras,
        )
        loss = policy_loss(objective, batch).loss.sum()
        (gradient,) = torch.autograd.grad(-loss, runs)
    return gradient


def _given(objective: Objective, model: TreeModel, law: GroupLaw, critic: Tensor, prompt: int) -> dict[str, Tensor]:
    """What the policy does not change, of that which the objective needs and the model has."""
    turns, clusters = getattr(model, "turns", None), getattr(model, "clusters", None)
    make: dict[str, Callable[[], Tensor] | None] = {
        "values": lambda: critic[law.index // model.vocab_size],
        "turns": turns and (lambda: torch.tensor(turns).expand(law.index.shape)),
        "clusters": None if clusters is None else lambda: clusters[prompt][law.answers],
        "components": (lambda: law.parts) if law.parts.shape[-1] == len(getattr(model, "scales", ())) else None,
    }
    return {name: value() for name, value in make.items() if value is not None and name in objective.needs}


def _whole_distribution(objective: Objective, rows: Tensor, index: Tensor) -> dict[str, Tensor]:
    """The policy's whole distribution and entropy at every token of the groups, where the objective needs them."""
    if not objective.needs & {"entropy", "full_log_probs"}:
        return {}
    vocab = rows.shape[-1]
    states = (index // vocab).flatten(-2).unsqueeze(-1).expand(-1, -1, vocab)
    full = rows.gather(-2, states).reshape(*index.shape, vocab)
    return {"full_log_probs": full, "entropy": -(full.exp() * full).sum(-1)}
