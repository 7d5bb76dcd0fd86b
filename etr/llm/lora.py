"""LoRA adapters by peft: train two thin matrices beside each linear layer instead of all weights (2106.09685).

W x becomes W x + (α / r) B A x, with A [r, in], B [out, r], and B = 0 at first.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.distributed import sharded_as
from etr.llm.models import LanguageModel

ALPHA = 2  # α / r: with it the scale of an update does not depend on the rank
ADAPTER = "default"  # peft's own name for the only adapter of a model


def add_lora(language_model: LanguageModel, rank: int, seed: int = 0) -> LanguageModel:
    """The model with adapters of that rank on all its linear layers but the head, the only parameters to be trained.

    The model is changed in place and wrapped. Adapters are float32 whatever the model's number format is, and their
    start is fixed by the seed. Raises InputError without peft or for a rank below 1.
    """
    if rank < 1:
        raise InputError(f"lora_rank is {rank}; give at least 1, or 0 to train all weights")
    if importlib.util.find_spec("peft") is None:
        raise InputError("lora_rank needs peft: pip install peft")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=ALPHA * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = get_peft_model(language_model.model, config)
    return dataclasses.replace(language_model, model=model.eval())


def has_lora(model: Any) -> bool:
    """True for a model from `add_lora`."""
    return hasattr(model, "peft_config")


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name in the base model's checkpoint, weight with its adapter added), one after another; the model is unchanged.

    W + (α / r) B A, rounded to W's number format. Tied weights are yielded under each of their names.
    """
    base = model.get_base_model()
    deltas = {f"{name}.base_layer.weight": layer for name, layer in base.named_modules() if hasattr(layer, "lora_A")}
    for name, weight in base.state_dict().items():
        if ".lora_" in name:
            continue
        if name in deltas:
            delta = deltas[name].get_delta_weight(ADAPTER).detach()
            weight = (weight.to(delta.dtype) + delta).to(weight.dtype)
        yield name.replace(".base_layer.", "."), weight


def adapter_state(model: Any) -> dict[str, Tensor]:
    """The adapters' own weights by name: all that a checkpoint of a LoRA run must keep of the model."""
    return {name: parameter.detach() for name, parameter in _adapters(model).items()}


def load_adapter_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Put `adapter_state` back, in place. Raises InputError when it is of another rank or model."""
    own = _adapters(model)
    if {name: tuple(p.shape) for name, p in own.items()} != {name: tuple(p.shape) for name, p in state.items()}:
        raise InputError("the adapters are of another model or another lora_rank; resume with the run's own settings")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(sharded_as(parameter, state[name]))


def _adapters(model: Any) -> dict[str, Any]:
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
