"""Floor 2: the observatory. What an update did to entropy, regions and gradients, and when to worry.

Pure functions on tensors `[*R, B, T]`; their sums add over micro-batches. The same ones serve the exact enumeration of
a toy, its samples, and the batches and logs of a language model.
"""

from etr.observatory.alarms import Alarm, alarms
from etr.observatory.entropy import (
    PROBABILITY_EDGES,
    SIGNS,
    EntropySplit,
    entropy_change,
    token_changes,
    visit_change,
)
from etr.observatory.exactly import exact_entropy_change
from etr.observatory.observe import observe, read
from etr.observatory.occupancy import SUCCESS_EDGES, effective_share, occupancy, pass_at_k
from etr.observatory.signal import GradientSignal, gradient_signal, member_signal, signal_from_norms

__all__ = [
    "PROBABILITY_EDGES",
    "SIGNS",
    "SUCCESS_EDGES",
    "Alarm",
    "EntropySplit",
    "GradientSignal",
    "alarms",
    "effective_share",
    "entropy_change",
    "exact_entropy_change",
    "gradient_signal",
    "member_signal",
    "observe",
    "occupancy",
    "pass_at_k",
    "read",
    "signal_from_norms",
    "token_changes",
    "visit_change",
]
