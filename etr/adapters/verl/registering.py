"""Every loss and every advantage estimator under its name in verl's registries."""

from __future__ import annotations

from etr.adapters.verl.advantages import verl_estimator
from etr.adapters.verl.installed import require
from etr.adapters.verl.losses import verl_loss
from etr.adapters.verl_names import PREFIX, names
from etr.adapters.verl_settings import runnable
from etr.advantages import ESTIMATORS


def register() -> None:
    """Register all of them. Raises InputError for a verl that is too old, or a recipe that cannot be read."""
    require()
    from verl.trainer.ppo import core_algos

    for name in names():
        if runnable(name):
            core_algos.register_policy_loss(PREFIX + name)(verl_loss)
    for name in (*ESTIMATORS, *names()):
        if PREFIX + name not in core_algos.ADV_ESTIMATOR_REGISTRY:  # verl refuses a second function of one name
            core_algos.register_adv_est(PREFIX + name)(verl_estimator(PREFIX + name))
