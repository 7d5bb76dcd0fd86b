"""How much of everything a step has: the sizes that memory depends on, before anything is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from etr.llm.config import TrainConfig
from etr.llm.doctor.outline import Outline
from etr.llm.micro_batches import Lengths, micro_batches, work
from etr.llm.tasks import encode, load_task
from etr.recipe import Recipe
from etr.update import split


@dataclass(frozen=True)
class Work:
    """The sizes of a step whose answers are all as long as they may be.

    completions: B; prompt, answer: longest of each, tokens; packing: layout of the forward passes of an update, of
    which there are `passes`; the largest has `rows` sequences of `width` tokens, of which `scored` are answers.
    """

    completions: int
    prompt: int
    answer: int
    packing: str
    passes: int
    rows: int
    width: int
    scored: int


def work_of(outline: Outline, recipe: Recipe, config: TrainConfig) -> Work:
    """The work of the first step, with its own prompts. Raises InputError for an unknown task.

    Packing auto is taken to be prefix: cached computes as many tokens, and padded is chosen for short prompts alone.
    """
    task = load_task(config.task, split="train", config=config.task_options, seed=config.seed)
    items = task.sample(0, config.prompts, config.seed)
    prompts = [len(encode(outline.tokenizer, item)) for item in items for _ in range(config.group_size)]
    total, group = len(prompts), config.group_size
    packing = "prefix" if config.packing == "auto" else config.packing
    lengths = Lengths([i // group for i in range(total)], prompts, [config.max_new_tokens] * total)
    if recipe.optimizer.micro_batches is not None:
        parts = split(total, recipe.optimizer.micro_batches)
    else:
        parts = micro_batches(
            total, group, config.micro_batch_tokens, lambda rows: work(lengths.rows(rows), packing).tokens
        )
    return work_in(lengths, parts, lambda known: packing)


def work_in(lengths: Lengths, parts: Sequence[slice], packing: Callable[[Lengths], str]) -> Work:
    """The work of updates with these lengths, cut into these micro-batches; packing: the layout of each of them."""
    pieces = [lengths.rows(part) for part in parts]
    layouts = [packing(piece) for piece in pieces]
    sizes = [work(piece, layout).tokens for piece, layout in zip(pieces, layouts, strict=True)]
    size, piece, layout = max(zip(sizes, pieces, layouts, strict=True), key=lambda found: found[0])
    rows = len(piece) if layout == "padded" else len(piece.groups)
    return Work(
        completions=len(lengths),
        prompt=max(lengths.prompts),
        answer=max(lengths.answers),
        packing=layout,
        passes=len(parts),
        rows=rows,
        width=-(-size // rows),
        scored=sum(piece.answers),
    )
