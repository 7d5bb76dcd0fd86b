"""verl with this project's losses and advantages: `VERL_USE_EXTERNAL_MODULES=etr.adapters.verl` (docs/howto/verl.md).

Importing this package registers, as `etr/<name>`, every objective that verl can run and every advantage estimator.
Without verl it can be imported and does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etr.adapters.verl.installed import version

if TYPE_CHECKING:
    from etr.adapters.verl.config import ETRPolicyLossConfig

__all__ = ["ETRPolicyLossConfig"]


def __getattr__(name: str) -> Any:  # the class exists only where verl does
    if name == "ETRPolicyLossConfig":
        from etr.adapters.verl.config import ETRPolicyLossConfig

        return ETRPolicyLossConfig
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


if version() is not None:
    from etr.adapters.verl.registering import register

    register()
