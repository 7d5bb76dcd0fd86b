"""Our advantage estimators, called by verl's own `compute_advantage` on a DataProto."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

import torch
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn
from verl.trainer.ppo.ray_trainer import compute_advantage

import etr
import etr.adapters.verl
from etr.advantages import ESTIMATORS, group_center, group_zscore, leave_one_out
from etr.errors import InputError

REWARDS = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1])
UIDS = ["b", "a", "c", "a", "b", "c", "a", "c", "b", "b", "a", "c"]  # groups lie scattered, as in verl
MASK = torch.arange(5) < torch.tensor([5, 3, 4, 1, 2, 5, 3, 3, 4, 2, 1, 5])[:, None]


def data(rewards: torch.Tensor = REWARDS) -> DataProto:
    """A rollout batch with each reward on its last token."""
    last = MASK.sum(-1, keepdim=True) - 1
    scores = torch.zeros(MASK.shape).scatter(1, last, rewards[:, None])
    return DataProto.from_dict(
        tensors={"token_level_rewards": scores, "response_mask": MASK.long()},
        non_tensors={"uid": np.array(UIDS, dtype=object)},
    )


@pytest.mark.parametrize("name", [*ESTIMATORS, "grpo", "dr_grpo", "rloo", "maxrl", "passk", "etr"])
def test_they_are_ours_on_every_kept_token(name):
    ids = torch.tensor([ord(uid) for uid in UIDS])
    function = ESTIMATORS[name] if name in ESTIMATORS else etr.get(name).advantage
    expected = function(REWARDS, ids)
    batch = compute_advantage(data(), adv_estimator=f"etr/{name}", config=None).batch
    assert expected.abs().max() > 0
    torch.testing.assert_close(batch["advantages"], expected[:, None] * MASK)
    torch.testing.assert_close(batch["returns"], batch["advantages"])


@pytest.mark.parametrize(
    ("name", "arguments", "same"),
    [
        ("grpo", {"norm_adv_by_std_in_grpo": True}, partial(group_zscore, ddof=1, eps=1e-6)),
        ("grpo", {"norm_adv_by_std_in_grpo": False}, group_center),
        ("rloo", {}, leave_one_out),
    ],
)
def test_ours_are_verls_in_its_conventions(name, arguments, same):
    made = data(torch.linspace(0, 1, 12))
    theirs, _ = get_adv_estimator_fn(name)(
        token_level_rewards=made.batch["token_level_rewards"],
        response_mask=made.batch["response_mask"],
        index=made.non_tensor_batch["uid"],
        **arguments,
    )
    ours = same(torch.linspace(0, 1, 12), torch.tensor([ord(uid) for uid in UIDS]))
    torch.testing.assert_close(theirs, ours[:, None] * MASK, rtol=1e-6, atol=1e-7)


def test_a_batch_without_prompts_is_refused():
    made = data()
    del made.non_tensor_batch["uid"]
    with pytest.raises(InputError, match="the batch has no 'uid'"):
        compute_advantage(made, adv_estimator="etr/group_zscore", config=None)
