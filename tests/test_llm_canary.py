"""The canary and the measures of mismatch, on engines that are wrong on purpose; vLLM itself is in test_llm_vllm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from small_models import disturb, wide_heads
from torch import Tensor

import etr
from etr.errors import InputError
from etr.llm.canary import TOLERANCES, Canary, largest, mismatch
from etr.llm.export import checked, exported_weights, weight_names
from etr.llm.models import LanguageModel
from etr.llm.rollout import TransformersEngine
from etr.llm.rollout.head import own_logits

pytest.importorskip("transformers")


@dataclass
class Copy(TransformersEngine):
    """An engine with weights of its own, as any engine but the embedded one has; may add noise to what it says."""

    name: str = "copy"
    noise: float = 0.0

    def score(self, sequences: Sequence[list[int]]) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        scores = TransformersEngine(self.language_model).score(sequences)
        return [row + self.noise * torch.randn(row.shape, generator=generator) for row in scores]


@dataclass
class Trained:
    language_model: LanguageModel = field(default_factory=wide_heads)

    def push(self, engine: Copy, version: int) -> None:
        engine.language_model.model.load_state_dict(dict(exported_weights(self.language_model.model)))
        engine.version = version


def test_a_synced_engine_passes_at_every_step_and_its_difference_is_measured() -> None:
    trained, engine = Trained(), Copy(wide_heads(seed=9), noise=1e-4)
    canary = Canary.create(trained.language_model)
    for step in (1, 2, 3):
        disturb(trained.language_model, 1e-3, step)
        trained.push(engine, step)
        found = canary.check(engine, trained, step)["mismatch/canary"]
        assert 0.5e-4 < found < 1.5e-4


def test_other_weights_are_seen_at_once_and_both_values_are_named() -> None:
    trained, engine = Trained(), Copy(wide_heads(seed=9), version=1)
    canary = Canary.create(trained.language_model)
    rows = [list(row) for row in canary.sequences]
    theirs, own = (torch.cat(TransformersEngine(lm).score(rows)) for lm in (engine.language_model, wide_heads()))
    worst = int((theirs - own).abs().argmax())
    match = rf"'copy' after step 1 .*log-prob {theirs[worst]:.4f} where the trainer has {own[worst]:.4f}; the mean"
    with pytest.raises(InputError, match=match):
        canary.check(engine, trained, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_engine_that_stays_behind_by_one_small_step_is_seen(dtype: torch.dtype) -> None:
    trained = Trained(wide_heads(dtype=dtype))
    engine = Copy(wide_heads(seed=9, dtype=dtype))
    canary = Canary.create(trained.language_model)
    trained.push(engine, 1)
    canary.check(engine, trained, 1)
    disturb(trained.language_model, 1e-5 if dtype is torch.float32 else 2e-3)
    engine.version = 2  # as if the push had arrived
    with pytest.raises(InputError, match="kept old weights: the trainer moved by"):
        canary.check(engine, trained, 2)


def test_a_last_bit_here_or_there_is_no_movement() -> None:
    trained, engine = Trained(), Copy(wide_heads(), version=1)
    canary = Canary.create(trained.language_model)
    canary.check(engine, trained, 1)
    assert canary.last is not None
    canary.last[1][3] += 1e-6  # as if one of the trainer's log-probs had been another then
    engine.version = 2
    assert canary.check(engine, trained, 2)["mismatch/canary"] < 1e-4


class Shows(Copy):
    """An engine whose head can be asked alone."""

    def head_digest(self) -> str | None:
        weight = self.language_model.model.get_output_embeddings().weight
        return str(own_logits(weight, torch.bfloat16).tolist())


def test_a_head_that_stays_behind_alone_is_seen_in_bfloat16() -> None:
    trained, engine = Trained(wide_heads(dtype=torch.bfloat16)), Shows(wide_heads(tied=False, dtype=torch.bfloat16))
    canary = Canary.create(trained.language_model)
    head = engine.language_model.model.get_output_embeddings().weight
    for step in (1, 2, 3):
        disturb(trained.language_model, 2e-3, step)
        trained.push(engine, step)
        assert canary.check(engine, trained, step)["mismatch/canary"] < 1e-6
    canary.check(engine, trained, 3)  # nothing moved: no alarm
    old = head.detach().clone()
    disturb(trained.language_model, 2e-3, 4)
    trained.push(engine, 4)
    with torch.no_grad():
        head.copy_(old)
    with pytest.raises(InputError, match=r"after step 4 .* kept an old head: of 96 logits .* \d+ moved in the trainer"):
        canary.check(engine, trained, 4)
    assert canary.last is not None and float((canary.last[0] - canary.last[1]).abs().mean()) < canary.tolerance / 3


def test_a_few_logits_that_round_otherwise_are_no_movement_of_the_head() -> None:
    trained, engine = Trained(), Shows(wide_heads(), version=1)
    canary = Canary.create(trained.language_model)
    canary.check(engine, trained, 1)
    assert canary.last_head is not None
    canary.last_head[1].view(-1)[:31] += 1
    canary.check(engine, trained, 1)
    canary.last_head[1].view(-1)[:32] += 1
    with pytest.raises(InputError, match="kept an old head: of 96 logits of fixed hidden states 32 moved"):
        canary.check(engine, trained, 1)


def test_nan_from_the_engine_is_no_agreement() -> None:
    trained, engine = Trained(), Copy(wide_heads(), version=1, noise=math.nan)
    with pytest.raises(InputError, match="does not sample with the trainer's weights"):
        Canary.create(trained.language_model).check(engine, trained, 1)


def test_an_engine_at_another_version_is_refused() -> None:
    trained, engine = Trained(), Copy(wide_heads(), version=1)
    with pytest.raises(InputError, match=r"version 1\) was not given the weights of this step"):
        Canary.create(trained.language_model).check(engine, trained, 2)


def test_the_embedded_engine_shares_the_weights_and_needs_no_canary() -> None:
    trained = Trained()
    assert Canary.create(trained.language_model).check(TransformersEngine(trained.language_model), trained, 3) == {}


def test_sequences_are_the_same_for_every_run_and_lie_in_the_vocabulary() -> None:
    first, second = Canary.create(wide_heads()), Canary.create(wide_heads(seed=4))
    assert first.sequences == second.sequences
    assert {token for row in first.sequences for token in row} == set(
        range(18)
    )  # the six padded ids are not among them
    assert Canary.create(wide_heads(dtype=torch.bfloat16)).tolerance == TOLERANCES[torch.bfloat16]
    assert Canary.create(wide_heads(), torch.bfloat16).tolerance == TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_is_exported_under_its_checkpoint_name(tied: bool) -> None:
    model = wide_heads(tied=tied).model
    weights = dict(exported_weights(model))
    assert weights.keys() == weight_names(model)
    assert torch.equal(weights["lm_head.weight"], model.get_output_embeddings().weight)
    assert (weights["lm_head.weight"].data_ptr() == weights["model.embed_tokens.weight"].data_ptr()) == tied
    assert not any(tensor.requires_grad for tensor in weights.values())


def test_a_push_that_lacks_a_weight_is_refused_after_its_last_tensor() -> None:
    model = wide_heads().model
    kept = [pair for pair in exported_weights(model) if "layers.1.mlp" not in pair[0]]
    stream = checked(kept, weight_names(model))
    assert [next(stream)[0] for _ in kept] == [name for name, _ in kept]
    with pytest.raises(InputError, match=r"3 weights of the model were not in the push .*layers.1.mlp.down_proj"):
        next(stream)


def batch(rollout: Tensor, old: Tensor, mask: Tensor) -> etr.Batch:
    return etr.Batch(
        log_probs=old, old_log_probs=old, response_mask=mask, advantages=torch.ones(len(old)), rollout_log_probs=rollout
    )


def test_mismatch_counts_the_tokens_that_a_step_of_size_zero_would_put_outside() -> None:
    old = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -3.0, torch.nan]])
    rollout = torch.tensor([[-1.3, -2.0, -0.4], [-0.7, -3.1, torch.nan]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    objective = etr.get("grpo", eps_low=0.2, eps_high=0.2)
    found = mismatch(objective, batch(rollout, old, mask))
    ratios = [math.exp(0.3), 1.0, math.exp(-0.1), math.exp(-0.3), math.exp(0.1)]
    assert float(found["mismatch/mean"].value) == pytest.approx((0.3 + 0 + 0.1 + 0.3 + 0.1) / 5)
    assert float(found["mismatch/outside"].value) == sum(not 0.8 <= r <= 1.2 for r in ratios) / 5 == 2 / 5
    assert float(largest(batch(rollout, old, mask))) == pytest.approx(0.3)


def test_mismatch_of_parts_adds_up_to_that_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    old, rollout = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)
    mask = torch.rand(6, 5, generator=generator) < 0.7
    objective = etr.get("grpo")
    whole, parts = batch(rollout, old, mask), [slice(0, 2), slice(2, 3), slice(3, 6)]
    for name, expected in mismatch(objective, whole).items():
        found = [mismatch(objective, whole.rows(rows))[name] for rows in parts]
        assert torch.allclose((found[0] + found[1] + found[2]).value, expected.value)
    assert largest(whole) == max(largest(whole.rows(rows)) for rows in parts)
