"""The trainer's class, made when it is first asked for: its base is the installed TRL's."""

from __future__ import annotations

import functools

from etr.adapters.trl.mixin import RecipeLoss
from etr.adapters.trl.start import check_version


@functools.cache
def trainer_class() -> type:
    """`ETRGRPOTrainer`, made of the TRL that is installed. Raises InputError without one, or with too old a one."""
    check_version()
    from trl import GRPOTrainer

    class ETRGRPOTrainer(RecipeLoss, GRPOTrainer):  # type: ignore[misc]
        __doc__ = RecipeLoss.__doc__

    return ETRGRPOTrainer
