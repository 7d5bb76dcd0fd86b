"""TRL: `ETRGRPOTrainer` is TRL's GRPOTrainer with a recipe's advantages and loss (docs/hosts.md).

    from etr.adapters.trl import ETRGRPOTrainer
    ETRGRPOTrainer(model, reward, args=GRPOConfig(..., **arguments(recipe)), train_dataset=data, recipe=recipe).train()

`python -m etr.adapters.trl FOLDER` runs a folder that `etr promote --to trl` wrote. Importing this needs no TRL; the
trainer's class is made on first use.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ETRGRPOTrainer"]


def __getattr__(name: str) -> Any:
    if name != "ETRGRPOTrainer":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from etr.adapters.trl.trainer import trainer_class

    return trainer_class()
