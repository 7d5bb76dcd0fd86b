"""etr against other projects' own code: losses, gradients, penalties and advantages on equal float64 inputs.

The pins of verl and TRL exclude one another, so what they return is recorded (`peers/record.py` says how; the
versions are in the files). polgrad needs torch alone: it runs live, on fresh batches, where it is installed.
Every difference that is meant is declared in `DEVIATIONS` with its reason, and checked to be still there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import etr
from etr.objectives.grpo import GRPO
from etr.ratios import LOG_RATIO_LIMIT as LIMIT

Case = dict[str, Tensor]
PEERS = Path(__file__).parent / "peers"
# Relative tolerances: verl adds 1e-8 to lengths and variances; TRL computes advantages in float32.
RTOL = {"verl": 1e-7, "trl": 1e-10, "trl advantages": 3e-7}


def close(ours: Tensor, theirs: Tensor, rtol: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-15)


def load_cases() -> dict[str, Case]:
    """The inputs that the peers were given: float64, the mask as bool."""
    kinds = {"response_mask": torch.bool, "group_ids": torch.long}
    return {
        name: {key: torch.tensor(value, dtype=kinds.get(key, torch.float64)) for key, value in columns.items()}
        for name, columns in json.loads((PEERS / "cases.json").read_text()).items()
    }


CASES = load_cases()
RECORDS = {
    f"{peer}-{record['case']}-{record['name']}": (peer, record)
    for peer in ("verl", "trl")
    for record in json.loads((PEERS / f"{peer}.json").read_text())["records"]
}


def recorded(kind: str) -> list[Any]:
    """Test parameters (peer, record) of the records of one kind: loss, kl or advantage."""
    kinds = {"k1": "kl", "k2": "kl", "k3": "kl", "advantage": "advantage"}
    return [
        pytest.param(peer, record, id=key)
        for key, (peer, record) in RECORDS.items()
        if kinds.get(record["name"].split("/")[0], "loss") == kind
    ]


# Losses


@dataclass(frozen=True)
class RatioCorrected(GRPO):
    """TRL's default with beta: the penalty times the ratio (2512.02556), unlike GRPO's paper and etr."""

    def regularizer(self, batch: etr.Batch) -> Tensor:
        penalty = super().regularizer(batch)
        assert penalty is not None
        return self.ratio(batch).exp() * penalty


CLIP_HIGHER: dict[str, object] = {"eps_low": 0.2, "eps_high": 0.28}
# What a peer calls it: the objective here. The records named /parts accumulate four micro-batches.
OBJECTIVES: dict[str, dict[str, etr.Objective]] = {
    "verl": {
        "vanilla": etr.get("ppo"),
        "vanilla/dual-clip": etr.get("ppo", dual_clip=3.0),
        "vanilla/clip-higher": etr.get("dapo"),
        "vanilla/seq-mean-token-mean": etr.get("grpo"),
        "vanilla/seq-mean-token-sum": etr.get("ppo", aggregation="seq-mean-token-sum"),
        "vanilla/seq-mean-token-sum-norm": etr.get("dr_grpo", length=10),
        "gspo": etr.get("gspo"),
        "gspo/wide": etr.get("gspo", **CLIP_HIGHER),
        "cispo": etr.get("cispo", **CLIP_HIGHER),
        "gpg": etr.get("reinforce"),
    },
    "trl": {
        **dict.fromkeys(("grpo", "grpo/parts"), etr.get("grpo", **CLIP_HIGHER)),
        "bnpo": etr.get("ppo", **CLIP_HIGHER),
        "bnpo/parts": etr.get("ppo", **CLIP_HIGHER, aggregation="local-token-mean"),
        **dict.fromkeys(("dr_grpo", "dr_grpo/parts"), etr.get("dr_grpo", **CLIP_HIGHER, length=10)),
        **dict.fromkeys(("dapo", "dapo/parts"), etr.get("dapo")),
        "grpo/beta": etr.get("grpo", **CLIP_HIGHER, beta=0.1),
        "dapo/beta": etr.get("dapo", beta=0.1),
        "grpo/beta-corrected": RatioCorrected(eps_high=0.28, beta=0.1),
        "grpo/delta": etr.get("grpo", **CLIP_HIGHER, dual_clip=3.0),
        "gspo": etr.get("gspo"),
        "gspo/wide": etr.get("gspo", **CLIP_HIGHER),
        "cispo": etr.get("cispo", eps_low=1.0, eps_high=0.28),  # TRL states the cap as a ratio, 1.28
    },
}


def log_ratio(case: Case, to: str = "old") -> Tensor:
    """Of the current policy to the `old` or `ref` one."""
    return case["log_probs"] - case[f"{to}_log_probs"]


def mean_log_ratio(case: Case) -> Tensor:
    mask = case["response_mask"]
    mean = (log_ratio(case) * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return mean.expand_as(mask)


@dataclass(frozen=True)
class Deviation:
    """A difference that is meant: the peer's result is `scale` times ours, or differs on `tokens`."""

    records: str
    reason: str
    scale: float = 1.0
    tokens: Callable[[Case], Tensor] | None = None


DEVIATIONS = [
    Deviation(
        "trl-tiny-(grpo|dr_grpo|gspo).*",
        "TRL counts a response without kept tokens in its mean over responses; verl and etr do not",
        scale=11 / 12,
    ),
    Deviation(
        "trl-extreme-.*/beta.*",
        "TRL bounds neither log π/π_old nor, in k3, log π/π_ref; etr bounds both at ±20",
        tokens=lambda case: torch.maximum(log_ratio(case).abs(), log_ratio(case, "ref").abs()) > LIMIT,
    ),
    Deviation(
        "trl-extreme-(?!gspo).*",
        "TRL does not bound log π/π_old; verl and etr bound it at ±20, with gradient 0 beyond",
        tokens=lambda case: log_ratio(case).abs() > LIMIT,
    ),
    Deviation(
        "verl-extreme-gspo.*",
        "verl bounds the mean log-ratio of a response at 10, etr at 20",
        tokens=lambda case: mean_log_ratio(case) > 10,
    ),
    Deviation(
        "verl-extreme-k3",
        "verl bounds a token's k3 penalty at 10, with gradient 0 beyond; here it is the estimator itself",
        tokens=lambda case: torch.expm1(-log_ratio(case, "ref")) + log_ratio(case, "ref") > 10,
    ),
]


def deviation(peer: str, record: dict[str, Any]) -> Deviation:
    """The declared difference for a record, or none."""
    key = f"{peer}-{record['case']}-{record['name']}"
    return next((d for d in DEVIATIONS if re.fullmatch(d.records, key)), Deviation(key, "none"))


def our_loss(objective: etr.Objective, case: Case, parts: int = 1) -> tuple[Tensor, Tensor]:
    """Loss and gradient `[B, T]`, summed over micro-batches with the global divisor."""
    leaf = case["log_probs"].clone().requires_grad_()
    group = etr.group_stats(case["rewards"], case["group_ids"])
    batch = etr.Batch(
        log_probs=leaf,
        old_log_probs=case["old_log_probs"],
        ref_log_probs=case["ref_log_probs"],
        response_mask=case["response_mask"],
        advantages=case["advantages"],
        group=group,
    )
    divisor: Tensor | float = objective.denominator(batch.response_mask)
    if objective.aggregation == "local-token-mean":
        divisor = float(parts)
    rows = torch.arange(len(leaf)).chunk(parts)
    loss = torch.stack([etr.policy_loss(objective, batch.rows(part), divisor).loss for part in rows]).sum()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize(("peer", "record"), recorded("loss"))
def test_loss_and_gradient_equal_the_recorded_ones(peer: str, record: dict[str, Any]) -> None:
    case, known = CASES[record["case"]], deviation(peer, record)
    parts = record["settings"].get("gradient_accumulation_steps", 1)
    loss, gradient = our_loss(OBJECTIVES[peer][record["name"]], case, parts)
    assert not gradient[~case["response_mask"]].any()
    compare(gradient * known.scale, record["gradient"], known, case, RTOL[peer])
    if known.tokens is None:
        close(loss * known.scale, torch.tensor(record["loss"], dtype=torch.float64), RTOL[peer])


def compare(ours: Tensor, recorded: list[float], known: Deviation, case: Case, rtol: float = 1e-10) -> None:
    """On the kept tokens: equal wherever no difference is declared, and really different where one is."""
    mask, theirs = case["response_mask"], torch.tensor(recorded, dtype=torch.float64)
    apart = torch.zeros_like(mask) if known.tokens is None else known.tokens(case) & mask
    close(ours[mask & ~apart], theirs[~apart[mask]], rtol)
    if known.tokens is not None:
        really = ~torch.isclose(ours[apart], theirs[apart[mask]], rtol=1e-3, atol=0.0)
        assert really.any(), f"no longer true: {known.reason}"


def test_the_cases_reach_every_branch_of_a_clip() -> None:
    case, row = CASES["wide"], CASES["tiny"]["response_mask"][:, 0]
    ratio, sign = log_ratio(case).exp(), case["advantages"].sign().unsqueeze(-1)
    for a in (-1, 1):
        for branch in (ratio < 0.8, (ratio > 0.8) & (ratio < 1.2), ratio > 1.28):
            assert (branch & (sign == a) & case["response_mask"]).sum() >= 2
    assert ((ratio > 3.0) & (sign == -1) & case["response_mask"]).any()
    sequence = mean_log_ratio(CASES["tiny"])[row, 0].exp()
    for branch in (sequence < 1 - 3e-4, (sequence > 1 - 3e-4) & (sequence < 1 + 4e-4), sequence > 1 + 4e-4):
        assert branch.any()


# KL penalties and advantages


@pytest.mark.parametrize(("peer", "record"), recorded("kl"))
def test_kl_penalties_equal_the_recorded_ones(peer: str, record: dict[str, Any]) -> None:
    case, known = CASES[record["case"]], deviation(peer, record)
    leaf = case["log_probs"].clone().requires_grad_()
    values = etr.regularizers.kl(leaf, case["ref_log_probs"], kind=record["name"])
    compare(values.detach(), record["values"], known, case)
    compare(torch.autograd.grad(values.sum(), leaf)[0], record["gradient"], known, case)


def test_k3_never_pushes_away_from_the_reference_policy() -> None:
    case = CASES["extreme"]
    leaf = case["log_probs"].clone().requires_grad_()
    penalty = etr.regularizers.kl(leaf, case["ref_log_probs"], kind="k3")
    assert (torch.autograd.grad(penalty.sum(), leaf)[0] * log_ratio(case, "ref") >= 0).all()


def whitened_over_tokens(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """verl whitens over tokens with the sample variance: on 12 responses of 7 tokens, ours times √(83/84)."""
    return etr.advantages.batch_whiten(rewards, group_ids, eps=0.0) * math.sqrt(83 / 84)


def sample_zscore(eps: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Both peers divide by the sample standard deviation plus `eps`; the default here is the population's."""
    return lambda rewards, group_ids: etr.advantages.group_zscore(rewards, group_ids, ddof=1, eps=eps)


ADVANTAGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "verl-advantage/grpo": sample_zscore(1e-6),
    "verl-advantage/grpo/no-std": etr.advantages.group_center,
    "verl-advantage/rloo": etr.advantages.leave_one_out,
    "verl-advantage/reinforce_plus_plus_baseline": whitened_over_tokens,
    "trl-advantage/group": sample_zscore(1e-4),
    "trl-advantage/none": etr.advantages.group_center,
}


@pytest.mark.parametrize(("peer", "record"), recorded("advantage"))
def test_advantages_equal_the_recorded_ones(peer: str, record: dict[str, Any]) -> None:
    ours = ADVANTAGES[f"{peer}-{record['name']}"](CASES["wide"]["rewards"], CASES["wide"]["group_ids"])
    theirs = torch.tensor(record["values"], dtype=torch.float64)
    close(ours, theirs, RTOL["verl" if peer == "verl" else "trl advantages"])


# polgrad, live

# name: (polgrad's algorithm, changes to it, the objective here)
POLGRAD: dict[str, tuple[str, dict[str, Any], etr.Objective]] = {
    "ppo": ("ppo", {}, etr.get("ppo")),
    "ppo dual clip": ("ppo", {"clip": (0.2, 0.2, 1.5)}, etr.get("ppo", dual_clip=1.5)),
    "grpo": ("grpo", {}, etr.get("grpo", beta=0.04)),
    "grpo without penalty": ("grpo", {"kl": None}, etr.get("grpo")),
    "dr_grpo": ("dr_grpo", {"norm_len": 10}, etr.get("dr_grpo", length=10)),
    "dapo": ("dapo", {}, etr.get("dapo")),
    "gspo": ("gspo", {}, etr.get("gspo")),
    "gspo per token": ("gspo_token", {}, etr.get("gspo")),  # the same for one advantage per response
    "cispo": ("cispo", {}, etr.get("cispo", eps_high=0.2)),
    "cispo two-sided": ("cispo", {"clip": (0.2, 0.28)}, etr.get("cispo", **CLIP_HIGHER)),
    "reinforce": ("rloo", {}, etr.get("reinforce", aggregation="seq-mean-token-sum")),
}


def fresh_case(seed: int, noise: float, rows: int = 12, tokens: int = 9) -> Case:
    """A random ragged batch in shuffled groups of four, with one group of equal rewards."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    log_probs = -normal(rows, tokens).exp()
    rewards = (normal(rows) > 0).double()
    rewards[:4] = 1.0
    shuffled = torch.randperm(rows, generator=draw)
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs - noise * normal(rows, tokens),
        "ref_log_probs": log_probs - normal(rows, tokens),
        "response_mask": torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1), generator=draw),
        "advantages": normal(rows),
        "rewards": rewards[shuffled],
        "group_ids": torch.arange(rows)[shuffled] // 4,
    }


LIVE = [pytest.param(fresh_case(seed, noise), id=f"{seed}-{noise}") for seed in (0, 1) for noise in (0.5, 1e-3)]


@pytest.mark.parametrize("case", LIVE)
@pytest.mark.parametrize("name", POLGRAD)
def test_loss_and_gradient_equal_polgrad(name: str, case: Case) -> None:
    polgrad = pytest.importorskip("polgrad")
    algorithm, changes, objective = POLGRAD[name]
    clip = {"clip": polgrad.ClipConfig(*changes["clip"])} if "clip" in changes else {}
    leaf = case["log_probs"].clone().requires_grad_()
    theirs = polgrad.policy_loss(
        replace(polgrad.get_algorithm(algorithm).loss, **{**changes, **clip}),
        logprobs=leaf,
        old_logprobs=case["old_log_probs"],
        ref_logprobs=case["ref_log_probs"],
        advantages=case["advantages"],
        response_mask=case["response_mask"],
    ).loss
    for parts in (1, 3):
        loss, gradient = our_loss(objective, case, parts)
        close(loss, theirs.detach())
        close(gradient, torch.autograd.grad(theirs, leaf, retain_graph=True)[0])


@pytest.mark.parametrize("case", LIVE[:2])
def test_kl_penalties_and_advantages_equal_polgrad(case: Case) -> None:
    polgrad = pytest.importorskip("polgrad")
    mask, rewards, ids = case["response_mask"], case["rewards"], case["group_ids"]
    for kind in polgrad.KLEstimator:
        if kind is not polgrad.KLEstimator.ABS:  # not an estimate of a KL divergence
            theirs = polgrad.kl_estimate(case["log_probs"], case["ref_log_probs"], kind, response_mask=mask)
            ours = etr.regularizers.kl(case["log_probs"], case["ref_log_probs"], kind=kind.value)
            close(ours[mask], theirs[mask])
    sample = math.sqrt((len(rewards) - 1) / len(rewards))  # polgrad's std over the batch is the sample's
    a, norm, grpo = etr.advantages, polgrad.GroupNormConfig, polgrad.grpo_advantages
    whiten = polgrad.ReinforcePPConfig(batch_norm=True, eps=0.0)
    close(a.group_zscore(rewards, ids, ddof=1, eps=1e-4), grpo(rewards, ids, norm()))
    close(a.group_zscore(rewards, ids), grpo(rewards, ids, norm(eps=1e-300, unbiased=False)))
    close(a.group_center(rewards, ids), grpo(rewards, ids, norm(scale="none")))
    close(a.leave_one_out(rewards, ids), polgrad.rloo_advantages(rewards, ids))
    whitened = polgrad.reinforce_pp_advantages(rewards, ids, config=whiten)
    close(a.batch_whiten(rewards, ids, eps=0.0) * sample, whitened)
