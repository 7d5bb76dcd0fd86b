"""D³S: train on the answers whose advantages differ most, and of their tokens on the most uncertain ones.

    S = the N′ answers of the whole batch that maximise Var(A_S): the lowest and the highest of the sorted list
    A_t = A·N/N_kept on the K % tokens of S with the largest |A|·H, 0 elsewhere
    N′/N and K go linearly from the first to the last value in `steps` steps, from aggressive to relaxed

Paper: D³S, dynamic dual-level down-sampling, 2509.22115, from a note on it. That some set of lowest and highest values
maximises the variance is checked by enumeration in the tests; all N′ + 1 splits are tried.
OURS: the numbers (half of the answers and 40 % of their tokens, so 20 % in total, relaxed to everything after 100
steps; the paper's are not known to us); the mean is over the kept tokens only, and tokens that tie at the cut share the
places left; of answers with the same advantage the ones with the larger mean entropy are kept, and of those that are
equal in this too the first and the last.
Against `grpo`: which tokens count, and a mean over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("d3s")
@dataclass(frozen=True)
class D3S(Shaping, GRPO):
    """GRPO on the answers that spread the advantages most, and on their tokens with the largest |A|·H."""

    aggregation: str = "token-mean"
    rows_first: float = 0.5
    rows_last: float = 1.0
    tokens_first: float = 0.4
    tokens_last: float = 1.0
    steps: int = 100

    paper: ClassVar[Paper] = Paper("D3S: dynamic dual-level down-sampling", "2509.22115", "third-party")
    category: ClassVar[Category] = "sampling"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"rows_first": 1.0, "tokens_first": 1.0})
    examples = ({"beta": 0.1}, {"rows_first": 1.0, "tokens_first": 1.0, "dual_clip": 3.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows_first", "rows_last", "tokens_first", "tokens_last"):
            check_range(self, name, 0.0, 1.0)
        check_range(self, "steps", 1, 2**31)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "rows_share", "tokens_share")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        step = torch.zeros((*run_shape, 1, 1), dtype=torch.float64, device=device)
        return {**super().init_state(run_shape, device), "step": step}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        done, like = (state["step"] / self.steps).clamp(max=1.0), batch.response_mask
        shares = {
            "rows_share": self.rows_first + done * (self.rows_last - self.rows_first),
            "tokens_share": self.tokens_first + done * (self.tokens_last - self.tokens_first),
        }
        batch = batch.with_columns(**{name: share.expand(like.shape) for name, share in shares.items()})
        batch, state = super().prepare(batch, state)
        return batch, {**state, "step": state["step"] + 1}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.entropy is not None  # in `needs`
        rows, tokens = (batch.columns[name][..., :1, :1] for name in ("rows_share", "tokens_share"))
        mask, advantages = batch.response_mask, batch.token_advantages.expand(batch.response_mask.shape)
        entropy, of_row = masked.mean(batch.entropy, mask, dim=-1), masked.mean(advantages, mask, dim=-1)
        count = rounded_up(rows * mask.shape[-2]).long()[..., 0]
        inside = mask & spread(of_row.squeeze(-1), entropy.squeeze(-1), count).unsqueeze(-1)
        wanted = rounded_up(tokens * inside.sum((-2, -1), keepdim=True)).long()
        kept = masked.top_shares(advantages.abs() * batch.entropy, inside, wanted)
        scale = mask.sum((-2, -1), keepdim=True).double() / wanted.clamp(min=1)
        return torch.where(kept > 0, advantages * (kept * scale).to(advantages.dtype), 0.0)


def rounded_up(number: Tensor) -> Tensor:
    """The next whole number, where what is above one by rounding alone is that one: 10 % of 30 are 3."""
    return (number - 1e-9).ceil()


def spread(values: Tensor, ties: Tensor, count: Tensor) -> Tensor:
    """Bool mask of the `count` `[*R, 1]` of `values` `[*R, B]` with the largest variance; between equals, large `ties`.

    They are the k lowest and the count − k highest for some k: moving a value outwards past the mean adds variance.
    """
    size = values.shape[-1]
    first = (ties * values.sign()).sort(stable=True, dim=-1).indices  # low values with large ties first, high ones last
    order = first.gather(-1, values.gather(-1, first).sort(stable=True, dim=-1).indices)
    ordered = values.gather(-1, order).double()
    total, squares = (torch.nn.functional.pad(x.cumsum(-1), (1, 0)) for x in (ordered, ordered.square()))
    low = torch.arange(size + 1, device=values.device).expand(total.shape)
    high = size - (count - low)  # the highest begin here
    inside = (low <= count) & (high >= low)
    at = high.clamp(0, size)
    sum_of, square = (x + x[..., -1:] - x.gather(-1, at) for x in (total, squares))
    variance = torch.where(inside, square / count.clamp(min=1) - (sum_of / count.clamp(min=1)).square(), -torch.inf)
    best = variance.argmax(-1, keepdim=True)
    rank = order.argsort(-1)
    return (rank < best) | (rank >= high.gather(-1, best))
