"""The pictures that answer an environment's question: their numbers by plain loops over all sequences."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from etr.errors import InputError
from etr.plots import caption, png
from etr.plots.answers import ANSWERS, SEEN, table_of_sums
from etr.plots.environments import environment_answer
from etr.plots.panels import Panel
from etr.toy.recorder import SUCCESS_EDGES, History
from toy_envs import FAMILIES, ExactModel, TwoStage, make_env, make_model, resolve

SEEDS = 3


def history(name: str, seed: int = 0, width: float = 0.4) -> History:
    """A run that ended with random logits."""
    model = make_model(name)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(SEEDS, model.prompts, model.states, model.vocab_size, generator=generator)
    curves = {metric: torch.rand(SEEDS, 4, generator=generator) for metric in ("entropy", "reward")}
    return History([1, 2, 3, 4], curves, torch.full((SEEDS, len(SUCCESS_EDGES) + 1), width), logits)


def panels(name: str, run: History) -> list[Panel]:
    return ANSWERS[resolve(name)[0]](make_env(name), {"grpo": run})[0]


def chances(model: ExactModel, logits: Tensor, prompt: int) -> dict[tuple[int, ...], float]:
    """π(y) of every complete sequence for one run, token by token."""
    prefixes = [p for t in range(model.horizon) for p in itertools.product(range(model.vocab_size), repeat=t)]
    table = logits[prompt].double().softmax(-1).tolist()
    every = itertools.product(range(model.vocab_size), repeat=model.horizon)
    return {y: math.prod(table[prefixes.index(y[:t])][y[t]] for t in range(model.horizon)) for y in every}


def value(model: ExactModel, table: Tensor, logits: Tensor) -> float:
    """Expected value of a table, mean over prompts."""
    prompts = range(model.prompts)
    weighted = [
        sum(c * t for c, t in zip(chances(model, logits, p).values(), table[p].tolist(), strict=True)) for p in prompts
    ]
    return sum(weighted) / model.prompts


@pytest.mark.parametrize("name", ["bandit-spread", "tree-easy"])
def test_score_of_every_prompt(name: str) -> None:
    run, model = history(name), make_model(name)
    panel = panels(name, run)[-1]
    rows = []
    for p in range(model.prompts):
        table = model.success[p].tolist()
        start, best = sum(table) / len(table), max(table)
        found = sum(c * t for c, t in zip(chances(model, run.logits[1], p).values(), table, strict=True))
        rows.append((start, (found - start) / (best - start)))
    rows.sort()
    assert list(panel.x) == pytest.approx([start for start, _ in rows])
    assert panel.lines["grpo"][1].tolist() == pytest.approx([score for _, score in rows])


def test_the_budget_is_the_recorded_width_and_left_out_without_a_region() -> None:
    budget, _ = panels("bandit-spread", history("bandit-spread"))
    assert list(budget.x) == pytest.approx([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
    assert budget.lines["grpo"].shape == (SEEDS, 6) and bool((budget.lines["grpo"] == 0.4).all())
    assert len(panels("bandit-spread", history("bandit-spread", width=math.inf))) == 1


def test_arms_in_order_of_success() -> None:
    run, model = history("bandit-deceptive"), make_model("bandit-deceptive")
    (panel,) = panels("bandit-deceptive", run)
    assert list(panel.ticks) == ["0.9"] + ["0.7"] * 5 + ["0"] * 4
    probs = run.logits[2, :, 0].double().softmax(-1)
    best = sum(probs[p, int(model.success[p].argmax())].item() for p in range(16)) / 16
    assert panel.lines["grpo"][2, 0].item() == pytest.approx(best)
    assert panel.lines["grpo"].sum(-1).tolist() == pytest.approx([1.0] * SEEDS)


def test_reward_paid_and_truth() -> None:
    run, model = history("noisy-loophole"), make_model("noisy-loophole")
    (panel,) = panels("noisy-loophole", run)
    wanted = [value(model, table, run.logits[0]) for table in (model.verdict, model.success)]
    assert panel.lines["grpo"][0].tolist() == pytest.approx(wanted)
    assert panel.reference is not None and panel.reference[1].tolist() == pytest.approx([0.7, 1.0])


def test_right_answers_seen_and_kept() -> None:
    run, model = history("multi-mode-medium"), make_model("multi-mode-medium")
    seen, kept = panels("multi-mode-medium", run)
    masses = []  # by prompt: probability of the answers with 8, 4, 2 and 1 ways
    for p in range(model.prompts):
        found: dict[tuple[int, ...], list[float]] = {}
        for (y, chance), right in zip(chances(model, run.logits[0], p).items(), model.success[p].tolist(), strict=True):
            if right:
                found.setdefault(y[-2:], []).append(chance)
        masses.append([sum(group) for group in sorted(found.values(), key=len, reverse=True)])
    assert kept.lines["grpo"][0].tolist() == pytest.approx([sum(column) / 8 for column in zip(*masses, strict=True)])
    assert list(kept.ticks) == ["8", "4", "2", "1"]
    for k, share in zip(SEEN, seen.lines["grpo"][0].tolist(), strict=True):
        assert share == pytest.approx(sum(1 - (1 - mass) ** k for row in masses for mass in row) / 32)


@pytest.mark.parametrize(("name", "parts"), [("key-chain-k3", [range(8)]), ("copy-easy", [range(8), range(8, 16)])])
def test_tokens_after_a_right_start(name: str, parts: list[range]) -> None:
    run, model = history(name), make_model(name)
    for panel, prompts in zip(panels(name, run), parts, strict=True):
        for t in range(3):
            total = 0.0
            for p in prompts:
                key = tuple(model.solutions[p].tolist())
                table = chances(model, run.logits[1], p)
                start, on = (sum(c for y, c in table.items() if y[:n] == key[:n]) for n in (t, t + 1))
                total += on / start
            assert panel.lines["grpo"][1, t].item() == pytest.approx(total / len(prompts))


def test_questions_asked_and_what_answers_are_worth_then() -> None:
    run, env = history("two-stage-easy"), make_env("two-stage-easy")
    assert isinstance(env, TwoStage)
    asked, worth = panels("two-stage-easy", run)
    for rank in range(4):
        ask = answer = 0.0
        for p in range(8):
            question = int(env.information_gain[p].argsort()[rank])
            table = chances(env.model, run.logits[0], p)
            mass = sum(c for y, c in table.items() if y[0] == question)
            won = sum(
                c * r
                for (y, c), r in zip(table.items(), env.model.success[p].tolist(), strict=True)
                if y[0] == question
            )
            ask, answer = ask + mass / 8, answer + won / mass / 8
        assert asked.lines["grpo"][0, rank].item() == pytest.approx(ask)
        assert worth.lines["grpo"][0, rank].item() == pytest.approx(answer)


def test_parts_of_the_reward() -> None:
    run, model = history("multi-reward-three"), make_model("multi-reward-three")
    (panel,) = panels("multi-reward-three", run)
    assert model.components is not None
    wanted = [value(model, model.components[:, k], run.logits[0]) for k in range(3)]
    assert panel.lines["grpo"][0].tolist() == pytest.approx(wanted)
    assert list(panel.ticks) == ["right\n(scale 1)", "format\n(scale 0.3)", "style\n(scale 0.1)"]


def test_random_rewards_show_entropy_over_steps() -> None:
    run = history("random")
    entropy, success = panels("random", run)
    assert torch.equal(entropy.lines["grpo"], run.curves["entropy"]) and list(entropy.x) == [1, 2, 3, 4]
    assert torch.equal(success.lines["grpo"], run.curves["reward"])
    assert entropy.reference is not None and entropy.reference[1][0].item() == pytest.approx(math.log(8))


def test_sums_by_pair() -> None:
    run, env = history("mod-m5"), make_env("mod-m5")
    table = table_of_sums(env, run)
    probs = run.logits[:, 3 * 5 + 4, 0].double().softmax(-1)
    assert table.shape == (5, 5) and table[3, 4].item() == pytest.approx(probs[:, (3 + 4) % 5].mean().item())


@pytest.mark.parametrize("name", [*FAMILIES, "bandit-deceptive"])
def test_every_family_has_its_picture(name: str) -> None:
    """With the question as its title, a line per recipe in every panel, and the number of seeds."""
    figure = environment_answer(name, {"grpo": history(name), "etr": history(name, seed=1)})
    assert figure.get_suptitle().replace("\n", " ") == make_env(name).QUESTION
    assert f"n = {SEEDS} seeds" in caption(figure)
    if resolve(name)[0] == "mod":
        assert [axes.get_title(loc="left")[:4] for axes in figure.axes[:2]] == ["grpo", "etr:"]
    else:
        for axes in figure.axes:
            assert {"grpo", "etr"} <= {line.get_label() for line in axes.lines}
    assert len(png(figure)) > 10_000


def test_bad_input() -> None:
    with pytest.raises(InputError, match=re.escape("unknown environment 'bandid'; did you mean 'bandit'?")):
        environment_answer("bandid", {"grpo": history("bandit")})
    with pytest.raises(InputError, match="there is no history of 'tree' to draw; give at least one recipe"):
        environment_answer("tree", {})
    with pytest.raises(InputError, match=re.escape("logits have shape (3, 16, 1, 10); give [..., 8, 85, 4]")):
        environment_answer("tree", {"grpo": history("bandit")})
