"""Shared-prefix packing: one row holds a prompt once and its G completions side by side, without padding between them.

    ids        p0 p1 p2 | a0 a1 | b0 b1 b2        (the last token of a completion predicts nothing: left out)
    positions   0  1  2 |  3  4 |  3  4  5        (each completion follows the prompt)

A completion sees the prompt and itself, never its neighbour, so that every hidden state is that of the padded layout,
while a group of G completions pays for its prompt once, forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etr.llm.prompts import distinct_prompts, hidden_states

FLEX = "flex_attention"
MASKED = ("sdpa", "eager", FLEX)  # attention implementations that take a mask of any shape
FLEX_BLOCK = 128  # width of flex attention's blocks; rows of a multiple of it are compiled for fewer lengths


@dataclass(frozen=True)
class Packed:
    """Groups packed into R rows of S tokens.

    ids, positions: [R, S]; segment: number of the prompt or completion that a token belongs to, -1 in padding, [R, S];
    prompt: number of the prompt that it follows, its own for a prompt's token, [R, S];
    predictors: place in the flattened [R * S] of the token that predicts each completion token, [K], row by row.
    """

    ids: Tensor
    positions: Tensor
    segment: Tensor
    prompt: Tensor
    predictors: Tensor

    def visible(self) -> Tensor:
        """Dense attention mask [R, 1, S, S]: query, key. Padding sees padding, so that no softmax is empty."""
        query, key = self.segment[:, :, None], self.segment[:, None, :]
        causal = torch.ones(2 * self.ids.shape[1:], dtype=torch.bool, device=self.ids.device).tril()
        return ((causal & ((query == key) | (self.prompt[:, :, None] == key)))[:, None]).contiguous()

    def blocks(self) -> Any:
        """The same mask as a BlockMask for flex attention, which skips blocks that nobody sees."""
        from torch.nn.attention.flex_attention import create_block_mask

        segment, prompt = self.segment, self.prompt

        def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = segment[row, query] == segment[row, key]
            return (query >= key) & (own | (prompt[row, query] == segment[row, key]))

        rows, width = self.ids.shape
        return create_block_mask(visible, rows, None, width, width, device=str(self.ids.device))


def prefix_hidden(model: Any, sequences: Tensor, attention_mask: Tensor, prompt_width: int) -> Tensor:
    """Hidden states [K, H] that predict the kept completion tokens, row by row.

    With flex attention all groups share one row; a dense mask grows with the square of a row, so there each group has
    its own.
    """
    attention = model.config._attn_implementation
    packed = pack_groups(sequences, attention_mask, prompt_width, one_row=attention == FLEX)
    if attention == FLEX:
        mask = packed.blocks()
    else:
        mask = packed.visible()
        if attention == "eager":  # adds its mask to the scores
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)
    hidden = hidden_states(
        model, input_ids=packed.ids, position_ids=packed.positions, attention_mask=mask, use_cache=False
    )
    return hidden.flatten(0, 1).index_select(0, packed.predictors)


def pack_groups(sequences: Tensor, attention_mask: Tensor, prompt_width: int, one_row: bool = False) -> Packed:
    """Left-padded sequences [B, P + T], runs of equal prompts together, as rows of one group each or as one row."""
    mask = attention_mask.bool().cpu()
    _, runs = distinct_prompts(sequences, attention_mask, prompt_width)
    answers = [int(n) for n in mask[:, prompt_width:].sum(-1)]
    ids = sequences.cpu()
    rows: list[_Row] = []
    predictors: list[tuple[int, Tensor]] = []  # row, and places in it
    previous = -1
    for i, run in enumerate(runs.tolist()):
        if run != previous:
            if not rows or not one_row:
                rows.append(_Row())
            rows[-1].start_group(ids[i, :prompt_width][mask[i, :prompt_width]])
            previous = run
        places = rows[-1].add(ids[i, prompt_width : prompt_width + answers[i]])
        predictors.append((len(rows) - 1, places))
    width = max(row.width for row in rows)
    width += -width % FLEX_BLOCK if one_row else 0
    columns = zip(*(row.padded(width) for row in rows), strict=True)
    packed, positions, segment, prompt = (torch.stack(column).to(sequences.device) for column in columns)
    places = torch.cat([row * width + place for row, place in predictors])
    return Packed(packed, positions, segment, prompt, places.to(sequences.device))


class _Row:
    """One packed row in the making."""

    def __init__(self) -> None:
        self.ids: list[Tensor] = []
        self.positions: list[Tensor] = []
        self.segments: list[tuple[int, int, int]] = []  # number, number of its prompt, tokens
        self.width = self.last = self.prompt = 0

    def start_group(self, prompt: Tensor) -> None:
        """Append a prompt, which the following completions share."""
        self.prompt = len(self.segments)
        self._append(prompt, 0)
        self.last = self.width - 1

    def add(self, answer: Tensor) -> Tensor:
        """Append a completion without its last token; returns the places that predict its tokens."""
        start = self.width
        length = int(self.segments[self.prompt][2])
        self._append(answer[:-1], length)
        return torch.cat([torch.tensor([self.last]), torch.arange(start, self.width)])[: len(answer)]

    def _append(self, ids: Tensor, position: int) -> None:
        self.ids.append(ids)
        self.positions.append(torch.arange(position, position + len(ids)))
        self.segments.append((len(self.segments), self.prompt, len(ids)))
        self.width += len(ids)

    def padded(self, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids, positions, segments and their prompts, each [width]."""
        lengths = torch.tensor([n for _, _, n in self.segments])
        segment, prompt = (
            torch.tensor([s[which] for s in self.segments]).repeat_interleave(lengths) for which in (0, 1)
        )
        columns = ((torch.cat(self.ids), 0), (torch.cat(self.positions), 0), (segment, -1), (prompt, -1))
        ids, positions, segment, prompt = (F.pad(x, (0, width - self.width), value=fill) for x, fill in columns)
        return ids, positions, segment, prompt
