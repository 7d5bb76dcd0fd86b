"""A recorded update through TRL: its shuffling, splitting and scaling around the real `_compute_loss`.

Only two things are not TRL's: nothing is generated, because the recorded rows stand in the place of a generation, and
the forward pass gives back the recorded log-probs, as leaves whose gradient is read off afterwards.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor

from etr.adapters.trl.columns import DENOMINATOR, pack
from etr.adapters.trl.start import check_version
from etr.adapters.trl_settings import arguments, check
from etr.batch import Batch, LossOutput
from etr.recipe import Recipe, load_recipe
from etr.recorded import Recorded, Replay


def replay(recorded: Recorded) -> Replay:
    """Loss, gradient and region of a record as `ETRGRPOTrainer` computes them.

    The rows go through TRL in two micro-batches of one optimiser step, where their number is even and the objective
    allows it. Raises InputError when TRL is not installed or cannot train the recipe.
    """
    check_version()
    recipe, batch = recorded.recipe, recorded.batch
    check(recipe)
    parts = 1 if len(batch.log_probs) % 2 or recipe.objective.undivided else 2
    leaf = batch.log_probs.detach().clone().requires_grad_()
    low, high = torch.empty_like(leaf), torch.empty_like(leaf)
    order: list[Tensor] = []

    def forward(_: Any, ids: Tensor, *__: Any, **___: Any) -> tuple[Tensor, Tensor | None, None]:
        order.append(ids[:, 0])  # the prompts are the numbers of the rows
        entropy = None if batch.entropy is None else batch.entropy[order[-1]].requires_grad_()
        return leaf[order[-1]], entropy, None

    def note(_: Batch, out: LossOutput, __: Tensor | None) -> None:
        with torch.no_grad():
            low[order[-1]], high[order[-1]] = out.region

    trainer = _trainer(recipe, parts)
    trainer._get_per_token_logps_and_entropies, trainer._note = forward, note
    trainer._generate_and_score_completions = lambda _: _columns(batch, recorded.denominator)
    losses = [trainer.training_step(trainer.model, [], None) for _ in range(parts)]
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return Replay(torch.stack(losses).sum(), gradient, low.detach(), high.detach())


def _columns(batch: Batch, denominator: Tensor) -> dict[str, Any]:
    """The recorded rows as TRL keeps a generation."""
    mask = batch.response_mask.long()
    return {
        "prompt_ids": torch.arange(len(mask)).unsqueeze(-1),
        "prompt_mask": torch.ones(len(mask), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask) if batch.tokens is None else batch.tokens,
        "completion_mask": mask,
        **pack(batch, slice(None), mask.shape[-1]),
        DENOMINATOR: denominator,
    }


def _trainer(recipe: Recipe, parts: int) -> Any:
    """A trainer on the processor around a model of two words, which is never called, for one step of `parts` parts."""
    from datasets import Dataset
    from trl import GRPOConfig

    from etr.adapters.trl import ETRGRPOTrainer  # the version is checked before anything is loaded

    plain = load_recipe("grpo", {"optimizer.updates": 2})  # the recorded one may ask for an engine, which no loss does
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            folder, use_cpu=True, bf16=False, report_to="none", num_generations=2, per_device_train_batch_size=2,
            gradient_accumulation_steps=parts, **arguments(plain),
        )  # fmt: skip
        model, tokenizer = _two_words()
        data = Dataset.from_dict({"prompt": ["a"] * 2 * parts})
        trainer = ETRGRPOTrainer(model, _nothing, config, train_dataset=data, processing_class=tokenizer, recipe=plain)
    trainer.recipe = recipe
    trainer.current_gradient_accumulation_steps = parts  # what the training loop sets
    return trainer


def _nothing(**_: Any) -> list[float]:
    raise AssertionError("a replay grades nothing")


def _two_words() -> tuple[Any, Any]:
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=2, bos_token_id=0, eos_token_id=1, num_attention_heads=1, **sizes)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
    return LlamaForCausalLM(config), tokenizer
