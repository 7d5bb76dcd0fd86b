"""etr against polgrad's own code, live, on a hundred fresh batches; skipped where polgrad is not installed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from peers import Case, assert_equal, new_case, ours
from peers.cases import NOISE
from peers.deviations import POLGRAD

import etr
from etr.corrections import Correction

polgrad = pytest.importorskip("polgrad")
HIGHER: dict[str, Any] = {"eps_low": 0.2, "eps_high": 0.28}
# name: (polgrad's algorithm, changes to its loss, the objective here). `extreme` is left out: polgrad bounds no ratio.
ALGORITHMS: dict[str, tuple[str, dict[str, Any], etr.Objective]] = {
    "ppo": ("ppo", {}, etr.get("ppo")),
    "ppo dual clip": ("ppo", {"clip": (0.2, 0.2, 1.5)}, etr.get("ppo", dual_clip=1.5)),
    "grpo": ("grpo", {}, etr.get("grpo", beta=0.04)),
    "grpo without penalty": ("grpo", {"kl": None}, etr.get("grpo")),
    "grpo two-sided": ("grpo", {"kl": None, "clip": (0.2, 0.28, 4.0)}, etr.get("two_sided", **HIGHER)),
    "dr_grpo": ("dr_grpo", {"norm_len": 10}, etr.get("dr_grpo", length=10)),
    "dapo": ("dapo", {}, etr.get("dapo")),
    "gspo": ("gspo", {}, etr.get("gspo")),
    "gspo_token": ("gspo_token", {}, etr.get("gspo_token")),
    "gspo_token as gspo": ("gspo_token", {}, etr.get("gspo")),  # the same for one advantage per response
    "cispo": ("cispo", {}, etr.get("cispo", eps_high=0.2)),
    "cispo two-sided": ("cispo", {"clip": (0.2, 0.28)}, etr.get("cispo", **HIGHER)),
    "rloo": ("rloo", {}, etr.get("reinforce", aggregation="seq-mean-token-sum")),
    "reinforce_pp": ("reinforce_pp", {}, etr.get("reinforce_plus_plus", aggregation="seq-mean-token-mean")),
    "grpo_tis": ("grpo_tis", {}, etr.get("grpo", beta=0.04)),
}
CORRECTIONS = {"grpo_tis": Correction("tis", "token", high=10.0)}
KINDS = [kind for kind in NOISE if kind != "extreme"]
DRAWS = [f"{kind}-{seed}" for seed in range(200, 220) for kind in KINDS]
PRECISE = {torch.float64: 1e-9, torch.float32: 1e-5}


def test_declared_differences_are_there_and_nothing_else_is() -> None:
    case, known = new_case("extreme-200"), POLGRAD["ratios"]
    assert known.tokens is not None
    apart, mask = known.tokens(case) & case["response_mask"], case["response_mask"]
    for name in ("ppo", "dapo", "cispo", "dr_grpo"):
        algorithm, changes, objective = ALGORITHMS[name]
        config = dataclasses.replace(polgrad.get_algorithm(algorithm).loss, **changes)
        expected, found = (torch.autograd.grad(x, leaf)[0] for x, leaf in losses(config, objective, None, case, 1))
        assert_equal(found[mask & ~apart], expected[mask & ~apart], 1e-9, 1e-12)
        assert not torch.allclose(found[apart], expected[apart], atol=0.0)
    case, change = new_case("wide-200"), POLGRAD["spread"].change
    assert change is not None
    ours_there = etr.get("grpo").advantage(case["rewards"], case["group_ids"])[:, None]
    theirs = polgrad.grpo_advantages(case["rewards"], case["group_ids"], polgrad.GroupNormConfig())[:, None]
    close(change(ours_there, case), theirs)
    assert not torch.allclose(ours_there, theirs)


def test_every_algorithm_of_polgrad_is_compared() -> None:
    assert {algorithm for algorithm, _, _ in ALGORITHMS.values()} == set(polgrad.ALGORITHMS)


@pytest.mark.parametrize("dtype", PRECISE, ids=str)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_loss_and_gradient_equal_polgrad(name: str, dtype: torch.dtype) -> None:
    algorithm, changes, objective = ALGORITHMS[name]
    clip = {"clip": polgrad.ClipConfig(*changes["clip"])} if "clip" in changes else {}
    config = dataclasses.replace(polgrad.get_algorithm(algorithm).loss, **{**changes, **clip})
    double = dtype == torch.float64
    for draw in DRAWS if double else DRAWS[::4]:
        case, parts = new_case(draw, dtype), 3 if double else 1
        compare(config, objective, CORRECTIONS.get(name), case, parts, PRECISE[dtype])


def compare(config: Any, objective: etr.Objective, fix: Correction | None, case: Case, parts: int, tol: float) -> None:
    (theirs, leaf), (loss, _) = losses(config, objective, fix, case, parts)
    expected, found = (torch.autograd.grad(x, leaf)[0] for x in (theirs, loss))
    assert_equal(found, expected, tol, atol=tol / 10 * expected.abs().max().item() + 1e-15)
    terms = (expected * case["log_probs"]).abs().sum().item() + case["advantages"].abs().mean().item()
    assert_equal(loss.detach(), theirs.detach(), tol, atol=tol * terms)


def losses(config: Any, objective: etr.Objective, fix: Correction | None, case: Case, parts: int) -> list[Any]:
    """(polgrad's loss, its leaf), (ours in micro-batches, the same leaf)."""
    leaf = case["log_probs"].clone().requires_grad_()
    streams = {f"{name}_logprobs": case[f"{name}_log_probs"] for name in ("old", "ref", "rollout")}
    theirs = polgrad.policy_loss(
        config, logprobs=leaf, advantages=case["advantages"], response_mask=case["response_mask"], **streams
    ).loss
    batch = ours.batch_of(case, leaf) if fix is None else fix.apply(ours.batch_of(case, leaf))
    # Shaped advantages are another matter: here both get the same.
    batch = batch.with_columns(**{f"{objective.name}_shaped": torch.ones_like(case["advantages"])})
    whole = objective.denominator(case["response_mask"])
    rows = torch.arange(len(leaf)).chunk(parts)
    loss = torch.stack([etr.policy_loss(objective, batch.rows(part), whole).loss for part in rows]).sum()
    return [(theirs, leaf), (loss, leaf)]


@pytest.mark.parametrize("draw", DRAWS[::10])
def test_kl_penalties_equal_polgrad(draw: str) -> None:
    case = new_case(draw)
    mask = case["response_mask"]
    for kind in polgrad.KLEstimator:
        if kind is not polgrad.KLEstimator.ABS:  # not an estimate of a KL divergence
            theirs = polgrad.kl_estimate(case["log_probs"], case["ref_log_probs"], kind, response_mask=mask)
            found = etr.regularizers.kl(case["log_probs"], case["ref_log_probs"], kind=kind.value)
            assert_equal(found[mask], theirs[mask], 1e-9, atol=1e-14)


@pytest.mark.parametrize("draw", DRAWS[::2])
def test_advantages_equal_polgrad(draw: str) -> None:
    case = new_case(draw)
    rewards, ids = case["rewards"], case["group_ids"]
    shuffled = torch.randperm(len(ids), generator=torch.Generator().manual_seed(len(draw)))
    sample = math.sqrt((len(rewards) - 1) / len(rewards))  # polgrad's std over the batch is the sample's
    a, norm, grpo = etr.advantages, polgrad.GroupNormConfig, polgrad.grpo_advantages
    for r, g in ((rewards, ids), (rewards[shuffled], ids[shuffled])):
        close(a.group_zscore(r, g, ddof=1, eps=1e-4), grpo(r, g, norm()))
        close(a.group_zscore(r, g), grpo(r, g, norm(eps=1e-300, unbiased=False)))
        close(a.group_center(r, g), grpo(r, g, norm(scale="none")))
        close(a.leave_one_out(r, g), polgrad.rloo_advantages(r, g))
        whitened = polgrad.reinforce_pp_advantages(r, g, config=polgrad.ReinforcePPConfig(batch_norm=True, eps=0.0))
        close(a.batch_whiten(r, g, eps=0.0) * sample, whitened)


@pytest.mark.parametrize("draw", DRAWS[::4])
def test_token_advantages_equal_polgrad(draw: str) -> None:
    case = new_case(draw)
    mask, last = case["response_mask"], case["response_mask"].sum(-1, keepdim=True) - 1
    rewards = torch.zeros_like(case["log_probs"]).scatter(1, last, case["rewards"][:, None])
    config = polgrad.GAEConfig(gamma=0.9, lam=0.8)
    gae = polgrad.gae(rewards, case["values"], config=config, response_mask=mask)[0]
    close(ours.shaped(etr.get("tppo", gamma=0.9, gae_lambda=0.8), case)[mask], gae[mask])
    columns = (case["old_log_probs"], case["ref_log_probs"], polgrad.KLEstimator.K1, 0.1)
    penalised = polgrad.kl_in_reward(rewards, *columns, response_mask=mask)
    returns = (penalised.flip(-1).cumsum(-1).flip(-1)) * mask
    kept = polgrad.whiten(returns, mask, eps=0.0)[mask]
    # To the population's std plus 1e-6.
    spread, tokens = returns[mask].std(correction=0), len(kept)
    kept = kept * math.sqrt(tokens / (tokens - 1)) * spread / (spread + 1e-6)
    close(ours.shaped(etr.get("reinforce_plus_plus", beta=0.1), case)[mask], kept)


def close(found: torch.Tensor, theirs: torch.Tensor) -> None:
    assert_equal(found, theirs, 1e-9, atol=1e-12)
