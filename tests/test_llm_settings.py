"""Each setting of a run does what it says: through whole steps of the trainer on the tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llm_runs import CONFIG, recipe, start, trainer

from etr.errors import InputError
from etr.llm.rewards import Grades
from etr.runs import read_metrics

DENSE = {"prompts": 8, "group_size": 8}  # enough answers for a few right ones


def flat(parameters: object) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in parameters])  # type: ignore[attr-defined]


@pytest.mark.parametrize("packing", ["prefix", "cached", "padded"])
def test_every_packing_trains_alike(packing: str) -> None:
    with_recipe = recipe("dapo", **{"optimizer.updates": 2})
    one, other = (trainer(with_recipe, packing=name, **DENSE) for name in ("padded", packing))
    a, b = (run.step(1) for run in (one, other))
    for name in ("reward", "entropy", "grad_norm", "policy/objective", "entropy/change"):
        assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-6), name


def test_recomputed_activations_give_the_same_gradient() -> None:
    with_recipe = recipe("dapo", **{"optimizer.updates": 1})
    norms = [trainer(with_recipe, gradient_checkpointing=on, **DENSE).step(1)["grad_norm"] for on in (False, True)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5) and norms[0] > 0


def test_adapters_alone_are_trained() -> None:
    run = trainer(recipe(**{"optimizer.lr": 1e-2}), lora_rank=2, **DENSE)
    model = run.language_model.model
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    adapters = flat(p for p in model.parameters() if p.requires_grad)
    metrics = [run.step(step) for step in (1, 2)]
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert not torch.equal(flat(p for p in model.parameters() if p.requires_grad), adapters)
    assert all(m["mismatch/max"] < 1e-4 for m in metrics)  # the engine samples with the adapters


def test_half_precision_keeps_masters_and_float32_log_probs() -> None:
    run = trainer(recipe(**{"optimizer.lr": 1e-6}), dtype="bfloat16", **DENSE)
    assert run.to_batch(run.collector.collect(1)).log_probs.dtype == torch.float32
    for step in (1, 2, 3):
        assert run.step(step)["mismatch/max"] < 0.1
    assert next(run.language_model.model.parameters()).dtype == torch.bfloat16
    assert any(bool(slot["remainder"].any()) for slot in run.optimizer.state_dict().values())


@pytest.mark.slow
def test_moments_in_eight_bits_train() -> None:
    pytest.importorskip("torchao")
    assert trainer(recipe(), optimizer_state="8bit", **DENSE).step(1)["grad_norm"] > 0


def test_groups_without_signal_are_drawn_again_and_the_batch_keeps_its_size() -> None:
    plain, refilled = (trainer(refills=refills).collector.collect(1) for refills in (0, 4))
    assert len(refilled.rewards) == len(plain.rewards) == 16 and len(refilled.items) == 4
    mixed = [sum(bool((g != g[0]).any()) for g in c.rewards.view(4, 4)) for c in (plain, refilled)]
    assert mixed[1] > mixed[0] and refilled.refilled > 0 == plain.refilled
    again = trainer(refills=4).collector.collect(1)
    assert torch.equal(again.rollout.sequences, refilled.rollout.sequences)


def test_answers_that_were_cut_off_can_be_masked_or_punished() -> None:
    keep, mask, penalty = (trainer(overlong=kind) for kind in ("keep", "mask", "penalty"))
    batches = []
    for run in (keep, mask, penalty):
        collected = run.collector.collect(1)
        batches.append((collected, run.to_batch(collected)))
    (collected, plain), (_, masked), (shaped, punished) = batches
    cut = ~collected.rollout.finished
    assert cut.any() and not cut.all()
    assert not masked.response_mask[cut].any()
    assert torch.equal(masked.response_mask[~cut], plain.response_mask[~cut])
    assert masked.group is not None and plain.group is not None and punished.group is not None
    assert torch.equal(masked.group.mean, plain.group.mean) and torch.equal(punished.group.mean, plain.group.mean)
    torch.testing.assert_close(shaped.shaped[cut], shaped.rewards[cut] - 1)


def test_a_correction_weighs_what_the_engine_sampled_with_other_probabilities() -> None:
    run = trainer(recipe("grpo", **{"correction.kind": "mis", "correction.low": 0.9, "correction.high": 1.1}))
    collected = run.collector.collect(1)
    shifted = replace(collected.rollout, log_probs=collected.rollout.log_probs + 0.05)  # type: ignore[operator]
    shifted.log_probs[0] += 1.0  # type: ignore[index]
    batch = run.to_batch(replace(collected, rollout=shifted))
    kept = batch.response_mask
    assert batch.weights is not None and not batch.weights[0].any()
    torch.testing.assert_close(
        batch.weights[1:][kept[1:]], torch.full_like(batch.weights[1:][kept[1:]], 0.9512), rtol=1e-3, atol=0
    )


def test_components_and_failures_of_a_reward_are_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grade(self: object, items: list[object], texts: list[str]) -> Grades:
        parts = [float(i % 2) for i in range(len(items))]
        return Grades(parts, {"right": parts, "form": [0.5] * len(parts)}, timeouts=2, errors=1)

    monkeypatch.setattr("etr.llm.rewards.grader.Grader.grade", grade)
    start(tmp_path / "run", replace(CONFIG, steps=2, eval_items=0))
    for row in read_metrics(tmp_path / "run"):
        assert (row["reward/timeouts"], row["reward/errors"]) == (2, 1)
        assert (row["reward/right"], row["reward/form"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"overlong": "cut"}, "unknown overlong 'cut'"),
        ({"packing": "prefx"}, "unknown packing 'prefx'; did you mean 'prefix'?"),
        ({"optimizer_state": "4bit"}, "unknown optimizer_state '4bit'"),
        ({"keep_last": 0}, "keep_last is 0; give at least 1"),
        ({"eval_every": -1}, "eval_every is -1; give at least 0"),
        ({"engine": "vlm"}, "unknown engine 'vlm'; did you mean 'vllm'?"),
        ({"reward": "maths"}, "maths"),
        ({"reward_timeout": 0.0}, "reward_timeout is 0.0; give a positive number"),
        ({"temperature": 0.0}, "temperature is 0.0; give a positive number"),
        ({"dtype": "float16"}, "unknown dtype 'float16'; did you mean 'bfloat16'?"),
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"eval_items": 1}, "give 0 or at least 2"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
        trainer(**change)
