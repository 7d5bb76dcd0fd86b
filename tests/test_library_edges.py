"""Where methods meet an edge: rewards that are no rates, equal numbers that round, masked-out answers, ties."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, cast

import pytest
import torch
from batches import tokens
from test_library_advantages_a import double, make, padded, shaped
from test_library_sampling import attempt, prepared, start, with_rewards
from test_library_sampling2 import spear_batch
from torch import Tensor

import etr
from etr.batch import Batch
from etr.bundles import Papers
from etr.errors import InputError
from etr.groups import Groups, unit_rewards
from etr.objective import Objective, State
from etr.objectives.copo import prompt_zscore
from etr.objectives.d3s import rounded_up
from etr.samplers import Sampler
from etr.sampling import zscore_among

CPU, F, PAIR = torch.device("cpu"), torch.float64, torch.zeros(2, dtype=torch.long)

# Rewards that are no success rates ------------------------------------------------------------------------------------

RATES = [("disco", {}), ("disco", {"kind": "log"}), ("maxrl", {}), ("maxrl", {"power": 0.5}), ("bnpo_beta", {})]


@pytest.mark.parametrize(("name", "fields"), RATES)
@pytest.mark.parametrize("bad", [-1.0, 2.0])
def test_success_rates_are_asked_for(name: str, fields: dict[str, object], bad: float) -> None:
    message = rf"^{name} .*, but the reward at index \[1\] is {bad:g}, outside \[0, 1\]; map the rewards to \[0, 1\]$"
    with pytest.raises(InputError, match=message):
        etr.get(name, **fields).advantage(double([1.0, bad]), PAIR)


def test_no_value_is_looked_at_while_a_compiler_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards = double([5.0, math.nan])
    with pytest.raises(InputError, match=r"^Why, but the reward at index \[0\] is 5"):
        unit_rewards(rewards, "Why")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert unit_rewards(rewards, "Why") is rewards


def test_disco_without_weights_takes_any_rewards() -> None:
    assert etr.get("disco", kind="none").advantage(double([3.0, -1.0]), PAIR).tolist() == [2.0, -2.0]


# Equal numbers whose sums round ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [[0.1, 0.6, 0.1], [0.1, 0.2, 0.5]])
@pytest.mark.parametrize("dtype", [torch.float32, F])
def test_papers_of_one_score_have_no_spread(dtype: torch.dtype, second: list[float]) -> None:
    """Both papers score .8: .1 + .1 + .6 in another order, or of other numbers that are rounded to single precision."""
    rewards, ids = (
        torch.tensor([[0.1, 0.1, 0.6], second], dtype=dtype).T.flatten(),
        torch.arange(3).repeat_interleave(2),
    )
    papers = Papers(rewards, ids, 5)
    assert papers.std().tolist() == [0.0] * 6 and papers.scores.dtype == F
    objective, ones = etr.get("riskpo", mode="batch", credit="uniform"), torch.ones(6, 1, dtype=dtype)
    batch = Batch(-ones, -ones, ones.bool(), ones[:, 0], rewards=rewards, group_ids=ids)
    found = objective.prepare(batch, objective.init_state((), CPU))[0].advantages
    assert found.dtype == dtype and found.abs().max() < 1e-6  # not blown up to the size of a spread
    far = Papers(torch.tensor([0.0, 0.001], dtype=dtype), PAIR, 1).std()
    assert far.tolist() == pytest.approx([0.001 / math.sqrt(2)] * 2, rel=1e-6)  # a small spread is one


@pytest.mark.parametrize("dtype", [torch.float32, F])
def test_prompts_that_agree_but_for_rounding_have_no_zscore(dtype: torch.dtype) -> None:
    groups = Groups(torch.zeros(4, dtype=dtype), torch.arange(2).repeat_interleave(2))
    near = torch.tensor([0.3, 0.3, 0.3 + 6e-8, 0.3 + 6e-8], dtype=dtype)
    assert near.unique().numel() == 2 and prompt_zscore(near, groups).tolist() == [0.0] * 4
    apart = prompt_zscore(torch.tensor([0.3, 0.3, 0.3003, 0.3003], dtype=dtype), groups)
    assert apart.dtype == dtype and apart.tolist() == pytest.approx([-1, -1, 1, 1])


def test_zscores_among_some_are_told_exactly() -> None:
    """Equal in single precision: 0, though their mean rounds; a billionth apart in double precision: ±1."""
    ids, some = torch.zeros(4, dtype=torch.long), torch.tensor([True, True, True, False])
    equal = torch.tensor([0.9, 0.9, 0.9, 0.0])
    assert (equal[:3] - equal[:3].sum() / 3).any()  # what a computed spread would see
    assert zscore_among(equal, ids, some).tolist() == [0.0] * 4
    tiny = zscore_among(double([0.0, 0.0, 1e-10, 7.0]), ids, some)
    assert tiny.tolist() == pytest.approx([-(2**-0.5), -(2**-0.5), 2**0.5, 0.0])
    mixed = torch.tensor([3, 1, 3, 1])  # groups that do not lie in a row; one of them has a single counted answer
    assert zscore_among(double([1.0, 5.0, 0.0, 9.0]), mixed, some).tolist() == [1.0, 0.0, -1.0, 0.0]


def test_equal_entropies_leave_advantages_alone() -> None:
    """Three times .1: the mean is 0.10000000000000002, and a spread of rounding would make z = −1 of it."""
    objective = etr.get("aepo_agentic")
    batch = make(objective, [1.0, 0.0], 2, [2, 1], entropy=double([[0.1, 0.1], [0.1, math.nan]]))
    assert shaped(objective, batch).tolist() == [[1.0, 1.0], [-1.0, 0.0]]


def test_equal_returns_teach_nothing_in_safe() -> None:
    objective = etr.get("safe")
    more = {name: torch.zeros(2, 2, dtype=F) for name in ("values", "entropy", "ref_log_probs")}
    assert shaped(objective, make(objective, [0.1, 0.1], 2, [2, 1], **more)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_steer_of_equal_changes_is_grpo() -> None:
    """Linear: where no token stands out all have w = 1, and not w_max."""
    objective = etr.get("steer", weighting="linear")
    flat = make(objective, [1.0, 0.0], 2, [2, 1], entropy=double([[0.1, 0.1], [0.1, math.nan]]))
    assert shaped(objective, flat).tolist() == [[1.0, 1.0], [-1.0, 0.0]]
    apart = make(objective, [1.0, 0.0], 2, [2, 1], entropy=double([[0.1, 0.1 + 1e-9], [0.1, math.nan]]))
    torch.testing.assert_close(shaped(objective, apart), padded([[0.8, 1.2], [-0.8]]))  # |log p + H|: 1.9 is most


# Answers that are masked out ------------------------------------------------------------------------------------------


def group_of(name: str, rewards: list[float], lengths: list[int], more: dict[str, Any], **fields: object) -> Tensor:
    """Advantages of those answers of one group that have tokens; A = 1 before they are shaped."""
    objective = etr.get(name, **fields)
    ones = {"advantages": torch.ones(len(rewards), dtype=F)}
    batch = make(objective, rewards, len(rewards), lengths, **ones, **more)
    return shaped(objective, batch)[batch.response_mask.any(-1), 0]


@pytest.mark.parametrize(
    ("kind", "rewards", "lengths", "weight"),
    [
        ("llm", [1, 0, 0], [2, 3, 0], 0.1),  # the wrong ones have 3 tokens on average, not 3/2
        ("llm", [1, 1, 0], [2, 0, 1], 1.0),
        ("vlm", [1, 0, 0], [0, 2, 2], 1.0),  # the only right one is out: nothing is right
        ("vlm", [1, 1, 0], [2, 2, 0], 0.1),  # the only wrong one is out: nothing is wrong
        ("llm", [1, 1, 0], [2, 2, 0], 1.0),
    ],
)
def test_adora_measures_answers_with_tokens(kind: str, rewards: list[float], lengths: list[int], weight: float) -> None:
    assert group_of("adora", rewards, lengths, {}, kind=kind).tolist() == [weight] * sum(n > 0 for n in lengths)


def test_apo_measures_answers_with_tokens() -> None:
    """Right ones of 4 and 0 tokens: the usual length is 4, so a wrong one of 5 has x = 1 and 2 − 1/1.5."""
    got = group_of("apo", [1, 1, 0], [4, 0, 5], {}, stretch=0.5, beta=0.0)
    assert got.tolist() == pytest.approx([1.0, 2 - 1 / 1.5])
    alone = group_of("apo", [1, 0, 0], [0, 3, 5], {}, stretch=0.5, beta=0.0)
    assert alone.tolist() == [1.0] * 2  # nothing right has a length


@pytest.mark.parametrize("estimate", ["sequence", "length"])
def test_seed_grpo_leaves_answers_without_tokens_out(estimate: str) -> None:
    """e^−2000 times .4 .2 and .2 of answers 7, 7 and 9, empty ones of 8 and 7: SE = −(ln .75 + ln .25)/2 over ln 3."""
    chances = padded([[0.4], [1.0], [0.2], [0.2], [1.0]]).log() - 2000
    columns = {"clusters": torch.tensor([7, 8, 7, 9, 7]), "old_log_probs": chances, "log_probs": chances}
    got = group_of("seed_grpo", [1, 0, 0, 0, 0], [1, 0, 1, 1, 0], columns, alpha=1.0, estimate=estimate)
    factor = 1 + (math.log(0.75) + math.log(0.25)) / 2 / math.log(3)
    assert got.tolist() == pytest.approx([factor] * 3)
    lone = group_of("seed_grpo", [1, 0], [1, 0], {"clusters": torch.tensor([1, 2])}, alpha=1.0, estimate=estimate)
    assert lone.tolist() == [1.0]  # one answer has no entropy
    pairs = make(etr.get("seed_grpo"), [1.0, 0.0, 1.0, 0.0], 2, [0, 0, 1, 1], clusters=torch.arange(4))
    assert shaped(etr.get("seed_grpo", alpha=1.0, estimate=estimate), pairs).isfinite().all()


def test_arm_knows_the_confidence_of_answers_with_tokens() -> None:
    """c = .1 and .6, and an answer without tokens: the mean is .35."""
    chances = padded([[0.1], [0.6], [1.0]]).log()
    got = group_of("arm", [1, 0, 1], [1, 1, 0], {"old_log_probs": chances, "log_probs": chances}, alpha=0.5)
    assert got.tolist() == pytest.approx([1 + 0.5 * (0.35 - 0.1), 1 + 0.5 * (0.35 - 0.6)])


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 2, 1]])
def test_eapo_asks_counted_rounds_whether_they_are_equal(order: list[int]) -> None:
    """Three rounds that earn .1, whose mean rounds, beside a right answer that is masked out: no signal at all."""
    objective = etr.get("eapo", gamma=1.0)
    turns = {"turns": torch.zeros(4, 1, dtype=torch.long)}
    batch = make(objective, [0.1, 0.1, 0.1, 1.0], 4, [1, 1, 1, 0], **turns).rows(torch.tensor(order))
    assert shaped(objective, batch).tolist() == [[0.0]] * 4


# Ties and shares ------------------------------------------------------------------------------------------------------


def tied(order: list[int], entropy: list[float], **fields: object) -> list[float]:
    batch = dataclasses.replace(tokens([[0.0]] * 4, [1.0, -1.0, 1.0, -1.0]), entropy=double(entropy).unsqueeze(-1))
    objective = etr.get("d3s", rows_first=1.0, tokens_first=0.5, **fields)
    found = etr.gradient_coefficient(objective, batch.rows(torch.tensor(order)))[:, 0]
    return cast(list[float], found[torch.tensor(order).argsort()].tolist())


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_d3s_shares_the_last_places_among_ties(order: list[int]) -> None:
    """Two of four tokens: all tie, so each counts half, times 4/2; or one stands out and the others share one place."""
    assert tied(order, [1.0] * 4) == [1.0, -1.0, 1.0, -1.0]
    assert tied(order, [2.0, 1.0, 1.0, 1.0]) == pytest.approx([2.0, -2 / 3, 2 / 3, -2 / 3])
    assert tied(order, [2.0, 3.0, 1.0, 1.0]) == [2.0, -2.0, 0.0, 0.0]


def test_d3s_counts_are_not_rounded_twice() -> None:
    """7 % of 100 is 7.000000000000001 in double precision: 7 tokens and not 8."""
    assert math.ceil(0.07 * 100) == 8 and rounded_up(double([0.07]) * 100).tolist() == [7.0]
    assert rounded_up(double([0.0, 6.5, 7.01])).tolist() == [0.0, 7.0, 8.0]
    signs = [1.0 if i % 2 else -1.0 for i in range(100)]
    batch = dataclasses.replace(tokens([[0.0]] * 100, signs), entropy=(1 + torch.arange(100.0).double()).unsqueeze(-1))
    kept = shaped(etr.get("d3s", rows_first=1.0, tokens_first=0.07), batch)
    assert int((kept != 0).sum()) == 7 and kept.abs().max().item() == pytest.approx(100 / 7)
    rows = shaped(etr.get("d3s", rows_first=0.07, tokens_first=1.0), batch)
    assert int((rows != 0).sum()) == 7


def test_spear_never_replays_a_whole_group() -> None:
    objective = etr.get("spear", share=1.0)
    state = objective.init_state((), CPU)
    for _ in range(2):  # answers 0 and 3 are kept, twice
        state = objective.prepare(spear_batch([0] * 4, [1.0, 0.0, 0.5, 1.0]), state)[1]
    runs: State = {name: value.unsqueeze(0) for name, value in state.items()}
    begun = cast(Sampler, objective).start(attempt([[0, 0, 0, 0]], 1, state=runs))
    assert begun is not None and begun.given[0].tolist() == [[0, 1, 1, 1]]


def test_a_demonstration_is_in_no_baseline_of_soft_hpt() -> None:
    """Sampled 1, 0, 0 beside a demonstration of R = 1: mean 1/3. Sampled 0, 0, 0: nothing. No demonstration: as was."""
    objective: Objective = etr.get("hpt", soft=True, gate=1, sft=0.3, entropy_bonus=0.0)
    shown = start("hpt", attempt([[1, 0, 0, 0]], 1), soft=True, gate=1)
    assert shown is not None and shown.given[0].tolist() == [[0, 0, 0, 1]]
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    batch = with_rewards([[0.0]] * 12, rewards, [i // 4 for i in range(12)])
    assert batch.rewards is not None and batch.group_ids is not None
    batch = dataclasses.replace(batch, advantages=objective.advantage(batch.rewards, batch.group_ids))
    done = prepared(objective, batch.with_columns(given=torch.tensor([0, 0, 0, 1] * 2 + [0] * 4)))
    want = [2 / 3, -1 / 3, -1 / 3, 0.3, 0.0, 0.0, 0.0, 0.3, 0.5, 0.5, -0.5, -0.5]
    assert done.advantages[:, 0].tolist() == pytest.approx(want)
    with pytest.raises(InputError, match="rewards"):
        objective.require({"hints", "group_ids"}, "this batch")


def test_dcpo_without_a_right_answer_is_grpo() -> None:
    """Rewards of .04 are not right: α = 0 and A' = A = ±1, where α = 1 would wipe them out."""
    objective = etr.get("dcpo_distribution")
    log_p = torch.full((2, 1, 2), 0.5, dtype=F).log()
    more = {"full_log_probs": log_p, "entropy": torch.ones(2, 1, dtype=F), "tokens": torch.zeros(2, 1).long()}
    assert shaped(objective, make(objective, [0.04, 0.0], 2, [1, 1], **more)).tolist() == [[1.0], [-1.0]]
