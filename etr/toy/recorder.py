"""What a toy run measures: exact reward, entropy and KL; from the samples, who was clipped and how wide regions are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etr import diagnostics, exact, observatory
from etr.batch import Batch, LossOutput, Mean
from etr.loss import gradient_coefficient, policy_loss
from etr.recipe import Recipe
from etr.toy.answers import current_columns, taken_log_probs
from toy_envs.model import ExactModel

SUCCESS_EDGES = torch.tensor(observatory.SUCCESS_EDGES)  # the bins of success rate in reports
PASS_AT = (4, 16)
SIGNAL = ("gradient/signal", "gradient/noise")


@dataclass(frozen=True)
class History:
    """What a run measured: `curves[name]` is `[seeds, measurements]`, taken at `steps`.

    Reward, entropy and KL are exact, the shares come from the samples.
    width: mean width of the region by success rate of the group, `[seeds, bins]` (bins of `SUCCESS_EDGES`).
    """

    steps: list[int]
    curves: dict[str, Tensor]
    width: Tensor
    logits: Tensor

    def split(self, parts: int) -> list[History]:
        """The histories of `parts` equal blocks of runs."""
        curves = {name: curve.chunk(parts) for name, curve in self.curves.items()}
        blocks = zip(self.width.chunk(parts), self.logits.chunk(parts), strict=True)
        return [
            History(self.steps, {name: blocks_of[i] for name, blocks_of in curves.items()}, width, logits)
            for i, (width, logits) in enumerate(blocks)
        ]


class Recorder:
    """Collects the metrics of a run; with `observe` also the observatory's, for up to as long again."""

    def __init__(self, recipe: Recipe, model: ExactModel, observe: bool = False) -> None:
        self.recipe, self.model, self.observing = recipe, model, observe
        self.steps: list[int] = []
        self.rows: list[dict[str, Tensor]] = []
        self.parts: list[dict[str, Mean]] = []
        self.width: Mean | None = None

    def observe(self, part: Batch, out: LossOutput) -> None:
        """Clip shares and region widths of a micro-batch, at the last update of an iteration."""
        self.parts.append(diagnostics.clipped(self.recipe.objective, part))
        width = diagnostics.width_by_success_rate(part, out.region, SUCCESS_EDGES)
        self.width = width if self.width is None else self.width + width

    def measure(self, step: int, logits: Tensor, old_logits: Tensor, batch: Batch, index: Tensor) -> None:
        """Exact values after an iteration, as means over prompts `[seeds]`.

        index: state·V + token of every sample, `[R, P, G, T]`.
        """
        shares = {name: sum((p[name] for p in self.parts[1:]), self.parts[0][name]) for name in self.parts[0]}
        self.parts = []
        exactly = {
            "reward": exact.expected_reward(logits, self.model),
            "entropy": exact.entropy(logits, self.model),
            "kl_new_to_old": exact.kl(logits, old_logits, self.model),
        }
        row = {k: v.mean(-1) for k, v in exactly.items()}
        row |= {name: mean.value for name, mean in (shares | diagnostics.homogeneous(batch)).items()}
        if self.observing:
            row |= {f"pass@{k}": observatory.pass_at_k(exactly["reward"], k).mean(-1) for k in PASS_AT}
            row |= self._observed(logits, old_logits, batch, index)
        self.steps.append(step)
        self.rows.append(row)

    def _observed(self, logits: Tensor, old_logits: Tensor, batch: Batch, index: Tensor) -> dict[str, Tensor]:
        """The observatory's view of the update, `[seeds]` by name."""
        objective = self.recipe.objective
        columns: dict[str, Any] = current_columns(objective.needs, logits, index)
        after = dataclasses.replace(batch, log_probs=taken_log_probs(logits, index), **columns)
        split, visits = observatory.exact_entropy_change(
            after, gradient_coefficient(objective, after), index, old_logits, logits, self.model
        )
        sums = observatory.observe(objective, after) | split.metrics() | {"entropy/visits": visits}
        return observatory.read(sums) | self._signal(old_logits, batch, index)

    def _signal(self, old_logits: Tensor, batch: Batch, index: Tensor) -> dict[str, Tensor]:
        """Signal and noise of the first update's gradient, before the policy moves; NaN for groups of one."""
        if index.shape[-2] < 2:
            return dict.fromkeys(SIGNAL, torch.full(index.shape[:1], torch.nan, dtype=torch.float64))
        leaf = batch.old_log_probs.detach().requires_grad_()  # a fresh leaf: only its gradient is read
        at_start = dataclasses.replace(batch, log_probs=leaf)
        with torch.enable_grad():
            loss = policy_loss(self.recipe.objective, at_start, check=False).loss.sum()
            (weights,) = torch.autograd.grad(loss, leaf)
        return dict(zip(SIGNAL, observatory.member_signal(weights, index, old_logits), strict=True))

    def history(self, logits: Tensor) -> History:
        curves = {name: torch.stack([row[name] for row in self.rows], -1) for name in self.rows[0]}
        assert self.width is not None  # the last iteration is always measured
        return History(self.steps, curves, self.width.value, logits)
