"""Sequences for prime-rl's loss, and what its own code made of them. Run as a file to record that anew:

    python tests/adapters/prime_rl/prime_rl_cases.py PATH/TO/src/prime_rl/trainer/rl/loss.py COMMIT > .../prime_rl.json

loss.py is read as it is. What it imports and no loss calls (type checking, its config classes) is stood in for.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

RECORD = Path(__file__).with_name("prime_rl.json")
GROUP, LENGTHS = 4, (5, 9, 7, 6, 4, 8, 3, 7)
KEYS = ("trainer", "inference", "advantages", "mask")
# Without its quadratic penalty, whose gradient no objective here has.
LOSSES: dict[str, dict[str, float]] = {
    "default": {"dppo_mask_low": 0.1, "dppo_mask_high": 0.15, "adv_tau": 1.0, "kl_tau": 0.0},
    "ipo": {"ipo_threshold": 0.12, "adv_tau": 1.0, "kl_tau": 0.0},
}


def sequences() -> dict[str, list[Tensor]]:
    """Two groups of four answers, one prompt token before each; advantages are r − mean(r)."""
    torch.manual_seed(3)
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    centred = (rewards.view(-1, GROUP) - rewards.view(-1, GROUP).mean(-1, keepdim=True)).flatten()
    sampled = [-0.1 - 2 * torch.rand(n) for n in LENGTHS]
    return {
        "trainer": [(x + 0.4 * torch.randn(len(x))).clamp(max=-1e-3) for x in sampled],
        "inference": sampled,
        "advantages": [torch.full((n,), float(a)) for n, a in zip(LENGTHS, centred, strict=True)],
        "mask": [torch.arange(n) > 0 for n in LENGTHS],
    }


def load(path: str) -> ModuleType:
    """prime-rl's loss.py as a module of its own."""

    class Shape:
        def __class_getitem__(cls, _: object) -> type:
            return cls

    jaxtyping: Any = ModuleType("jaxtyping")
    jaxtyping.Bool = jaxtyping.Float = jaxtyping.Int = Shape
    jaxtyping.jaxtyped = lambda **_: lambda function: function
    beartype: Any = ModuleType("beartype")
    beartype.beartype = None
    configs: Any = ModuleType("prime_rl.configs.trainer")
    for name in ("CustomLossConfig", "DefaultLossConfig", "IPOLossConfig"):
        setattr(configs, name, type(name, (SimpleNamespace,), {}))
    configs.LossConfig = object
    utils: Any = ModuleType("prime_rl.utils.utils")
    utils.import_object = lambda text: getattr(
        importlib.import_module(text.rpartition(".")[0]), text.rpartition(".")[2]
    )
    sys.modules |= {"jaxtyping": jaxtyping, "beartype": beartype, "prime_rl.utils.utils": utils,
                    "prime_rl.configs.trainer": configs}  # fmt: skip
    spec = importlib.util.spec_from_file_location("prime_rl_loss", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prime_rl_loss"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def step(module: ModuleType, function: Callable[..., Any]) -> tuple[float, list[list[float]]]:
    """Loss and gradients of one optimiser step of all sequences, by prime-rl's `compute_loss`."""
    case = sequences()
    leaves = [x.clone().requires_grad_() for x in case["trainer"]]
    tokens = int(sum(mask.sum() for mask in case["mask"]))
    total, _ = module.compute_loss(
        leaves, case["inference"], None, case["advantages"], case["mask"], None, None, None, function, tokens, 1, 1
    )
    total.backward()
    return total.item(), [[round(x, 9) for x in leaf.grad.tolist()] for leaf in leaves if leaf.grad is not None]


def main(path: str, commit: str) -> None:
    module = load(path)
    found: dict[str, Any] = {"commit": commit}
    for name, fields in LOSSES.items():
        config = SimpleNamespace(**fields)
        function = module.default_loss_fn if name == "default" else module.ipo_loss_fn
        value, gradient = step(module, lambda inputs, f=function, c=config: f(inputs, c))
        found[name] = {"loss": value, "gradient": gradient}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
