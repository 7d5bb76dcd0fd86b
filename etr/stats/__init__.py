"""Floor 2: what a handful of seeds can and cannot say. All randomness comes from the generator handed in.

Intervals are percentile bootstrap intervals: seeds (or items) are resampled within each environment. For interquartile
means their simulated coverage at a nominal 95 % is 93 to 95 % from 8 seeds on, and 87 to 88 % with 4: a little narrow.
"""

from etr.stats.checks import Band, Interval
from etr.stats.families import holm
from etr.stats.pairs import (
    improvement_interval,
    paired_difference,
    probability_of_improvement,
    sign_flip_p_value,
)
from etr.stats.resampling import FEWEST_SEEDS, bootstrap, iqm_band, performance_profile, stratified_bootstrap
from etr.stats.summaries import area_under_curve, iqm, pass_at_k, pooled_iqm

__all__ = [
    "FEWEST_SEEDS",
    "Band",
    "Interval",
    "area_under_curve",
    "bootstrap",
    "holm",
    "improvement_interval",
    "iqm",
    "iqm_band",
    "paired_difference",
    "pass_at_k",
    "performance_profile",
    "pooled_iqm",
    "probability_of_improvement",
    "sign_flip_p_value",
    "stratified_bootstrap",
]
