"""What the run would run on: processor, memory, GPU, and the settings around it that decide speed."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from etr.llm.doctor.findings import Finding

FAST_BF16 = ("amx_bf16", "avx512_bf16")  # the processor's own bfloat16 arithmetic; without it bfloat16 is emulated
GIB = 2**30


def machine() -> dict[str, Any]:
    """Plain facts for a table and for JSON; memory and disk in bytes."""
    facts: dict[str, Any] = {
        "processor": _cpu_line("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bf16": [flag for flag in FAST_BF16 if flag in (_cpu_line("flags") or "").split()],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "memory": total_memory(),
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "gpu": None,
        "nvidia": shutil.which("nvidia-smi") is not None,
    }
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        facts["gpu"] = {"name": name, "capability": list(capability), "memory": total, "free": free}
    return facts


def total_memory() -> int | None:
    """Bytes of main memory that this process may use: the machine's or its container's limit."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(path).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return min(limits)


def findings(facts: Mapping[str, Any], dtype: str, on_gpu: bool, environ: Mapping[str, str]) -> list[Finding]:
    """What in the machine or its environment variables will slow a run down or mislead it."""
    found = []
    if dtype == "bfloat16" and not on_gpu and not facts["bf16"]:
        text = "this processor has no bfloat16 arithmetic, so dtype bfloat16 saves memory and costs time"
        found.append(Finding("warning", text, "--dtype float32"))
    if facts["threads"] > facts["cores"]:
        text = f"torch uses {facts['threads']} threads on {facts['cores']} cores, and they wait for each other"
        found.append(Finding("warning", text, f"export OMP_NUM_THREADS={facts['cores']}"))
    elif not on_gpu and facts["threads"] > 1 and facts["load"] > 0.5 * facts["cores"]:
        text = (
            f"other processes use about {facts['load']:.1f} of {facts['cores']} cores: torch's threads spin while they "
            "wait for one another, and a run can be 5 to 40 times slower (measured with 2 threads)"
        )
        found.append(Finding("warning", text, "export OMP_NUM_THREADS=1, or wait for a quiet machine"))
    if on_gpu and "expandable_segments:True" in environ.get("PYTORCH_CUDA_ALLOC_CONF", ""):
        text = "expandable_segments in PYTORCH_CUDA_ALLOC_CONF does not work with the memory pool of a sleeping vLLM"
        found.append(Finding("warning", text, "unset PYTORCH_CUDA_ALLOC_CONF when engine is vllm"))
    if facts["disk_free"] < 5 * GIB:
        text = f"only {facts['disk_free'] / GIB:.1f} GiB of disk are free here, and every checkpoint holds the model"
        found.append(Finding("warning", text, "free some space, or give --out on another disk"))
    return found


def _cpu_line(key: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)
