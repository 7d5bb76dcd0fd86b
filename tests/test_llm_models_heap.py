"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from etr.llm.heap import {name}

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

{before}
torch.ones(7 * 2**20)            # 28 MiB, freed at once: glibc learns to keep blocks of that size
kept = [torch.ones(2**19) for _ in range(200)]  # 2 MiB each
held = resident()
kept = kept[-1:]                 # the last one keeps the heap from shrinking
{after}
print(held - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc only")
@pytest.mark.parametrize(
    ("name", "before", "after", "returned"),
    [
        ("give_back", "", "", False),  # what would happen without
        ("give_back", "", "give_back()", True),
        ("give_back_at_once", "give_back_at_once()", "", True),
    ],
)
def test_freed_tensors_are_returned(name: str, before: str, after: str, returned: bool) -> None:
    program = PROGRAM.format(name=name, before=before, after=after)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 300_000) == returned  # of 400 MiB, in KiB
