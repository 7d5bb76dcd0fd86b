"""Sampling: pure, seeded, masked by position, and from the very distribution whose log-probabilities are trained."""

from __future__ import annotations

import math

import pytest
import torch

from etr.errors import InputError
from etr.llm import rollout as module
from etr.llm.models import LanguageModel, tiny_model
from etr.llm.rollout import Rollout, RolloutEngine, TransformersEngine, left_pad, pack, texts

pytest.importorskip("transformers")

PROMPTS = [[3, 4, 5], [6, 7], [8]]


def sample(language_model: LanguageModel, tokens: int = 8, group_size: int = 4, seed: int = 0) -> Rollout:
    engine: RolloutEngine = TransformersEngine(language_model, tokens)
    return engine.generate(PROMPTS, group_size, seed)


def test_masks_follow_the_first_end_token_and_not_the_padding_id() -> None:
    eos = 2
    prompts = torch.tensor([[2, 2, 7], [5, 6, 7], [2, 2, 2], [1, 1, 1]])
    answers = torch.tensor([[4, 2, 2, 2], [4, 5, 6, 7], [2, 2, 2, 2], [4, 4, 4, 2]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1]])
    result = pack(torch.cat([prompts, answers], 1), mask, (eos,))
    assert result.lengths.tolist() == [2, 4, 1, 4]
    assert result.response_mask.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert result.finished.tolist() == [True, False, True, True]
    assert torch.equal(result.attention_mask, torch.cat([mask, result.response_mask.long()], 1))
    assert torch.equal(result.completions, answers)


def test_any_of_several_end_tokens_ends_a_completion() -> None:
    result = pack(torch.tensor([[9, 4, 3, 4], [9, 4, 2, 3]]), torch.ones(2, 1).long(), (2, 3))
    assert result.lengths.tolist() == [2, 2]


def test_left_padding() -> None:
    ids, mask = left_pad(PROMPTS, 9, torch.device("cpu"))
    assert ids.tolist() == [[3, 4, 5], [9, 6, 7], [9, 9, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_groups_stand_together_behind_their_prompt() -> None:
    result = sample(tiny_model())
    assert result.prompt_width == 3
    assert result.sequences[:, :3].tolist() == [p for p in ([3, 4, 5], [0, 6, 7], [0, 0, 8]) for _ in range(4)]
    assert result.finished.shape == (12,)
    assert result.response_mask.dtype == torch.bool


def test_a_seed_fixes_the_samples_and_the_global_state_is_left_alone() -> None:
    language_model = tiny_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sample(language_model)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.sequences, sample(language_model).sequences)
    assert not torch.equal(first.sequences, sample(language_model, seed=1).sequences)


def test_reading_a_prompt_once_changes_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = tiny_model()
    shared = sample(language_model)
    monkeypatch.setattr(module, "can_share_prompts", lambda model: False)
    assert torch.equal(shared.sequences, sample(language_model).sequences)


def test_mode_and_generation_config_come_back_and_no_gradient_is_kept() -> None:
    language_model = tiny_model()
    model = language_model.model.train()
    config = model.generation_config
    result = sample(language_model)
    assert model.training
    assert model.generation_config is config
    assert not result.sequences.requires_grad
    model.eval()
    sample(language_model)
    assert not model.training


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_those_of_the_log_probs_whatever_the_model_config_asks_for(temperature: float) -> None:
    language_model = tiny_model()
    model = language_model.model
    model.resize_token_embeddings(80, mean_resizing=False)  # more than the 50 that `generate` keeps by default
    model.get_output_embeddings().weight.data.mul_(2.5)  # a distribution with some shape
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 2
    model.generation_config.top_p = 0.3
    n = 20_000
    result = TransformersEngine(language_model, 1, temperature).generate([[3, 4, 5]], n, seed=0)
    counts = torch.bincount(result.completions[:, 0], minlength=model.config.vocab_size)
    with torch.no_grad():
        p = (model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1] / temperature).softmax(-1)
    assert p.max() > 2 * p.median()  # otherwise the temperature would not show
    z = (counts - n * p) / (n * p * (1 - p)).sqrt()
    assert z.abs().max() < 5
    assert (z**2).sum() / len(p) < 2.5


def test_sampling_stops_when_every_row_has_ended() -> None:
    language_model = tiny_model()
    with torch.no_grad():  # make the end token all but certain: its embedding is also its row of the head
        hidden = language_model.model.model(input_ids=torch.tensor([[8]])).last_hidden_state[0, -1]
        language_model.model.lm_head.weight[1] = 100 * hidden
    result = TransformersEngine(language_model, 50).generate([[8]], 4, seed=0)
    assert result.completions.tolist() == [[1]] * 4
    assert result.finished.all()


def test_texts_leave_out_end_tokens_and_padding() -> None:
    language_model = tiny_model()
    language_model.tokenizer.pad_token = "7"  # padding that would be visible
    sequences = torch.tensor([[3, 4, 5, 1, 10], [3, 6, 7, 8, 9]])
    result = pack(sequences, torch.ones(2, 1).long(), language_model.eos_ids)
    assert texts(language_model, result) == ["12", "3456"]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_temperatures_that_cannot_be_sampled_at_are_refused(temperature: float) -> None:
    with pytest.raises(InputError, match="temperature must be positive and finite"):
        TransformersEngine(tiny_model(), 4, temperature)


def test_no_room_for_an_answer_is_refused() -> None:
    with pytest.raises(InputError, match="max_new_tokens must be at least 1, not 0"):
        TransformersEngine(tiny_model(), 0)


@pytest.mark.parametrize("prompts", [[], [[3], []]])
def test_empty_prompts_are_refused(prompts: list[list[int]]) -> None:
    with pytest.raises(InputError, match="at least one prompt, and every prompt at least one token"):
        TransformersEngine(tiny_model(), 4).generate(prompts, 2, seed=0)
