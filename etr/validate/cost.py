"""What the loss costs, measured in turns with GRPO's in one process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Generator

from etr import stats
from etr.batch import SHAPES, Batch
from etr.bench import paired
from etr.groups import group_stats
from etr.recipe import Recipe
from etr.validate.base import Bench, Finding, criterion, verdict
from etr.validate.batches import loss_and_gradient, ragged_batch, ready
from etr.validate.stability import grpo

TILES, PIECES = 8, 24  # 128 answers of up to 120 tokens
PATIENCE = 20.0  # seconds


@criterion(
    title="Does loss and gradient cost about what GRPO's cost?",
    why="A loss runs at every update. A loop over tokens in Python, or work that grows with the square of the batch, "
    "costs more than the model at the size of an LLM.",
    limit=200,
    line="statistics, loss and gradient may take 200 times GRPO's processor time; only an interval wholly above fails",
    because="On one core GRPO's loss takes about 0.1 µs a token, and even a model of 135 million parameters some "
    "milliseconds: 200 times GRPO's is below one per cent of an update. The objectives here take up to 61 times, a "
    "loop over tokens in Python takes hundreds.",
    failing="its loss is far slower than GRPO's; replace loops over tokens by operations on whole tensors",
)
def cost(bench: Bench, limit: float) -> Finding:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        mine, theirs = (_step(recipe) for recipe in (bench.recipe, grpo()))
        turns = max(3, min(bench.sizes.turns, int(PATIENCE / mine())))
        seconds = paired({"mine": mine, "grpo": theirs}, turns)
    finally:
        torch.set_num_threads(threads)
    ratios = torch.tensor(seconds["mine"]) / torch.tensor(seconds["grpo"])
    found = stats.bootstrap(ratios, lambda x: x.median(-1).values, Generator().manual_seed(0))
    text = f"{found.estimate:.1f} times GRPO's time, median of {turns} turns"
    used = stats.Interval(*(end / limit for end in found))
    return Finding(verdict(found.low <= limit), text, found, used)


def _step(recipe: Recipe) -> Callable[[], float]:
    """Processor seconds of one step: on a busy machine the clock on the wall favours whoever is quick."""
    batch = large_batch(recipe)

    def seconds() -> float:
        start = time.process_time()
        loss_and_gradient(recipe.objective, ready(recipe, batch))
        return time.process_time() - start

    return seconds


def large_batch(recipe: Recipe) -> Batch:
    """A ragged float32 batch of 128 answers of up to 120 tokens, in groups of four."""
    small = ragged_batch(recipe, 0, PIECES)
    rows = torch.arange(small.log_probs.shape[0]).repeat(TILES)
    batch = dataclasses.replace(small, group=None).rows(rows)
    columns = {name: getattr(batch, name) for name in SHAPES}
    floats = {name: x.float() for name, x in columns.items() if x is not None and x.is_floating_point()}
    ids = torch.arange(len(rows)) // 4
    assert batch.rewards is not None  # a random batch has every input
    return dataclasses.replace(batch, **floats, group_ids=ids, group=group_stats(batch.rewards.float(), ids))
