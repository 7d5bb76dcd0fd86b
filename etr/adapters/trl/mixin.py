"""TRL's GRPOTrainer with the recipe's advantages and loss in the place of its own.

    rewards of all processes --> advantages, group columns, prepare() --> TRL shuffles, splits, repeats
    micro-batch --> policy_loss with the denominator of the whole optimiser step, times the number of processes

TRL and what lies below it average gradients over processes and, within an optimiser step, add them: so the gradient of
a step is that of our loss on the step's whole batch, however it is cut.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etr.adapters.trl import guard, start
from etr.adapters.trl.columns import DENOMINATOR, IMAGES, pack, unpack
from etr.adapters.trl.setup import own_config, recording_for
from etr.adapters.trl.state import load_state, save_state
from etr.adapters.trl.watch import Metrics, Scale
from etr.adapters.trl.whole import all_texts, denominators, total_rewards, whole_batch
from etr.adapters.trl_settings import check
from etr.batch import Batch, LossOutput
from etr.errors import InputError
from etr.llm.rewards.clusters import clusters
from etr.loss import policy_loss
from etr.objective import State
from etr.recipe import Recipe, load_recipe


class RecipeLoss:
    """What `ETRGRPOTrainer` changes in TRL's GRPOTrainer: mixed into it by `trainer_class`.

    Beside GRPOTrainer's own arguments: recipe, a Recipe or what `etr.load_recipe` takes; reward_range: of the rewards,
    for group statistics; record: a file for the replay proof. Raises InputError for what `etr.adapters.trl.start`
    refuses, and warns where no ratio can leave 1.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: Any = None,
        *more: Any,
        recipe: Recipe | str | os.PathLike[str],
        reward_range: tuple[float, float] = (0.0, 1.0),
        record: Path | str | None = None,
        **others: Any,
    ) -> None:
        self.recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        check(self.recipe)
        start.check_parts(type(self))
        args = own_config(self.recipe, model) if args is None else args
        start.check_arguments(self.recipe, args)
        super().__init__(model, reward_funcs, args, *more, **others)  # type: ignore[call-arg]
        trainer: Any = self  # the attributes below are TRL's
        start.check_layout(self.recipe, trainer.args, trainer.accelerator.num_processes)
        guard.check_trainer(trainer, self.recipe)
        self.reward_range = reward_range
        # Entropies carry a gradient only with TRL's own bonus, which `_compute_loss` here never adds.
        trainer._entropy_bonus_enabled = "entropy" in self.recipe.objective.needs
        self.state_of_objective: State = self.recipe.objective.init_state((), trainer.accelerator.device)
        self._rewards = self._components = torch.empty(0)  # of the last generation
        self._clusters: Tensor | None = None
        self._etr_metrics, self._scale = Metrics(), Scale(trainer.args.gradient_accumulation_steps)
        main = trainer.accelerator.is_main_process
        self._recording = None if record is None or not main else recording_for(trainer, Path(record))

    # Once for each generation ------------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Tensor:
        """TRL's own, `[N, F]` of all processes; kept, because TRL forgets them before the loss."""
        trainer: Any = self
        found: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # type: ignore[misc]
        self._components = found.nan_to_num(0.0)
        self._rewards = total_rewards(found, trainer.reward_weights)
        if "clusters" in self.recipe.objective.needs:
            self._clusters = clusters(all_texts(completions)).to(found.device)
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """TRL's own columns, with advantages, statistics and state of the recipe, taken over all processes."""
        trainer: Any = self
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        training = trainer.model.training
        size = trainer.num_generations if training else trainer.num_generations_eval
        entropy = self._policy_before(output)
        batch = whole_batch(
            self.recipe, {**output, "entropy": entropy}, self._rewards, self._components, size,
            self.reward_range, trainer.accelerator,
        )  # fmt: skip
        batch = dataclasses.replace(batch, clusters=self._clusters)
        with torch.no_grad():  # statistics of the batch are fixed during an update
            batch, state = self.recipe.objective.prepare(batch, self.state_of_objective)
        if training:  # an evaluation teaches the objective nothing
            self.state_of_objective = state
        own, length = output["completion_ids"].shape
        rank = trainer.accelerator.process_index
        found = pack(batch, slice(rank * own, (rank + 1) * own), length)
        if output.get("old_per_token_logps") is None:
            del found["etr/old_log_probs"]  # zeros; the update's own take their place
        return {**output, **found, "advantages": output["advantages"]}

    def _policy_before(self, output: dict[str, Any]) -> Tensor | None:
        """The policy at the start of the update, where it is read so early: log-probs into `output`; its entropy."""
        objective = self.recipe.objective
        if not objective.reads_policy and "rollout_log_probs" not in objective.needs:
            return None
        trainer: Any = self
        with torch.no_grad():
            log_probs, entropy = self._columns(trainer.model, output)
        if output.get("old_per_token_logps") is None:
            output["old_per_token_logps"] = log_probs
        return entropy

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """TRL's micro-batch, with the denominator of its whole optimiser step over all processes."""
        trainer: Any = self
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        if DENOMINATOR in inputs:
            return inputs
        objective, window = self.recipe.objective, trainer.args.gradient_accumulation_steps
        if not trainer.model.training:
            (value,) = denominators(objective, trainer.accelerator, [inputs], 1)
            return {**inputs, DENOMINATOR: value}
        found = denominators(objective, trainer.accelerator, trainer._buffered_inputs, window)
        for place, part in enumerate(trainer._buffered_inputs):
            part[DENOMINATOR] = found[place // window]
        return inputs

    # Once for each micro-batch -----------------------------------------------------------------------------------

    def _columns(self, model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The policy's log-probs and entropies `[b, T]`, by TRL's own passes of a micro-batch's rows each."""
        forward, args = self._get_per_token_logps_and_entropies, self.args  # type: ignore[attr-defined]
        ids, attention = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], 1) for x in ("ids", "mask"))
        extra = {name: inputs[name] for name in IMAGES if name in inputs}
        rows = args.per_device_train_batch_size if model.training else args.per_device_eval_batch_size
        found = forward(model, ids, attention, inputs["completion_ids"].size(1), rows, compute_entropy=True, **extra)
        return found[0], found[1]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The recipe's loss of one micro-batch under the denominator of its optimiser step."""
        trainer: Any = self
        log_probs, entropy = self._columns(model, inputs)
        training = trainer.model.training
        if training and "entropy" in self.recipe.objective.needs and not entropy.requires_grad:
            raise InputError(
                f"objective '{self.recipe.objective.name}' needs the policy's entropy, which this version of TRL "
                "computes without a gradient; install 1.9 or newer"
            )
        batch = unpack(inputs, log_probs, entropy)
        out = policy_loss(self.recipe.objective, batch, inputs[DENOMINATOR])
        self._note(batch, out, entropy)
        factor = trainer.accelerator.num_processes  # gradients are averaged over them
        if training and self._recording is not None and self._recording.active:
            log_probs.register_hook(functools.partial(self._record, batch, out, factor))
        return self._scale.watched(out.loss * factor, trainer.accelerator) if training else out.loss * factor

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's own; at the end of an optimiser step its record is complete."""
        trainer: Any = self
        done: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[misc]
        self._scale.check()
        window = trainer.args.gradient_accumulation_steps
        if self._recording is not None and trainer._step % window == 0:
            part = trainer._buffered_inputs[(trainer._step - 1) % trainer.args.steps_per_generation]
            self._recording.finish(part[DENOMINATOR])
        return done

    def _record(self, batch: Batch, out: LossOutput, factor: int, gradient: Tensor) -> None:
        assert self._recording is not None  # or there were no hook
        self._recording.observe(batch, out.loss, gradient / factor, out.region)

    def _note(self, batch: Batch, out: LossOutput, entropy: Tensor) -> None:
        trainer: Any = self
        self._etr_metrics.add(self.recipe.objective, batch, out, entropy)
        if trainer.accelerator.sync_gradients or not trainer.model.training:
            found = self._etr_metrics.take(trainer.accelerator)
            for name, value in found.items():
                trainer._metrics["train" if trainer.model.training else "eval"][name].append(value)

    # Checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        trainer: Any = self
        if trainer.args.should_save:
            folder = f"checkpoint-{trainer.state.global_step}"
            save_state(Path(trainer._get_output_dir(trial=trial)) / folder, self.recipe, self.state_of_objective)

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self.state_of_objective = load_state(Path(checkpoint), self.recipe, self.state_of_objective)
