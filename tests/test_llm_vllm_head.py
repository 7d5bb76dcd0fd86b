"""A head that alone stays old in a real vLLM engine. A process holds one such engine, so this is a file of its own."""

from __future__ import annotations

import pytest
import torch
from small_models import disturb, wide_heads
from vllm_pairs import Pair

from etr.errors import InputError
from etr.llm.canary import Canary
from etr.llm.rollout import EngineSettings, make_engine, vllm_compat

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not vllm_compat.for_cpu(), reason="these tests run vLLM's build for CPUs"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_head_is_seen_in_a_real_engine(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CPU build keeps a packed copy of a tied head. Small steps: the first two tests of the canary pass it."""
    language_model = wide_heads(dtype=dtype)
    pair = Pair(language_model, make_engine("vllm", language_model, EngineSettings(8)))
    canary = Canary.create(language_model)
    for seed in (1, 2):
        disturb(language_model, 2e-3, seed)
        canary.check(pair.engine, pair, pair.sync())
    disturb(language_model, 2e-3, 3)
    weights = [(name, tensor) for name, tensor in language_model.model.named_parameters()]
    monkeypatch.setattr(pair.engine, "_names", frozenset(dict(weights)))
    if dtype is torch.float32:
        monkeypatch.setattr(canary, "tolerance", 0.1)
    pair.engine.sync(weights, 3)
    with pytest.raises(InputError, match=r"'vllm' after step 3 .* kept an old head: of 96 logits"):
        canary.check(pair.engine, pair, 3)
    pair.engine.close()
