"""Floor 6: statements of the literature, each recomputed with this package's own functions.

`STATEMENTS` holds them by section; `check` recomputes one and compares; `unchecked` are those that need a language
model. Numbers marked as this project's were found before this package existed, by separate code. The sections:

1 convergence with exact and sampled gradients · 2 entropy dynamics · 3 reward as a function of entropy · 4 clipping and
entropy · 5 group advantages and plateaus · 6 trust-region bounds · 7 policy cliff · 8 KL estimators
"""

from __future__ import annotations

from etr.errors import InputError
from etr.reproduce.base import Measured, Result, Statement, Target, check
from etr.reproduce.clip_simulation import CLIP_SIMULATION
from etr.reproduce.clipping import CLIPPING
from etr.reproduce.convergence import CONVERGENCE
from etr.reproduce.entropy import ENTROPY
from etr.reproduce.entropy_reward import ENTROPY_REWARD
from etr.reproduce.groups import GROUPS
from etr.reproduce.kl_estimators import KL_ESTIMATORS
from etr.reproduce.landscape import LANDSCAPE
from etr.reproduce.plateaus import PLATEAUS
from etr.reproduce.policy_cliff import POLICY_CLIFF
from etr.reproduce.stochastic import STOCHASTIC
from etr.reproduce.trust_region import TRUST_REGION

__all__ = ["SECTIONS", "STATEMENTS", "Measured", "Result", "Statement", "Target", "check", "select"]

SECTIONS = {
    1: "Softmax policy gradient",
    2: "First-order entropy dynamics",
    3: "Reward as a function of entropy",
    4: "Clipping and entropy",
    5: "What a group advantage optimises",
    6: "Trust-region bounds",
    7: "Policy cliff",
    8: "KL estimators",
}
STATEMENTS: tuple[Statement, ...] = (
    *LANDSCAPE,
    *CONVERGENCE,
    *STOCHASTIC,
    *ENTROPY,
    *ENTROPY_REWARD,
    *CLIPPING,
    *CLIP_SIMULATION,
    *GROUPS,
    *PLATEAUS,
    *TRUST_REGION,
    *POLICY_CLIFF,
    *KL_ESTIMATORS,
)


def select(section: int | None = None, everything: bool = False) -> list[Statement]:
    """The quick statements, or all of them, of one section or of all; InputError for a section that is not there."""
    if section is not None and section not in SECTIONS:
        names = ", ".join(f"{number} ({name})" for number, name in SECTIONS.items())
        raise InputError(f"there is no section {section}; choose one of {names}")
    return [s for s in STATEMENTS if (everything or s.quick) and section in (None, s.section)]
