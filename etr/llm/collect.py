"""One step's data: prompts, a group of completions each, their rewards; of this process and then of all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice

import torch
import torch.nn.functional as F
from torch import Tensor

from etr.llm.config import TrainConfig
from etr.llm.data.dynamic import collect_mixed
from etr.llm.data.templates import asked
from etr.llm.distributed import ALONE, World
from etr.llm.items import Item
from etr.llm.models import LanguageModel
from etr.llm.rewards import Grader, Grades, overlong
from etr.llm.rollout import Rollout, RolloutEngine, request_seeds, texts
from etr.llm.tasks import Task, encode


@dataclass(frozen=True, eq=False)
class Collected:
    """B graded completions, a group's rows together.

    rewards: as graded, `[B]`, whose statistics say how hard a prompt is; shaped: with the penalty for overlong answers,
    `[B]`, from which advantages come; keep: completions that get a gradient, bool `[B]`; items: the question of each
    group; components: parts of the reward by name, `[B]` each; timeouts, errors: answers that could not be graded;
    refilled: prompts that were drawn again.
    """

    rollout: Rollout
    items: tuple[Item, ...]
    rewards: Tensor
    shaped: Tensor
    keep: Tensor
    components: dict[str, Tensor]
    timeouts: int = 0
    errors: int = 0
    refilled: int = 0

    @property
    def group_ids(self) -> Tensor:
        """Number of the prompt of each completion, `[B]`."""
        size = len(self.rewards) // len(self.items)
        return torch.arange(len(self.items), device=self.rewards.device).repeat_interleave(size)

    @property
    def counts(self) -> dict[str, float]:
        """What a run logs of its data besides rewards and lengths."""
        means = {f"reward/{name}": float(values.mean()) for name, values in self.components.items()}
        graded = {"reward/timeouts": float(self.timeouts), "reward/errors": float(self.errors)}
        return {**graded, "group/refilled": float(self.refilled), **means}

    @property
    def is_mixed(self) -> bool:
        """True when the rewards of this one group differ, so that it has a gradient."""
        return bool((self.shaped != self.shaped[0]).any())

    def group(self, number: int) -> Collected:
        """One of the groups."""
        size = len(self.rewards) // len(self.items)
        rows = slice(number * size, (number + 1) * size)
        return dataclasses.replace(
            self,
            rollout=self.rollout.rows(rows),
            items=(self.items[number],),
            components={name: values[rows] for name, values in self.components.items()},
            rewards=self.rewards[rows],
            shaped=self.shaped[rows],
            keep=self.keep[rows],
        )


def joined(parts: Sequence[Collected], pad_id: int) -> Collected:
    """Several batches one after another, padded to the widest prompt and the longest completion."""
    if len(parts) == 1:
        return parts[0]
    device = parts[0].rewards.device

    def column(name: str) -> Tensor:
        return torch.cat([getattr(part, name).to(device) for part in parts])

    return Collected(
        rollout=_joined_rollouts([part.rollout for part in parts], pad_id, device),
        items=tuple(chain.from_iterable(part.items for part in parts)),
        rewards=column("rewards"),
        shaped=column("shaped"),
        keep=column("keep"),
        components={n: torch.cat([p.components[n].to(device) for p in parts]) for n in parts[0].components},
        timeouts=sum(part.timeouts for part in parts),
        errors=sum(part.errors for part in parts),
        refilled=sum(part.refilled for part in parts),
    )


def _joined_rollouts(parts: Sequence[Rollout], pad_id: int, device: torch.device) -> Rollout:
    width = max(part.prompt_width for part in parts)
    longest = max(part.response_mask.shape[1] for part in parts)

    def widened(values: Tensor, part: Rollout, fill: float, prompts: bool) -> Tensor:
        left = width - part.prompt_width if prompts else 0
        return F.pad(values.to(device), (left, longest - part.response_mask.shape[1]), value=fill)

    log_probs = [part.log_probs for part in parts]
    return Rollout(
        torch.cat([widened(part.sequences, part, pad_id, True) for part in parts]),
        torch.cat([widened(part.attention_mask, part, 0, True) for part in parts]),
        torch.cat([widened(part.response_mask, part, False, False) for part in parts]),
        torch.cat([part.finished.to(device) for part in parts]),
        width,
        torch.cat([widened(x, p, 0.0, False) for x, p in zip(log_probs, parts, strict=True) if x is not None]),
    )


@dataclass
class Collector:
    """Draws, samples and grades; everything is a function of the engine's weights and (seed, step)."""

    config: TrainConfig
    task: Task
    language_model: LanguageModel
    engine: RolloutEngine
    grader: Grader
    world: World = ALONE
    templates: tuple[str, ...] = ()

    def collect(self, step: int) -> Collected:
        """The groups of all processes, in the order of their prompts; each process samples its own share."""
        world, config = self.world, self.config
        drawn = list(enumerate(self.task.sample(step - 1, config.prompts * (1 + config.refills), config.seed)))
        share = world.share(config.prompts)
        # This process's share of the prompts, and then every size-th of those that may replace some of them.
        queue = iter([*drawn[: config.prompts][share], *drawn[config.prompts + world.rank :: world.size]])
        graded: list[Grades] = []

        def draw(attempt: int, count: int) -> list[Collected]:
            questions = list(islice(queue, count))
            if not questions:  # other processes had more to replace
                return []
            whole, grades = self.sample(questions, step)
            graded.append(grades)
            return [whole.group(i) for i in range(len(questions))]

        groups, seen = collect_mixed(draw, lambda group: group.is_mixed, share.stop - share.start, config.refills)
        self.engine.sleep()
        own = dataclasses.replace(
            joined(groups, self.language_model.pad_id),
            timeouts=sum(grades.timeouts for grades in graded),
            errors=sum(grades.errors for grades in graded),
            refilled=seen - len(groups),
        )
        return joined(world.gather(own), self.language_model.pad_id)

    def close(self) -> None:
        """Let go of engine and grader."""
        self.engine.close()
        self.grader.close()

    def sample(self, questions: Sequence[tuple[int, Item]], step: int) -> tuple[Collected, Grades]:
        """A graded group for each question; the number that comes with it makes its samples its own."""
        lm, config, size = self.language_model, self.config, self.config.group_size
        numbers, items = zip(*questions, strict=True)
        asks = [asked(item, self.templates, config.seed, step, number) for number, item in questions]
        prompts = [encode(lm.tokenizer, item) for item in asks]
        rollout = self.engine.generate(prompts, size, request_seeds(config.seed, step, numbers, size))
        grades = self.grader.grade([item for item in items for _ in range(size)], texts(lm, rollout))
        rewards = torch.tensor(grades.rewards, device=lm.device)
        shaped, keep = overlong(config.overlong, rewards, rollout.lengths, rollout.finished, config.max_new_tokens)
        components = {name: torch.tensor(values, device=lm.device) for name, values in grades.components.items()}
        return Collected(rollout, items, rewards, shaped, keep, components), grades
