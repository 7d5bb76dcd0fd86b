"""The trainer's weights under the names of a Hugging Face checkpoint: what a rollout engine loads and a file holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from etr.errors import InputError


def exported_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight as (name, whole tensor), detached, one after another, on the trainer's device.

    A head that is tied to the embedding is yielded under its own name too: an engine that keeps a copy of it would
    otherwise go on sampling with the old head. LoRA adapters are merged, and a sharded weight is gathered when its
    turn comes, so with several ranks every one must read all of them. The tensors are the trainer's own memory
    wherever nothing had to be merged or gathered: copy what must outlive the next optimiser step.
    """
    if hasattr(model, "peft_config"):
        from etr.llm.lora import merged_weights

        yield from merged_weights(model)
        return
    weights = ((name, whole(tensor)) for name, tensor in model.state_dict().items())
    if getattr(model, "_weight_conversions", None):  # checkpoint and module differ, for example in fused experts
        from transformers.core_model_loading import revert_weight_conversion

        yield from revert_weight_conversion(model, dict(weights)).items()
    else:
        yield from weights


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered from all ranks (a collective), any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def checked(weights: Iterable[tuple[str, Tensor]], expected: frozenset[str]) -> Iterator[tuple[str, Tensor]]:
    """The same weights; raises `InputError` after the last one when any of the expected names was not among them."""
    missing = set(expected)
    for name, tensor in weights:
        missing.discard(name)
        yield name, tensor
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
        raise InputError(
            f"{len(missing)} weights of the model were not in the push to the rollout engine ({shown}), so it would "
            "sample with old ones; push everything that exported_weights(model) yields"
        )


def weight_names(model: Any) -> frozenset[str]:
    """The names that a push must contain, read off the model alone: tied ones included, adapters left out."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    names = (name.replace(".base_layer.", ".") for name, _ in base.named_parameters(remove_duplicate=False))
    return frozenset(name for name in names if ".lora_" not in name)
