"""Pictures of sweeps and profiles: what is drawn is what was given."""

from __future__ import annotations

import pytest
import torch
from matplotlib.collections import PathCollection

from etr.errors import InputError
from etr.plots import caption, comparison_forest
from etr.plots.profiles import performance_profiles
from etr.plots.sweep import field_effects, sweep_map

GRID = [{"micro": m, "optimizer.lr": r, "updates": k} for m in (0.5, 0) for r in (0.1, 0.3, 0.05) for k in (1, 2)]
VALUES = [i / 20 for i in range(len(GRID))]


def test_a_grid_is_squares_in_order_with_means_over_the_third_field() -> None:
    figure = sweep_map(GRID, VALUES, "final score")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "0.5"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["0.05", "0.1", "0.3"]
    drawn = axes.images[0].get_array()
    assert drawn is not None
    for y, rate in enumerate((0.05, 0.1, 0.3)):
        for x, micro in enumerate((0, 0.5)):
            of_both = [v for c, v in zip(GRID, VALUES, strict=True) if (c["micro"], c["optimizer.lr"]) == (micro, rate)]
            assert len(of_both) == 2 and drawn[y, x] == pytest.approx(sum(of_both) / 2)
            assert f"{sum(of_both) / 2:.2f}" in {text.get_text() for text in axes.texts}
    assert "updates: averaged over its values" in caption(figure)


def test_cells_drawn_at_random_are_dots_where_their_fields_say() -> None:
    cells = [{"micro": 0.1 * i, "optimizer.lr": 0.01 * 3**i} for i in range(5)]
    axes = sweep_map(cells, [1.0, 2.0, 3.0, 4.0, 5.0], "score", logarithmic=["optimizer.lr"]).axes[0]
    (dots,) = (c for c in axes.collections if isinstance(c, PathCollection))
    assert torch.tensor(dots.get_offsets()).tolist() == [pytest.approx(list(cell.values())) for cell in cells]
    assert list(dots.get_array()) == [1, 2, 3, 4, 5]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")


def test_effects_have_a_panel_per_field() -> None:
    rows = [
        {"field": f, "value": str(v), "iqm": v, "low": v - 0.1, "high": v + 0.2, "n_cells": 2}
        for f, values in (("micro", (0.1, 0.4)), ("lr", (0.3, 0.5, 0.6)))
        for v in values
    ]
    panels = field_effects(rows, "final score").axes
    assert [axes.get_title(loc="left") for axes in panels] == ["micro", "lr"]
    assert list(panels[1].lines[-1].get_ydata()) == [0.3, 0.5, 0.6]
    assert list(panels[1].lines[0].get_ydata()) == pytest.approx([0.2, 0.5])


def test_profiles_step_down_at_the_scores() -> None:
    scores = {"etr": torch.tensor([[0.2, 0.4, 0.6, 0.8]]), "grpo": torch.tensor([[0.5, 0.5, 0.5, 0.5]])}
    figure = performance_profiles(scores)
    for line in figure.axes[0].lines:
        values = scores[str(line.get_label())].double()
        for at, share in zip(line.get_xdata(), line.get_ydata(), strict=True):
            assert share == (values > at).double().mean().item()
    assert "n = 4 runs" in caption(figure)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(InputError, match="give 2 fields or more"):
        sweep_map([{"micro": 1}], [0.5], "score")
    with pytest.raises(InputError, match="there are no effects"):
        field_effects([], "score")
    with pytest.raises(InputError, match="there are no scores"):
        performance_profiles({})
    with pytest.raises(InputError, match="a band needs at least 3 seeds, got 2"):
        performance_profiles({"etr": torch.zeros(3, 2)})
    row = {"env": "e", "recipe": "etr", "iqm": 0.5, "low": 0.4, "high": 0.6}
    with pytest.raises(InputError, match="recipe 'etr' on 'e' has 2 seeds; an interval needs at least 3"):
        comparison_forest([{**row, "n_seeds": 2}])
