"""Refusals that need the trainer itself, and a guard around a vLLM engine in the same process."""

from __future__ import annotations

from typing import Any

from etr.errors import InputError
from etr.recipe import Recipe


def check_trainer(trainer: Any, recipe: Recipe) -> None:
    """Refuse what a finished GRPOTrainer would add to the loss, or lacks for it; guard its engine."""
    if getattr(trainer, "aux_loss_enabled", False):
        raise InputError(
            "the model adds a router loss (router_aux_loss_coef), which is no part of the recipe; set it to 0"
        )
    if getattr(trainer, "tools", None) and "turns" in recipe.objective.needs:
        raise InputError(
            f"objective '{recipe.objective.name}' needs the turn of each token, which TRL does not say where there are "
            "tools; train without tools"
        )
    if (engine := getattr(getattr(trainer, "vllm_generation", None), "llm", None)) is not None:
        guard_engine(engine)


def guard_engine(engine: Any) -> None:
    """Let the engine refuse to read its weights from disk again, as TRL up to 1.9 tells a sleeping one to.

    TRL did so after it had synchronised them, so every rollout came from the first checkpoint (its issue 5312).
    """
    call = engine.collective_rpc

    def guarded(method: Any, *more: Any, **others: Any) -> Any:
        if method == "reload_weights" and not (more or others.get("args") or others.get("kwargs")):
            raise InputError(
                "this version of TRL lets vLLM reload the first checkpoint after every sync (TRL issue 5312); set "
                "vllm_enable_sleep_mode=False or install TRL 1.10 or newer"
            )
        return call(method, *more, **others)

    engine.collective_rpc = guarded
