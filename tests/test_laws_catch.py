"""The laws can fail: each deliberately spoilt objective is caught by the law that names its fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import etr
from etr import Batch, Region, aggregation, regions
from etr.laws import check_law
from etr.objective import Reduction, State
from etr.objectives.cispo import CISPO
from etr.objectives.etr import ETR
from etr.objectives.grpo import GRPO


class FlippedSign(GRPO):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return -super().surrogate(batch, log_ratio, region)


class Drift(GRPO):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return super().surrogate(batch, log_ratio, region) + 0.1 * batch.log_probs


class ExcludesOne(GRPO):
    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        return Region(log_ratio.new_tensor(1.05), log_ratio.new_tensor(1.2))


class Optimist(GRPO):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        ratio, a = log_ratio.exp(), batch.token_advantages
        return torch.maximum(ratio * a, ratio.clamp(region.low, region.high) * a)


class ReversesOutside(GRPO):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        excess = log_ratio.exp() - 1
        return excess * batch.token_advantages - batch.token_advantages.abs() * excess**2 / 0.4


class Detached(GRPO):
    def ratio(self, batch: Batch) -> Tensor:
        return super().ratio(batch) + (batch.log_probs - batch.log_probs.detach())


class FirstRowCounts(GRPO):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        weight = torch.ones_like(log_ratio)
        weight[..., 0, :] = 2.0
        return weight * super().surrogate(batch, log_ratio, region)


class LocalMean(GRPO):
    def aggregate(self, x: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
        return aggregation.aggregate(x, mask, "local-token-mean", denominator)


class UnpreparedMean(ETR):
    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        width = 0.1 * batch.advantages.abs().mean(-1)[..., None, None]
        return regions.interval(width, width)


class ReadsInSecret(ETR):
    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        return dataclasses.replace(batch, advantages=batch.advantages * batch.old_log_probs[..., 0].exp()), state


class MixesRuns(GRPO):
    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        width = 0.1 * log_ratio.abs().mean().detach()
        return regions.interval(width, width)


class WrongParent(GRPO):
    reduces_to = Reduction("grpo", {"eps_high": 0.3}, {"eps_high": 0.2})


class Overflows(GRPO):
    def ratio(self, batch: Batch) -> Tensor:
        return (batch.log_probs - batch.old_log_probs) * 2


class NeverLearns(GRPO):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return 0.0 * super().surrogate(batch, log_ratio, region)


class NeedlessException(GRPO):
    @property
    def exceptions(self) -> Mapping[str, str]:
        return {"pessimistic": "no reason"}


class PaddingCounts(GRPO):
    def ratio(self, batch: Batch) -> Tensor:
        return super().ratio(batch) + 0.0 * batch.log_probs.sum(-1, keepdim=True)

    def aggregate(self, x: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
        return x.mean((-2, -1))


@pytest.mark.parametrize(
    ("cls", "law"),
    [
        (FlippedSign, "on_policy"),
        (FlippedSign, "gradient_follows_advantage"),
        (FlippedSign, "learns_a_bandit"),
        (Drift, "no_advantage_no_gradient"),
        (ExcludesOne, "region_encloses_one"),
        (Optimist, "pessimistic"),
        (ReversesOutside, "gradient_follows_advantage"),
        (Detached, "finite_differences"),
        (FirstRowCounts, "response_order_is_irrelevant"),
        (LocalMean, "splitting_is_exact"),
        (UnpreparedMean, "splitting_is_exact"),
        (PaddingCounts, "splitting_is_exact"),
        (ReadsInSecret, "preparing_reads_what_it_says"),
        (MixesRuns, "runs_do_not_mix"),
        (WrongParent, "equals_its_parent"),
        (Overflows, "finite_at_extremes"),
        (NeverLearns, "learns_a_bandit"),
        (NeedlessException, "pessimistic"),
    ],
)
def test_a_spoilt_objective_is_caught(cls: type[GRPO], law: str) -> None:
    verdict = check_law(law, cls())
    assert verdict.outcome == "broken", f"{cls.__name__} passed {law}"
    assert verdict.detail


@pytest.mark.parametrize(("law", "name"), [("padding_is_inert", "reinforce"), ("half_precision", "ppo")])
def test_laws_catch_a_batch_that_is_not_cleaned(law: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selecting the objective afterwards is not enough: NaN reaches the gradient, bfloat16 the arithmetic."""
    monkeypatch.setattr(Batch, "clean", lambda self: self)
    assert check_law(law, etr.get(name)).outcome == "broken"


def test_exceptions_are_reported_with_their_reason() -> None:
    verdict = check_law("finite_differences", CISPO())
    assert verdict.outcome == "excepted"
    assert "stop-gradient" in verdict.detail


def test_laws_are_checked_on_an_unregistered_dataclass() -> None:
    @dataclass(frozen=True)
    class Wider(GRPO):
        eps_high: float = 0.4
        reduces_to = Reduction("grpo", {"eps_high": 0.2})

        def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
            return dataclasses.replace(batch), state

    assert {v.outcome for v in etr.laws.check(Wider())} == {"holds"}
