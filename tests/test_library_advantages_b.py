"""Advantage methods from DaGRPO to MaxRL: cases worked by hand, one or more of each."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from batches import OLD, gradient, tokens
from torch import Tensor

import etr
from etr.batch import Batch
from etr.objectives.disco import DISCO, domain_weight
from etr.objectives.implicit_prm import outcome_loss, step_rewards
from etr.objectives.passk import PassK

ONE_GROUP = torch.zeros(4, dtype=torch.long)


def rewarded(rewards: Sequence[float], lengths: Sequence[int] | None = None, **more: Any) -> Batch:
    """One group on-policy, with GRPO's advantages and padding of NaN."""
    values = torch.tensor(rewards, dtype=torch.float64)
    ids = torch.zeros(len(rewards), dtype=torch.long)
    advantages = etr.advantages.group_zscore(values, ids).tolist()
    rows = [[0.0] * n for n in lengths or [1] * len(rewards)]
    return tokens(rows, advantages, rewards=values, group_ids=ids, group=etr.group_stats(values, ids), **more)


def padded(rows: Sequence[Sequence[float]], fill: float = math.nan) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], dtype=torch.float64)


def shaped(objective: etr.Objective, batch: Batch) -> list[list[float]]:
    """The advantages that the loss uses: c on-policy, without the padding."""
    found = etr.gradient_coefficient(objective, batch)
    return [row[kept].tolist() for row, kept in zip(found, batch.response_mask, strict=True)]


def column(objective: etr.Objective, rewards: Sequence[float]) -> list[float]:
    values = torch.tensor(rewards, dtype=torch.float64)
    return objective.advantage(values, torch.zeros(len(rewards), dtype=torch.long)).tolist()


# From rewards alone ---------------------------------------------------------------------------------------------------


def test_disco() -> None:
    """Mean 1/4: R' = 1/.25001, so A = .75 and −.25 times that; the log variant changes the negative ones alone."""
    weight, soft = 1 / 0.25001, math.log(1 + 1 / 0.25001)
    hard = [1.0, 0.0, 0.0, 0.0]
    assert column(etr.get("disco"), hard) == pytest.approx([0.75 * weight, *[-0.25 * weight] * 3])
    assert column(etr.get("disco", kind="log"), hard) == pytest.approx([0.75, *[-0.25 * soft] * 3])
    easy = column(etr.get("disco"), [1.0, 1.0, 1.0, 0.0])  # 1/.75001 times (1/4, 1/4, 1/4, −3/4)
    assert easy == pytest.approx([x / 0.75001 for x in (0.25, 0.25, 0.25, -0.75)])
    for same in (0.0, 1.0):
        assert column(etr.get("disco"), [same] * 4) == [0.0] * 4


def test_disco_knows_domains_where_a_subclass_tells_it() -> None:
    assert domain_weight(0.75) == pytest.approx(0.847, abs=5e-4)  # both constants of the authors' script
    assert domain_weight(0.0833) == pytest.approx(2.565, abs=5e-4)

    class Domains(DISCO):
        def domain_weights(self, group_ids: Tensor) -> Tensor:
            return torch.tensor([domain_weight(0.75), domain_weight(0.25)]).double()[group_ids]

    rewards, ids = torch.tensor([1.0, 0.0, 1.0, 0.0]).double(), torch.tensor([0, 0, 1, 1])
    found, plain = Domains().advantage(rewards, ids), DISCO().advantage(rewards, ids)
    assert (found / plain).tolist() == pytest.approx([math.log(7 / 3)] * 2 + [math.log(5)] * 2)


def test_maxrl() -> None:
    """(R − mean)/mean: with mean 1/4 (1 − 1/4)·4 = 3 and −1; with 3/4 1/3 and −1; 0 where nothing or all is right."""
    assert column(etr.get("maxrl"), [1.0, 0.0, 0.0, 0.0]) == pytest.approx([3.0, -1.0, -1.0, -1.0])
    assert column(etr.get("maxrl"), [1.0, 1.0, 1.0, 0.0]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1.0])
    assert column(etr.get("maxrl"), [0.0] * 4) == column(etr.get("maxrl"), [1.0] * 4) == [0.0] * 4
    assert column(etr.get("maxrl", power=0.5), [1.0, 0.0, 0.0, 0.0]) == pytest.approx([1.5, -0.5, -0.5, -0.5])


def test_passk_by_hand() -> None:
    """n = 4, c = 1, k = 2: ρ = 1 − 3/6 = σ = 1/2; A = .5/.5 = 1 and (.5 − C(2,1)/C(3,1))/.5 = −1/3."""
    found = column(etr.get("passk", k=2), [1.0, 0.0, 0.0, 0.0])
    assert found == pytest.approx([1.0, *[-1 / 3] * 3], rel=1e-5)
    assert column(etr.get("passk", k=2), [1.0, 1.0, 1.0, 0.0]) == [0.0] * 4  # every pair has a right one
    best = etr.get("passk", kind="best")
    assert column(best, [0.4, 0.9, 0.4, 0.1]) == pytest.approx([0.0, 0.5, 0.0, 0.0])
    assert column(best, [1.0, 1.0, 0.0, 0.0]) == [0.0] * 4  # two bests: neither leads
    # Divided by the std of (1, 0, 0, 0), √(1/4 · 3/4).
    scaled = column(etr.get("passk", kind="best", scale=True), [1.0, 0.0, 0.0, 0.0])
    assert scaled == pytest.approx([1 / math.sqrt(3 / 16), 0.0, 0.0, 0.0], rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("right", range(7))
def test_passk_is_the_mean_over_all_subsets(k: int, right: int) -> None:
    """Every subset of min(k, 6) out of 6: z-score its best reward among subsets, and average over those with i."""
    size, rewards = 6, [1.0] * right + [0.0] * (6 - right)
    subsets = list(itertools.combinations(range(size), min(k, size)))
    best = [max(rewards[i] for i in subset) for subset in subsets]
    mean = sum(best) / len(best)
    std = math.sqrt(sum((b - mean) ** 2 for b in best) / len(best))
    want = []
    for i in range(size):
        own = [b - mean for b, subset in zip(best, subsets, strict=True) if i in subset]
        want.append(sum(own) / len(own) / (std + 1e-6) if std else 0.0)
    values = torch.tensor(rewards, dtype=torch.float64)
    found = PassK(k=k).of_subsets(values, etr.groups.Groups(values, torch.zeros(size, dtype=torch.long)))
    assert found.tolist() == pytest.approx(want, abs=1e-9)
    if k == 1:  # and then it is GRPO's
        assert found.tolist() == pytest.approx(column(etr.get("grpo"), rewards), abs=1e-5)


def test_spo() -> None:
    """Of four, 3 beats all; 1 beats 0 and draws with the other 1: (1 + ½)/3 = ½; 0 beats none. Minus ½ each."""
    assert column(etr.get("spo_minimax"), [3.0, 1.0, 1.0, 0.0]) == pytest.approx([0.5, 0.0, 0.0, -0.5])
    # Judges mark (rock, paper, scissors) 2 1 0, 0 2 1 and 1 0 2: two of three prefer rock to paper, and so on round.
    marks = {"rock": [2.0, 0.0, 1.0], "paper": [1.0, 2.0, 0.0], "scissors": [0.0, 1.0, 2.0]}
    objective = etr.get("spo_minimax", kind="components")
    for group, want in (
        (("rock", "paper", "scissors"), [0.0, 0.0, 0.0]),  # each beats one by 2/3 and loses to one: W = ½
        (("rock", "rock", "paper"), [7 / 12 - 0.5, 7 / 12 - 0.5, 1 / 3 - 0.5]),  # rock (½ + 2/3)/2, paper 1/3
    ):
        parts = torch.tensor([marks[name] for name in group], dtype=torch.float64)
        found = shaped(objective, rewarded([0.0, 1.0, 0.0], components=parts))
        assert [row[0] for row in found] == pytest.approx(want)


# With more at hand ----------------------------------------------------------------------------------------------------


def test_entropy_advantage() -> None:
    """A = ±1 (or 0): α·H = .4·.5 = .2; at H = 2 the cap |A|/κ = .5 is less than .8."""
    batch = rewarded([1.0, 0.0, 1.0, 0.0], [2, 2, 1, 1], entropy=padded([[0.5, 2.0], [0.5, 2.0], [0.0], [9.0]]))
    found = shaped(etr.get("entropy_advantage"), batch)
    assert [x for row in found for x in row] == pytest.approx([1.2, 1.5, -0.8, -0.5, 1.0, -0.5])
    dead = dataclasses.replace(batch, advantages=torch.zeros(4, dtype=torch.float64))
    assert not any(x for row in shaped(etr.get("entropy_advantage"), dead) for x in row)


@pytest.mark.parametrize(
    ("clusters", "fields", "want"),
    [
        # f = (.75, .75, .75, .25): mean .625, std √((3·.125² + .375²)/4) = .2165; .125/.2165 = 1/√3
        ([5, 5, 5, 9], {}, [3**-0.5, 3**-0.5, 3**-0.5, -(3**0.5)]),
        ([-1, -1, -1, 9], {}, [-(3**-0.5), -(3**-0.5), -(3**-0.5), 3**0.5]),  # not parsed: R = (0, 0, 0, .25)
        ([5, 5, 5, 9], {"entropy_high": 0.4}, [0.0] * 4),  # SE = .5623 = .4056·ln 4
        ([5, 5, 5, 9], {"entropy_low": 0.41}, [0.0] * 4),
        ([5, 5, 5, 9], {"entropy_low": 0.4, "entropy_high": 0.41}, [3**-0.5, 3**-0.5, 3**-0.5, -(3**0.5)]),
        ([1, 2, 3, 4], {}, [0.0] * 4),  # no two agree
        ([7, 7, 7, 7], {}, [0.0] * 4),  # all agree
    ],
)
def test_empo(clusters: list[int], fields: dict[str, object], want: list[float]) -> None:
    batch = rewarded([1.0, 0.0, 0.0, 0.0], clusters=torch.tensor(clusters))  # rewards do not matter
    assert [row[0] for row in shaped(etr.get("empo", **fields), batch)] == pytest.approx(want)


def test_apo_lengthens_the_wrong_by_their_length() -> None:
    """The right ones have 2 and 4 tokens, 3 on average: a wrong one of 5 has x = 2, its factor is 2 − 1.5^{−2}."""
    objective = etr.get("apo", stretch=0.5, beta=0.0)
    found = shaped(objective, rewarded([1.0, 1.0, 0.0, 0.0], [2, 4, 5, 1]))
    want = [[1.0] * 2, [1.0] * 4, [-(2 - 1.5**-2)] * 5, [-1.0]]
    assert [x for row in found for x in row] == pytest.approx([x for row in want for x in row])
    lost = dataclasses.replace(rewarded([0.0] * 3, [1, 2, 3]), advantages=torch.tensor([-1.0, -2.0, -3.0]).double())
    assert shaped(objective, lost) == [[-1.0], [-2.0] * 2, [-3.0] * 3]  # nothing right: no length to compare with


@pytest.mark.parametrize(("rewards", "right"), [([1.0, 0.0, 0.0, 0.0], 0.25), ([1.0, 1.0, 1.0, 0.0], 0.75)])
def test_apo_weighs_the_penalty_of_right_answers_by_difficulty(rewards: list[float], right: float) -> None:
    """β·w·k3 with w = 1 − e^{−e·acc} where A > 0, else 1; its gradient β·w·(1 − e^{−d})/B for one token each."""
    beta, d = 0.3, 0.7
    batch = rewarded(rewards, ref_log_probs=torch.full((4, 1), OLD - d, dtype=torch.float64))
    plain, with_penalty = (gradient(etr.get("apo", stretch=0.0, beta=b), batch) for b in (0.0, beta))
    weights = [1 - math.exp(-math.e * right) if r else 1.0 for r in rewards]
    k3 = math.exp(-d) + d - 1
    assert (with_penalty[0] - plain[0]).item() == pytest.approx(beta * k3 * sum(weights) / 4)
    want = [beta * w * (1 - math.exp(-d)) / 4 for w in weights]
    assert (with_penalty[1] - plain[1]).flatten().tolist() == pytest.approx(want)


def test_apo_weight_is_one_for_prompts_of_no_difficulty() -> None:
    for rewards in ([1.0] * 4, [0.0] * 4):
        batch = dataclasses.replace(rewarded(rewards), advantages=torch.ones(4).double())
        objective = etr.get("apo", beta=0.0)
        ready, _ = objective.prepare(batch, {})
        assert ready.columns["kl_weight"].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("delta", "want"),
    [
        (0.0, [1.0, 1.0, -1.0, -1.0]),
        (0.42, [2**-0.5, 2**-0.5, 0.0, -(2**0.5)]),  # s = .5 is .4 and .05 away: out; mean 2/3, std √2/3 of the rest
        (0.6, [1.0, 0.0, 0.0, -1.0]),  # .55 is .05 and .45 away: out too
        (0.9, [0.0] * 4),  # no pair is that far apart
    ],
)
def test_dagrpo(delta: float, want: list[float]) -> None:
    parts = torch.tensor([[1.0, 0.8], [0.9, 0.2], [0.5, 0.5], [0.2, 0.0]], dtype=torch.float64)  # s = .9 .55 .5 .1
    found = shaped(etr.get("dagrpo", delta=delta), rewarded([1.0, 1.0, 0.0, 0.0], components=parts))
    assert [row[0] for row in found] == pytest.approx(want)


def test_dagrpo_keeps_answers_at_the_mean() -> None:
    """R = (1, .5, 0): the second is of no pair and stays while there is one; then all go together."""
    for delta, want in ((0.5, [1.5**0.5, 0.0, -(1.5**0.5)]), (0.95, [0.0] * 3)):
        parts = torch.tensor([[0.9], [0.5], [0.0]], dtype=torch.float64)
        found = shaped(etr.get("dagrpo", delta=delta), rewarded([1.0, 0.5, 0.0], components=parts))
        assert [row[0] for row in found] == pytest.approx(want)


def test_eapo() -> None:
    """γ = ½: rounds of the first answer earn ½ and 1, the other's 0. Mean ½, std √(1/6) over the three rounds."""
    batch = rewarded([1.0, 0.0], [3, 1], turns=torch.tensor([[0, 0, 1], [0, 7, 7]]))
    found = shaped(etr.get("eapo", gamma=0.5), batch)
    assert found[0] == pytest.approx([0.0, 0.0, 1.5**0.5]) and found[1] == pytest.approx([-(1.5**0.5)])
    # Each answer once, by its last round: mean ½, std ½ of (1, 0).
    once = shaped(etr.get("eapo", gamma=0.5, per_round=False), batch)
    assert once[0] == pytest.approx([0.0, 0.0, 1.0]) and once[1] == pytest.approx([-1.0])


def test_eapo_prefers_few_rounds_among_right_answers() -> None:
    """Rewards .5, 1 and 1: mean 5/6, std √(1/18); the first of two rounds is worth less than a single one."""
    batch = rewarded([1.0, 1.0], [2, 1], turns=torch.tensor([[0, 1], [0, 0]]))
    found = shaped(etr.get("eapo", gamma=0.5), batch)
    assert found[0] == pytest.approx([-(2**0.5), 2**-0.5]) and found[1] == pytest.approx([2**-0.5])
    assert shaped(etr.get("eapo", gamma=1.0), batch) == [[0.0, 0.0], [0.0]]


VALUES = [[0.3, 0.4, 0.7, 0.8], [0.3, 0.1, 0.2]]
TURNS = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 5]])


def test_igpo_by_position() -> None:
    """G: .7 − .3 + 1 = 1.4 in the first turn and 1 in the last; .1 − .3 = −.2 and 0. Means .6 .7 .5, and 1 alone."""
    batch = rewarded([1.0, 0.0], [4, 3], values=padded(VALUES), turns=TURNS)
    found = shaped(etr.get("igpo"), batch)
    assert found[0] == pytest.approx([0.8, 0.7, 0.5, 0.0]) and found[1] == pytest.approx([-0.8, -0.7, -0.5])


def test_igpo_by_first_token() -> None:
    """γ = ½: G = .325 .65 .5 1 and −.2 0 0; the first tokens have mean .0625 and std .2625."""
    batch = rewarded([1.0, 0.0], [4, 3], values=padded(VALUES), turns=TURNS)
    found = shaped(etr.get("igpo", kind="first", gamma=0.5), batch)
    assert found[0] == pytest.approx([(g - 0.0625) / 0.2625 for g in (0.325, 0.65, 0.5, 1.0)])
    assert found[1] == pytest.approx([(g - 0.0625) / 0.2625 for g in (-0.2, 0.0, 0.0)])


def test_igpo_looks_across_masked_tokens() -> None:
    """A tool's answer between the turns changes nothing: neither its values nor its turn numbers are read."""
    batch = rewarded([1.0, 0.0], [4, 3], values=padded(VALUES), turns=TURNS)
    at = torch.tensor([0, 1, 4, 5])

    def spread(x: Tensor, fill: float) -> Tensor:
        return torch.full((2, 6), fill, dtype=x.dtype).index_copy(1, at, x)

    names = {"log_probs": math.nan, "old_log_probs": math.nan, "values": math.nan, "turns": 9, "response_mask": 0}
    wide = dataclasses.replace(batch, **{name: spread(getattr(batch, name), fill) for name, fill in names.items()})
    for fields in ({}, {"kind": "first", "gamma": 0.5}):
        objective = etr.get("igpo", **fields)
        assert shaped(objective, wide)[0] == pytest.approx(shaped(objective, batch)[0])


def test_implicit_prm() -> None:
    """Log-ratios 1, 1 | −1 and 2, β = ½: steps 1 and −.5, and 1. To go .5 .5 −.5, less the other's 1; 1 less .5."""
    gaps = padded([[1.0, 1.0, -1.0], [2.0]])
    turns = torch.tensor([[0, 0, 1], [0, 3, 3]])
    batch = rewarded([1.0, 0.0], [3, 1], ref_log_probs=OLD - gaps, turns=turns)
    rewards = step_rewards(gaps, turns, batch.response_mask, 0.5)
    assert rewards.tolist() == [[0.0, 1.0, -0.5], [1.0, 0.0, 0.0]]
    found = shaped(etr.get("implicit_prm", prm_beta=0.5, share=2.0), batch)
    assert found[0] == pytest.approx([1 + 2 * (0.5 - 1)] * 2 + [1 + 2 * (-0.5 - 1)])
    assert found[1] == pytest.approx([-1 + 2 * (1 - 0.5)])


def test_the_outcome_loss_of_an_implicit_prm() -> None:
    """−l ln σ(r) − (1−l) ln(1−σ(r)), r = β·x; its derivative β(σ(r) − l)."""
    x = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    label, beta = torch.tensor([1.0, 0.0], dtype=torch.float64), 0.4
    chance = [1 / (1 + math.exp(-beta * v)) for v in (0.3, -2.0)]
    loss = outcome_loss(x, label, beta)
    assert loss.tolist() == pytest.approx([-math.log(chance[0]), -math.log(1 - chance[1])])
    slope = torch.autograd.grad(loss.sum(), x)[0]
    assert slope.tolist() == pytest.approx([beta * (chance[0] - 1), beta * chance[1]])
