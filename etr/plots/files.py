"""Pictures on disk: PNG, with the captions as text beside them so that a page can set them in its own type."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from etr.errors import InputError
from etr.files import atomic_write, read_json, to_json
from etr.plots.style import caption, caption_texts

CAPTIONS = "captions.json"
DPI = 150  # sharp at half width on a screen with two pixels per point


def png(figure: Figure) -> bytes:
    """The figure as PNG without its caption, which a page shows as text."""
    texts = caption_texts(figure)
    for text in texts:
        text.set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    for text in texts:
        text.set_visible(True)
    return buffer.getvalue()


def save_figures(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write each figure as `name`.png, and the captions as captions.json: {file name: caption}.

    Files of other names stay. Raises InputError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use '{folder}' for figures ({error.strerror}); choose another folder") from error
    for name, figure in figures.items():
        atomic_write(folder / f"{name}.png", png(figure))
    captions = folder / CAPTIONS
    known = read_json(captions) if captions.exists() else {}
    new = {f"{name}.png": caption(figure) for name, figure in figures.items()}
    atomic_write(captions, to_json({**known, **new}, indent=2) + "\n")
