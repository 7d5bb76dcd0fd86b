"""Far from the old policy: extreme ratios, and data that is several updates old."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Generator, Tensor

from etr import stats
from etr.recipe import Recipe
from etr.registry import get
from etr.validate.base import Bench, Finding, criterion, not_applicable, verdict
from etr.validate.batches import loss_and_gradient, ragged_batch, ready, stale_answers
from toy_envs import make_model

FAR = (20.0, -20.0, 60.0, -60.0)
ENV = "tree-medium"
STEP = 0.1  # nats that Adam moves a logit of a toy in one update
UPDATES = (1, 2, 4, 8, 16)
RUNS = 16  # policies


@criterion(
    title="Are loss and gradient finite, and no larger than ratios explain, at log r = ±20 and ±60?",
    why="One token whose probability an engine rounds to nothing gives such a ratio. NaN ends a run; a gradient that "
    "grows with the square of the ratio lets one token outweigh a batch.",
    limit=1000,
    line="finite in single precision, and the largest gradient at most 1000 times GRPO's on the same batches",
    because="GRPO's own largest gradient there is e^20 ≈ 5e8 (a token with A < 0 has no upper bound), and methods that "
    "weigh by the ratio come within a factor of 3. The square of the ratio is another factor of 5e8.",
    failing="its loss or gradient explodes at extreme ratios; clamp log r before exp(), and bound what grows faster "
    "than the ratio",
)
def extreme_ratios(bench: Bench, limit: float) -> Finding:
    mine, theirs = (_largest(recipe, bench.sizes.batches // 4) for recipe in (bench.recipe, grpo()))
    worst, reference = max(mine.values()), max(theirs.values())
    details = tuple((f"log r = {far:+.0f}", f"{mine[far]:.2g} (GRPO: {theirs[far]:.2g})") for far in FAR)
    if not math.isfinite(worst):
        return Finding("fail", "loss or gradient is not finite", math.inf, math.inf, details)
    ratio = worst / reference
    text = f"the largest gradient is {worst:.2g}, {ratio:.2g} times GRPO's"
    return Finding(verdict(ratio <= limit), text, ratio, ratio / limit, details)


def _largest(recipe: Recipe, batches: int) -> dict[float, float]:
    """The largest entry of the gradient by log r, in units of the largest advantage; infinite if not finite."""
    largest = dict.fromkeys(FAR, 0.0)
    for far in FAR:
        for seed in range(batches):
            batch = ready(recipe, ragged_batch(recipe, seed))
            floats = {n: getattr(batch, n).float() for n in ("old_log_probs", "ref_log_probs", "advantages")}
            moved = dataclasses.replace(batch, log_probs=(batch.old_log_probs + far).float(), **floats)
            loss, gradient = loss_and_gradient(recipe.objective, moved)
            size = float(gradient.abs().max() / batch.advantages.abs().max().clamp(min=1e-6))
            finite = bool(torch.isfinite(loss)) and math.isfinite(size)
            largest[far] = max(largest[far], size if finite else math.inf)
    return largest


@criterion(
    title="Does the gradient stay in bounds on data that is up to 16 updates old?",
    why="Rollouts are reused, and engines run ahead of the trainer. A loss whose gradient grows with staleness makes "
    "the largest steps where its data say least.",
    limit=5,
    line="the gradient's length, relative to fresh data, may grow to at most 5 times what GRPO's does",
    because="Of the objectives here all stay below 3 but two, which bound no ratio and exceed 10 (spo_simple, trpo). "
    "At 5 the usual clipping of the gradient's norm would scale down everything else in the batch.",
    failing="its gradient grows with the age of the data; give tokens outside the region no gradient, or a bounded "
    "weight",
    required=False,
)
def stale_data(bench: Bench, limit: float) -> Finding:
    mine, theirs = (_lengths(recipe) for recipe in (bench.recipe, grpo()))
    if not bool(torch.isfinite(mine).all()):
        return Finding("fail", "the gradient is not finite on stale data", math.inf, math.inf)
    if bool((mine[1:, mine[0] == 0] > 0).any()):
        return Finding("fail", "there is a gradient on stale data where fresh data give none", math.inf, math.inf)
    fresh = (mine[0] > 0) & (theirs[0] > 0)  # of the others nothing can be said
    if int(fresh.sum()) < stats.FEWEST_SEEDS:
        return not_applicable("there is no gradient on fresh data, against which growth could be measured")
    mine, theirs = mine[:, fresh], theirs[:, fresh]
    growth = (mine[1:] / mine[0]) / (theirs[1:] / theirs[0])  # [updates, runs]
    worst = int(growth.mean(-1).argmax())
    found = stats.bootstrap(growth[worst], lambda x: x.mean(-1), Generator().manual_seed(0))
    details = tuple(
        (f"{updates} updates old", f"{growth[i].mean():.2f} times GRPO's growth") for i, updates in enumerate(UPDATES)
    )
    text = f"at worst, {UPDATES[worst]} updates old, it has grown {found.estimate:.2f} times as much as GRPO's"
    used = stats.Interval(*(end / limit for end in found))
    return Finding(verdict(found.high <= limit), text, found, used, details)


def _lengths(recipe: Recipe) -> Tensor:
    """Length of the gradient by the log-probs, fresh and after each of `UPDATES`: `[1 + updates, runs]`."""
    stale = stale_answers(recipe, make_model(ENV), RUNS)
    batches = (stale.at(STEP * updates) for updates in (0, *UPDATES))
    found = [loss_and_gradient(recipe.objective, batch, stale.denominator)[1] for batch in batches]
    return torch.stack([gradient.flatten(1).norm(dim=-1) for gradient in found])


def grpo() -> Recipe:
    """GRPO at its defaults."""
    return Recipe("grpo", get("grpo"))
