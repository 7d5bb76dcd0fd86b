"""What the predictions assume beyond data sheets, each with its range and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from etr.plan.devices import Device
from etr.plan.ranges import Range

STARVED = 100  # operations per byte of memory traffic below which a device is short of arithmetic, not of bandwidth


@dataclass(frozen=True)
class Assumption:
    """One assumed number: its range, its unit and its source."""

    value: Range
    unit: str
    source: str


COMMON = {
    "lost a doubling of nodes": Assumption(
        Range(0.0, 0.05, 0.12),
        "share",
        "verl docs/perf/dpsk.md (commit 1dda039): MFU 0.40, 0.37, 0.31 on 8, 16, 32 GPUs (expert model: bad)",
    ),
    "bandwidth while decoding": Assumption(Range(0.8, 0.6, 0.35), "share of the data sheet", "assumed"),
    "arithmetic while decoding": Assumption(Range(0.5, 0.35, 0.2), "share of the data sheet", "assumed"),
    "overhead of a decoding step": Assumption(
        Range(0.004, 0.01, 0.03), "s", "assumed: scheduling, launches and sampling, with CUDA graphs to without"
    ),
    "engine on several GPUs": Assumption(Range(0.95, 0.85, 0.7), "share of its speed", "assumed"),
    "weights to the engine": Assumption(
        Range(20e9, 10e9, 4e9),
        "bytes/s",
        "verl docs/advance/fully_async.md (commit 1dda039): 30B in 4.4 to 15.8 s, 235B in 23.7 to 58.6 s, on H20",
    ),
}
BUSY = Assumption(
    Range(0.53, 0.45, 0.25),
    "share of the data sheet",
    "verl docs/perf/dpsk.md (commit 1dda039): MFU 0.31 to 0.40 for 30B, 0.19 for 671B, times 4/3 for recomputation",
)
BUSY_STARVED = Assumption(
    Range(0.8, 0.65, 0.45),
    "share of the data sheet",
    "verl-data gsm8k/qwen2-7b-fsdp2.log: MFU 0.76 to 0.79, at a peak that must be 148 TFLOP/s; bad: assumed",
)


def assumptions(device: Device) -> dict[str, Assumption]:
    """The assumptions for one device."""
    busy = BUSY_STARVED if device.flops / device.bandwidth < STARVED else BUSY
    return {"arithmetic while training": busy, **COMMON}
