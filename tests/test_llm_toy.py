"""The toy Llama: its tasks, its warm-up and cache, and a whole run of the LLM trainer in which the reward rises."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from etr.errors import InputError
from etr.llm import run, small, toy_llama
from etr.llm.config import TrainConfig
from etr.llm.items import Item, user
from etr.llm.models import load_model, tiny_model
from etr.llm.tasks import load_task
from etr.llm.toy_llama import WarmUp, labelled, pass_rate, warm_up
from etr.llm.toy_tasks import CHARACTERS, TOY_TASKS
from etr.recipe import load_recipe
from etr.runs import read_metrics

pytest.importorskip("transformers")
SHORT = WarmUp(goal=1.0, batch_size=8, check_every=2, most_steps=3)


def test_copy_reverse_asks_for_every_string_both_ways() -> None:
    items = load_task("copy-reverse").items
    assert len(items) == 2 * 6**3
    for item in items:
        sign, *letters = item.prompt
        assert len(letters) == 3 and set(letters) <= set("abcdef")
        assert list(item.answer) == (letters if sign == ">" else [letters[2], letters[1], letters[0]])
    assert {item.prompt[0] for item in items} == {">", "<"}


def test_mod_arithmetic_asks_for_every_sum_of_two_remainders() -> None:
    task = load_task("mod-arithmetic", seed=3)
    assert len(task.items) == sum(m * m for m in range(2, 10))
    for item in task.items:
        left, rest = item.prompt.rstrip("=").split("+")
        right, modulus = rest.split("%")
        a, b, m = int(left), int(right), int(modulus)
        expected = a + b if a + b < m else a + b - m
        assert 0 <= max(a, b) < m <= 9 and item.answer == str(expected)
    assert task.items != load_task("mod-arithmetic", seed=4).items


@pytest.mark.parametrize("name", TOY_TASKS)
def test_only_the_whole_answer_and_nothing_more_is_right(name: str) -> None:
    task = load_task(name, size=20)
    for item in task.items:
        assert task.reward(item, item.answer) == 1.0
        for wrong in (item.answer + item.answer[-1], item.answer[:-1], "", f" {item.answer}", f"5+{item.answer}"):
            assert task.reward(item, wrong) == 0.0
    with pytest.raises(InputError, match=f"task '{name}' takes no options"):
        load_task(name, config={"a": 1})


def test_the_tokenizer_knows_every_character_of_both_tasks() -> None:
    tokenizer = small.character_tokenizer(CHARACTERS)
    for item in (item for name in TOY_TASKS for item in load_task(name).items):
        ids = tokenizer(item.prompt + item.answer)["input_ids"]
        assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == item.prompt + item.answer


def test_the_pass_rate_is_the_mean_product_of_token_probabilities() -> None:
    lm = tiny_model(seed=5)
    items = [Item(user("1+2="), "3"), Item(user("10+10="), "20"), Item(user("7="), "77777")]
    products = []
    for item in items:
        ids = lm.tokenizer(item.prompt)["input_ids"]
        product = 1.0
        for token in [*lm.tokenizer(item.answer)["input_ids"], 1]:
            with torch.no_grad():
                product *= lm.model(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1)[token].item()
            ids = [*ids, token]
        products.append(product)
    assert pass_rate(lm.model, *labelled(lm.tokenizer, items)) == pytest.approx(sum(products) / 3, rel=1e-4)


def taught(settings: WarmUp) -> torch.Tensor:
    lessons = [load_task(name, size=30, split="train").items for name in TOY_TASKS]
    tokenizer = small.character_tokenizer(CHARACTERS)
    model = small.random_llama(tokenizer, settings.seed)
    threads: set[float] = set()
    warm_up(model, tokenizer, lessons, settings, lambda rate: threads.add(torch.get_num_threads()))
    assert threads == {1}
    return weights(model)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_warm_up_is_fixed_by_its_seed_and_leaves_threads_and_global_state_alone() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.set_num_threads(2)
    try:
        torch.manual_seed(3)
        first = taught(SHORT)
        assert torch.equal(torch.rand(2), expected) and torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert torch.equal(first, taught(SHORT))
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(first, taught(replace(SHORT, seed=1)))
    assert not torch.equal(first, taught(replace(SHORT, most_steps=2)))


def test_the_warm_up_ends_at_its_goal_and_teaches_only_what_is_below_it() -> None:
    rates: list[float] = []
    tokenizer = small.character_tokenizer(CHARACTERS)
    model = small.random_llama(tokenizer, 0)
    lessons = [[Item(user("1+1%3="), "2")], [Item(user(">a"), "a")]]
    settings = WarmUp(goal=0.5, batch_size=4, check_every=1)
    warm_up(model, tokenizer, lessons, settings, rates.append)
    assert rates[-1] >= 0.5 > max(rates[:-1]) and len(rates) < 100
    before = weights(model)
    warm_up(model, tokenizer, lessons, settings, rates.append)
    assert torch.equal(before, weights(model))


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache and a task list that is quick to teach."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "etr" / "models"


def no_warm_up(*arguments: object) -> None:
    raise AssertionError("taught again")


def test_the_taught_weights_are_kept_under_their_content_hash(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = toy_llama.toy_llama(SHORT)
    (file,) = cache.iterdir()
    assert file.name.startswith("toy-llama-") and file.suffix == ".safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(toy_llama, "warm_up", no_warm_up)
        again, tokenizer = toy_llama.toy_llama(SHORT)
        with pytest.raises(AssertionError, match="taught again"):
            toy_llama.toy_llama(replace(SHORT, learning_rate=1e-3))
    assert torch.equal(weights(again), weights(first)) and tokenizer("3+4%5=")["input_ids"]
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_cache_is_taught_again(cache: Path, damage: str) -> None:
    first, _ = toy_llama.toy_llama(SHORT)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    other = toy_llama.safetensors.torch.save({"weight": torch.zeros(3)})
    file.write_bytes(whole[: len(whole) // 2] if damage == "cut" else other)
    again, _ = toy_llama.toy_llama(SHORT)
    assert torch.equal(weights(again), weights(first)) and file.read_bytes() == whole


def test_without_a_writable_cache_it_is_taught_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model, _ = toy_llama.toy_llama(replace(SHORT, most_steps=1))
    assert math.isfinite(weights(model).sum().item())


def test_teaching_says_so_on_stderr(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy_llama.toy_llama(replace(SHORT, most_steps=1))
    assert capsys.readouterr().err == "etr: teaching toy-llama its tasks (once, about 15 s) ...\n"


def test_tasks_that_it_cannot_read_are_refused_with_the_names_of_those_it_can() -> None:
    config = TrainConfig(model="toy-llama", task="copy")
    with pytest.raises(InputError, match="cannot read task 'copy'; give task copy-reverse or mod-arithmetic"):
        run.build(load_recipe("etr"), config, lambda text: None)
    pytest.importorskip("reasoning_gym")
    with pytest.raises(InputError, match=r"unknown task 'copy-revers'; did you mean 'copy-reverse'"):
        load_task("copy-revers")


@pytest.fixture(scope="module")
def taught_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the toy Llama, taught for real."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        toy_llama.toy_llama()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("task", "steps"), [("copy-reverse", 12), ("mod-arithmetic", 40)])
def test_the_whole_path_raises_the_reward(
    taught_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, steps: int
) -> None:
    """Rollout, grading, log-probs, updates, checkpoint and evaluation, with the settings of the how-to page."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(taught_once))
    config = TrainConfig(model="toy-llama", task=task, steps=steps, prompts=16, group_size=16, device="cpu")
    run.start(load_recipe("etr"), config, tmp_path / "run", False, lambda text: None, lambda *step: None)
    rewards = [row["reward"] for row in read_metrics(tmp_path / "run")]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:3]) / 3 + 0.12
    results = json.loads((tmp_path / "run" / "eval.json").read_text())
    before, after = (results[when]["pass@1"]["estimate"] for when in ("before", "after"))
    assert 0.2 < before < 0.6 and after > before + 0.05
    trained = load_model(str(tmp_path / "run" / "checkpoints" / f"step-{steps}"))
    start = load_model("toy-llama")
    items = load_task(task, size=sys.maxsize, split="train").items
    rates = [pass_rate(lm.model, *labelled(lm.tokenizer, items)) for lm in (start, trained)]
    assert 0.2 < rates[0] < 0.6 and rates[1] > rates[0] + 0.15
