"""Accelerators: what their data sheets state. Speed that software reaches is an assumption, and not here."""

from __future__ import annotations

from dataclasses import dataclass

from etr.errors import InputError, unknown


@dataclass(frozen=True)
class Device:
    """flops: dense bfloat16 operations/s; bandwidth: of its memory, bytes/s; memory: bytes; node: devices in one."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    node: int = 8


# flops: the table of verl's flops_counter.py (read in code, commit 1dda039; it counts gh200 as h100). Bandwidth and
# memory of a100, h100, h200, b200: https://acecloud.ai/blog/nvidia-b200-vs-h200-h100-a100 (read); of the others: the
# makers' data sheets, not read again for this table.
DEVICES = {
    device.name: device
    for device in (
        Device("a100", 312e12, 2.039e12, 80e9),
        Device("h100", 989e12, 3.35e12, 80e9),
        Device("h800", 989e12, 3.35e12, 80e9),
        Device("h200", 989e12, 4.8e12, 141e9),
        Device("h20", 148e12, 4.0e12, 96e9),
        Device("gh200", 989e12, 4.0e12, 96e9, node=4),
        Device("b200", 2250e12, 8.0e12, 180e9),
        Device("gb200", 2500e12, 8.0e12, 186e9, node=4),
        Device("l40s", 362e12, 0.864e12, 48e9),
    )
}


def device_of(name: str) -> Device:
    """A device by name. Raises InputError."""
    if name.lower() not in DEVICES:
        raise InputError(f"{unknown('GPU', name, DEVICES)}; for any other give a measured --profile")
    return DEVICES[name.lower()]
