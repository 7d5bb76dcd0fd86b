"""TensorBoard beside the metrics file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """Scalars for TensorBoard, a convenience: if it is missing or cannot write, the run goes on without."""

    def __init__(self, path: Path, first_step: int) -> None:
        self._path, self._first_step = path, first_step
        self._writer: Any = None
        self._off = False

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve; a first problem is told once and ends the board."""
        if self._off:
            return
        try:
            self._writer = self._writer or self._open()
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except ImportError:
            self._stop("TensorBoard is not installed, so only metrics.jsonl is written")
        except OSError as error:
            self._stop(f"TensorBoard stops at step {step} ({error.strerror}); metrics.jsonl has every row")

    def close(self) -> None:
        """Flush what is still on its way to disk."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and useless to a reader of runs

        # After a resume TensorBoard must forget the points which the run is about to repeat.
        return SummaryWriter(self._path, purge_step=self._first_step or None)

    def _stop(self, reason: str) -> None:
        self._writer, self._off = None, True
        warnings.warn(reason, RuntimeWarning, stacklevel=4)
