"""verl's synchronous trainer with group statistics: `VERL_USE_EXTERNAL_MODULES=etr.adapters.verl.trainer`.

For objectives that need more than the advantages tell: it computes the statistics where the whole rollout batch is
known and has the workers' loss read them. Everything else is verl's. Needs verl 0.9 with TransferQueue.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.padding import response_to_nested

from etr.adapters.verl.columns import VERL, ppo_loss, statistics

FIELDS = ["uid", "response_mask", "rm_scores", "old_log_probs", "advantages", *VERL]


class ETRTrainerSync(PPOTrainerSync):  # type: ignore[misc]
    """`PPOTrainerSync` that carries the columns of `etr.adapters.verl.columns`."""

    def on_init_end(self) -> None:
        super().on_init_end()
        actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        self.objective = actor.policy_loss.objective()
        self.actor_rollout_wg.set_loss_fn(partial(ppo_loss, config=actor))

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        batch = super()._compute_advantage(batch, metrics)
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=FIELDS)
        mask, uids = data["response_mask"], data.pop("uid").tolist()
        found = statistics(self.objective, data.to_padded_tensor(), uids)
        columns = {name: value if value.ndim == 1 else response_to_nested(value, mask) for name, value in found.items()}
        fields = TensorDict(columns, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


# In place of verl's own: under another name it would count as asynchronous, verl compares with "sync" literally.
TRAINER_REGISTRY["sync"] = ETRTrainerSync
