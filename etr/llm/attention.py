"""Which attention a run's model computes with: flex attention where prefix packing gains by it, sdpa elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from etr.llm.packing import FLEX
from etr.llm.policy import why_not
from etr.llm.prompts import plain_attention

Say = Callable[[str], None]


def choose_attention(model: Any, device: torch.device, packing: str, engine: str) -> str:
    """What `auto` means for a model on a device.

    flex_attention skips the pairs of a packed row that do not see each other, where sdpa computes them under a dense
    mask. Its kernels need a GPU and serve prefix packing alone. The embedded engine samples token by token with the
    same model, for which they would be compiled again and again.
    """
    packed = packing in ("auto", "prefix") and bool(getattr(model, "_supports_flex_attn", False))
    if device.type == "cuda" and engine != "transformers" and packed and plain_attention(model):
        return FLEX
    return "sdpa"


def use_attention(model: Any, device: torch.device, packing: str, engine: str, say: Say) -> None:
    """Switch a model that was loaded with sdpa to what suits it, and back where that fails to give its numbers."""
    if choose_attention(model, device, packing, engine) != FLEX:
        return
    try:
        model.set_attn_implementation(FLEX)
        reason = why_not(model, "prefix")
    except (ImportError, ValueError) as error:
        reason = str(error).splitlines()[0]
    if reason is None:
        say("attention: flex_attention (prefix packing on a GPU)")
    else:
        model.set_attn_implementation("sdpa")
        say(f"attention: sdpa (flex_attention fails with this model: {reason})")
