"""One look for all pictures: a fixed colour per objective, lines named where they end, captions that state n."""

from __future__ import annotations

import colorsys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from zlib import crc32

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

# Okabe and Ito's eight colours, which people with any colour vision tell apart, the main comparison first;
# their yellow is darkened to be seen on white. The last three are from Tol's muted set.
OBJECTIVE_COLORS = {
    "etr": "#D55E00",
    "grpo": "#0072B2",
    "grpo_wide": "#56B4E9",
    "ppo": "#000000",
    "dapo": "#009E73",
    "dr_grpo": "#CC79A7",
    "gspo": "#E69F00",
    "cispo": "#C7B82C",
    "reinforce": "#777777",
    "etr_implicit": "#882255",
    "etr_proportional": "#332288",
}
POSITIVE, NEGATIVE = "#0072B2", "#D55E00"  # the sign of the advantage
INK, QUIET, HAIR = "#222222", "#666666", "#DDDDDD"
FEWEST_SEEDS = 3  # fewer cannot carry an interval

_LOOK = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": HAIR,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "text.color": INK,
    "lines.linewidth": 2,
    "lines.solid_capstyle": "round",
}
