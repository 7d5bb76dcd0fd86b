"""What TRL really did in each optimiser step: weights, rows and gradient; and the gradient that they should have.

The reference knows nothing of TRL's shuffling, splitting and scaling: it takes log-probs of all rows of the step at
once by a plain log_softmax, and `etr.policy_loss` of the whole batch. Run as a file it is one of several processes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import Any

import torch
import trl_tiny as tiny
from torch import Tensor

import etr
from etr.recipe import Recipe

KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


@dataclass
class Step:
    weights: dict[str, Tensor]
    rows: list[dict[str, Tensor]] = field(default_factory=list)
    gradient: dict[str, Tensor] = field(default_factory=dict)
    loss: float = 0.0


@dataclass
class Captured:
    """Generations (whole, of this process, unshuffled, with the weights that made them) and optimiser steps."""

    generations: list[dict[str, Any]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)


def capture(trainer: Any) -> Captured:
    """Train, and write down what happens."""
    from transformers import TrainerCallback

    found = Captured()
    generate, loss = trainer._generate_and_score_completions, trainer._compute_loss

    def weights() -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            found.steps.append(Step(weights()))

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            found.steps[-1].gradient = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}

    def generated(inputs: Any) -> Any:
        output = generate(inputs)
        found.generations.append({key: output[key].clone() for key in KEYS} | {"weights": weights()})
        return output

    def lost(model: Any, inputs: Any) -> Tensor:
        value = loss(model, inputs)
        found.steps[-1].rows.append({key: inputs[key].clone() for key in KEYS})
        found.steps[-1].loss += value.item()
        return value

    trainer._generate_and_score_completions, trainer._compute_loss = generated, lost
    trainer.add_callback(Watch())
    trainer.train()
    return found


def log_probs(weights: dict[str, Tensor], rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Log-probs `[B, T]` with graph, the leaves, and entropies, by transformers' forward pass and a log_softmax."""
    model = tiny.model()
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], 1)
    attention = torch.cat([rows["prompt_mask"], rows["completion_mask"]], 1)
    logits = torch.func.functional_call(model, leaves, (), {"input_ids": ids, "attention_mask": attention}).logits
    every = logits[:, -rows["completion_ids"].shape[1] - 1 : -1].log_softmax(-1)
    chosen = every.gather(-1, rows["completion_ids"].unsqueeze(-1)).squeeze(-1)
    return chosen, leaves, -(every.exp() * every).sum(-1)


def joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of all parts, right-padded (prompts left-padded) to the longest."""
    found = {}
    for key in KEYS:
        width = max(part[key].shape[1] for part in parts)
        left = key.startswith("prompt")
        pads = [(width - part[key].shape[1], 0) if left else (0, width - part[key].shape[1]) for part in parts]
        found[key] = torch.cat([torch.nn.functional.pad(p[key], pad) for p, pad in zip(parts, pads, strict=True)])
    return found


def names_of(rows: dict[str, Tensor]) -> list[str]:
    """One name for each row: its prompt and answer, without padding."""
    masks = zip(rows["prompt_ids"], rows["prompt_mask"], rows["completion_ids"], rows["completion_mask"], strict=True)
    return [str((p[pm.bool()].tolist(), c[cm.bool()].tolist())) for p, pm, c, cm in masks]


def expected(recipe: Recipe, everyone: list[Captured], place: int) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of optimiser step `place`, over all processes, by our own loss of the whole batch."""
    reuse = len(everyone[0].steps) // len(everyone[0].generations)
    generation = joined([one.generations[place // reuse] for one in everyone])
    rows = joined([part for one in everyone for part in one.steps[place].rows])
    lengths = [tiny.tokenizer().decode(ids[m.bool()], skip_special_tokens=True) for ids, m in
               zip(generation["completion_ids"], generation["completion_mask"], strict=True)]  # fmt: skip
    rewards = torch.tensor(tiny.even(lengths))
    ids = torch.arange(len(rewards)) // tiny.GROUP
    order = [names_of(generation).index(name) for name in names_of(rows)]
    new, leaves, entropy = log_probs(everyone[0].steps[place].weights, rows)
    old = log_probs(everyone[0].generations[place // reuse]["weights"], rows)[0].detach()
    batch = etr.Batch(
        log_probs=new,
        old_log_probs=old,
        response_mask=rows["completion_mask"].bool(),
        advantages=recipe.advantages(rewards, ids)[order],
        group=etr.group_stats(rewards, ids).rows(torch.tensor(order)),
        rewards=rewards[order],
        group_ids=ids[order],
        entropy=entropy,
        tokens=rows["completion_ids"],
    )
    loss = etr.policy_loss(recipe.objective, batch).loss
    names = list(leaves)
    return loss.item(), dict(zip(names, torch.autograd.grad(loss, [leaves[n] for n in names]), strict=True))


def main() -> None:
    """One of several processes; RANK and WORLD_SIZE say which of how many."""
    name, settings, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    trainer = tiny.trainer(etr.load_recipe(name, settings.pop("recipe")), **settings)
    torch.save(capture(trainer), out)


if __name__ == "__main__":
    import trl_captured  # as the tests import it, so that they can unpickle what is saved

    trl_captured.main()
