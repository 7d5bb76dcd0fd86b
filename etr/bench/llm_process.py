"""Contenders of `etr bench llm` as processes: started, waited for, and read."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from etr.bench.llm_work import Work
from etr.errors import InputError

Row = dict[str, Any]
PEER = Path(__file__).with_name("llm_trl.py")
PEER_VARIABLE = "ETR_PEER_PYTHON"
MIB = 2**20


def child(what: str, work: Any, module: str = "etr.bench.llm_child") -> Row:
    """The result of a contender in a fresh process of this interpreter."""
    command = [sys.executable, "-m", module, what, json.dumps(dataclasses.asdict(work))]
    return _last_line(command, work.threads)


def trl(work: Work, peer: str | None) -> Row:
    """The same work by TRL, or why it is left out."""
    python = peer or os.environ.get(PEER_VARIABLE) or sys.executable
    probe = [python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('trl') is None)"]
    try:
        found = subprocess.run(probe, capture_output=True).returncode == 0
    except OSError as error:
        raise InputError(
            f"the peer's interpreter '{python}' cannot be run ({error.strerror}); check --peer-python"
        ) from error
    if not found:
        mend = f"make a venv with it and name its python by --peer-python or {PEER_VARIABLE}"
        return {"skipped": f"{python} has no trl; {mend}"}
    return _last_line([python, str(PEER), json.dumps(dataclasses.asdict(work))], work.threads)


def _last_line(command: list[str], threads: int) -> Row:
    """Run a contender and read the line of JSON that it ends with."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(threads))
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores[:threads])),  # vLLM keeps a core free otherwise
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    if done.returncode != 0:
        errors = done.stderr.strip().splitlines() or ["no message"]
        return {"skipped": f"it failed: {errors[-1]}"}
    result: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return result
