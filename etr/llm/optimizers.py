"""The optimiser of an LLM: float32 arithmetic for weights of any number format, at little more than Adam's own memory.

Bytes a parameter with AdamW, in bfloat16: weight 2, remainder of its float32 master 2 (`etr.llm.master_weights`),
moments 8, gradient 2 with one micro-batch and 4 with more.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from etr.errors import InputError, unknown
from etr.llm.export import whole
from etr.llm.heap import give_back
from etr.llm.master_weights import join, split
from etr.llm.models import LanguageModel
from etr.llm.toy_tasks import TOY_LLAMA
from etr.recipe import OptimizerSettings

LEARNING_RATES = {TOY_LLAMA: 3e-4}  # AdamW's, where the recipe names none
LEARNING_RATE = 5e-6  # the same for every other model
STATES = ("float32", "8bit", "offload")


class Optimizer:
    """One torch optimiser for each trained parameter, so that a step needs room for one master at a time.

    Gradients of bfloat16 parameters are taken out of `.grad` as soon as they are complete and added up in float32.
    `param_names` gives the parameters' names in the model.
    """

    def __init__(self, parameters: Mapping[str, Any], kind: Any, options: Mapping[str, Any], on_host: bool) -> None:
        self.param_names = list(parameters)
        self._slots = [_Slot(parameter, kind, options, on_host) for parameter in parameters.values()]

    def gradients(self) -> list[Tensor]:
        """The gradients so far, one for each parameter that has any."""
        return [gradient for slot in self._slots if (gradient := slot.gradient) is not None]

    def norm(self) -> Tensor:
        """Euclidean norm of all gradients together, float32; of the whole ones where they are sharded."""
        squares = [whole(torch.linalg.vector_norm(g, dtype=torch.float32)).square() for g in self.gradients()]
        return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())

    def clip(self, max_norm: float | None) -> Tensor:
        """Let the next step scale its gradients down to `max_norm` if they exceed it; returns their norm before."""
        norm = self.norm()
        scale = max_norm / norm if max_norm is not None and norm > max_norm else None
        for slot in self._slots:
            slot.scale = scale
        return norm

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        give_back()  # activations of the passes, before moments and masters come on top of them
        for slot in self._slots:
            slot.step()

    def zero_grad(self) -> None:
        """Forget all gradients, and what `clip` said of them."""
        for slot in self._slots:
            slot.parameter.grad = slot.summed = slot.scale = None

    def state_dict(self) -> dict[str, Any]:
        """By parameter name: what the next step depends on besides weights, gradients and settings. Not a copy."""
        return {name: slot.state() for name, slot in zip(self.param_names, self._slots, strict=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a copy of `state_dict`, bit for bit. Raises InputError when it is of other parameters."""
        if set(state) != set(self.param_names):
            raise InputError("the optimizer state is of a model with other parameters; resume with its own settings")
        for name, slot in zip(self.param_names, self._slots, strict=True):
            slot.load(state[name])


class _Slot:
    """A parameter with its optimiser. `leaf` is what that updates: the parameter, or its master during a step."""

    def __init__(self, parameter: Any, kind: Any, options: Mapping[str, Any], on_host: bool) -> None:
        self.parameter, self.leaf = parameter, parameter
        self.summed: Tensor | None = None  # gradient of a bfloat16 parameter
        self.scale: Tensor | None = None
        self.remainder: Tensor | None = None
        if parameter.dtype == torch.bfloat16:
            self.remainder = torch.zeros_like(parameter, dtype=torch.int16)
            parameter.register_post_accumulate_grad_hook(self._take)
        if on_host or self.remainder is not None:
            device = torch.device("cpu") if on_host else parameter.device
            self.leaf = torch.nn.Parameter(torch.empty(0, dtype=torch.float32, device=device))
        self.inner = kind([self.leaf], **options)

    @property
    def gradient(self) -> Tensor | None:
        gradient: Tensor | None = self.parameter.grad if self.remainder is None else self.summed
        return gradient

    def _take(self, parameter: Any) -> None:
        """Add a finished gradient. The first stays as it is: float32 would only make it larger."""
        if self.summed is None:
            self.summed = parameter.grad
        else:
            self.summed = self.summed.to(torch.float32).add_(parameter.grad)
        parameter.grad = None

    def step(self) -> None:
        if self.gradient is None:
            return
        if self.leaf is self.parameter:
            if self.scale is not None:
                self.gradient.mul_(self.scale)
            self.inner.step()
            return
        gradient = self.gradient.to(torch.float32)
        gradient = gradient if self.scale is None else gradient.mul_(self.scale)
        weight = self.parameter.detach()
        self.leaf.data = (weight if self.remainder is None else join(weight, self.remainder)).to(self.leaf.device)
        self.leaf.grad = gradient.to(self.leaf.device)
        self.inner.step()
        if self.remainder is None:
            weight.copy_(self.leaf.data)
        else:
            split(self.leaf.data.to(weight.device), weight, self.remainder)
        self.leaf.grad = None
        self.leaf.data = self.leaf.data.new_empty(0)

    def state(self) -> dict[str, Any]:
        values = dict(self.inner.state.get(self.leaf, {}))
        return values if self.remainder is None else values | {"remainder": self.remainder}

    def load(self, state: Mapping[str, Any]) -> None:
        values = {name: self._placed(value) for name, value in state.items() if name != "remainder"}
        self.inner.state[self.leaf] = values
        if self.remainder is not None:
            self.remainder.copy_(state["remainder"])

    def _placed(self, value: Any) -> Any:
        """A copy of a tensor where this optimiser works, sharded as the parameter is."""
        if not isinstance(value, Tensor):
            return value
        value = value.detach().to(self.leaf.device, copy=True)
        if hasattr(self.leaf, "placements") and value.shape == self.leaf.shape and not hasattr(value, "placements"):
            from torch.distributed.tensor import distribute_tensor

            value = distribute_tensor(value, self.leaf.device_mesh, self.leaf.placements)
        return value


def make_optimizer(settings: OptimizerSettings, language_model: LanguageModel, state: str = "float32") -> Optimizer:
    """AdamW, or SGD without momentum, over the parameters that require a gradient.

    state: where and how AdamW keeps its two moments: float32, 8bit (block-wise quantised, by torchao), or offload (in
    the computer's memory, where the step is then computed; for GPUs). Raises InputError for SGD without a learning
    rate, as there is no good default, and for a state that is not to be had.
    """
    if state not in STATES:
        raise InputError(unknown("optimizer_state", state, STATES))
    parameters = {name: p for name, p in language_model.model.named_parameters() if p.requires_grad}
    if any(parameter.dtype == torch.float16 for parameter in parameters.values()):
        raise InputError("float16 gradients under- and overflow without loss scaling; train in bfloat16 or float32")
    if settings.method == "sgd":
        if settings.lr is None:
            raise InputError("optimizer.method sgd has no learning rate here; set optimizer.lr, for example to 0.1")
        if state != "float32":
            raise InputError(f"sgd keeps no moments to hold in {state}; use optimizer_state float32")
        options = {"lr": settings.lr, "weight_decay": settings.weight_decay, "fused": True}
        return Optimizer(parameters, torch.optim.SGD, options, on_host=False)
    rate = LEARNING_RATES.get(language_model.name, LEARNING_RATE) if settings.lr is None else settings.lr
    options = {"lr": rate, "weight_decay": settings.weight_decay}
    if state == "8bit":
        return Optimizer(parameters, _adamw_8bit(), options, on_host=False)
    if state == "offload" and language_model.device.type == "cpu":
        raise InputError("optimizer_state offload moves moments from a GPU to the computer's memory; on a CPU use 8bit")
    return Optimizer(parameters, torch.optim.AdamW, {**options, "fused": True}, on_host=state == "offload")


def _adamw_8bit() -> Any:
    if importlib.util.find_spec("torchao") is None:
        raise InputError("optimizer_state 8bit needs torchao: pip install torchao")
    from torchao.optim import AdamW8bit

    return AdamW8bit
