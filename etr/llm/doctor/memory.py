"""The memory plan of a run, predicted from the model's config alone: no weight is loaded and nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from etr.llm.config import TrainConfig
from etr.llm.doctor.live import Live, imagined
from etr.llm.doctor.outline import Outline
from etr.llm.doctor.work import Work
from etr.llm.log_probs import token_log_probs
from etr.llm.lora import add_lora
from etr.llm.models import DTYPES, LanguageModel, recompute_layers
from etr.llm.optimizers import make_optimizer
from etr.recipe import Recipe

SAMPLING_COPIES = 4  # of one token's logits, float32: the logits, their log-softmax, its exponential, the same padded
# Share of Adam's float32 moments that is left on the device; 8 bit: a byte, and a float32 scale per 256 numbers.
KEPT = {"float32": 1.0, "8bit": (1 + 4 / 256) / 4, "offload": 0.0}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on the training device by part, and the peak of each phase. host: what an offloaded optimiser keeps off it.

    Weights, states, gradients and activations are counted from the operations themselves, run on tensors without
    content; keys, values and sampling are arithmetic on the sizes. A vLLM engine has its own memory, set by its
    settings, and is not in the plan.
    """

    parts: dict[str, int]
    phases: dict[str, int]
    host: int = 0

    @property
    def peak(self) -> int:
        """Bytes at the worst moment."""
        return max(self.phases.values())


@dataclass(frozen=True)
class Step:
    """Bytes of a training step: what stays between steps, what an update holds on top, and the peaks of both halves."""

    weights: int
    masters: int
    moments: int
    gradients: int
    activations: int
    update: int
    optimizer: int


def plan_memory(outline: Outline, recipe: Recipe, config: TrainConfig, work: Work) -> MemoryPlan:
    """What a step would hold at its worst moments. Raises InputError where `etr train` would."""
    size, step = DTYPES[config.dtype].itemsize, imagine_step(outline, recipe, config, work)
    moments = int(KEPT[config.optimizer_state] * step.moments)
    saved = step.moments - moments  # not on the device
    resident = step.weights + step.masters + moments
    parts = {
        "weights": step.weights,
        "rest of float32 masters": step.masters,
        "optimizer state": moments,
        "gradients": step.gradients,
        "activations": step.activations,
        "logits and scratch": max(0, step.update - resident - saved - step.gradients - step.activations),
        "keys and values": work.completions * (work.prompt + work.answer) * outline.cache_bytes(size),
        "sampling": work.completions * outline.text.vocab_size * (size + 4 * SAMPLING_COPIES),
    }
    phases = {
        "rollout": resident + parts["keys and values"] + parts["sampling"],
        "update": max(step.update, step.optimizer) - saved,
    }
    return MemoryPlan(parts, phases, saved if config.optimizer_state == "offload" else 0)


def imagine_step(outline: Outline, recipe: Recipe, config: TrainConfig, work: Work) -> Step:
    """The second of two steps of the real optimiser on tensors without content: its state is there from the first."""
    with imagined() as live:
        model = imagined_model(outline, config)
        weights = live.restart()
        optimizer = make_optimizer(recipe.optimizer, LanguageModel(model, outline.tokenizer, outline.name), "float32")
        masters = live.restart() - weights
        imagine_pass(live, model, work)
        optimizer.step()
        optimizer.zero_grad()
        resident = live.restart()
        activations = [imagine_pass(live, model, work) for _ in range(min(work.passes, 2))]
        update, gradients = live.peak, live.restart() - resident
        optimizer.step()
        peak = live.peak
    return Step(weights, masters, resident - weights - masters, gradients, max(activations), update, peak)


def imagine_pass(live: Live, model: Any, work: Work) -> int:
    """One micro-batch forward and backward; returns the bytes that it keeps from the one for the other."""
    before = live.bytes
    ids = torch.zeros(work.rows, work.width, dtype=torch.long)
    mask = torch.ones_like(ids)
    if work.packing == "prefix":  # who sees whom: a token of an answer sees its prompt and itself
        mask = torch.ones(work.rows, 1, work.width, work.width, dtype=torch.bool)
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    kept = live.bytes - before
    chosen = torch.zeros(work.scored, dtype=torch.long)  # the places that predict the answers' tokens
    log_probs, _ = token_log_probs(hidden.flatten(0, 1)[chosen], model.get_output_embeddings().weight, chosen)
    log_probs.sum().backward()
    return kept


def imagined_model(outline: Outline, config: TrainConfig) -> Any:
    """The model that would be trained, without its weights; to be called where tensors have no content."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(outline.config, dtype=DTYPES[config.dtype])
    if config.lora_rank:
        model = add_lora(LanguageModel(model, outline.tokenizer, outline.name), config.lora_rank).model
    if config.gradient_checkpointing:
        recompute_layers(model)
        model.train()  # transformers recomputes in training mode only
    return model
