"""One look for all pictures: a fixed colour per objective, lines named where they end, captions that state n."""

from __future__ import annotations

import colorsys
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import NamedTuple, ParamSpec
from zlib import crc32

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

P = ParamSpec("P")

# Okabe and Ito's colours, made for all kinds of colour vision, the main comparison first. Their yellow cannot be
# seen on white and gives way to an olive; three more keep every pair apart for dichromats too (a test measures it).
OBJECTIVE_COLORS = {
    "etr": "#D55E00",
    "grpo": "#0072B2",
    "grpo_wide": "#56B4E9",
    "ppo": "#000000",
    "dapo": "#009E73",
    "dr_grpo": "#CC79A7",
    "gspo": "#E69F00",
    "cispo": "#5C5300",
    "reinforce": "#C8B77A",
    "etr_implicit": "#882255",
    "etr_proportional": "#332288",
    "etr_surprise": "#00507F",
}
INK, QUIET, HAIR = "#222222", "#5F5F5F", "#E3E3E3"
FONT, SMALL = 11.0, 9.5
CAPTION = "caption"  # mark of the text that `caption` finds and `save` leaves to the reader of the page

LOOK = {
    "figure.facecolor": "white",
    "figure.dpi": 100,
    "font.size": FONT,
    "axes.titlesize": FONT,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": FONT,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": HAIR,
    "grid.linewidth": 0.7,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}


class End(NamedTuple):
    """A name to write beside a point of a plot, usually the last of a line."""

    x: float
    y: float
    name: str
    color: str


def objective_color(name: str) -> str:
    """The fixed colour of an objective; any other name gets a hue from its letters, the same in every picture.

    >>> objective_color("etr")
    '#D55E00'
    """
    if name in OBJECTIVE_COLORS:
        return OBJECTIVE_COLORS[name]
    return to_hex(colorsys.hls_to_rgb(crc32(name.encode()) % 360 / 360, 0.38, 0.6))


def text_color(color: str) -> str:
    """The colour darkened until text in it has contrast 4.5 with white (the WCAG's line for small text)."""
    rgb = to_rgb(color)
    while contrast_with_white(rgb) < 4.5:
        rgb = (0.95 * rgb[0], 0.95 * rgb[1], 0.95 * rgb[2])
    return to_hex(rgb)


def contrast_with_white(rgb: Sequence[float]) -> float:
    """WCAG contrast 1.05 / (L + 0.05) with L the relative luminance of sRGB values in [0, 1]."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb]
    return 1.05 / (sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) + 0.05)


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the house style, whatever the reader's own settings are, and leave those as they were."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.style.context(["default", LOOK]):
            return draw(*args, **kwargs)

    return drawn


class Picture(Figure):
    """A figure that pyplot does not know: nothing is shown, kept or closed behind the caller's back."""

    def _repr_png_(self) -> bytes:
        """What a notebook shows for it, with no backend to be set up first."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in inches."""
    return Picture(figsize=(width, height), layout="constrained")


def finish(figure: Figure, caption: str, ends: Mapping[Axes, Sequence[End]] | None = None) -> Figure:
    """Write the caption below and the names beside their ends, once everything else has its place."""
    wrapped = textwrap.fill(caption, width=int(figure.get_figwidth() * 13.5))
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=SMALL, color=QUIET, linespacing=1.35).set_gid(CAPTION)
    if ends:
        figure.draw_without_rendering()  # runs the layout: the height of a panel decides how names are spread
        for axes, names in ends.items():
            _name(axes, names)
    return figure


def caption(figure: Figure) -> str:
    """The caption of a figure made here, on one line."""
    return " ".join(word for text in caption_texts(figure) for word in text.get_text().split())


def caption_texts(figure: Figure) -> list[Text]:
    """The texts that carry the caption."""
    return [text for text in figure.texts if text.get_gid() == CAPTION]


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The nearest values (least squares) that keep the order and a gap, moved into [low, high] where there is room.

    >>> spread([0.0, 0.0, 5.0], gap=1, low=-9, high=9)
    [-0.5, 0.5, 5.0]
    """
    order = sorted(range(len(values)), key=values.__getitem__)
    blocks: list[tuple[float, int]] = []  # isotonic regression of value − rank·gap by pooling neighbours
    for rank, place in enumerate(order):
        mean, count = values[place] - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            before, n = blocks.pop()
            mean, count = (before * n + mean * count) / (n + count), n + count
        blocks.append((mean, count))
    top = max(low, high - (len(values) - 1) * gap)
    levels = [min(max(mean, low), top) for mean, count in blocks for _ in range(count)]
    placed = dict(zip(order, (level + rank * gap for rank, level in enumerate(levels)), strict=True))
    return [placed[i] for i in range(len(values))]


def _name(axes: Axes, ends: Sequence[End]) -> None:
    """Write names in a column to the right of the panel, level with their ends or tied to them by a hair line."""
    box = axes.get_window_extent()
    points = [axes.transData.transform((end.x, end.y)) for end in ends]
    size = SMALL + 0.5
    gap = 1.25 * size * axes.figure.dpi / 72
    places = spread([y for _, y in points], gap, box.y0, box.y1)
    for end, (x, y), place in zip(ends, points, places, strict=True):
        tie = {"arrowstyle": "-", "color": end.color, "lw": 0.7, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
        axes.annotate(
            end.name,
            xy=(end.x, end.y),
            xytext=(1.04, (place - box.y0) / box.height),
            textcoords="axes fraction",
            va="center",
            fontsize=size,
            color=text_color(end.color),
            annotation_clip=False,
            arrowprops=tie if abs(place - y) > gap / 4 or x < box.x1 - 2 * gap else None,
        )
