"""The examples of docs/hosts.md, against stand-ins of the hosts' interfaces, give the loss that ours gives."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import etr

PAGE = Path(__file__).parent.parent / "docs" / "hosts.md"
REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
GROUP, LENGTHS = 4, [5, 3, 6, 2, 4, 6, 3, 5]


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for body in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(body, PAGE.name, "exec"), names)
    return names


@pytest.fixture
def rows() -> dict[str, list[Tensor]]:
    torch.manual_seed(0)
    old = [-3 * torch.rand(n) for n in LENGTHS]
    masks = [torch.arange(n) != 1 for n in LENGTHS]  # a token in the middle that the policy did not write
    return {"old": old, "new": [x + 0.3 * torch.randn(len(x)) for x in old], "masks": masks}


def ours(rows: dict[str, list[Tensor]]) -> tuple[Tensor, Tensor, etr.Batch]:
    """Loss and gradient `[B, T]` of the whole batch with the true rewards."""
    recipe, ids = etr.load_recipe("etr"), torch.arange(len(LENGTHS)) // GROUP
    leaf = pad_sequence(rows["new"], True).requires_grad_()
    batch = etr.Batch(
        leaf, pad_sequence(rows["old"], True), pad_sequence(rows["masks"], True),
        recipe.advantages(REWARDS, ids), group=etr.group_stats(REWARDS, ids), rewards=REWARDS,
    )  # fmt: skip
    loss = etr.policy_loss(recipe.objective, batch).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0], batch


def reducer(masks: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """slime's: the sum over answers of the mean over their own tokens."""

    def sum_of_sample_mean(x: Tensor) -> Tensor:
        parts = zip(x.split(LENGTHS), masks, strict=True)
        return torch.stack([(value * mask).sum() / mask.sum() for value, mask in parts]).sum()

    return sum_of_sample_mean


def test_slime(example: dict[str, Any], rows: dict[str, list[Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    centred = (REWARDS.view(-1, GROUP) - REWARDS.view(-1, GROUP).mean(-1, keepdim=True)).flatten()
    data: dict[str, Any] = {"rewards": centred.tolist(), "loss_masks": rows["masks"]}
    example["score"](SimpleNamespace(), data)
    wanted, gradient, batch = ours(rows)
    assert torch.allclose(torch.stack([row[0] for row in data["advantages"]]), batch.advantages, atol=1e-5)
    leaves = [x.clone().requires_grad_() for x in rows["new"]]
    host: Any = ModuleType("slime.backends.megatron_utils.loss")
    host.get_log_probs_and_entropy = lambda logits, **_: (None, {"log_probs": logits})
    monkeypatch.setitem(sys.modules, host.__name__, host)
    names = {"unconcat_tokens": None, "total_lengths": None, "response_lengths": LENGTHS, "log_probs": rows["old"]}
    value, log = example["loss"](SimpleNamespace(), {**data, **names}, leaves, reducer(rows["masks"]))
    value = value / len(LENGTHS)  # slime divides by the answers of the step
    torch.testing.assert_close(value.detach(), wanted, rtol=1e-5, atol=1e-7)
    found = pad_sequence(torch.autograd.grad(value, leaves), True)
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-7)
    assert set(log) == {"loss"}


def test_nemo_rl(example: dict[str, Any], rows: dict[str, list[Tensor]]) -> None:
    """In two micro-batches, each with the counts of both, as its trainer gives them."""
    wanted, gradient, batch = ours(rows)
    centred = (REWARDS.view(-1, GROUP) - REWARDS.view(-1, GROUP).mean(-1, keepdim=True)).flatten()
    leaf = batch.log_probs.detach().clone().requires_grad_()

    def shifted(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(x, (1, 0))

    data = {
        "token_mask": shifted(batch.response_mask.float()),
        "sample_mask": torch.ones(len(LENGTHS)),
        "advantages": shifted(centred.unsqueeze(-1).expand(leaf.shape)),
        "prev_logprobs": shifted(batch.old_log_probs),
    }
    counts = torch.tensor(float(len(LENGTHS))), batch.response_mask.sum()
    parts = [slice(0, 3), slice(3, 8)]
    total = sum(example["Loss"]()({k: v[p] for k, v in data.items()}, *counts, leaf[p])[0] for p in parts)
    torch.testing.assert_close(total.detach(), wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(total, leaf)[0], gradient, rtol=1e-5, atol=1e-7)


def test_scaled_advantages_are_another_loss(rows: dict[str, list[Tensor]]) -> None:
    """Why SkyRL is refused: dividing A by a count divides GRPO's loss by it, and changes ETR's region as well."""
    import dataclasses

    batch = ours(rows)[2]
    scaled = dataclasses.replace(batch, advantages=batch.advantages / 100)
    same = {}
    for name in ("grpo", "etr"):
        coefficient = etr.gradient_coefficient(etr.get(name), batch)
        same[name] = torch.allclose(etr.gradient_coefficient(etr.get(name), scaled) * 100, coefficient, atol=1e-5)
    assert same == {"grpo": True, "etr": False}
