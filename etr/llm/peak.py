"""The most memory that a piece of work took, measured: of the process on a CPU, of torch's allocator on a GPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from etr.llm.heap import give_back

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Bytes above those at its making. On systems that cannot forget an earlier peak, the highest since then."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._start = self.now()

    def restart(self) -> None:
        """Forget the peak so far."""
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            return
        give_back()
        try:
            CLEAR.write_text("5")  # Linux: sets the peak of the resident memory back to what is resident now
        except OSError:  # another system, or no permission
            return

    def read(self) -> int:
        """The peak since `restart`, less what was in use when this object was made."""
        if self._cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self._start
        return resident("VmHWM") - self._start

    def now(self) -> int:
        """What is in use at this moment."""
        give_back()
        return torch.cuda.memory_allocated() if self._cuda else resident("VmRSS")


def resident(field: str) -> int:
    """Bytes of main memory that this process has now (VmRSS) or had at its peak (VmHWM)."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:  # not Linux: the peak is all that is known; kilobytes, but bytes on macOS
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))
