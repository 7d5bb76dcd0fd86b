"""The look that all pictures share: colours anyone can tell apart, names that do not overlap, no trace left behind."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Generator

import etr
from etr.errors import InputError
from etr.files import read_json
from etr.plots import caption, objective_color, png, save_figures, seed_bands
from etr.plots.style import OBJECTIVE_COLORS, contrast_with_white, spread, text_color

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


def bands(names: list[str]) -> Figure:
    generator = Generator().manual_seed(0)
    return seed_bands({n: torch.rand(3, 5, generator=generator) for n in names}, list(range(5)), "reward", "title")


def lab(color: str, vision: str) -> np.ndarray:
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    x, y, z = np.cbrt(np.array(XYZ) @ seen / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_the_objectives_of_the_main_comparison_have_chosen_colours() -> None:
    assert set(OBJECTIVE_COLORS) <= set(etr.list_objectives())
    assert len({objective_color(name) for name in etr.list_objectives()}) > 0.7 * len(etr.list_objectives())


@pytest.mark.parametrize("vision", VISION)
def test_objectives_differ_for_all_kinds_of_colour_vision(vision: str) -> None:
    for a, b in itertools.combinations(OBJECTIVE_COLORS, 2):
        distance = np.linalg.norm(lab(OBJECTIVE_COLORS[a], vision) - lab(OBJECTIVE_COLORS[b], vision))
        assert distance > 14, (a, b)  # about six times what is just noticeable


def test_another_name_gets_the_same_colour_in_every_process() -> None:
    code = "from etr.plots import objective_color; print(objective_color('my_module:Mine'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert found == objective_color("my_module:Mine") != objective_color("my_module:Yours")


@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_names_are_readable_on_white(rgb: tuple[float, float, float]) -> None:
    color = matplotlib.colors.to_hex(rgb)
    dark = text_color(color)
    assert contrast_with_white(to_rgb(dark)) >= 4.4  # 4.5 up to the rounding of a hexadecimal colour
    if contrast_with_white(to_rgb(color)) >= 4.5:
        assert dark == color


def test_contrast_of_black_is_21() -> None:
    assert contrast_with_white((0, 0, 0)) == pytest.approx(21)
    assert contrast_with_white((1, 1, 1)) == pytest.approx(1)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8), st.floats(0.1, 2))
def test_spread_keeps_order_and_gaps_and_moves_only_what_it_must(values: list[float], gap: float) -> None:
    placed = spread(values, gap, low=-100, high=100)
    order = sorted(range(len(values)), key=values.__getitem__)
    for a, b in itertools.pairwise(order):
        assert placed[b] - placed[a] >= gap - 1e-9
    if all(values[b] - values[a] >= gap for a, b in itertools.pairwise(order)):
        assert placed == pytest.approx(values)
    assert sum(placed) == pytest.approx(sum(values))  # least squares with only order bounds keeps the mean


def test_spread_stays_inside_if_there_is_room() -> None:
    assert spread([0.0, 0.1, 9.9, 10.0], gap=1, low=0, high=10) == pytest.approx([0, 1, 9, 10])


def test_names_of_close_lines_do_not_overlap() -> None:
    figure = bands(list(OBJECTIVE_COLORS))
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines that tie them
    assert len(boxes) == len(OBJECTIVE_COLORS)
    for a, b in itertools.combinations(boxes, 2):
        assert a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1  # text boxes carry about a pixel of air


def test_drawing_leaves_the_readers_settings_and_pyplot_alone() -> None:
    with matplotlib.rc_context({"lines.linewidth": 7, "axes.grid": False}):
        before = dict(matplotlib.rcParams)
        figure = bands(["etr"])
        assert dict(matplotlib.rcParams) == before
        assert figure.axes[0].lines[0].get_linewidth() == 2  # nor do those settings reach the picture
    code = (
        "import torch, sys; from etr.plots import seed_bands, png; "
        "png(seed_bands({'etr': torch.rand(3, 2)}, [0, 1], '', '')); print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_notebook_shows_a_picture_as_its_last_value() -> None:
    formatter = pytest.importorskip("IPython.core.formatters").PNGFormatter()
    assert formatter(bands(["etr"])).startswith(b"\x89PNG")


def test_the_same_data_give_the_same_picture() -> None:
    assert png(bands(["etr", "grpo"])) == png(bands(["etr", "grpo"]))


def test_saved_pictures_come_with_their_captions(tmp_path: Path) -> None:
    first, second = bands(["etr"]), bands(["grpo"])
    save_figures({"a": first}, tmp_path / "figures")
    save_figures({"b": second}, tmp_path / "figures")
    assert (tmp_path / "figures/a.png").read_bytes().startswith(b"\x89PNG")
    assert read_json(tmp_path / "figures/captions.json") == {"a.png": caption(first), "b.png": caption(second)}


def test_the_caption_is_in_the_figure_but_not_in_the_file() -> None:
    figure, other = bands(["etr"]), bands(["etr"])
    (text,) = [text for text in other.texts if " ".join(text.get_text().split()) == caption(other)]
    text.set_text("something else\nand longer\nby far")
    assert png(other) == png(figure)
    assert text.get_visible()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot use '.*file/figures' for figures \(Not a directory\); choose"):
        save_figures({}, tmp_path / "file" / "figures")
