"""verl's own code: every policy loss, advantage estimator, KL penalty and rollout correction that it registers.

Imported without verl; calling anything needs `pip install verl==0.9.1`, which must be another environment than TRL's.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from peers.cases import GROUP
from peers.inputs import advantages_of, sum_of_squares

PACKAGES = ("verl", "torch", "transformers")
LENGTH = 10  # a constant generation limit that differs from the padded length 7
NO_DUAL_CLIP = {"clip_ratio_c": 1e30}
SCALE = {"global_batch_info": {"loss_scale_factor": LENGTH}}
NARROW, HIGHER = {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}, {"clip_ratio_high": 0.28}

# name: (policy loss, aggregation, ActorConfig fields); ActorConfig's default is to clip at 0.2 on both sides
LOSSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vanilla": ("vanilla", "token-mean", NO_DUAL_CLIP),
    "vanilla/dual-clip": ("vanilla", "token-mean", {"clip_ratio_c": 3.0}),
    "vanilla/clip-higher": ("vanilla", "token-mean", {**NO_DUAL_CLIP, **HIGHER}),
    "vanilla/seq-mean-token-mean": ("vanilla", "seq-mean-token-mean", NO_DUAL_CLIP),
    "vanilla/seq-mean-token-sum": ("vanilla", "seq-mean-token-sum", NO_DUAL_CLIP),
    "vanilla/seq-mean-token-sum-norm": ("vanilla", "seq-mean-token-sum-norm", {**NO_DUAL_CLIP, **SCALE}),
    "vanilla/weighted": ("vanilla", "token-mean", NO_DUAL_CLIP),
    "gspo": ("gspo", "seq-mean-token-mean", NARROW),
    "gspo/wide": ("gspo", "seq-mean-token-mean", HIGHER),
    "cispo": ("cispo", "token-mean", HIGHER),
    "vanilla/token-advantages": ("vanilla", "token-mean", {"clip_ratio_c": 3.0}),
    "gspo/token-advantages": ("gspo", "seq-mean-token-mean", HIGHER),
    "sapo/token-advantages": ("sapo", "seq-mean-token-mean", {}),
    "gpg": ("gpg", "token-mean", {}),
    "sapo": ("sapo", "seq-mean-token-mean", {}),
    "sapo/wide": ("sapo", "seq-mean-token-mean", {"tau_pos": 0.5, "tau_neg": 3.0}),
    "geo_mean": ("geo_mean", "seq-mean-token-mean", {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}),
    "geo_mean/asymmetric": ("geo_mean", "seq-mean-token-mean", {"clip_ratio_low": 0.2, "clip_ratio_high": 0.6}),
    "dppo_tv": ("dppo_tv", "seq-mean-token-sum", {"clip_ratio_low": 0.15, "clip_ratio_high": 0.15, "clip_ratio_c": 20}),
    "dppo_tv/tight": ("dppo_tv", "token-mean", {"clip_ratio_low": 0.02, "clip_ratio_high": 0.05, "clip_ratio_c": 2.0}),
    "dppo_kl": ("dppo_kl", "seq-mean-token-sum", {"clip_ratio_low": 0.05, "clip_ratio_high": 0.05, "clip_ratio_c": 20}),
    "dppo_kl/tight": ("dppo_kl", "token-mean", {"clip_ratio_low": 0.01, "clip_ratio_high": 0.1, "clip_ratio_c": 2.0}),
    "dro": ("dro", "token-mean", {"policy_loss": {"dro_beta": 0.1}}),
    "clip_cov/all": (
        "clip_cov",
        "token-mean",
        {"clip_ratio_low": 1.0, "clip_ratio_high": 1.0}
        | {"policy_loss": {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.2, "clip_cov_ub": 2.0}},
    ),
    "kl_cov": ("kl_cov", "token-mean", {"policy_loss": {"kl_cov_ratio": 0.2, "ppo_kl_coef": 1.0}}),
    "kl_cov/one": ("kl_cov", "token-mean", {"policy_loss": {"kl_cov_ratio": 2e-4, "ppo_kl_coef": 0.1}}),
    "bypass_mode/ppo_clip": (
        "bypass_mode",
        "token-mean",
        {**NO_DUAL_CLIP, "policy_loss": {"rollout_correction": {"loss_type": "ppo_clip", "rollout_is": None}}},
    ),
    "bypass_mode/rejected": (
        "bypass_mode",
        "token-mean",
        {
            **NO_DUAL_CLIP,
            "policy_loss": {
                "rollout_correction": {"loss_type": "ppo_clip", "rollout_is": None}
                | {"rollout_rs": "seq_mean_k2", "rollout_rs_threshold": 0.4}
            },
        },
    ),
    "bypass_mode/reinforce": (
        "bypass_mode",
        "token-mean",
        {"policy_loss": {"rollout_correction": {"loss_type": "reinforce", "rollout_is": "token"}}},
    ),
}
KL = ("k1", "k2", "k3", "k1+", "k3+")
ADVANTAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "gae": ("gae", {"gamma": 1.0, "lam": 1.0}),
    "gae/discounted": ("gae", {"gamma": 0.9, "lam": 0.8}),
    "grpo": ("grpo", {}),
    "grpo/no-std": ("grpo", {"norm_adv_by_std_in_grpo": False}),
    "grpo_vectorized": ("grpo_vectorized", {}),
    "gdpo": ("gdpo", {"weights": [1.0, 1.0]}),
    "gdpo/weighted": ("gdpo", {"weights": [1.0, 0.25]}),
    "grpo_passk": ("grpo_passk", {"norm_adv_by_std_in_grpo": True}),
    "grpo_passk/no-std": ("grpo_passk", {"norm_adv_by_std_in_grpo": False}),
    "reinforce_plus_plus_baseline": ("reinforce_plus_plus_baseline", {}),
    "reinforce_plus_plus": ("reinforce_plus_plus", {"gamma": 1.0}),
    "reinforce_plus_plus/discounted": ("reinforce_plus_plus", {"gamma": 0.9}),
    "reinforce_plus_plus/kl": ("reinforce_plus_plus", {"gamma": 1.0, "beta": 0.1}),
    "remax": ("remax", {}),
    "rloo": ("rloo", {}),
    "rloo_vectorized": ("rloo_vectorized", {}),
    "opo": ("opo", {}),
    "gpg": ("gpg", {}),
    "optimal_token_baseline": ("optimal_token_baseline", {}),
    "optimal_token_baseline/tail": ("optimal_token_baseline", {"handle_zero_tail": False}),
    "tir_optimal_token_baseline": ("tir_optimal_token_baseline", {}),
}
REJECTIONS = {
    **dict.fromkeys(("token_k1", "seq_mean_k1"), "0.8_1.2"),
    **dict.fromkeys(("token_k2", "seq_mean_k2", "token_k3", "seq_mean_k3"), 0.02),
    "seq_sum_k1": "0.5_2.0",
    **dict.fromkeys(("seq_sum_k2", "seq_sum_k3", "seq_max_k2", "seq_max_k3"), 0.1),
}
# name: arguments of compute_rollout_correction_weights or, with rollout_rs, of compute_rollout_rejection_mask
WEIGHTS: dict[str, dict[str, Any]] = {
    **{f"{level}/truncated": {"rollout_is": level, "rollout_is_threshold": 1.2} for level in ("token", "sequence")},
    **{f"{level}/masked": {"rollout_is": level, "rollout_is_threshold": "0.7_1.3"} for level in ("token", "sequence")},
    **{
        f"{level}/normalised": {
            "rollout_is": level,
            "rollout_is_threshold": 1.2,
            "rollout_is_batch_normalize": True,
        }
        for level in ("token", "sequence")
    },
    **{f"reject/{name}": {"rollout_rs": name, "rollout_rs_threshold": bound} for name, bound in REJECTIONS.items()},
}


def registered() -> dict[str, list[str]]:
    """What this version of verl registers, by kind."""
    from verl.trainer.ppo import core_algos
    from verl.trainer.ppo.rollout_corr_helper import SUPPORTED_ROLLOUT_RS_OPTIONS

    return {
        "loss": sorted(core_algos.POLICY_LOSS_REGISTRY),
        "advantage": sorted(core_algos.ADV_ESTIMATOR_REGISTRY),
        "weights": sorted(["token", "sequence", *SUPPORTED_ROLLOUT_RS_OPTIONS]),
    }


@functools.cache
def _config(name: str) -> Any:
    from verl.trainer.config.algorithm import RolloutCorrectionConfig
    from verl.workers.config import ActorConfig
    from verl.workers.config.actor import PolicyLossConfig

    fields = dict(LOSSES[name][2])
    if policy_loss := fields.pop("policy_loss", None):
        correction = RolloutCorrectionConfig(**policy_loss.get("rollout_correction", {}))
        fields["policy_loss"] = PolicyLossConfig(**{**policy_loss, "rollout_correction": correction})
    return ActorConfig(strategy="fsdp", rollout_n=GROUP, ppo_micro_batch_size_per_gpu=12, **fields)


def loss(name: str, case: dict[str, Tensor], leaf: Tensor) -> Tensor:
    """The loss of a policy loss at log-probs `leaf`."""
    from verl.trainer.ppo import core_algos

    mode, aggregation, _ = LOSSES[name]
    old = case["rollout_log_probs" if mode == "bypass_mode" else "old_log_probs"]
    advantages = advantages_of(name, case)
    advantages = (advantages if advantages.ndim == 2 else advantages[:, None].expand_as(leaf)).clone()
    mask = case["response_mask"].long()
    function = core_algos.get_policy_loss_fn(mode)
    weighted = weights("token/truncated", case) if name.endswith("/weighted") else None
    value: Tensor = function(old, leaf, advantages, mask, aggregation, _config(name), weighted)[0]
    return value


def kl(name: str, case: dict[str, Tensor], leaf: Tensor) -> Tensor:
    """A KL penalty per token."""
    from verl.trainer.ppo import core_algos

    values: Tensor = core_algos.kl_penalty(leaf, case["ref_log_probs"], name)
    return values


def advantage(name: str, case: dict[str, Tensor]) -> Tensor:
    """Advantages `[B, T]` of an estimator, with each reward on the last kept token."""
    from verl.trainer.ppo import core_algos

    estimator, options = ADVANTAGES[name][0], dict(ADVANTAGES[name][1])
    mask = case["response_mask"].long()
    last = (mask.sum(-1) - 1).clamp(min=0)
    rewards = torch.zeros_like(case["log_probs"]).scatter(1, last[:, None], case["rewards"][:, None])
    if beta := options.pop("beta", 0.0):
        rewards = rewards - beta * (case["old_log_probs"] - case["ref_log_probs"]) * mask
    arguments: dict[str, Any] = {"token_level_rewards": rewards, "response_mask": mask}
    arguments |= {"index": case["group_ids"].numpy()} | _extra(estimator, case, options)
    if estimator == "gae":  # takes no group ids
        arguments.pop("index")
    values: Tensor = core_algos.get_adv_estimator_fn(estimator)(**arguments)[0]
    return values


def _extra(estimator: str, case: dict[str, Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """What an estimator takes beyond token rewards, mask and groups."""
    if estimator == "gae":
        return {"values": case["values"], **options}
    if estimator == "reinforce_plus_plus":
        return {"config": SimpleNamespace(**options)}
    if estimator == "grpo_passk":
        return {"config": options}
    if estimator == "remax":
        return {"reward_baselines": case["values"][:, 0]}
    if estimator.endswith("optimal_token_baseline"):
        old = case["old_log_probs"]
        return {"old_log_probs": old, "sum_pi_squared": sum_of_squares(old), **options}
    if estimator == "gdpo":
        mask = torch.cat([torch.ones_like(case["response_mask"][:, :1]), case["response_mask"]], -1).long()
        parts = {f"part{k}": case["components"][:, k].numpy() for k in range(2)}
        config = {"gdpo_reward_keys": [*parts], "gdpo_reward_weights": options["weights"]}
        return {
            "config": config,
            "non_tensor_batch": parts,
            "batch": {"prompts": torch.zeros(len(mask), 1), "attention_mask": mask},
        }
    return options


def weights(name: str, case: dict[str, Tensor]) -> Tensor:
    """Importance weights between rollout engine and trainer, or 1 where a rejection keeps a token and 0 elsewhere."""
    from verl.trainer.ppo import rollout_corr_helper as helper

    arguments = {
        "log_ratio": case["old_log_probs"] - case["rollout_log_probs"],
        "response_mask": case["response_mask"].long(),
        **WEIGHTS[name],
    }
    if "rollout_rs" in arguments:
        return helper.compute_rollout_rejection_mask(**arguments)[0].to(case["log_probs"].dtype)
    found: Tensor = helper.compute_rollout_correction_weights(**arguments)[0]
    return found
