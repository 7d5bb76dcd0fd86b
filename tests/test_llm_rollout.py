"""Sampling: pure, seeded, masked by position, and from the very distribution whose log-probabilities are trained."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.models import LanguageModel, tiny_model
from etr.llm.rollout import (
    EngineSettings,
    Rollout,
    RolloutEngine,
    TransformersEngine,
    choose_engine,
    left_pad,
    make_engine,
    pack,
    request_seeds,
    texts,
    transformers_engine,
    vllm_compat,
    vocabulary_size,
)
from etr.llm.rollout.decode import invert

pytest.importorskip("transformers")

PROMPTS = [[3, 4, 5], [6, 7], [8]]


def sample(language_model: LanguageModel, tokens: int = 8, group_size: int = 4, seed: int = 0) -> Rollout:
    engine: RolloutEngine = TransformersEngine(language_model, tokens)
    return engine.generate(PROMPTS, group_size, request_seeds(seed, 1, range(len(PROMPTS)), group_size))


def forward(language_model: LanguageModel, rollout: Rollout, row: int, temperature: float = 1.0) -> Tensor:
    """log p of one row's completion by one plain pass over its real tokens, no padding and no cache."""
    length = int(rollout.lengths[row])
    ids = rollout.sequences[row][rollout.attention_mask[row].bool()]
    with torch.no_grad():
        logits = language_model.model(input_ids=ids[None]).logits[0, :-1, : vocabulary_size(language_model)]
    log_pi = (logits.float() / temperature).log_softmax(-1)
    return torch.stack([log_pi[t, ids[t + 1]] for t in range(len(ids) - length - 1, len(ids) - 1)])


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


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_a_plain_forward_pass(temperature: float) -> None:
    language_model = tiny_model()
    rollout = TransformersEngine(language_model, 8, temperature).generate(PROMPTS, 4, list(range(12)))
    assert rollout.log_probs is not None
    assert len(set(rollout.lengths.tolist())) > 2  # rows ended at different times, so some were dropped on the way
    for row, length in enumerate(rollout.lengths.tolist()):
        expected = forward(language_model, rollout, row, temperature)
        assert torch.allclose(rollout.log_probs[row, :length], expected, atol=1e-5)
        assert (rollout.log_probs[row, length:] == 0).all()


def test_a_completion_is_the_same_alone_and_in_any_batch() -> None:
    language_model = tiny_model()
    engine, seeds = TransformersEngine(language_model, 12), request_seeds(0, 1, [0, 1, 2], 4)
    together = engine.generate(PROMPTS, 4, seeds)
    for prompt, ids in enumerate(PROMPTS):
        for sample in range(4):
            row = prompt * 4 + sample
            alone = engine.generate([ids], 1, seeds[row : row + 1])
            length = int(alone.lengths[0])
            assert int(together.lengths[row]) == length
            assert torch.equal(alone.completions[0, :length], together.completions[row, :length])


def test_models_without_a_plain_cache_give_the_same_rollout(monkeypatch: pytest.MonkeyPatch) -> None:
    language_model = tiny_model()
    fast = sample(language_model)
    monkeypatch.setattr(transformers_engine, "plain_attention", lambda model: False)
    slow = sample(language_model)
    assert torch.equal(fast.response_mask, slow.response_mask)
    assert torch.equal(fast.completions[fast.response_mask], slow.completions[slow.response_mask])
    assert fast.log_probs is not None and slow.log_probs is not None
    assert torch.allclose(fast.log_probs, slow.log_probs, atol=1e-5)


def test_seeds_are_a_function_of_run_step_prompt_and_sample() -> None:
    seeds = request_seeds(3, 5, [10, 11], 4)
    assert request_seeds(3, 5, [11], 4) == seeds[4:]
    assert request_seeds(3, 5, [10, 11], 2)[2:] == seeds[4:6]
    assert len({*seeds, *request_seeds(3, 6, [10, 11], 4), *request_seeds(4, 5, [10, 11], 4)}) == 24
    assert len(set(request_seeds(3, 5, [10, 10], 4))) == 8  # a prompt drawn twice is sampled anew
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_inverting_a_distribution_function_agrees_with_a_plain_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (3, 256, 257, 700):
        p = torch.rand(50, size, generator=generator) ** 8
        p[torch.rand(50, size, generator=generator) < 0.3] = 0.0
        p[:, 0] += 1e-3  # no row is empty
        u = torch.rand(50, generator=generator, dtype=torch.float64)
        u[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)  # the ends of the unit interval
        for row, found in enumerate(invert(p, u).tolist()):
            values = p[row].double().tolist()
            target = float(u[row]) * math.fsum(values)
            above = (i for i, upto in enumerate(accumulate(values)) if upto > target)
            last = max(j for j, value in enumerate(values) if value > 0)
            assert found == next(above, last)


def test_padded_ids_are_never_sampled_and_carry_no_probability() -> None:
    language_model = tiny_model()
    model, known = language_model.model, len(language_model.tokenizer)
    model.resize_token_embeddings(known + 30, mean_resizing=False)  # as likely as the tokens there are
    assert vocabulary_size(language_model) == known
    result = TransformersEngine(language_model, 1).generate([[3, 4, 5]], 400, list(range(400)))
    assert int(result.completions.max()) < known
    assert result.log_probs is not None
    assert torch.allclose(result.log_probs[7], forward(language_model, result, 7), atol=1e-5)


def test_frequencies_of_two_tokens_are_their_enumerated_probabilities() -> None:
    language_model, n = tiny_model(), 20_000
    language_model.model.get_output_embeddings().weight.data.mul_(3)  # a distribution with some shape
    result = TransformersEngine(language_model, 2).generate([[3, 4]], n, list(range(n)))
    counts: dict[tuple[int, ...], int] = {}
    for row, length in zip(result.completions.tolist(), result.lengths.tolist(), strict=True):
        counts[tuple(row[:length])] = counts.get(tuple(row[:length]), 0) + 1
    model, size = language_model.model, len(language_model.tokenizer)
    with torch.no_grad():
        first = model(input_ids=torch.tensor([[3, 4]])).logits[0, -1].softmax(-1)
        second = model(input_ids=torch.tensor([[3, 4, a] for a in range(size)])).logits[:, -1].softmax(-1)
    expected = {(a, b): float(first[a] * second[a, b]) for a in range(size) for b in range(size) if a != 1}
    expected[(1,)] = float(first[1])  # the end token
    chi2 = sum((counts.get(key, 0) - n * p) ** 2 / (n * p) for key, p in expected.items())
    freedom = len(expected) - 1
    assert chi2 < freedom + 5 * math.sqrt(2 * freedom)
    assert set(counts) <= set(expected)


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
    language_model.tokenizer.add_tokens([f"<{i}>" for i in range(80 - model.config.vocab_size)])
    model.resize_token_embeddings(80, mean_resizing=False)  # more than the 50 that `generate` keeps by default
    model.get_output_embeddings().weight.data.mul_(2.5)  # a distribution with some shape
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.top_k = 2
    model.generation_config.top_p = 0.3
    n = 20_000
    result = TransformersEngine(language_model, 1, temperature).generate([[3, 4, 5]], n, list(range(n)))
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
    result = TransformersEngine(language_model, 50).generate([[8]], 4, [0, 1, 2, 3])
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
        TransformersEngine(tiny_model(), 4).generate(prompts, 2, [0, 1])


def test_a_seed_is_asked_for_every_completion() -> None:
    with pytest.raises(InputError, match="3 prompts with 2 completions each need 6 seeds, not 2"):
        TransformersEngine(tiny_model(), 4).generate(PROMPTS, 2, [0, 1])


@pytest.mark.parametrize(
    ("name", "value"), [("top_p", 0.9), ("top_k", 50), ("min_p", 0.1), ("repetition_penalty", 1.1)]
)
def test_truncated_sampling_is_refused_with_the_reason(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} = {value:g} bends the sampling distribution"):
        EngineSettings(**{name: value})


def test_probabilities_that_are_not_finite_are_refused() -> None:
    language_model = tiny_model()
    language_model.model.get_output_embeddings().weight.data[3] = torch.nan
    with pytest.raises(InputError, match="not finite, so nothing can be sampled"):
        sample(language_model)


def test_a_part_of_a_rollout_keeps_its_columns() -> None:
    whole = sample(tiny_model())
    part = whole.rows(slice(4, 6))
    assert torch.equal(part.sequences, whole.sequences[4:6])
    assert part.log_probs is not None and whole.log_probs is not None
    assert torch.equal(part.log_probs, whole.log_probs[4:6])
    assert part.prompt_width == whole.prompt_width
    assert torch.equal(whole.rows(torch.tensor([7, 2])).finished, whole.finished[[7, 2]])


def test_engines_are_chosen_by_name_and_the_choice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    language_model, settings, said = tiny_model(), EngineSettings(4), []
    assert make_engine("transformers", language_model, settings, said.append).name == "transformers"
    assert said == ["rollout engine: transformers (as asked for)"]
    monkeypatch.setattr(vllm_compat, "installed", lambda: None)
    name, reason = choose_engine("auto", language_model)
    assert name == "transformers" and "vLLM is not installed (without a GPU: make vllm" in reason
    with pytest.raises(InputError, match=r"cannot run 'tiny-random': vLLM is not installed .*--engine transformers"):
        make_engine("vllm", language_model, settings)
    with pytest.raises(InputError, match=r"unknown engine 'vlm'; did you mean 'vllm'\?"):
        make_engine("vlm", language_model, settings)


def test_auto_knows_what_vllm_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_compat, "installed", lambda: "0.32.0")
    monkeypatch.setattr(vllm_compat, "for_cpu", lambda: True)
    language_model = tiny_model()
    assert "heads of size 16" in choose_engine("auto", language_model)[1]
    language_model.model.config.head_dim = 32
    assert choose_engine("auto", language_model) == ("vllm", "vLLM 0.32.0 is installed and runs this model")
    monkeypatch.setattr(vllm_compat, "for_cpu", lambda: False)
    assert "the model is on cpu and the installed vLLM is for GPUs" in choose_engine("auto", language_model)[1]
    monkeypatch.setattr(vllm_compat, "installed", lambda: "0.9.1")
    assert choose_engine("auto", language_model)[1] == "vLLM 0.9.1 is older than 0.24"
    monkeypatch.setattr(vllm_compat, "installed", lambda: "0.32.0")
    assert "vLLM has no float64" in choose_engine("auto", tiny_model(dtype="float64"))[1]


SHARDED = """
import torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from etr.llm.export import exported_weights
from etr.llm.models import tiny_model
from etr.llm.rollout import TransformersEngine, request_seeds
dist.init_process_group("gloo")
rank = dist.get_rank()
sharded, whole = tiny_model(), tiny_model()
prompts, tokens = ([[3, 4, 5], [6, 7]], 6) if rank == 0 else ([[8]], 20)
seeds = request_seeds(0, 1, range(len(prompts)), 3)
for module in (*sharded.model.model.layers, sharded.model):
    fully_shard(module)
found = TransformersEngine(sharded, tokens).generate(prompts, 3, seeds)
assert torch.equal(found.sequences, TransformersEngine(whole, tokens).generate(prompts, 3, seeds).sequences)
assert type(sharded.model.model.layers[0].mlp.up_proj.weight).__name__ == "DTensor"  # sharded again
pushed = dict(exported_weights(sharded.model))
assert pushed.keys() == whole.model.state_dict().keys()
assert all(torch.equal(pushed[name], tensor) for name, tensor in whole.model.state_dict().items())
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_of_a_sharded_model_sample_answers_of_their_own_lengths(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
