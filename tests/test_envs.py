"""Toy environments: Gymnasium conformance, determinism, exact value against sampling, presets, bad input."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from etr import exact
from toy_envs import (
    FAMILIES,
    Bandit,
    ExactEnv,
    ExactModel,
    TokenTree,
    draw_accepting,
    list_envs,
    make_env,
    make_model,
)
from toy_envs.bandit import deceptive, spread

IDS = sorted(name for name in gymnasium.registry if name.startswith("toy_envs/"))
EASY = "toy_envs/TokenTree-easy-v0"


def small_tree() -> TokenTree:
    return TokenTree(2, 2, [[(0, 1)], [(1, 0), (1, 1)], [(0, 0), (0, 1), (1, 0)]])


def uniforms(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Gymnasium ---


def test_every_preset_is_registered_under_both_names() -> None:
    assert len(IDS) == len(list_envs()) == sum(len(env.SWEEP) for env in FAMILIES.values()) == 36
    assert {"toy_envs/Bandit-spread-v0", EASY} <= set(IDS)
    assert {"bandit-spread", "bandit-deceptive", "tree-easy", "tree-hard"} <= set(list_envs())


@pytest.mark.parametrize("env_id", IDS)
def test_check_env_is_clean(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(env_id).unwrapped)


def play(env: gymnasium.Env[Any, Any], seed: int, episodes: int = 20) -> list[Any]:
    """All observations, rewards and infos of episodes with arbitrary actions."""
    env.action_space.seed(seed)
    trace: list[Any] = []
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        trace.append((np.asarray(observation).tolist(), info))
        done = False
        while not done:
            observation, reward, done, truncated, info = env.step(env.action_space.sample())
            assert env.observation_space.contains(observation) and not truncated
            trace.append((np.asarray(observation).tolist(), reward, done, info))
    return trace


@pytest.mark.parametrize("env_id", IDS)
def test_a_seed_fixes_the_whole_trajectory(env_id: str) -> None:
    first, again, other = (play(gymnasium.make(env_id), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_tree_episode_token_by_token() -> None:
    env = small_tree()
    observation, info = env.reset(options={"prompt": 1})
    assert observation.tolist() == [1, 2, 2] and info == {"prompt": 1, "state": 0}
    observation, reward, done, _, info = env.step(np.int64(1))
    assert (observation.tolist(), reward, done, info) == ([1, 1, 2], 0.0, False, {"prompt": 1, "state": 2})
    observation, reward, done, _, info = env.step(np.int64(0))
    assert (observation.tolist(), reward, done, info) == ([1, 1, 0], 1.0, True, {"prompt": 1})


# --- the exact model against sampling, 5 standard errors ---


def random_policy(model: ExactModel, runs: int, seed: int) -> Tensor:
    """One random policy repeated for every run: `[runs, P, S, V]`."""
    rng = torch.Generator().manual_seed(seed)
    shape = (model.prompts, model.states, model.vocab_size)
    return torch.randn(shape, generator=rng, dtype=torch.float64).expand(runs, *shape)


@pytest.mark.parametrize("name", list_envs())
def test_vectorised_sampling_agrees_with_the_exact_value(name: str) -> None:
    """Every part of the reward, prompt by prompt; without parts, the verdict."""
    model, runs, group = make_model(name), 10, 100
    logits = random_policy(model, runs, seed=5)
    sequences = model.sample(logits, uniforms(runs, model.prompts, group, model.horizon, seed=6))
    noise = uniforms(runs, model.prompts, group, model.noise_size, seed=7)
    rewards, parts = model.verify(sequences, noise), model.outcomes(sequences, noise)
    assert rewards.shape == (runs, model.prompts, group) and set(parts.unique().tolist()) <= {0.0, 1.0}
    tables = model.verdict.unsqueeze(1) if model.components is None else model.components
    for k, table in enumerate(tables.unbind(1)):
        wanted = exact.expected_reward(logits, ExactModel(model.vocab_size, model.horizon, table))[0]
        error = (wanted * (1 - wanted) / (runs * group)).sqrt()
        assert bool(((parts[..., k].mean((0, 2)) - wanted).abs() <= 5 * error + 1e-12).all())
    scales = model.scales or (1.0,)
    total = sum(scale * parts[..., k] for k, scale in enumerate(scales)) / sum(scales)
    torch.testing.assert_close(rewards, total)


def test_sampled_sequences_and_states_have_their_exact_frequencies() -> None:
    model, n = small_tree().model, 20_000
    logits = random_policy(model, 1, seed=8)
    sequences = model.sample(logits, uniforms(1, model.prompts, n, model.horizon, seed=9))
    index, states = model.sequence_index(sequences)[0], model.prefix_states(sequences)[0].flatten(1)
    cases = [
        (index, exact.sequence_log_probs(logits, model)[0].exp()),
        (states, exact.state_visits(logits, model)[0]),
    ]
    for sampled, wanted in cases:
        found = torch.stack([row.bincount(minlength=wanted.shape[-1]) for row in sampled]) / n
        assert bool(((found - wanted).abs() <= 5 * (wanted * (1 - wanted) / n).sqrt() + 1e-12).all())


@pytest.mark.parametrize("env", [small_tree(), Bandit([[0.9, 0.2, 0.1], [0.3, 0.3, 0.6]]), make_env("multi-reward")])
def test_the_step_interface_agrees_with_the_exact_value(env: ExactEnv[Any]) -> None:
    model, episodes = env.model, 2000
    logits = random_policy(model, 1, seed=10)
    cdf = logits[0].softmax(-1).cumsum(-1).numpy()
    rng = np.random.default_rng(11)
    env.reset(seed=12)
    rewards = []
    for _ in range(episodes):
        _, info = env.reset()
        done = False
        while not done:
            row = cdf[info["prompt"], info["state"]]
            token = min(int((row <= rng.random()).sum()), model.vocab_size - 1)
            _, reward, done, _, info = env.step(np.int64(token))
        rewards.append(float(reward))
    wanted = exact.expected_reward(logits, model).mean().item()
    assert abs(np.mean(rewards) - wanted) <= 5 * np.std(rewards) / episodes**0.5


def test_runs_never_mix_and_uniforms_decide_everything() -> None:
    model = make_model("tree-easy")
    logits = random_policy(model, 3, seed=13) * torch.tensor([0.0, 1.0, 9.0]).reshape(3, 1, 1, 1)
    u, noise = uniforms(3, 8, 5, 3, seed=14), uniforms(3, 8, 5, 1, seed=15)
    sequences = model.sample(logits, u)
    rewards = model.verify(sequences, noise)
    for run in range(3):
        assert torch.equal(model.sample(logits[run], u[run]), sequences[run])
        assert torch.equal(model.verify(sequences[run], noise[run]), rewards[run])


def test_sampling_never_picks_a_token_of_probability_zero() -> None:
    model = Bandit([[0.5] * 3]).model
    logits = torch.tensor([-200.0, 0.0, -200.0]).reshape(1, 1, 3)
    edge = torch.tensor([0.0, 0.5, 1 - 2**-24]).reshape(1, 3, 1)
    assert model.sample(logits, edge).flatten().tolist() == [1, 1, 1]


def test_indices_count_in_base_v_with_the_first_token_most_significant() -> None:
    model = ExactModel(3, 3, torch.zeros(1, 27, dtype=torch.float64))
    assert model.states == 1 + 3 + 9
    sequences = torch.tensor([[0, 0, 0], [2, 1, 0], [2, 2, 2]])
    assert model.sequence_index(sequences).tolist() == [0, 21, 26]
    assert model.prefix_states(sequences).tolist() == [[0, 1, 4], [0, 3, 11], [0, 3, 12]]


def test_score_runs_from_uniform_to_optimal() -> None:
    env = Bandit([[1.0, 0.0], [0.5, 0.5]])
    assert [env.score(value) for value in (0.3, 0.5, 0.625, 0.75)] == [0.0, 0.0, 0.5, 1.0]
    assert Bandit([[0.1] * 10]).score(0.1) == 1.0  # nothing to win
    assert env.model.score(torch.tensor([0.5, 0.75])).tolist() == [0.0, 1.0]


# --- presets: what their docstrings claim ---


@pytest.mark.parametrize("preset", Bandit.PRESETS)
def test_bandits_are_16_by_10_and_their_best_arm_depends_on_the_prompt(preset: str) -> None:
    model = Bandit.from_preset(preset).model
    assert (model.prompts, model.vocab_size, model.horizon) == (16, 10, 1)
    assert model.success.argmax(-1).unique().numel() > 5
    best = (model.success == model.success.amax(-1, keepdim=True)).sum(-1)
    assert best.tolist() == [3 if preset == "multi-optimum" else 1] * 16


def test_bandit_gaps() -> None:
    top = {name: Bandit.from_preset(name).model.success.topk(3).values[0].tolist() for name in Bandit.PRESETS}
    assert top["fixed-gap"] == pytest.approx([0.6, 0.4, 0.4])
    assert top["near-tie"] == pytest.approx([0.6, 0.58, 0.1])
    assert top["multi-optimum"] == pytest.approx([0.8, 0.8, 0.8])


def test_spread_runs_from_hard_to_easy() -> None:
    success = torch.tensor(spread(), dtype=torch.float64)
    start, best = success.mean(-1), success.amax(-1)
    assert start.tolist() == sorted(start.tolist())
    assert (start[0].item(), start[-1].item()) == pytest.approx((0.01, 0.99), abs=0.001)
    assert (best[0].item(), best[-1].item()) == pytest.approx((0.06, 1.0), abs=0.004)


def test_deceptive_decoys_rise_first_and_are_unlearnt() -> None:
    """By exact gradient ascent from the uniform policy: their mass peaks near 0.6 and ends near 0."""
    model = Bandit(deceptive(prompts=1)).model
    decoys = model.success[0] == 0.7
    assert (model.success[0, decoys].sum() / model.success.sum()).item() == pytest.approx(0.8, abs=0.01)
    logits = torch.zeros(1, 1, 10, dtype=torch.float64)
    mass, best = [], []
    for _ in range(400):
        pi = logits.softmax(-1)[0, 0]
        mass.append(pi[decoys].sum().item())
        best.append(pi[0].item())
        logits = logits + 0.4 * exact.policy_gradient(logits, model)
    assert mass[5] - mass[0] > best[5] - best[0] > 0
    assert max(mass) > 0.6 and mass.index(max(mass)) > 20 and mass[-1] < 0.05


@pytest.mark.parametrize(
    ("preset", "size", "hardest", "easiest"),
    [
        ("easy", (3, 3), 2 / 27, 12 / 27),
        ("medium", (4, 4), 2 / 256, 0.25),
        ("hard", (4, 5), 2 / 1024, 1 / 16),
    ],
)
def test_tree_difficulty(preset: str, size: tuple[int, int], hardest: float, easiest: float) -> None:
    model = TokenTree.from_preset(preset).model
    start = model.success.mean(-1)
    assert (model.vocab_size, model.horizon, model.prompts) == (*size, 8)
    assert start.unique().numel() == 8 and model.optimal_value == 1.0
    assert (start.min().item(), start.max().item()) == pytest.approx((hardest, easiest))


def test_drawn_sequences_are_distinct_and_never_change() -> None:
    """The literal pins the presets: recorded runs stay comparable on other machines and Python versions."""
    drawn = draw_accepting(3, 3, [5, 2])
    assert [len(set(sequences)) for sequences in drawn] == [5, 2]
    assert TokenTree.PRESETS["easy"]["accepting"][-1] == [(1, 0, 1), (1, 1, 1)]
    assert draw_accepting(3, 3, [5], seed=1) != drawn[:1]
