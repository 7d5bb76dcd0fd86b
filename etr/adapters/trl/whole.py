"""The whole rollout batch of all processes, as the objective prepares it, before TRL shuffles and cuts it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from etr.adapters.trl.columns import known, mask_of
from etr.adapters.trl_settings import corrects
from etr.batch import Batch
from etr.errors import InputError
from etr.groups import group_stats
from etr.objective import Objective
from etr.recipe import Recipe

FAR = 0.4  # nats, mean over tokens: engine and trainer that disagree so much do not have the same weights


def gathered(accelerator: Any, value: Tensor) -> Tensor:
    """Rows `[b, T]` of all processes in their order, padded with 0 to the longest: `[B, T]`."""
    padded: Tensor = accelerator.gather(accelerator.pad_across_processes(value, dim=1))
    return padded


def all_texts(completions: Sequence[Any]) -> list[str]:
    """What the policy wrote in answer to each prompt, of all processes in their order."""
    from accelerate.utils import gather_object  # type: ignore[import-untyped]

    texts: list[str] = [text if isinstance(text, str) else text[-1]["content"] for text in completions]
    return list(gather_object(texts))


def total_rewards(per_function: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of the reward functions, `[N, F]` to `[N]`; InputError for an answer that none of them graded."""
    missing = per_function.isnan().all(-1)
    if bool(missing.any()):
        raise InputError(
            f"{int(missing.sum())} of {len(missing)} answers have no reward (every reward function gave None); let one "
            "give 0 for an answer that it cannot grade"
        )
    return (per_function * weights.to(per_function.device)).nansum(-1)


def whole_batch(
    recipe: Recipe,
    output: Mapping[str, Any],
    rewards: Tensor,
    components: Tensor,
    group_size: int,
    reward_range: tuple[float, float],
    accelerator: Any,
) -> Batch:
    """The batch of all processes, corrected for the engine, not yet prepared.

    output: of TRL's `_generate_and_score_completions` on this process; rewards: `[N]`, components: `[N, F]`, of all
    processes, the answers to one prompt side by side. Without old log-probs in `output` zeros stand for them: then
    nothing reads them before the update itself supplies its own.
    """
    objective = recipe.objective
    mask = gathered(accelerator, mask_of(output).long()).bool()
    blank = torch.zeros(mask.shape, device=mask.device)

    def column(name: str) -> Tensor | None:
        return None if output.get(name) is None else gathered(accelerator, output[name])

    found, engine, entropy = (column(x) for x in ("old_per_token_logps", "sampling_per_token_logps", "entropy"))
    old = blank if found is None else found
    ids = torch.arange(len(rewards), device=mask.device) // group_size
    wants_group = objective.needs & {"group", "binary_rewards"}
    batch = Batch(
        log_probs=old,
        old_log_probs=old,
        response_mask=mask,
        advantages=recipe.advantages(rewards, ids),
        group=group_stats(rewards, ids, reward_range) if wants_group else None,
        rewards=rewards,
        group_ids=ids,
        tokens=gathered(accelerator, output["completion_ids"]),
        turns=torch.zeros_like(mask, dtype=torch.long),  # an answer is one turn
        components=components,
        ref_log_probs=column("ref_per_token_logps"),
        rollout_log_probs=None if engine is None or found is None else known(engine, old),
        entropy=blank if entropy is None else entropy,
        weights=None if corrects(recipe) else _trl_weights(accelerator, output, mask),
    )
    if batch.rollout_log_probs is not None:
        check_engine(batch)
    return recipe.correction.apply(batch) if corrects(recipe) else batch


def _trl_weights(accelerator: Any, output: Mapping[str, Any], mask: Tensor) -> Tensor | None:
    """The weights of TRL's own correction for its engine, `[N, T]`; None where it is off."""
    ratio = output.get("importance_sampling_ratio")
    if ratio is None:
        return None
    return gathered(accelerator, ratio.expand(output["completion_mask"].shape))


def check_engine(batch: Batch) -> None:
    """Refuse to go on with an engine that samples with other weights than the trainer's.

    Such an engine raises no error of its own: TRL up to 1.9 restored the first checkpoint on waking a sleeping one.
    """
    assert batch.rollout_log_probs is not None
    apart = (batch.old_log_probs - batch.rollout_log_probs).abs()[batch.response_mask].mean().item()
    if not math.isnan(apart) and apart > FAR:
        raise InputError(
            f"the rollout engine's log-probs are {apart:.2f} nats from the trainer's, on average over a batch; it "
            "samples with stale weights or another temperature (in TRL up to 1.9 set vllm_enable_sleep_mode=False)"
        )


def denominators(
    objective: Objective, accelerator: Any, parts: Sequence[Mapping[str, Any]], window: int
) -> list[Tensor]:
    """The denominator of each optimiser step of a generation: of `window` micro-batches, of every process."""
    found = []
    for start in range(0, len(parts), window):
        mask = torch.cat([mask_of(part).long() for part in parts[start : start + window]])
        found.append(objective.denominator(gathered(accelerator, mask).bool()))
    return found
