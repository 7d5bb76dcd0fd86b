"""Record what verl and TRL return, so that the tests need neither of them: `make parity` does it all.

By hand, each peer in an environment of its own, because their pins exclude one another:

    cd tests && python -m peers.record cases > peers/cases.json    # the inputs
    cd tests && python -m peers.record verl > peers/verl.json      # after: pip install torch verl==0.9.1
    cd tests && python -m peers.record trl > peers/trl.json        # after: pip install torch trl==1.16.0

A loss record holds the loss and ∂loss/∂log π on the kept tokens, row by row. All is float64 on the CPU, with ten
digits, from the inputs in `cases.json`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from peers import Case, load_cases
from peers.cases import STORED, make_case

Row = dict[str, Any]


def numbers(values: Tensor) -> list[float]:
    """Ten significant digits."""
    return [float(f"{value:.10g}") for value in values.tolist()]


def differentiated(value: Tensor, case: Case, leaf: Tensor, entropy: Tensor) -> Row:
    """The loss and its gradients on the kept tokens."""
    mask = case["response_mask"]
    gradient, by_entropy = torch.autograd.grad(value, (leaf, entropy), allow_unused=True, materialize_grads=True)
    found = {"loss": float(f"{value.item():.10g}"), "gradient": numbers(gradient[mask])}
    return found | ({"entropy_gradient": numbers(by_entropy[mask])} if bool(by_entropy.any()) else {})


def recorded(peer: ModuleType, kind: str, name: str, case: Case) -> Row:
    """One call of the peer's code."""
    mask = case["response_mask"]
    if kind in ("advantage", "weights"):
        values = getattr(peer, kind)(name, case)
        return {"values": numbers(values[mask] if values.ndim == 2 else values)}
    leaf, entropy = case["log_probs"].clone().requires_grad_(), case["entropy"].clone().requires_grad_()
    value = getattr(peer, kind)(name, {**case, "entropy": entropy}, leaf)
    found = differentiated(value[mask].sum() if kind == "kl" else value, case, leaf, entropy)
    return found | ({"values": numbers(value[mask])} if kind == "kl" else {})


def rows(peer: ModuleType) -> Iterator[Row]:
    """Everything of a peer on every case; rows without a token are in the losses alone."""
    cases = load_cases()
    tables = {"loss": peer.LOSSES, "kl": peer.KL, "advantage": peer.ADVANTAGES, "weights": peer.WEIGHTS}
    for kind, names in tables.items():
        for name in names:
            for case_name, case in cases.items():
                if kind in ("loss", "kl") or bool(case["response_mask"].any(-1).all()):
                    found = recorded(peer, kind, name, case)
                    if math.isfinite(found.get("loss", 0.0)):  # the mean over no response at all is not
                        yield {"kind": kind, "name": name, "case": case_name, **found}


def written_cases() -> str:
    """The inputs, one line per case."""
    cases = ",\n".join(f'"{name}": {json.dumps(make_case(name), separators=(",", ":"))}' for name in STORED)
    return f"{{\n{cases}\n}}"


def written(name: str) -> str:
    """The file of a peer, one line per record."""
    peer = importlib.import_module(f"peers.from_{name}")
    found = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows(peer))
    versions = {package: metadata.version(package) for package in peer.PACKAGES}
    settings = {"loss": peer.LOSSES, "advantage": peer.ADVANTAGES, "weights": peer.WEIGHTS}
    head = {"versions": versions, "registered": peer.registered(), "settings": settings}
    lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in head.items())
    return f'{{{lines},\n"records": [\n{found}\n]}}'


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # the peers print while they work
        text = written_cases() if sys.argv[1] == "cases" else written(sys.argv[1])
    print(text)
