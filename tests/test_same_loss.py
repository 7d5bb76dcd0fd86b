"""The promise of this project: a bandit batch goes through the toy trainer's path and through the LLM trainer's path,
and loss, region and gradient with respect to the log-probs are equal bit for bit.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import etr
from etr.batch import CURRENT, Batch, LossOutput
from etr.llm.config import TrainConfig
from etr.llm.policy import Policy
from etr.llm.rollout import Rollout
from etr.llm.train import Trainer
from etr.recipe import load_recipe
from etr.toy.rollout import rollout
from etr.toy.update import Updater
from etr.update import add_gradients, split
from toy_envs import make_model

PARTS = 4


class BanditLanguageModel(torch.nn.Module):
    """A "language model" whose prompt is one token and whose next-token logits are the rows of a bandit's table."""

    _is_stateful = True  # it keeps no cache of keys and values
    dtype, device = torch.float32, torch.device("cpu")
    config = SimpleNamespace(_attn_implementation="eager", get_text_config=lambda: SimpleNamespace(vocab_size=10))

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding.from_pretrained(table.clone(), freeze=False)
        self.head = torch.nn.Linear(*table.shape[1:] * 2, bias=False)
        torch.nn.init.eye_(self.head.weight).requires_grad_(False)

    def forward(self, input_ids: Tensor, **ignored: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.rows(input_ids)))

    def get_output_embeddings(self) -> Any:
        return self.head


@dataclasses.dataclass
class Seen:
    """Losses, regions and log-prob gradients of all micro-batches."""

    losses: list[Tensor]
    regions: list[Tensor]
    gradients: list[Tensor]

    def keep(self, log_probs: Tensor) -> Tensor:
        log_probs.register_hook(self.gradients.append)
        return log_probs

    def observe(self, part: Batch, out: LossOutput) -> None:
        self.losses.append(out.loss.detach().squeeze())
        self.regions += [bound.expand_as(out.per_token).reshape(-1) for bound in out.region]

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        flatten = [g.reshape(-1) for g in self.gradients]
        return torch.stack(self.losses), torch.cat(self.regions), torch.cat(flatten)


WATCHED: list[Tensor] = []


class Watched(Updater):
    """The toy trainer's update, keeping the gradient with respect to the log-probs of the batch."""

    def current(self, parameters: Tensor, batch: Batch, index: Tensor) -> Batch:
        seen = super().current(parameters, batch, index)
        if seen.log_probs.requires_grad:
            seen.log_probs.register_hook(WATCHED.append)
        return seen


@pytest.mark.parametrize("name", [n for n in etr.list_objectives()])
def test_toy_path_and_llm_path_are_bit_equal(name: str) -> None:
    recipe, model = load_recipe(name), make_model("bandit-spread")
    rng = torch.Generator().manual_seed(0)
    old_logits = torch.randn(1, model.prompts, 1, model.vocab_size, generator=rng)
    logits = (old_logits + 0.3 * torch.randn(old_logits.shape, generator=rng)).requires_grad_()
    draw = torch.rand(1, model.prompts, 8, 2, generator=rng)
    batch, index = rollout(recipe, model, old_logits, draw)
    batch, _ = recipe.objective.prepare(batch, recipe.objective.init_state((1,), logits.device))
    denominator = recipe.objective.denominator(batch.response_mask)
    parts = split(batch.response_mask.shape[-2], PARTS)

    toy = Watched(recipe, lambda table: table, parts, recipe.objective.needs)
    toy_loss = toy.loss(logits, batch.clean(), index, denominator)
    toy_loss.backward()
    whole = toy.current(logits.detach(), batch, index)
    outs = [etr.policy_loss(recipe.objective, whole.rows(rows), denominator, check=False) for rows in parts]
    toy_regions = torch.cat([bound.reshape(-1) for out in outs for bound in out.region])

    lm = BanditLanguageModel(logits.detach()[0, :, 0])
    prompt = torch.arange(model.prompts).repeat_interleave(8)
    arms = index.reshape(-1)  # a bandit's only state is 0, so the place in the table is the arm
    sampled = Rollout(
        torch.stack([prompt, arms], 1), torch.ones(len(arms), 2), torch.ones(len(arms), 1) > 0, prompt == prompt, 1
    )
    tokenizer = SimpleNamespace(get_vocab=lambda: {str(arm): arm for arm in range(model.vocab_size)})
    language_model: Any = SimpleNamespace(model=lm, device=torch.device("cpu"), tokenizer=tokenizer)
    nothing: Any = None
    policy = Policy(language_model)
    trainer = Trainer(recipe, TrainConfig(), language_model, policy, nothing, nothing, nothing, {})
    one_run = _first_run(batch)
    llm = Seen([], [], [])
    columns = _first_run(whole)

    def others(rows: slice) -> dict[str, Tensor]:  # what this language model cannot supply
        part = columns.rows(rows)
        return {name: value for name in CURRENT if (value := getattr(part, name)) is not None}

    add_gradients(
        recipe.objective,
        one_run,
        lambda rows: {**others(rows), "log_probs": llm.keep(trainer.current(sampled, rows)["log_probs"])},
        recipe.objective.denominator(one_run.response_mask),
        parts,
        llm.observe,
    )

    losses, regions, gradients = llm.flat()
    assert torch.equal(torch.stack([out.loss.squeeze() for out in outs]), losses)
    assert torch.equal(toy_loss.detach(), sum(losses[1:], losses[0]))
    assert torch.equal(toy_regions, regions)
    assert torch.equal(WATCHED.pop().reshape(-1), gradients) and gradients.abs().sum() > 0
    if recipe.objective.needs & set(CURRENT):
        return  # a part of the toy's gradient does not pass through the log-probs
    # Behind the log-probs each model's own backward pass follows; it sums in another order, hence only to rounding.
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[0, :, 0], lm.rows.weight.grad, rtol=1e-4, atol=1e-7)


def _first_run(batch: Batch) -> Batch:
    """The same batch without its run dimension, as the LLM trainer has it."""
    tensors = {f.name: v[0] for f in dataclasses.fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}
    assert batch.group is not None
    group = dataclasses.replace(batch.group, **{k: v[0] for k, v in vars(batch.group).items()})
    columns = {k: v[0] for k, v in batch.columns.items()}
    changes: dict[str, Any] = {**tensors, "group": group, "columns": columns}
    return dataclasses.replace(batch, **changes)
