"""Sign, region, splits and precision: what a loss must be before anything is trained with it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from etr import stats
from etr.batch import SHAPES, Batch
from etr.loss import gradient_coefficient, policy_loss
from etr.validate.base import Bench, Finding, criterion, not_applicable, verdict
from etr.validate.batches import loss_and_gradient, ragged_batch, ready

LONG = 12  # pieces of five tokens
GROUPS, SIZE = 4, 4  # of a ragged batch


@criterion(
    title="At the old policy, does the update raise what has a positive advantage?",
    why="A flipped sign trains without an error and unlearns the task.",
    limit=0,
    line="the mean cosine with the advantages must be above 0, its interval included, for the gradient of the tokens' "
    "objective and for that of the whole loss, aggregation and regularizer included",
    because="1 is the plain policy gradient. All objectives here come out above 0.9 by tokens, and above 0.8 by the "
    "loss, whose aggregation weighs answers by their length; a flipped sign is at −1. A regularizer may pull "
    "elsewhere, but not outweigh the reward.",
    failing="its gradient points away from the advantages; check the sign of the surrogate, which is maximised, "
    "and of the regularizer, which is minimised",
)
def sign(bench: Bench, limit: float) -> Finding:
    objective = bench.recipe.objective
    by_token, by_loss = list[Tensor](), list[Tensor]()
    for seed in range(bench.sizes.batches):
        batch = ragged_batch(bench.recipe, seed)
        batch = ready(bench.recipe, dataclasses.replace(batch, log_probs=batch.old_log_probs))
        by_token += _cosine(gradient_coefficient(objective, batch), batch)
        by_loss += _cosine(-loss_and_gradient(objective, batch)[1], batch)
    if len(by_token) < stats.FEWEST_SEEDS:
        return not_applicable("there is no gradient at the old policy, so it has no sign")
    if len(by_loss) < len(by_token):
        return Finding("fail", "the loss has no gradient where its tokens have one", used=math.inf)
    tokens, loss = (
        stats.bootstrap(torch.stack(x), lambda x: x.mean(-1), Generator().manual_seed(0)) for x in (by_token, by_loss)
    )
    worse = min(tokens, loss, key=lambda found: found.low)
    used = stats.Interval(*(1 - end for end in (worse.estimate, worse.high, worse.low)))
    text = f"mean cosine {tokens.estimate:.3f} by tokens, {loss.estimate:.3f} by the loss, over {len(by_token)} batches"
    return Finding(verdict(tokens.low > limit and loss.low > limit), text, tokens, used)


def _cosine(c: Tensor, batch: Batch) -> list[Tensor]:
    """The cosine of `c` and the advantages, none where either is 0; NaN stays, so that it fails."""
    a = torch.where(batch.response_mask, batch.token_advantages, 0.0).to(c.dtype)
    length = c.norm() * a.norm()
    return [] if length == 0 else [(c * a).sum() / length]


@criterion(
    title="Does the region contain the old policy?",
    why="A region that excludes r = 1 clips the answers of the very policy that made them: learning stops before it "
    "starts, or only one direction is left.",
    limit=0,
    line="no bound may lie on the wrong side of 1 (0 ≤ low ≤ 1 ≤ high)",
    because="It is the definition of a trust region; there is nothing to tolerate.",
    failing="its region excludes r = 1 for some tokens; bounds are 1 − ε and 1 + ε with ε ≥ 0",
)
def region(bench: Bench, limit: float) -> Finding:
    wrong = total = 0
    for seed in range(bench.sizes.batches):
        batch = ready(bench.recipe, ragged_batch(bench.recipe, seed, noise=(0.0, 0.3, 3.0)[seed % 3]))
        out = policy_loss(bench.recipe.objective, batch, check=False)
        low, high = out.region
        inside = (low >= 0) & (low <= 1) & (high >= 1)  # false for NaN too
        wrong += int((~inside & out.mask).sum())
        total += int(out.mask.sum())
    text = f"{wrong} of {total} tokens have a bound on the wrong side of 1"
    return Finding(verdict(wrong <= limit), text, wrong / total, 2.0 * (wrong > 0))


@criterion(
    title="Do micro-batches and ranks add up to the loss of the whole batch?",
    why="A mean over each micro-batch, or a statistic taken inside the loss, trains something else as soon as memory "
    "or the number of GPUs changes; toys, which fit into one batch, never show it.",
    limit=1e-9,
    line="loss and gradient of the parts, added up, may differ by 1e-9 of the whole in double precision",
    because="Double precision rounds at about 1e-16, and sums of some hundred tokens reach 1e-14; a different loss is "
    "off by 1e-3 and more. The line is far from both.",
    failing="its loss depends on how the batch is split; divide by the denominator handed to `aggregate`, and take "
    "statistics of the batch in `prepare`",
    required=False,
)
def splits(bench: Bench, limit: float) -> Finding:
    objective = bench.recipe.objective
    if objective.undivided == "batch":
        return not_applicable("it declares that it looks at a whole batch at a time, and trainers refuse to split it")
    worst: dict[str, float] = {}
    for seed in range(max(4, bench.sizes.batches // 4)):
        batch = ready(bench.recipe, ragged_batch(bench.recipe, seed, pieces=2))
        denominator = objective.denominator(batch.response_mask)
        whole, gradient = loss_and_gradient(objective, batch, denominator)
        for what, parts in _splits(objective.undivided == "group"):
            loss, pieces = torch.zeros_like(whole), torch.zeros_like(gradient)
            for rows in parts:
                part, pieces[rows] = loss_and_gradient(objective, batch.rows(rows), denominator)
                loss = loss + part
            gap = max(_relative(pieces, gradient), _gap(loss, whole, whole.abs().clamp(min=1e-2)))
            worst[what] = max(worst.get(what, 0.0), gap)
    largest = max(worst.values())
    details = tuple((what, f"{gap:.1e}") for what, gap in worst.items())
    text = f"the largest relative difference is {largest:.1e}"
    return Finding(verdict(largest <= limit), text, largest, largest / limit, details)


def _splits(groups: bool) -> Iterator[tuple[str, list[Tensor]]]:
    """Rows of the parts of 16 answers: micro-batches in a row, ranks that take turns, parts of unequal size."""
    unit = torch.arange(GROUPS * SIZE).reshape(GROUPS, SIZE) if groups else torch.arange(GROUPS * SIZE)[:, None]
    for parts in (2, 4):
        yield f"{parts} micro-batches", [part.flatten() for part in unit.chunk(parts)]
        yield f"{parts} ranks", [unit[i::parts].flatten() for i in range(parts)]
    yield "unequal parts", [unit[:1].flatten(), unit[1:].flatten()]


@criterion(
    title="Does it give the same numbers in bfloat16 as in double precision?",
    why="LLMs hand over bfloat16. Arithmetic that cancels, or that stays in 16 bits, turns a small update into noise.",
    limit=2**-7,
    line="the gradient may differ by 2^-7 (0.8 %) of its length, the loss by as much of the mean |objective|",
    because="Rounding the result alone costs up to 2^-9 of each number; four times that leaves room for a sum, and "
    "none for arithmetic in 16 bits, which is off by several per cent.",
    failing="its arithmetic loses precision in bfloat16; compute in the dtype of the clean batch (at least float32), "
    "and subtract log-probs before exp()",
)
def bfloat16(bench: Bench, limit: float) -> Finding:
    objective = bench.recipe.objective
    worst_gradient = worst_loss = 0.0
    for seed in range(bench.sizes.batches):
        batch = ragged_batch(bench.recipe, seed, pieces=1 if seed % 2 else LONG, noise=0.1)
        coarse = _floats(batch, torch.bfloat16)
        fine = ready(bench.recipe, _floats(coarse, torch.float64))
        coarse = ready(bench.recipe, coarse)
        (loss, gradient), (want_loss, want) = (loss_and_gradient(objective, b) for b in (coarse, fine))
        size = policy_loss(objective, fine, check=False).per_token.abs().sum() / batch.response_mask.sum()
        worst_gradient = max(worst_gradient, _relative(gradient, want))
        worst_loss = max(worst_loss, _gap(loss, want_loss, (size + want_loss.abs()).clamp(min=1e-9)))
    worst = max(worst_gradient, worst_loss)
    details = (("gradient", f"{worst_gradient:.2%}"), ("loss", f"{worst_loss:.2%}"))
    text = f"the largest relative difference over {bench.sizes.batches} batches is {worst:.2%}"
    return Finding(verdict(worst <= limit), text, worst, worst / limit, details)


def _floats(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch with what a network computes in another precision; rewards and group statistics stay exact."""
    kept = ("rewards", "components")
    values = {name: getattr(batch, name) for name in SHAPES if name not in kept and name != "response_mask"}
    floats = {name: x.to(dtype) for name, x in values.items() if x is not None and x.is_floating_point()}
    return dataclasses.replace(batch, **floats)


def _relative(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖, infinite where something is not finite; 0 where both are 0."""
    length = want.double().norm()
    return _gap(got, want, torch.where(length > 0, length, torch.finfo(torch.float64).tiny))


def _gap(got: Tensor, want: Tensor, size: Tensor) -> float:
    """‖got − want‖ / size, infinite where that is no number: max() would forget a NaN."""
    found = float((got.double() - want.double()).norm() / size)
    return found if math.isfinite(found) else math.inf
