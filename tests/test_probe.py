"""What cards show of an objective, against arithmetic that can be done by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import etr
from etr.cli.card import draw_card
from etr.plots import Learning, objective_card
from etr.probe import CHANCES, SIZE, _batch, _moved, probe
from etr.recipe import load_recipe

RATIOS = torch.tensor([0.5, 1.0, 1.1, 1.5], dtype=torch.float64)


def test_grpo_of_a_half_solved_group() -> None:
    """Four of eight are right: A = ±1. c = r·A inside [0.8, 1.2], 0 where A pushes further out."""
    right, wrong = (probe(etr.get("grpo"), RATIOS, kind) for kind in (True, False))
    assert right.advantage.tolist() == [1.0] * 4 and wrong.advantage.tolist() == [-1.0] * 4
    assert right.coefficient.tolist() == pytest.approx([0.5, 1.0, 1.1, 0.0])
    assert wrong.coefficient.tolist() == pytest.approx([0.0, -1.0, -1.1, -1.5])
    assert right.value.tolist() == pytest.approx([0.5, 1.0, 1.1, 1.2])
    assert right.low.tolist() == [0.8] * 4 and right.high.tolist() == [1.2] * 4


def test_a_rare_success_has_a_large_advantage() -> None:
    """One of eight right: A = sqrt(7) for it and -1/sqrt(7) for the others."""
    right, wrong = (probe(etr.get("grpo"), RATIOS[1:2], kind, correct=1) for kind in (True, False))
    assert right.advantage.item() == pytest.approx(7**0.5) and wrong.advantage.item() == pytest.approx(-(7**-0.5))


def test_the_whole_distribution_moves_with_the_answer() -> None:
    """Its log-prob is that of the distribution, which still adds up to one, and the others keep their proportions."""
    old = torch.tensor(CHANCES, dtype=torch.float64)
    arms = torch.tensor([0] * 4 + [1, 2, 3, 1])
    batch = _batch(etr.get("grpo"), arms, (arms == 0).double(), old.log().expand(4, SIZE, 1, 4))
    moved = dataclasses.replace(batch, **_moved(batch, old.log(), 1, 4, RATIOS))
    assert moved.full_log_probs is not None and moved.entropy is not None
    chances = moved.full_log_probs[:, 4, 0].exp()
    torch.testing.assert_close(chances.sum(-1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(chances[:, 1], 0.3 * RATIOS)
    torch.testing.assert_close(chances[:, 0] / chances[:, 2], torch.full((4,), 0.35 / 0.2, dtype=torch.float64))
    torch.testing.assert_close(moved.log_probs[:, 4, 0], chances[:, 1].log())
    torch.testing.assert_close(moved.entropy[:, 4, 0], torch.distributions.Categorical(chances).entropy())
    assert torch.equal(moved.log_probs[:, :4], batch.old_log_probs[:, :4])  # the other answers stay


@pytest.mark.parametrize("name", etr.list_objectives())
def test_every_objective_can_be_probed(name: str) -> None:
    objective = etr.get(name)
    for right in (True, False):
        found = probe(objective, RATIOS, right)
        if "on_policy" not in objective.exceptions:
            assert found.coefficient[1].item() == pytest.approx(found.advantage[1].item(), abs=1e-9)  # at r = 1
        assert all(torch.isfinite(value).all() for value in (found.advantage, found.value, found.coefficient))
        assert (found.low <= 1).all() and (found.high >= 1).all()


def test_a_card_is_drawn_and_written(tmp_path: Path) -> None:
    steps, rising = [1, 2, 3], torch.tensor([[0.2, 0.4, 0.6], [0.3, 0.5, 0.7]])
    figure = objective_card(etr.get("etr"), Learning(steps, rising, 1 - rising), "Right: made up.")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["region", "gradient coefficient", "a bandit"]
    bounds = figure.axes[0].lines
    # One of eight right: A = sqrt(7), and its bounds are wider than those of the seven wrong ones.
    width = [line.get_ydata()[0] for line in bounds[:4]]
    assert width[1] - width[0] > width[3] - width[2]
    draw_card(load_recipe("grpo"), tmp_path / "card.png")
    assert (tmp_path / "card.png").read_bytes().startswith(b"\x89PNG")
