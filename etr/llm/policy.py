"""The policy in training: log-probs and entropies of a rollout's tokens with their graph, and micro-batches of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from etr.errors import InputError, unknown
from etr.llm.completions import check_log_probs, read_completions, top_log_probs
from etr.llm.log_probs import token_log_probs
from etr.llm.micro_batches import Lengths, micro_batches, work
from etr.llm.models import LanguageModel
from etr.llm.packing import FLEX, MASKED
from etr.llm.prompts import can_share_prompts, compiled, distinct_prompts, plain_attention, recomputed
from etr.llm.rollout import Rollout, vocabulary_size

TOP = 20  # likeliest tokens that are read for methods that need some; what rollout engines return at most by default
PACKINGS = ("prefix", "cached", "padded")
# Work of equal size takes this much longer than in the prefix packing, whose passes are fewer and larger (measured on a
# CPU with SmolLM2-135M, 8 completions of 32 tokens a group).
SLOWER = {"cached": 1.1, "padded": 1.1, "prefix": 1.0}


@dataclass(frozen=True)
class Policy:
    """The trained model as the loss sees it. packing: one of PACKINGS, or auto for the cheapest that the model allows.

    prefix: a prompt once, packed with its completions (`etr.llm.packing`); cached: a prompt once, its keys and values
    repeated for completions padded to equal length; padded: whole sequences. All give the same numbers up to rounding,
    and the choice depends on lengths alone, so that all passes over the same rows are alike.
    Raises InputError when the model cannot have the packing, or its log-probs do not come straight from its head.
    """

    language_model: LanguageModel
    temperature: float = 1.0
    packing: str = "auto"
    allowed: tuple[str, ...] = field(init=False)
    vocabulary: int = field(init=False)  # ids that are sampled; the head may have more rows

    def __post_init__(self) -> None:
        if self.packing not in ("auto", *PACKINGS):
            raise InputError(unknown("packing", self.packing, ("auto", *PACKINGS)))
        model = self.language_model.model
        if model.config._attn_implementation == FLEX and self.language_model.device.type == "cpu":
            raise InputError("flex_attention has no backward pass on a CPU; load the model with attention sdpa")
        check_log_probs(model)
        if self.packing == "auto":
            found = tuple(packing for packing in PACKINGS if why_not(model, packing) is None)
        elif (reason := why_not(model, self.packing)) is not None:
            raise InputError(f"{type(model).__name__} cannot have packing {self.packing}: {reason}; use packing auto")
        else:
            found = (self.packing,)
        object.__setattr__(self, "allowed", found)
        object.__setattr__(self, "vocabulary", vocabulary_size(self.language_model))

    def log_probs(self, rollout: Rollout, rows: slice) -> tuple[Tensor, Tensor]:
        """log π and entropy of the completion tokens of some rows, [b, T] each, zero in padding; as `columns`."""
        found = self.columns(rollout, rows, {"entropy"})
        return found["log_probs"], found["entropy"]

    def columns(
        self, rollout: Rollout, rows: slice, needs: Collection[str], top: int | Tensor = TOP
    ) -> dict[str, Tensor]:
        """Columns of a batch for some rows, from one forward pass: log_probs, and what of these is in `needs`.

        entropy `[b, T]`; top_log_probs and top_tokens `[b, T, K]` without gradient, of the K likeliest tokens, or of
        the ids `top` of all rows. All are zero in padding; log π is at the sampling temperature, in float32 whatever
        the weights are, with the graph of the current weights.
        """
        part = rollout.rows(rows)
        columns = (part.sequences, part.attention_mask, rollout.prompt_width)
        packing = self.cheapest(lengths(part))
        read = read_completions(self.language_model.model, *columns, packing, self.vocabulary)
        arguments = (read.hidden, read.weight, read.tokens, self.temperature)
        wanted = "entropy" in needs
        log_probs, entropy = token_log_probs(*arguments, head_bias=read.bias, with_entropy=wanted)
        found = {"log_probs": read.placed(log_probs)} | ({"entropy": read.placed(entropy)} if wanted else {})
        if "top_log_probs" in needs:
            chosen = top if isinstance(top, int) else top[rows]
            found["top_tokens"], found["top_log_probs"] = top_log_probs(read, self.temperature, chosen)
        return found

    def micro_batches(
        self, rollout: Rollout, group_size: int, budget_tokens: int, whole_groups: bool = False
    ) -> list[slice]:
        """Contiguous rows whose forward passes compute at most `budget_tokens` each: whole groups where they fit.

        Old log-probs and updates share them, so that both see the same arithmetic. A single row is never cut, and no
        group where `whole_groups` is set.
        """
        if budget_tokens < 1:
            raise InputError(f"micro_batch_tokens is {budget_tokens}; give at least 1, for example 4096")
        known = lengths(rollout)

        def tokens(rows: slice) -> int:
            part = known.rows(rows)
            return work(part, self._layout(self.cheapest(part))).tokens

        return micro_batches(len(known), group_size, budget_tokens, tokens, whole_groups)

    def cheapest(self, known: Lengths) -> str:
        """The allowed packing with the least estimated work: 2 operations a weight and token, 4 a pair and channel.

        A dense mask makes prefix packing pay for pairs that do not see each other, which long completions notice.
        """
        if len(self.allowed) == 1:
            return self.allowed[0]
        model = self.language_model.model
        config = model.config.get_text_config()
        channels = config.num_hidden_layers * config.hidden_size
        weights = 12 * channels * config.hidden_size  # the usual count, near enough for a comparison

        def cost(packing: str) -> float:
            found = work(known, self._layout(packing))
            return float(SLOWER[packing] * (2 * weights * found.tokens + 4 * channels * found.pairs))

        return min(self.allowed, key=cost)

    def _layout(self, packing: str) -> str:
        flat = packing == "prefix" and self.language_model.model.config._attn_implementation == FLEX
        return "flat" if flat else packing


def why_not(model: Any, packing: str) -> str | None:
    """Why a model cannot have a packing, or None if it can: by what it says of itself, and by its numbers."""
    if packing == "padded":
        return None
    if packing == "cached":
        if recomputed(model):
            return "its layers are recomputed (gradient checkpointing), and keep no keys and values"
        if compiled(model):
            return "its layers are compiled, each of which would be compiled anew for its place in the cache"
        return None if can_share_prompts(model) else "its layers keep more or less than all keys and values"
    if model.config._attn_implementation not in MASKED:
        return f"its attention '{model.config._attn_implementation}' takes no mask; load it with {', '.join(MASKED)}"
    if not plain_attention(model):
        return "its layers see a window of tokens, or keep a state"
    try:
        check_log_probs(model, packing)
    except (InputError, RuntimeError, ValueError) as error:  # models refuse a mask of four dimensions in many ways
        return str(error).splitlines()[0]
    return None


def lengths(rollout: Rollout) -> Lengths:
    """Lengths of prompts and completions as plain numbers."""
    _, runs = distinct_prompts(rollout.sequences, rollout.attention_mask, rollout.prompt_width)
    prompt, answer = rollout.attention_mask.tensor_split([rollout.prompt_width], dim=1)
    return Lengths(runs.tolist(), prompt.sum(-1).tolist(), answer.sum(-1).tolist())
