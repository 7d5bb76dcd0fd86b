"""The vLLM engine in process: the distribution, log-probs and weights are the trainer's; the caller's state is kept."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator

import pytest
import torch
from small_models import disturb, wide_heads
from vllm_pairs import Pair

from etr.errors import InputError
from etr.llm.canary import Canary
from etr.llm.rollout import (
    EngineError,
    EngineSettings,
    make_engine,
    request_seeds,
    vllm_compat,
    vocabulary_size,
)

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_compat.for_cpu(), reason="these tests run vLLM's build for CPUs"),
]

PROMPTS = [[3, 4, 5], [6, 7], [8]]
SEEDS = request_seeds(0, 1, [0, 1, 2], 4)


@pytest.fixture(scope="module")
def started() -> Iterator[Pair]:
    """One engine for all tests of this file, since starting one takes longest; a test begins with a sync."""
    language_model = wide_heads()
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate(), torch.get_num_threads(), torch.set_num_threads, os.environ.copy()
    engine = make_engine("vllm", language_model, EngineSettings(8, temperature=0.7))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert torch.get_num_threads() == before[2] and torch.set_num_threads is before[3]
    assert os.environ.get("LD_PRELOAD") == before[4].get("LD_PRELOAD")
    yield Pair(language_model, engine)
    engine.close()
    with pytest.raises(EngineError, match="cannot be used any more: it was closed"):
        engine.score([[3, 4]])


@pytest.fixture
def pair(started: Pair) -> Pair:
    started.language_model.model.load_state_dict(wide_heads().model.state_dict())
    started.sync()
    return started


def test_the_first_push_brings_the_trainers_weights(pair: Pair) -> None:
    assert pair.engine.name == "vllm"
    assert pair.apart() < 1e-4


def test_log_probs_of_samples_are_the_trainers_at_the_sampling_temperature(pair: Pair) -> None:
    language_model = pair.language_model
    rollout = pair.engine.generate(PROMPTS, 4, SEEDS)
    known = vocabulary_size(language_model)
    assert rollout.log_probs is not None
    assert rollout.finished.any() and not rollout.finished.all()
    for row, length in enumerate(rollout.lengths.tolist()):
        ids = rollout.sequences[row][rollout.attention_mask[row].bool()]
        with torch.no_grad():
            logits = language_model.model(input_ids=ids[None]).logits[0, :-1, :known]
        log_pi = (logits / 0.7).log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
        assert torch.allclose(rollout.log_probs[row, :length], log_pi[-length:], atol=1e-4)
        assert (rollout.log_probs[row, length:] == 0).all()
        assert (int(ids[-1]) in language_model.eos_ids) == bool(rollout.finished[row])


def test_frequencies_are_the_trainers_probabilities_and_padded_ids_never_come(pair: Pair) -> None:
    n, known = 3000, vocabulary_size(pair.language_model)
    rollout = pair.engine.generate([[3, 4, 5]], n, list(range(n)))
    counts = torch.bincount(rollout.completions[:, 0], minlength=known)
    assert len(counts) == known
    with torch.no_grad():
        logits = pair.language_model.model(input_ids=torch.tensor([[3, 4, 5]])).logits[0, -1, :known]
    p = (logits / 0.7).softmax(-1)
    assert p.max() > 3 * p.min()
    chi2 = float(((counts - n * p) ** 2 / (n * p)).sum())
    assert chi2 < known - 1 + 5 * math.sqrt(2 * (known - 1))


def test_a_completion_is_the_same_alone_and_in_any_batch(pair: Pair) -> None:
    together = pair.engine.generate(PROMPTS, 4, SEEDS)
    for row in (0, 5, 11):
        alone = pair.engine.generate([PROMPTS[row // 4]], 1, [SEEDS[row]])
        length = int(alone.lengths[0])
        assert int(together.lengths[row]) == length
        assert torch.equal(alone.completions[0, :length], together.completions[row, :length])


def test_sampling_leaves_the_global_random_state_alone(pair: Pair) -> None:
    before = torch.get_rng_state()
    pair.engine.generate(PROMPTS, 4, SEEDS)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_push_arrives(pair: Pair) -> None:
    for seed in range(3):
        disturb(pair.language_model, 0.3, seed)
        assert pair.apart() > 0.05
        assert pair.sync() == pair.engine.version
        assert pair.apart() < 1e-4


def test_keys_and_values_of_old_weights_are_forgotten(pair: Pair) -> None:
    prompt = [3 + i % 14 for i in range(200)]  # longer than a block of vLLM's prefix cache, 128 tokens on a CPU
    pair.engine.generate([prompt], 1, [0])
    disturb(pair.language_model, 0.3)
    pair.sync()
    rollout = pair.engine.generate([prompt], 1, [0])
    with torch.no_grad():
        logits = pair.language_model.model(input_ids=torch.tensor([prompt])).logits[0, -1]
    log_pi = (logits[: vocabulary_size(pair.language_model)] / 0.7).log_softmax(-1)
    assert rollout.log_probs is not None
    assert float(rollout.log_probs[0, 0]) == pytest.approx(float(log_pi[rollout.completions[0, 0]]), abs=1e-4)


def test_without_its_own_name_a_tied_head_stays_old_and_the_canary_sees_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `exported_weights` does for a tied head matters: the parameters alone leave vLLM with the old one."""
    canary = Canary.create(pair.language_model)
    disturb(pair.language_model, 0.3)
    weights = [(name, tensor) for name, tensor in pair.language_model.model.named_parameters()]
    assert "lm_head.weight" not in dict(weights)
    with pytest.raises(InputError, match=r"1 weights of the model were not in the push .*lm_head.weight"):
        pair.engine.sync(weights, 7)
    monkeypatch.setattr(pair.engine, "_names", frozenset(dict(weights)))
    pair.engine.sync(weights, 8)
    assert pair.apart() > 0.1
    with pytest.raises(InputError, match="does not sample with the trainer's weights"):
        canary.check(pair.engine, pair, 8)
    monkeypatch.undo()
    step = pair.sync()
    assert canary.check(pair.engine, pair, step)["mismatch/canary"] < 1e-4


@pytest.mark.parametrize("size", [0.3, 1e-5])
def test_the_canary_fires_at_the_step_whose_weights_never_came(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, size: float
) -> None:
    """Large steps break the agreement; a small one, far inside the tolerance, is still seen not to have moved."""
    canary = Canary.create(pair.language_model)
    for _ in range(2):
        disturb(pair.language_model, size)
        canary.check(pair.engine, pair, pair.sync())
    disturb(pair.language_model, size)
    monkeypatch.setattr(vllm_compat, "load", lambda llm, weights: list(weights) and None)  # swallows the push
    step = pair.sync()
    match = "kept old weights: the trainer moved by" if size < 1e-3 else "does not sample with the trainer's weights"
    with pytest.raises(InputError, match=rf"'vllm' after step {step} .*{match}.*log-prob -?\d.* trainer has -?\d"):
        canary.check(pair.engine, pair, step)


def test_unchanged_weights_are_no_alarm(pair: Pair) -> None:
    canary = Canary.create(pair.language_model)
    for _ in range(2):
        canary.check(pair.engine, pair, pair.sync())


def test_an_engine_that_fails_says_so_and_stays_dead(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: object, **options: object) -> None:
        raise RuntimeError("worker died\nmuch more")

    monkeypatch.setattr(pair.engine, "_dead", None)  # taken back after the test
    monkeypatch.setattr(pair.engine._llm, "generate", killed)  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"failed while sampling .*RuntimeError: worker died; .*etr train --resume"):
        pair.engine.generate(PROMPTS, 4, SEEDS)
    with pytest.raises(EngineError, match="cannot be used any more: RuntimeError: worker died"):
        pair.engine.score([[3, 4]])
