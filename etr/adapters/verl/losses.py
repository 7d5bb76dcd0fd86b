"""An objective of this project in the form of verl's policy losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from etr.adapters.verl.checks import check_aggregation
from etr.adapters.verl.recording import record
from etr.adapters.verl_names import LOSS
from etr.adapters.verl_settings import SUPPLIES
from etr.batch import Batch, LossOutput
from etr.errors import InputError
from etr.loss import policy_loss, prepared
from etr.objective import Objective

# verl's `ppo_loss` hands a policy loss a fixed list of tensors. What a trainer carries besides comes this way.
_CARRIED: ContextVar[Mapping[str, Any] | None] = ContextVar("etr_carried", default=None)


@contextmanager
def carrying(columns: Mapping[str, Any]) -> Iterator[None]:
    """Within it, the loss's batch has these further fields of `etr.Batch`."""
    token = _CARRIED.set(columns)
    try:
        yield
    finally:
        _CARRIED.reset(token)


def verl_loss(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of one micro-batch as verl sums it up, and its metrics. All tensors `[B, T]`.

    It is `etr.policy_loss` with the denominator of verl's `agg_loss`, whose sums over micro-batches and averages over
    ranks give the loss of the whole step. Raises InputError when verl's settings are not this objective's.
    """
    settings = config.policy_loss
    if not hasattr(settings, "recovery"):
        target = "etr.adapters.verl.ETRPolicyLossConfig"
        raise InputError(f"{settings.loss_mode} needs its own settings; set {LOSS}._target_={target}")
    objective: Objective = settings.objective()
    check_aggregation(objective, loss_agg_mode, config.loss_scale_factor)
    mask = response_mask.bool()
    batch = Batch(
        log_probs=log_prob,
        old_log_probs=old_log_prob,
        response_mask=mask,
        advantages=advantages,
        weights=rollout_is_weights,
        **_further(objective, settings, advantages, mask),
    )
    if objective.scope != "batch":  # such columns of a part are those of the whole
        batch = prepared(objective, batch)
    info = config.global_batch_info
    denominator = whole_denominator(objective, mask, info)
    ranks = info.get("dp_size") or 1
    out = policy_loss(objective, batch, denominator / ranks, check=False)
    record(config, batch, out, denominator, ranks)
    return out.loss, metrics(out, batch)


def _further(objective: Objective, settings: Any, advantages: Tensor, mask: Tensor) -> Mapping[str, Any]:
    carried = _CARRIED.get()
    if carried is not None:
        return carried
    if settings.columns:
        raise InputError(
            f"{LOSS}.columns is true, but nothing carries them; VERL_USE_EXTERNAL_MODULES=etr.adapters.verl.trainer"
        )
    return {"group": settings.recovery()(advantages, mask)} if objective.needs & SUPPLIES else {}


def whole_denominator(objective: Objective, mask: Tensor, info: Mapping[str, Any]) -> Tensor:
    """The denominator of the whole step over all ranks, as `agg_loss` takes it from verl's global batch information.

    Without that information the batch at hand is the whole. Note: verl's number of responses is that of the batch,
    fully masked ones included, where `Objective.denominator` counts those with a kept token.
    """
    by_token = objective.aggregation == "token-mean"
    key = "batch_num_tokens" if by_token else "global_batch_size"
    whole = info.get(key)
    if whole is None:
        if (info.get("dp_size") or 1) > 1:
            raise InputError(f"verl gave no {key} for {info['dp_size']} ranks, so that their losses cannot be added")
        whole = mask.sum() if by_token else mask.any(-1).sum()
    scale = info.get("loss_scale_factor") or 1 if objective.aggregation == "seq-mean-token-sum-norm" else 1
    return torch.as_tensor(whole, dtype=torch.float64, device=mask.device) * scale


def metrics(out: LossOutput, batch: Batch) -> dict[str, float]:
    """What verl logs, of this micro-batch; verl averages micro-batches, whatever their sizes.

    actor/pg_clipfrac: share of kept tokens that lost their gradient (A ≠ 0 and c = 0), by the sign of A as _pos and
    _neg; actor/ppo_kl: mean of log π_old/π; the others as in `etr.diagnostics.METRICS`.
    """
    kept = out.mask
    count = kept.sum().clamp(min=1)
    lost = _lost(out, batch)
    sign = torch.where(kept, batch.token_advantages, 0.0).sign()
    found = {
        "actor/pg_clipfrac": lost.sum() / count,
        "actor/pg_clipfrac_pos": (lost & (sign > 0)).sum() / count,
        "actor/pg_clipfrac_neg": (lost & (sign < 0)).sum() / count,
        "actor/ppo_kl": -out.token_log_ratio.detach().sum() / count,
        **{f"actor/{name}": mean.sum / mean.count.clamp(min=1) for name, mean in out.metrics.items()},
    }
    values = torch.stack([value.double() for value in found.values()]).tolist()  # a GPU waits once
    return dict(zip(found, values, strict=True))


def _lost(out: LossOutput, batch: Batch) -> Tensor:
    """Kept tokens with A ≠ 0 and gradient coefficient 0, bool `[B, T]`."""
    moving = out.mask & (batch.token_advantages != 0)
    if not (out.per_token.requires_grad and batch.log_probs.requires_grad):
        return torch.zeros_like(moving)
    total = out.per_token.sum()
    (coefficient,) = torch.autograd.grad(total, batch.log_probs, retain_graph=True)  # up to here, not into the model
    return moving & (coefficient == 0)
