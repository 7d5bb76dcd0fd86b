"""Pictures are tested for what they show: the numbers of lines and bands, and what captions claim."""

from __future__ import annotations

import itertools
import math
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.patches import StepPatch
from torch import Generator, Tensor

from etr.errors import InputError
from etr.plots import (
    caption,
    comparison_forest,
    entropy_reward_phase,
    learning_dashboard,
    llm_curves,
    region_landscape,
    seed_bands,
    surrogate_curves,
    width_by_success_rate,
)
from etr.plots.llm import moving_mean

STEPS = list(range(1, 8))


def curves(seeds: int, seed: int = 0) -> Tensor:
    return torch.rand(seeds, len(STEPS), generator=Generator().manual_seed(seed), dtype=torch.float64)


def runs(seeds: int = 5) -> dict[str, dict[str, Tensor]]:
    metrics = ("reward", "entropy", "kl_new_to_old", "region/zero_grad_frac_pos", "region/zero_grad_frac_neg")
    return {r: {m: curves(seeds, 10 * i + j) for j, m in enumerate(metrics)} for i, r in enumerate(("etr", "grpo"))}


def line(axes: Axes, name: str) -> np.ndarray:
    (found,) = [one for one in axes.lines if one.get_label() == name]
    return np.asarray(found.get_xydata())


def names(axes: Axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def iqm_by_hand(values: Tensor) -> list[float]:
    cut = len(values) // 4
    return [fmean(sorted(column)[cut : len(values) - cut]) for column in values.T.tolist()]


# ------------------------------------------------------------------------------------------------ seed bands


def test_a_band_shows_the_iqm_and_its_bootstrap_percentiles() -> None:
    values = curves(6)
    (axes,) = seed_bands({"etr": values}, STEPS, "reward", "title").axes
    assert line(axes, "etr")[:, 0].tolist() == STEPS
    assert line(axes, "etr")[:, 1] == pytest.approx(iqm_by_hand(values))
    vertices = np.asarray(axes.collections[0].get_paths()[0].vertices).tolist()
    for step, column in zip(STEPS, values.T, strict=True):
        draws = torch.randint(6, (20_000, 6), generator=Generator().manual_seed(9))
        means = column[draws].sort(-1).values[:, 1:5].mean(-1)  # the IQM of 6 drops one value on either side
        low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        band = [y for x, y in vertices if x == step]
        assert [min(band), max(band)] == pytest.approx([low, high], abs=0.03)


def test_the_caption_states_n_and_what_the_band_is() -> None:
    figure = seed_bands({"etr": curves(6), "grpo": curves(6)}, STEPS, "reward", "title")
    assert "n = 6 seeds." in caption(figure)
    assert "band: its pointwise 95 % interval (percentile bootstrap over seeds)" in caption(figure)
    figure = seed_bands({"etr": curves(6), "grpo": curves(4)}, STEPS, "reward", "title")
    assert "n = 6 (etr), 4 (grpo) seeds." in caption(figure)


def test_two_seeds_get_lines_and_no_band() -> None:
    values = curves(2)
    figure = seed_bands({"grpo": values}, STEPS, "reward", "title")
    (axes,) = figure.axes
    assert not axes.collections
    assert [np.asarray(one.get_ydata()).tolist() for one in axes.lines] == values.tolist()
    assert "grpo: too few seeds for a band (at least 3), each line is one seed. n = 2 seeds." in caption(figure)
    assert "band: its" not in caption(figure)


def test_lines_are_named_at_their_ends_on_the_axes_with_units() -> None:
    (axes,) = seed_bands({"etr": curves(3), "grpo": curves(3, 1)}, STEPS, "entropy (nats)", "A title").axes
    assert names(axes) == {"etr", "grpo"}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == (
        "training step",
        "entropy (nats)",
        "A title",
    )


def test_seeds_without_a_value_are_left_out_and_the_caption_says_so() -> None:
    values = curves(5)
    values[0, 2] = values[1, 2] = math.nan  # three seeds left: still a band
    values[:3, 4] = math.nan  # two left: a gap
    figure = seed_bands({"etr": values}, STEPS, "share", "title")
    drawn = line(figure.axes[0], "etr")[:, 1]
    assert drawn[2] == pytest.approx(fmean(values[2:, 2].tolist()))
    assert math.isnan(drawn[4]) and math.isfinite(drawn[5])
    assert "n = 5 seeds, fewer where a seed has no value." in caption(figure)


@pytest.mark.parametrize("shape", [(7,), (3, 6), (0, 7), (2, 3, 7)])
def test_curves_that_do_not_fit_their_steps_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"curves of 'etr' have shape .*; give \[seeds, steps\] with 7 steps"):
        seed_bands({"etr": torch.zeros(shape)}, STEPS, "", "")


def test_no_curve_is_refused() -> None:
    with pytest.raises(InputError, match="no curve to draw"):
        seed_bands({}, STEPS, "", "")


# ------------------------------------------------------------------------------------------------ dashboard, phase


def test_the_dashboard_has_a_panel_per_metric_with_the_right_numbers() -> None:
    data = runs()
    figure = learning_dashboard(data, STEPS, "bandit")
    for axes, metric in zip(figure.axes, data["etr"], strict=True):
        for recipe in data:
            assert line(axes, recipe)[:, 1] == pytest.approx(iqm_by_hand(data[recipe][metric]))
            assert recipe in names(axes)
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "reward",
        "nats per token",
        "nats per token",
        "A > 0",
        "A < 0",
    ]
    assert "gradient coefficient 0" in caption(figure)


def test_a_missing_metric_is_named() -> None:
    data = runs()
    del data["grpo"]["entropy"]
    missing = "run 'grpo' has no metric 'entropy'; it has kl_new_to_old"
    with pytest.raises(InputError, match=missing):
        learning_dashboard(data, STEPS)
    with pytest.raises(InputError, match=missing):
        entropy_reward_phase(data)


def test_the_phase_plot_runs_from_start_to_end_with_entropy_falling_to_the_right() -> None:
    data = runs()
    figure = entropy_reward_phase(data)
    (axes,) = figure.axes
    path = line(axes, "etr")
    assert path[:, 0] == pytest.approx(iqm_by_hand(data["etr"]["entropy"]))
    assert path[:, 1] == pytest.approx(iqm_by_hand(data["etr"]["reward"]))
    left, right = axes.get_xlim()
    assert left > right
    assert names(axes) == {"etr", "grpo"} and "n = 5 seeds" in caption(figure)


# ------------------------------------------------------------------------------------------------ regions


def landscape(advantages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = torch.linspace(0.05, 0.95, 19)
    return 0.1 + 0.1 * advantages.abs()[:, None] * (4 * p * (1 - p))[None], advantages, p


def test_the_contour_lies_where_the_width_equals_the_fixed_clip() -> None:
    figure = region_landscape(*landscape(torch.linspace(-3, 3, 121)), fixed=0.2)
    axes = figure.axes[0]
    (contour,) = [c for c in axes.collections if hasattr(c, "levels")]
    for p, a in np.concatenate(contour.get_paths()[0].to_polygons(closed_only=False)):
        assert 0.1 + 0.1 * abs(a) * 4 * p * (1 - p) == pytest.approx(0.2, abs=0.004)
    assert "fixed clip 0.2" in caption(figure)
    assert axes.get_ylabel() == "advantage A"


@pytest.mark.parametrize("signed", [True, False])
def test_the_dashed_curves_are_the_z_scores_of_a_group_with_binary_rewards(signed: bool) -> None:
    advantages = torch.linspace(-3 if signed else 0, 3, 61)
    axes = region_landscape(*landscape(advantages)).axes[0]
    right, wrong = (np.asarray(one.get_xydata()) for one in axes.lines)
    for share in (0.25, 0.5, 0.75):  # 16 rewards, 16 * share of them 1
        rewards = np.array([1.0] * int(16 * share) + [0.0] * int(16 * (1 - share)))
        scores = (rewards - rewards.mean()) / rewards.std()
        assert np.interp(share, *right.T) == pytest.approx(scores.max(), abs=1e-3)
        assert np.interp(share, *wrong.T) == pytest.approx(scores.min() if signed else -scores.min(), abs=1e-3)


def test_a_landscape_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3\), but there are 3 advantages and 2 success rates; give"):
        region_landscape(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2))


def test_widths_are_stairs_over_the_bins() -> None:
    edges, width = torch.tensor([0.0, 0.4, 0.6, 1.0]), curves(5)[:, :3]
    width[:, 2] = math.nan
    figure = width_by_success_rate({"etr": (edges, width)})
    (stairs,) = figure.axes[0].patches
    assert isinstance(stairs, StepPatch)
    values, drawn_edges, _ = stairs.get_data()
    assert drawn_edges == pytest.approx(edges.numpy())
    assert values[:2] == pytest.approx(iqm_by_hand(width)[:2]) and math.isnan(values[2])
    assert names(figure.axes[0]) == {"etr"} and "n = 5 seeds" in caption(figure)


def test_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"width of 'etr' has shape \(5, 3\) for 3 edges; give \[seeds, edges - 1\]"):
        width_by_success_rate({"etr": (torch.zeros(3), torch.zeros(5, 3))})
    with pytest.raises(InputError, match="no width to draw"):
        width_by_success_rate({})


def test_surrogates_have_a_pair_of_panels_each_and_share_the_scale_of_c() -> None:
    r = torch.linspace(0.1, 2, 20)
    one = {"ratio": r, "value_pos": r, "value_neg": -r, "coef_pos": r, "coef_neg": -r}
    many = {f"o{i}": {key: (i + 1) * v if key != "ratio" else v for key, v in one.items()} for i in range(5)}
    figure = surrogate_curves(many)
    assert len(figure.axes) == 10
    above, below = figure.axes[2], figure.axes[3]
    assert above.get_title("left") == "o1"
    assert line(below, "A = −1")[:, 1] == pytest.approx((-2 * r).numpy())
    limits = {axes.get_ylim() for axes in figure.axes[1::2]}
    assert len(limits) == 1
    (low, high), *_ = limits
    assert low < -10 and high > 10
    with pytest.raises(InputError, match="curves of 'x' lack coef_neg; give them for every objective"):
        surrogate_curves({"x": {key: one[key] for key in one if key != "coef_neg"}})
    with pytest.raises(InputError, match="no surrogate to draw"):
        surrogate_curves({})


# ------------------------------------------------------------------------------------------------ forest, LLM


def rows() -> list[dict[str, object]]:
    return [
        {"env": env, "recipe": recipe, "iqm": 0.5 + i / 100, "low": 0.4, "high": 0.7, "n_seeds": 64}
        for i, (env, recipe) in enumerate(itertools.product(["bandit", "tree"], ["etr", "grpo"]))
    ]


def test_the_forest_has_a_panel_per_environment_and_the_first_recipe_on_top() -> None:
    figure = comparison_forest(rows(), xlabel="final score")
    assert [axes.get_title("left") for axes in figure.axes] == ["bandit", "tree"]
    lines = [np.asarray(one.get_xydata()).tolist() for one in figure.axes[1].lines]
    assert lines == [[[0.4, 0], [0.7, 0]], [[0.52, 0]], [[0.4, 1], [0.7, 1]], [[0.53, 1]]]
    bottom, top = figure.axes[1].get_ylim()
    assert bottom > top
    assert names(figure.axes[1]) == {"0.52", "0.53"} and figure.axes[1].get_xlabel() == "final score"
    assert "n = 64 seeds per environment" in caption(figure)


def test_a_row_of_panels_that_is_not_full_leaves_no_empty_ones() -> None:
    figure = comparison_forest([{**row, "env": f"env {i}"} for i, row in enumerate(rows())])
    assert [axes.get_title("left") for axes in figure.axes] == ["env 0", "env 1", "env 2", "env 3"]


def test_rows_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="no rows to compare"):
        comparison_forest([])
    with pytest.raises(InputError, match="a row of the comparison lacks low, high"):
        comparison_forest([{"env": "bandit", "recipe": "etr", "iqm": 0.5}])
    with pytest.raises(InputError, match="recipe 'etr' has two rows for 'bandit'; give the rows of one measure"):
        comparison_forest([*rows(), rows()[0]])


def test_llm_curves_show_each_step_and_a_moving_mean() -> None:
    data = [{"step": s, "reward": s % 3, "entropy": 1.0, "kl": math.nan} for s in range(1, 31)]
    figure = llm_curves({"etr": data})
    reward, entropy, kl, zero = figure.axes
    assert line(reward, "etr")[:, 1] == pytest.approx(moving_mean([s % 3 for s in range(1, 31)], 3))
    assert reward.lines[0].get_ydata() == pytest.approx([s % 3 for s in range(1, 31)])
    assert names(kl) == names(zero) == {"not recorded"} and names(entropy) == {"etr"}
    assert "mean of the last 3 steps" in caption(figure) and "One seed per run" in caption(figure)
    with pytest.raises(InputError, match="no steps to draw"):
        llm_curves({"etr": []})


@given(st.lists(st.floats(-5, 5) | st.just(math.nan), min_size=1, max_size=12), st.integers(1, 5))
def test_moving_mean_equals_the_definition(values: list[float], window: int) -> None:
    for i, mean in enumerate(moving_mean(values, window)):
        recent = [v for v in values[max(0, i + 1 - window) : i + 1] if v == v]
        assert mean == pytest.approx(fmean(recent)) if recent else math.isnan(mean)
