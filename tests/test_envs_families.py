"""What each environment claims: who is right, how often, and what a method may see of it. Counted by plain loops."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from toy_envs import (
    FAMILIES,
    CopyReverse,
    ExactModel,
    KeyChain,
    ModArithmetic,
    MultiMode,
    MultiReward,
    NoisyVerifier,
    RandomReward,
    TwoStage,
    list_envs,
    make_model,
    resolve,
)

PAGE = Path(__file__).parent.parent / "docs" / "environments.md"
SECTIONS = ["Description", "Action Space", "Observation Space", "Reward", "Episode End", "Arguments", "References"]


def sequences(model: ExactModel) -> list[tuple[int, ...]]:
    return list(itertools.product(range(model.vocab_size), repeat=model.horizon))


def right(model: ExactModel, prompt: int) -> list[tuple[int, ...]]:
    return [y for y, p in zip(sequences(model), model.success[prompt].tolist(), strict=True) if p == 1]


# --- all of them ---


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_described_in_the_same_way(family: str) -> None:
    env = FAMILIES[family]
    headings = re.findall(r"## (.+)", env.__doc__ or "")
    assert [name for name in headings if name != "Starting State"] == SECTIONS
    assert env.QUESTION.endswith("?") and tuple(env.PRESETS) == env.SWEEP
    assert all(
        f'"{preset}"' in (env.__doc__ or "") or family in ("bandit", "key-chain", "tree") for preset in env.SWEEP
    )


def test_a_family_alone_is_its_typical_preset() -> None:
    middle = {family: env.SWEEP[len(env.SWEEP) // 2] for family, env in FAMILIES.items()}
    assert {family: resolve(family)[1] for family in FAMILIES} == middle | {"bandit": "spread"}
    assert torch.equal(make_model("bandit").success, make_model("bandit-spread").success)
    assert make_model("key-chain").horizon == 4
    assert list_envs("tree") == ["tree-easy", "tree-medium", "tree-hard"]
    with pytest.raises(ValueError, match=r"unknown family 'trees'; did you mean 'tree'\?"):
        list_envs("trees")


@pytest.mark.parametrize("name", list_envs())
def test_every_environment_is_small_and_its_score_runs_from_0_to_1(name: str) -> None:
    model = make_model(name)
    assert model.success.shape[1] <= 20_000 and model.states <= 1500
    best = model.success.gather(-1, model.sequence_index(model.solutions)[:, None]).mean()
    assert model.score(best) == 1.0 and model.score(model.uniform_value) == 0.0
    assert model.score(model.success.amin(-1).mean()) == 0.0 and 0 < model.score((best + model.uniform_value) / 2) < 1


@pytest.mark.parametrize("family", ["tree", "key-chain", "copy", "mod", "multi-mode", "two-stage"])
def test_sweeps_run_from_easy_to_hard(family: str) -> None:
    chances = [make_model(name).uniform_value for name in list_envs(family)]
    assert chances == sorted(chances, reverse=True) and len(set(chances)) == len(chances)


@pytest.mark.parametrize("env_id", ["toy_envs/Bandit-spread-v0", "toy_envs/TwoStage-medium-v0"])
def test_gymnasium_vectorises(env_id: str) -> None:
    """Three copies at once see what each copy sees alone with its own seed."""
    together = gymnasium.make_vec(env_id, num_envs=3, vectorization_mode="sync")
    alone = [gymnasium.make(env_id) for _ in range(3)]
    found, _ = together.reset(seed=[5, 6, 7])
    wanted = [env.reset(seed=seed)[0] for env, seed in zip(alone, (5, 6, 7), strict=True)]
    np.testing.assert_array_equal(found, np.stack(wanted))
    for _ in range(make_model("two-stage").horizon if "TwoStage" in env_id else 1):
        actions = np.array([1, 0, 2])
        found, rewards, done, _, _ = together.step(actions)
        steps = [env.step(action) for env, action in zip(alone, actions, strict=True)]
        np.testing.assert_array_equal(found, np.stack([step[0] for step in steps]))
        assert rewards.tolist() == [step[1] for step in steps] and done.tolist() == [step[2] for step in steps]
    assert done.all()


# --- one by one ---


@pytest.mark.parametrize("preset", NoisyVerifier.SWEEP)
def test_noisy_verdicts(preset: str) -> None:
    model, options = NoisyVerifier.from_preset(preset).model, NoisyVerifier.PRESETS[preset]
    assert (model.prompts, model.vocab_size, model.horizon) == (32, 16, 1)
    for prompt in range(32):
        good = [y for y in range(16) if model.success[prompt, y] == 1]
        holes = [y for (y,) in options["loopholes"][prompt]] if options["loopholes"] else []
        assert (
            good == sorted(y for (y,) in options["accepting"][prompt])
            and 1 <= len(good) <= 3
            and not set(good) & set(holes)
        )
        for y in range(16):
            chance = 1 - options["false_negative"] if y in good else options["false_positive"]
            assert model.verdict[prompt, y].item() == pytest.approx(1.0 if y in holes else chance)
    counts = [len(right(model, prompt)) for prompt in range(32)]
    assert set(counts) == {1, 2, 3}


def test_a_noisy_tree() -> None:
    model = NoisyVerifier(2, 2, [[(0, 1)]], false_positive=0.25, loopholes=[[(1, 1)]]).model
    assert model.verdict.tolist() == [[0.25, 1.0, 0.25, 1.0]] and model.success.tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("preset", "wordings"), [("easy", [3, 3]), ("medium", [8, 4, 2, 1]), ("hard", [16, 8, 4, 2, 1, 1])]
)
def test_modes_are_clusters_of_final_answers(preset: str, wordings: list[int]) -> None:
    model, length = MultiMode.from_preset(preset).model, MultiMode.PRESETS[preset]["answer_length"]
    assert model.clusters is not None
    endings = [y[-length:] for y in sequences(model)]
    for prompt in range(model.prompts):
        ids = model.clusters[prompt].tolist()
        assert (
            len(set(zip(ids, endings, strict=True))) == len(set(ids)) == len(set(endings)) == model.vocab_size**length
        )
        found = [y[-length:] for y in right(model, prompt)]
        assert sorted((found.count(ending) for ending in set(found)), reverse=True) == wordings
    assert len({str(right(model, prompt)) for prompt in range(model.prompts)}) == model.prompts


@pytest.mark.parametrize("length", range(2, 7))
def test_a_chain_has_one_key(length: int) -> None:
    model = KeyChain.from_preset(f"k{length}").model
    keys = [right(model, prompt) for prompt in range(8)]
    assert all(len(found) == 1 and len(found[0]) == length for found in keys)
    assert model.uniform_value == pytest.approx(4.0**-length) and model.success.sum() == 8


@pytest.mark.parametrize("preset", CopyReverse.SWEEP)
def test_copies_and_reversals(preset: str) -> None:
    model = CopyReverse.from_preset(preset).model
    assert model.prompt_tokens is not None and model.prompts == 16
    tasks = []
    for prompt, (task, *text) in enumerate(model.prompt_tokens.tolist()):
        answer = text if task == model.vocab_size else text[::-1]
        assert task in (model.vocab_size, model.vocab_size + 1) and right(model, prompt) == [tuple(answer)]
        tasks.append(task)
    assert tasks == sorted(tasks) and tasks.count(model.vocab_size) == 8
    assert torch.equal(model.prompt_tokens[:8, 1:], model.prompt_tokens[8:, 1:])


@pytest.mark.parametrize(("preset", "modulus", "base"), [("m5", 5, 5), ("m8", 8, 2), ("m9", 9, 3)])
def test_sums(preset: str, modulus: int, base: int) -> None:
    model = ModArithmetic.from_preset(preset).model
    assert model.prompt_tokens is not None and model.prompts == modulus**2
    for prompt, text in enumerate(model.prompt_tokens.tolist()):
        value = [int("".join(map(str, half)), base) for half in (text[: model.horizon], text[model.horizon :])]
        assert prompt == value[0] * modulus + value[1]
        (answer,) = right(model, prompt)
        assert int("".join(map(str, answer)), base) == sum(value) % modulus


def test_sums_of_a_modulus_that_is_no_power() -> None:
    model = ModArithmetic(6, base=3).model
    assert model.horizon == 2 and right(model, 5 * 6 + 4) == [(1, 0)]  # 9 mod 6 = 3


def test_two_stages_by_simulation_of_the_hidden_value() -> None:
    """Draw z and what the question shows; the answer is a shift of what is seen, the key the right one."""
    env = TwoStage([[0.8, 0.3, 0.0]], [[2, 0, 1]])
    rng = np.random.default_rng(0)
    n, answers = 200_000, 3
    z = rng.integers(answers, size=n)
    for question, (accuracy, key) in enumerate(zip((0.8, 0.3, 0.0), (2, 0, 1), strict=True)):
        seen = np.where(rng.random(n) < accuracy, z, rng.integers(answers, size=n))
        for answer in range(answers):
            success = np.mean((seen + answer) % answers == (z + key) % answers)
            wanted = env.model.success[0, question * answers + answer].item()
            assert abs(success - wanted) < 5 * math.sqrt(0.25 / n)
        joint = np.array([[np.mean((z == a) & (seen == b)) for b in range(answers)] for a in range(answers)])
        information = float((joint * np.log(joint / joint.sum(0) / joint.sum(1, keepdims=True))).sum())
        assert env.information_gain[0, question].item() == pytest.approx(information, abs=0.005)


def test_a_question_that_tells_nothing_has_no_information() -> None:
    env = TwoStage([[0.0, 1.0, 0.5]], [[0, 1, 2]])
    nothing, everything, _ = env.information_gain[0].tolist()
    assert abs(nothing) < 1e-15 and everything == pytest.approx(math.log(3), rel=1e-15)


@pytest.mark.parametrize("preset", TwoStage.SWEEP)
def test_a_better_question_raises_what_the_best_answer_can_earn(preset: str) -> None:
    env = TwoStage.from_preset(preset)
    model = env.model
    assert model.turns == (0,) + (1,) * (model.horizon - 1)
    by_question = model.success.unflatten(1, (model.vocab_size, -1))
    order = env.information_gain.argsort(-1)
    assert torch.equal(by_question.amax(-1).argsort(-1), order)
    even = torch.full_like(by_question[..., 0], 1 / by_question.shape[-1])
    torch.testing.assert_close(by_question.mean(-1), even)  # under a uniform answer every question is worth the same
    assert order[:, -1].unique().numel() > 1


def test_branching_by_reset_to_a_question() -> None:
    """From one question, episodes with the right reading succeed as often as the table says."""
    env = TwoStage.from_preset("easy")
    prompt = 3
    question = int(env.accuracy[prompt].argmax())
    key = TwoStage.PRESETS["easy"]["keys"][prompt][question]
    env.reset(seed=0)
    total, episodes = 0.0, 1000
    for _ in range(episodes):
        observation, info = env.reset(options={"prompt": prompt, "prefix": [question]})
        assert observation.tolist() == [prompt, question, 4] and info == {"prompt": prompt, "state": 1 + question}
        _, reward, done, _, _ = env.step(np.int64(key))
        assert done
        total += reward
    assert abs(total / episodes - 0.9625) < 5 * math.sqrt(0.9625 * 0.0375 / episodes)


@pytest.mark.parametrize(
    ("preset", "scales"), [("uneven", (1.0, 0.1)), ("three", (1.0, 0.3, 0.1)), ("even", (1.0, 1.0))]
)
def test_parts_of_a_reward(preset: str, scales: tuple[float, ...]) -> None:
    model, accepting = MultiReward.from_preset(preset).model, MultiReward.PRESETS[preset]["accepting"]
    assert model.components is not None and model.scales == scales and model.noise_size == len(scales)
    for prompt in range(model.prompts):
        for n, y in enumerate(sequences(model)):
            parts = [float(y in accepting[prompt]), float(y[-1] == 3), y.count(0) / 3][: len(scales)]
            assert model.components[prompt, :, n].tolist() == pytest.approx(parts)
            total = sum(s * part for s, part in zip(scales, parts, strict=True)) / sum(scales)
            assert model.success[prompt, n].item() == pytest.approx(total)
        in_format = [y for y in accepting[prompt] if y[-1] == 3]
        assert (len(accepting[prompt]), len(in_format)) == (7, 1)


@pytest.mark.parametrize(("preset", "rate"), [("rare", 0.1), ("half", 0.5), ("often", 0.9)])
def test_random_rewards_know_nothing_of_the_task(preset: str, rate: float) -> None:
    model = RandomReward.from_preset(preset).model
    assert bool((model.verdict == rate).all()) and model.optimal_value == 1.0
    assert {len(right(model, prompt)) for prompt in range(16)} == {1, 2, 3}


BAD: list[tuple[Any, str]] = [
    (lambda: NoisyVerifier(2, 1, [[(0,)]], false_positive=1.5), "false_positive is 1.5; give a rate in [0, 1]"),
    (lambda: NoisyVerifier(2, 1, [[(0,)]], false_negative=-1), "false_negative is -1; give a rate in [0, 1]"),
    (lambda: NoisyVerifier(2, 1, [[(0,)]], loopholes=[[(0,)]]), "a loophole of prompt 0 is a right answer; give wrong"),
    (
        lambda: NoisyVerifier(2, 1, [[(0,)]], loopholes=[[(1,)], [(1,)]]),
        "loopholes has 2 prompts but accepting has 1; give one each",
    ),
    (lambda: MultiMode(2, 2, [[(0, 0)]], answer_length=3), "answer_length is 3; give 1 to 2, the last tokens"),
    (lambda: KeyChain(2, []), "vocab_size 2 and horizon 0 leave nothing to choose"),
    (lambda: KeyChain(2, [(0, 1), (1,)]), "prompt 1 accepts (1,), which no episode can write; give 2 tokens"),
    (lambda: CopyReverse(2, [(0, 1), (0, 1)]), "strings holds one string twice; give different ones"),
    (lambda: ModArithmetic(1), "modulus 1 and base 1 leave nothing to add; give at least 2"),
    (
        lambda: TwoStage([[0.5, 0.5]], [[0, 1], [0, 1]]),
        "accuracy and keys have 1 and 2 prompts with [2] questions; give every prompt an accuracy and a key",
    ),
    (lambda: TwoStage([[0.5, 0.5]], [[0, 2]]), "keys hold numbers of no reading; give whole numbers from 0 to 1"),
    (lambda: TwoStage([[0.5, 1.5]], [[0, 1]]), "accuracy of prompt 0, sequence (arm) 1 is 1.5; give prob"),
    (lambda: MultiReward(2, 2, [[(0, 0)]], (1.0,)), "scales has 1 numbers; give 2 or 3, for right, format, style"),
    (lambda: MultiReward(2, 2, [[(0, 0)]], (1.0, -1.0)), "scales are (1.0, -1.0); give positive numbers"),
    (lambda: RandomReward(2, 1, [[(0,)]], rate=2), "rate is 2; give a probability in [0, 1]"),
]


@pytest.mark.parametrize(("build", "sentence"), BAD)
def test_bad_input_is_one_sentence(build: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build()


# --- the page ---


def test_the_page_lists_every_environment_as_it_is() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for family, env in FAMILIES.items():
        assert env.QUESTION in rows[family], f"{family}: the page has another question"
        presets = re.findall(r"`([\w-]+)`", rows[family].split(" | ")[1])
        assert presets == [*env.SWEEP] and f"**`{env.TYPICAL}`**" in rows[family]
    sizes = {name: rows[name].split(" | ") for name in list_envs()}
    for name, (size, chance) in sizes.items():
        model = make_model(name)
        assert size == f"{model.prompts} × {model.vocab_size}^{model.horizon}", name
        assert chance == f"{model.uniform_value:.4g}, {model.optimal_value:.4g}", name
    assert set(rows) == set(FAMILIES) | set(list_envs())


def test_the_page_says_what_each_family_supplies() -> None:
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    words = {
        "clusters": "answer clusters",
        "components": "reward components",
        "turns": "turns",
        "prompt_tokens": "prompt",
    }
    for family in FAMILIES:
        for field, word in words.items():
            given = getattr(make_model(family), field) is not None
            assert (word in rows[family].split(" | ")[2]) == given, f"{family}: {word}"
