"""What etr calls the same as verl and TRL: an objective, a penalty or a correction for every record."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import etr
from etr.corrections import Correction
from etr.objectives.grpo import GRPO
from peers.inputs import advantages_of, full_log_probs

Case = dict[str, Tensor]
Make = Callable[[], etr.Objective]
HIGHER: dict[str, Any] = {"eps_low": 0.2, "eps_high": 0.28}
OLD: dict[str, Any] = {"anchor": "old"}
LENGTH = 10


@dataclass(frozen=True)
class RatioCorrected(GRPO):
    """TRL's default with beta: the penalty times the ratio (2512.02556), unlike GRPO's paper and etr."""

    def regularizer(self, batch: etr.Batch) -> Tensor:
        penalty = super().regularizer(batch)
        assert penalty is not None
        return self.ratio(batch).exp() * penalty


def get(name: str, **fields: Any) -> Make:
    """An objective, made when it is asked for."""
    return functools.partial(etr.get, name, **fields)


# What a peer calls it: the objective here. The records named /parts accumulate four micro-batches.
VERL: dict[str, Make] = {
    "vanilla": get("ppo"),
    "vanilla/dual-clip": get("ppo", dual_clip=3.0),
    "vanilla/clip-higher": get("dapo"),
    "vanilla/seq-mean-token-mean": get("grpo"),
    "vanilla/seq-mean-token-sum": get("ppo", aggregation="seq-mean-token-sum"),
    "vanilla/seq-mean-token-sum-norm": get("dr_grpo", length=LENGTH),
    "gspo": get("gspo"),
    "gspo/wide": get("gspo", **HIGHER),
    "cispo": get("cispo", **HIGHER),
    "vanilla/token-advantages": get("ppo", dual_clip=3.0),
    "gspo/token-advantages": get("gspo_token", **HIGHER),
    "sapo/token-advantages": get("sapo"),
    "gpg": get("gpg", aggregation="token-mean"),
    "sapo": get("sapo"),
    "sapo/wide": get("sapo", tau_pos=0.5, tau_neg=3.0),
    "geo_mean": get("gmpo"),
    "geo_mean/asymmetric": get("gmpo", log_low=0.2, log_high=0.6),
    "dppo_tv": get("dppo_tv", **OLD, aggregation="seq-mean-token-sum"),
    "dppo_tv/tight": get("dppo_tv", **OLD, aggregation="token-mean", delta_low=0.02, delta_high=0.05, cap=2.0),
    "dppo_kl": get("dppo_kl", **OLD, aggregation="seq-mean-token-sum"),
    "dppo_kl/tight": get("dppo_kl", **OLD, aggregation="token-mean", delta_low=0.01, delta_high=0.1, cap=2.0),
    "dro": get("dro", tau=0.1),
    "clip_cov/all": get("clip_cov", dual_clip=None, share=1.0, cov_low=0.2, cov_high=2.0),
    "kl_cov": get("kl_cov", share=0.2),
    "kl_cov/one": get("kl_cov", beta=0.1),
    "vanilla/weighted": get("ppo"),
    "bypass_mode/rejected": get("ppo"),
    "bypass_mode/ppo_clip": get("ppo"),
    "bypass_mode/reinforce": get("cispo", eps_low=1.0, eps_high=1.0),
}
TRL: dict[str, Make] = {
    **dict.fromkeys(("grpo", "grpo/parts"), get("grpo", **HIGHER)),
    **dict.fromkeys(("bnpo", "bnpo/parts"), get("bnpo", **HIGHER)),
    **dict.fromkeys(("dr_grpo", "dr_grpo/parts"), get("dr_grpo", **HIGHER, length=LENGTH)),
    **dict.fromkeys(("dapo", "dapo/parts"), get("dapo")),
    "grpo/beta": get("grpo", **HIGHER, beta=0.1),
    "dapo/beta": get("dapo", beta=0.1),
    "grpo/beta-corrected": functools.partial(RatioCorrected, eps_high=0.28, beta=0.1),
    "grpo/delta": get("two_sided", **HIGHER, dual_clip=3.0),
    "dapo/delta": get("two_sided", **HIGHER, dual_clip=1.5, aggregation="token-mean"),
    "grpo/sequence": get("gspo"),
    "grpo/sequence-wide": get("gspo", **HIGHER),
    "dapo/sequence": get("gspo", **HIGHER, aggregation="token-mean"),
    **dict.fromkeys(("cispo", "cispo/parts"), get("cispo", eps_low=1.0, eps_high=0.28)),  # TRL states the cap, 1.28
    **dict.fromkeys(("sapo", "sapo/parts"), get("sapo")),
    "sapo/wide": get("sapo", tau_pos=0.5, tau_neg=3.0),
    **dict.fromkeys(("luspo", "luspo/parts"), get("luspo", eps_low=3e-4, eps_high=4e-4)),
    "luspo/token": get("ppo", **HIGHER, aggregation="seq-mean-token-sum"),
    "luspo/wide": get("luspo", **HIGHER),
    **dict.fromkeys(("vespo", "vespo/parts"), get("vespo")),
    "vespo/other": get("vespo", k_pos=1.0, lambda_pos=1.5, k_neg=0.5, lambda_neg=1.0),
    **dict.fromkeys(("grpo/weighted", "grpo/off-policy-mask", "grpo/token-advantages"), get("grpo", **HIGHER)),
    "vespo/weighted": get("vespo"),
    "dapo/high-entropy": get("high_entropy_tokens"),
    "dapo/entropy-bonus": get("entropy_bonus", **HIGHER, aggregation="token-mean", coefficient=0.01),
    "gmpo": get("gmpo"),
    "gmpo/asymmetric": get("gmpo", log_low=0.2, log_high=0.6),
}
LOSSES: Mapping[str, Mapping[str, Make]] = {"verl": VERL, "trl": TRL}
# What stands between rollout engine and trainer in a record's loss.
CORRECTIONS: dict[str, Correction] = {
    "verl-vanilla/weighted": Correction("tis", "token", high=1.2),
    "verl-bypass_mode/rejected": Correction(reject="k2", reject_high=0.4),
    "trl-grpo/weighted": Correction("tis", "token", high=1.2),
    "trl-vespo/weighted": Correction("tis", "token", high=1.2),
    "trl-grpo/off-policy-mask": Correction(sequence_mask=0.1),
}
PARTS = {"trl": 4}  # micro-batches of the records named /parts

ADVANTAGES: dict[str, dict[str, Make]] = {
    "verl": {
        **dict.fromkeys(("grpo", "grpo_vectorized"), get("grpo")),
        "grpo/no-std": get("dr_grpo", length=LENGTH),
        **dict.fromkeys(("rloo", "rloo_vectorized"), get("rloo")),
        "gae": get("tppo", gamma=1.0, gae_lambda=1.0),
        "gae/discounted": get("tppo", gamma=0.9, gae_lambda=0.8),
        "opo": get("opo"),
        "gpg": get("gpg"),
        "gdpo": get("gdpo", whiten="tokens", eps=1e-6),
        "gdpo/weighted": get("gdpo", whiten="tokens", eps=1e-6, weights="1, 0.25"),
        "grpo_passk": get("passk", kind="best", scale=True),
        "grpo_passk/no-std": get("passk", kind="best"),
        "reinforce_plus_plus": get("reinforce_plus_plus"),
        "reinforce_plus_plus/discounted": get("reinforce_plus_plus", gamma=0.9),
        "reinforce_plus_plus/kl": get("reinforce_plus_plus", beta=0.1),
        "reinforce_plus_plus_baseline": get("reinforce_plus_plus_baseline"),
        **dict.fromkeys(("optimal_token_baseline", "tir_optimal_token_baseline"), get("optimal_token_baseline")),
        "optimal_token_baseline/tail": get("optimal_token_baseline", zero_tail=False),
    },
    "trl": {
        "scale_rewards/group": get("grpo"),
        "scale_rewards/batch": get("reinforce_plus_plus_baseline", level="response"),
        "scale_rewards/none": get("dr_grpo", length=LENGTH),
        "normalize_then_sum": get("gdpo"),
        "normalize_then_sum/weighted": get("gdpo", weights="1, 0.25"),
        **dict.fromkeys(("rloo", "rloo/normalised"), get("rloo")),
    },
}
TIS = {level: Correction("tis", level, high=1.2) for level in ("token", "sequence")}
MIS = {level: Correction("mis", level, low=0.7, high=1.3) for level in ("token", "sequence")}
BOUNDS = {"reject_low": 1 / 1.2, "reject_high": 1 / 0.8}  # of ρ; verl states those of 1/ρ, 0.8 and 1.2
WEIGHTS: dict[str, dict[str, Correction]] = {
    "verl": {
        **{f"{level}/truncated": correction for level, correction in TIS.items()},
        **{f"{level}/masked": correction for level, correction in MIS.items()},
        **{f"{level}/normalised": dataclasses.replace(TIS[level], normalize=True) for level in TIS},
        "reject/token_k1": Correction(reject="token", **BOUNDS),
        "reject/seq_mean_k1": Correction(reject="geometric", **BOUNDS),
        "reject/seq_sum_k1": Correction(reject="sequence"),
        "reject/seq_mean_k2": Correction(reject="k2", reject_high=0.02),
        "reject/seq_mean_k3": Correction(reject="k3", reject_high=0.02),
    },
    "trl": {
        **{f"{level}_truncate": correction for level, correction in TIS.items()},
        **{f"{level}_mask": correction for level, correction in MIS.items()},
    },
}
# What a peer registers and etr has no counterpart for: record names without their settings, and why.
BY_MEAN = "K2 and K3 reject by the mean over a response alone"
NOT_HERE: dict[str, str] = {
    "verl-advantage-remax": "its baseline is the reward of a greedy answer, which no batch here carries",
    **{f"verl-weights-reject/{level}_k2": BY_MEAN for level in ("token", "seq_sum", "seq_max")},
    **{f"verl-weights-reject/{level}_k3": BY_MEAN for level in ("token", "seq_sum", "seq_max")},
    "trl-loss-rloo": "it clips the ratio of the whole response, Π r; `rloo` here clips those of its tokens, as in verl",
}


def batch_of(case: Case, leaf: Tensor) -> etr.Batch:
    """A whole batch with everything that an objective may ask for."""
    return etr.Batch(
        log_probs=leaf,
        old_log_probs=case["old_log_probs"],
        ref_log_probs=case["ref_log_probs"],
        rollout_log_probs=case["rollout_log_probs"],
        response_mask=case["response_mask"],
        advantages=case["advantages"],
        rewards=case["rewards"],
        group_ids=case["group_ids"],
        group=etr.group_stats(case["rewards"], case["group_ids"]),
        components=case["components"],
        tokens=torch.zeros_like(case["response_mask"], dtype=torch.long),
        entropy=case["entropy"],
        values=case["values"],
        full_log_probs=full_log_probs(leaf),
    )


def loss(peer: str, name: str, case: Case, leaf: Tensor) -> Tensor:
    """The loss of a record's objective, summed over micro-batches with the global divisor."""
    objective, correction = LOSSES[peer][name](), CORRECTIONS.get(f"{peer}-{name}")
    if name.startswith("bypass"):  # the old policy is the sampling engine's
        case = {**case, "old_log_probs": case["rollout_log_probs"]}
    batch = batch_of({**case, "advantages": advantages_of(name, case)}, leaf)
    if correction is not None:
        if name.startswith("bypass"):  # of the current policy to the engine's
            weights = correction.weights(leaf, case["rollout_log_probs"], case["response_mask"])
            batch = dataclasses.replace(batch, weights=weights)
        elif correction.sequence_mask is None:
            batch = correction.apply(batch)
        else:  # of the old policy, which sampled
            batch = correction.apply(dataclasses.replace(batch, rollout_log_probs=case["old_log_probs"]))
    return parted(objective, batch, PARTS[peer] if name.endswith("/parts") else 1)


def parted(objective: etr.Objective, batch: etr.Batch, parts: int = 1) -> Tensor:
    """The loss of a whole batch in `parts` micro-batches, with the global divisor."""
    leaf = batch.log_probs
    with torch.no_grad():
        whole, _ = objective.prepare(batch, objective.init_state((), leaf.device))
    ready = dataclasses.replace(whole, **{name: getattr(batch, name) for name in ("log_probs", "entropy")})
    divisor = objective.denominator(batch.response_mask)
    rows = torch.arange(len(leaf)).chunk(parts)
    return torch.stack([etr.policy_loss(objective, ready.rows(part), divisor).loss for part in rows]).sum()


def advantage(peer: str, name: str, case: Case) -> Tensor:
    """The advantages of a record's objective, `[B, T]`."""
    return shaped(ADVANTAGES[peer][name](), case)


def shaped(objective: etr.Objective, case: Case) -> Tensor:
    """The advantages of an objective on whole groups, `[B, T]`, as a trainer makes them."""
    raw = objective.advantage(case["rewards"], case["group_ids"])
    batch = batch_of({**case, "advantages": raw}, case["old_log_probs"])
    prepared, _ = objective.prepare(batch, objective.init_state((), raw.device))
    return prepared.token_advantages.expand_as(case["log_probs"])


def weights(peer: str, name: str, case: Case) -> Tensor:
    """The importance weights of a record's correction, `[B, T]`."""
    found = WEIGHTS[peer][name].weights(case["old_log_probs"], case["rollout_log_probs"], case["response_mask"])
    assert found is not None
    return found
