"""Which attention a run takes, decided without a GPU; and what a failure of the fast one leads to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from llm_runs import trainer
from small_models import wide_heads

from etr.errors import InputError
from etr.llm import attention
from etr.llm.attention import choose_attention, use_attention
from etr.llm.config import TrainConfig

pytest.importorskip("transformers")

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "packing", "engine", "expected"),
    [
        (GPU, "auto", "vllm", "flex_attention"),
        (GPU, "prefix", "vllm-server", "flex_attention"),
        (GPU, "padded", "vllm", "sdpa"),
        (GPU, "cached", "vllm", "sdpa"),
        (GPU, "auto", "transformers", "sdpa"),
        (CPU, "auto", "vllm", "sdpa"),
    ],
)
def test_flex_attention_is_for_packed_prefixes_on_a_gpu(
    device: torch.device, packing: str, engine: str, expected: str
) -> None:
    assert choose_attention(wide_heads().model, device, packing, engine) == expected


def test_a_model_with_windows_or_without_flex_keeps_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide_heads().model
    monkeypatch.setattr(type(model), "_supports_flex_attn", False)
    assert choose_attention(model, GPU, "auto", "vllm") == "sdpa"
    monkeypatch.undo()
    monkeypatch.setattr(attention, "plain_attention", lambda model: False)
    assert choose_attention(model, GPU, "auto", "vllm") == "sdpa"


@pytest.mark.parametrize("reason", [None, "no kernel for heads of size 7"])
def test_where_flex_attention_fails_the_run_says_so_and_goes_back(
    monkeypatch: pytest.MonkeyPatch, reason: str | None
) -> None:
    model, said, seen = wide_heads().model, list[str](), list[str]()

    def why_not(model: Any, packing: str) -> str | None:
        seen.append(f"{packing} {model.config._attn_implementation}")
        return reason

    monkeypatch.setattr(attention, "why_not", why_not)
    use_attention(model, GPU, "auto", "vllm", said.append)
    assert seen == ["prefix flex_attention"]
    assert model.config._attn_implementation == ("sdpa" if reason else "flex_attention")
    assert len(said) == 1 and (reason or "prefix packing on a GPU") in said[0]


def test_nothing_changes_on_a_cpu() -> None:
    model, said = wide_heads().model, list[str]()
    use_attention(model, CPU, "auto", "vllm", said.append)
    assert model.config._attn_implementation == "sdpa" and said == []


def test_the_setting_has_the_last_word() -> None:
    with pytest.raises(InputError, match=r"unknown attention 'flex'; .*flex_attention"):
        TrainConfig(attention="flex").check()
    assert trainer(attention="eager").language_model.model.config._attn_implementation == "eager"
    assert trainer().language_model.model.config._attn_implementation == "sdpa"
