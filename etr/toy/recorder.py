"""What a toy run measures: exact reward, entropy and KL; from the samples, who was clipped and how wide regions are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from etr import diagnostics, exact
from etr.batch import Batch, LossOutput, Mean
from etr.recipe import Recipe
from toy_envs.model import ExactModel

SUCCESS_EDGES = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])  # inner boundaries of the success-rate bins in reports


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


class Recorder:
    """Collects the metrics of a run."""

    def __init__(self, recipe: Recipe, model: ExactModel) -> None:
        self.recipe, self.model = recipe, model
        self.steps: list[int] = []
        self.rows: list[dict[str, Tensor]] = []
        self.parts: list[dict[str, Mean]] = []
        self.width: Mean | None = None

    def observe(self, part: Batch, out: LossOutput) -> None:
        """Clip shares and region widths of a micro-batch, at the last update of an iteration."""
        self.parts.append(diagnostics.clipped(self.recipe.objective, part))
        width = diagnostics.width_by_success_rate(part, out.region, SUCCESS_EDGES)
        self.width = width if self.width is None else self.width + width

    def measure(self, step: int, logits: Tensor, old_logits: Tensor, batch: Batch) -> None:
        """Exact values after an iteration, as means over prompts `[seeds]`."""
        shares = {name: sum((p[name] for p in self.parts[1:]), self.parts[0][name]) for name in self.parts[0]}
        self.parts = []
        exactly = {
            "reward": exact.expected_reward(logits, self.model),
            "entropy": exact.entropy(logits, self.model),
            "kl_new_to_old": exact.kl(logits, old_logits, self.model),
        }
        shares |= diagnostics.homogeneous(batch)
        self.steps.append(step)
        self.rows.append({k: v.mean(-1) for k, v in exactly.items()} | {k: m.value for k, m in shares.items()})

    def history(self, logits: Tensor) -> History:
        curves = {name: torch.stack([row[name] for row in self.rows], -1) for name in self.rows[0]}
        assert self.width is not None  # the last iteration is always measured
        return History(self.steps, curves, self.width.value, logits)
