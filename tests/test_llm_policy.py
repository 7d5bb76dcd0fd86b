"""The policy takes a packing that its model allows, and micro-batches that fit the budget."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from llm_rollouts import made_rollout

from etr.errors import InputError
from etr.llm.micro_batches import Lengths, micro_batches, work
from etr.llm.models import load_model, recompute_layers, tiny_model
from etr.llm.packing import pack_groups
from etr.llm.policy import PACKINGS, Policy, lengths

transformers = pytest.importorskip("transformers")
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip


def with_model(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**options)).eval()
    return dataclasses.replace(tiny_model(), model=model)


def test_auto_takes_what_the_model_allows() -> None:
    assert Policy(tiny_model()).allowed == PACKINGS
    assert Policy(with_model("Mistral", **SMALL, sliding_window=8)).allowed == ("padded",)
    bloom = with_model("Bloom", vocab_size=64, hidden_size=32, n_layer=2, n_head=2)  # positions from a 2-D mask
    assert "prefix" not in Policy(bloom).allowed
    recomputed = tiny_model()
    recompute_layers(recomputed.model)
    assert Policy(recomputed).allowed == ("prefix", "padded")


def test_a_packing_that_the_model_cannot_have_is_refused() -> None:
    window = with_model("Mistral", **SMALL, sliding_window=8)
    with pytest.raises(InputError, match=r"MistralForCausalLM cannot have packing prefix: its layers see a window"):
        Policy(window, packing="prefix")
    recompute_layers(window.model)
    with pytest.raises(InputError, match=r"cannot have packing cached: its layers are recomputed .*; use packing auto"):
        Policy(window, packing="cached")
    with pytest.raises(InputError, match="unknown packing 'prefxi'; did you mean 'prefix'"):
        Policy(tiny_model(), packing="prefxi")


def test_flex_attention_is_refused_on_a_cpu() -> None:
    with pytest.raises(InputError, match="flex_attention has no backward pass on a CPU; load the model with"):
        Policy(load_model("tiny-random", attention="flex_attention"))


def test_long_completions_are_not_packed_behind_a_dense_mask() -> None:
    policy = Policy(tiny_model())
    assert policy.cheapest(Lengths([0] * 8, [40] * 8, [4] * 8)) == "prefix"
    assert policy.cheapest(Lengths([0] * 8, [40] * 8, [2000] * 8)) == "cached"
    assert Policy(tiny_model(), packing="padded").cheapest(Lengths([0] * 8, [40] * 8, [4] * 8)) == "padded"


def test_the_rows_of_a_slice_have_the_log_probs_of_the_whole() -> None:
    policy, rollout = Policy(tiny_model(), 0.7), made_rollout()
    whole = policy.log_probs(rollout, slice(0, 12))
    for rows in (slice(0, 3), slice(4, 5), slice(3, 9)):
        for one, other in zip(policy.log_probs(rollout, rows), whole, strict=True):
            torch.testing.assert_close(one, other[rows], rtol=1e-5, atol=1e-5)
            assert not one[~rollout.response_mask[rows]].any()


@pytest.mark.parametrize("packing", PACKINGS)
def test_work_counts_the_tokens_that_the_model_is_given(monkeypatch: pytest.MonkeyPatch, packing: str) -> None:
    language_model, rollout = tiny_model(), made_rollout()
    policy = Policy(language_model, packing=packing)
    counted: list[int] = []
    forward = language_model.model.forward

    def counting(input_ids: torch.Tensor, **inputs: Any) -> Any:
        counted.append(input_ids.numel())
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(language_model.model, "forward", counting)
    for rows in (slice(0, 12), slice(2, 7), slice(5, 6)):
        counted.clear()
        policy.log_probs(rollout, rows)
        assert sum(counted) == work(lengths(rollout).rows(rows), packing).tokens
    flat = pack_groups(rollout.sequences, rollout.attention_mask, rollout.prompt_width, one_row=True)
    assert work(lengths(rollout), "flat").tokens == int((flat.segment >= 0).sum())


def test_the_pairs_of_prefix_packing_are_those_of_its_mask() -> None:
    rollout = made_rollout()
    packed = pack_groups(rollout.sequences, rollout.attention_mask, rollout.prompt_width)
    assert work(lengths(rollout), "prefix").pairs == packed.visible().numel()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=24), st.integers(1, 5), st.integers(1, 100))
def test_micro_batches_are_contiguous_fit_the_budget_and_keep_groups_whole(
    tokens: list[int], group_size: int, budget: int
) -> None:
    parts = micro_batches(len(tokens), group_size, budget, lambda rows: sum(tokens[rows]))
    assert parts[0].start == 0 and parts[-1].stop == len(tokens)
    assert all(one.stop == other.start for one, other in pairwise(parts))
    for part in parts:
        rows = part.stop - part.start
        assert rows == 1 or sum(tokens[part]) <= budget
        if part.start % group_size or (part.stop % group_size and part.stop < len(tokens)):  # a group is cut
            start = part.start - part.start % group_size
            assert part.stop <= start + group_size and sum(tokens[start : start + group_size]) > budget
    for one, other in pairwise(parts):  # none could have been larger
        group_ends = {one.stop, other.stop} <= set(range(0, len(tokens) + group_size, group_size)) | {len(tokens)}
        if group_ends and one.start % group_size == 0:
            assert sum(tokens[one.start : one.stop + group_size]) > budget


def test_the_policy_counts_a_prompt_once_per_group() -> None:
    rollout = made_rollout()
    for packing in PACKINGS:
        policy = Policy(tiny_model(), packing=packing)
        for budget in (1, 30, 60, 10_000):
            for part in policy.micro_batches(rollout, 3, budget):
                used = work(lengths(rollout).rows(part), packing).tokens
                assert used <= budget or part.stop - part.start == 1
    assert len(Policy(tiny_model(), packing="padded").micro_batches(rollout, 3, 60)) > len(
        Policy(tiny_model(), packing="prefix").micro_batches(rollout, 3, 60)
    )
    with pytest.raises(InputError, match="micro_batch_tokens is 0; give at least 1"):
        policy.micro_batches(rollout, 3, 0)
