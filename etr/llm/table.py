"""A language model as a table of logits, so that `etr.exact` gives its reward, entropy and KL without sampling.

A toy environment with `prompt_tokens` is small enough to ask the model for its next token after every prompt and every
prefix of an answer. The table keeps the model's graph: ∂J/∂weights is one backward pass.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from etr.errors import InputError
from etr.exact import TreeModel
from etr.llm.models import LanguageModel
from etr.llm.prompts import position_ids
from etr.llm.rollout import left_pad


class PromptedModel(TreeModel, Protocol):
    """An exact model whose prompts are written down: token ids `[P, L]`."""

    @property
    def prompt_tokens(self) -> Tensor | None: ...


def policy_table(
    language_model: LanguageModel, model: PromptedModel, symbols: str, template: str = "", temperature: float = 1.0
) -> Tensor:
    """log π of the V answer tokens in every state, over the model's whole vocabulary, nats, float64 `[P, S, V]`.

    symbols: the character that stands for each of the environment's tokens; template: a format string for a prompt's
    symbols, such as "{}+{}%5=", by default one after another; temperature: as in sampling.
    `etr.exact` reads the table as logits, that is it restricts the policy to the answer tokens; `table.exp().sum(-1)`
    is the probability that the model chooses one of them at all. Raises InputError for an environment without prompt
    tokens, and for symbols that are missing or not one token each.
    """
    answers = _answer_ids(language_model, model, symbols)
    prompts = prompt_ids(language_model, model, symbols, template)
    prefixes = answers[_all_prefixes(model)]  # [N, T - 1]
    repeated = [prompt for prompt in prompts for _ in prefixes]
    tokens, mask = left_pad(repeated, language_model.pad_id, language_model.device)
    sequences = torch.cat([tokens, prefixes.repeat(len(prompts), 1)], 1)
    mask = torch.cat([mask, torch.ones_like(sequences[:, tokens.shape[1] :])], 1)
    network = language_model.model
    hidden = network.base_model(
        input_ids=sequences, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    ).last_hidden_state[:, -model.horizon :]
    states = _one_per_state(hidden.unflatten(0, (len(prompts), -1)), model)  # [P, S, H]
    log_pi: Tensor = (network.get_output_embeddings()(states).double() / temperature).log_softmax(-1)
    return log_pi[..., answers]


def sampled_reward(table: Tensor, model: TreeModel) -> Tensor:
    """J of the model as it is sampled, over its whole vocabulary, where any token that is no answer is wrong, `[P]`.

    At most `etr.exact.expected_reward` of the same table, which restricts the policy to the answer tokens; both are one
    where the model always chooses an answer token. `table` is that of `policy_table`.
    """
    widths = [model.vocab_size**depth for depth in range(model.horizon)]
    value = model.success.to(table)
    for level in reversed(table.exp().split(widths, dim=-2)):
        value = (level * value.unflatten(-1, (-1, model.vocab_size))).sum(-1)
    return value.squeeze(-1)


def prompt_ids(
    language_model: LanguageModel, model: PromptedModel, symbols: str, template: str = ""
) -> list[list[int]]:
    """The prompts of an environment as the language model's token ids: what its rollout engine takes."""
    if model.prompt_tokens is None:
        raise InputError(
            "this environment's prompts have no text; use one that has prompt_tokens, as copy and mod have"
        )
    if int(model.prompt_tokens.max()) >= len(symbols):
        raise InputError(f"symbols {symbols!r} has no character for token {int(model.prompt_tokens.max())}; add it")
    rows = [[symbols[token] for token in row] for row in model.prompt_tokens.tolist()]
    texts = [template.format(*row) if template else "".join(row) for row in rows]
    return [list(language_model.tokenizer(text)["input_ids"]) for text in texts]


def _answer_ids(language_model: LanguageModel, model: PromptedModel, symbols: str) -> Tensor:
    """The language model's token for each of the V answer tokens, `[V]`."""
    ids = [language_model.tokenizer(symbol)["input_ids"] for symbol in symbols[: model.vocab_size]]
    unknown = language_model.tokenizer.unk_token_id
    if len(ids) < model.vocab_size or any(len(i) != 1 or i[0] == unknown for i in ids):
        raise InputError(
            f"symbols {symbols!r} must start with {model.vocab_size} characters that are one token each for model "
            f"'{language_model.name}'; choose others"
        )
    return torch.tensor(ids, device=language_model.device).squeeze(-1)


def _all_prefixes(model: TreeModel) -> Tensor:
    """Every sequence of T − 1 answer tokens, `[V^(T-1), T - 1]`, in the order of the states of the last level."""
    count, depth = model.vocab_size ** (model.horizon - 1), model.horizon - 1
    powers = model.vocab_size ** torch.arange(depth - 1, -1, -1)
    return torch.arange(count)[:, None] // powers % model.vocab_size


def _one_per_state(hidden: Tensor, model: TreeModel) -> Tensor:
    """One row per state from one per (longest prefix, depth): `[P, N, T, H]` to `[P, S, H]`."""
    strides = [model.vocab_size ** (model.horizon - 1 - depth) for depth in range(model.horizon)]
    return torch.cat([hidden[:, ::stride, depth] for depth, stride in enumerate(strides)], 1)
