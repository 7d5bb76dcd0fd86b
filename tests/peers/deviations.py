"""Where etr differs from another project on purpose: one line each, with its reason.

The tests leave out or convert exactly what a line covers, and fail when the difference is no longer there; the table
in `docs/parity.md` is made of the same list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from peers import differences as d

Case = dict[str, Tensor]


@dataclass(frozen=True)
class Deviation:
    """A difference that is meant.

    records: regular expression for `peer-kind-name-case`; where: the same in words; theirs and ours: what each does;
    reason: why ours. `change` makes theirs of ours, or they differ on the kept tokens of `tokens`.
    loss: whether the change holds for the loss as it does for its gradient.
    """

    records: str
    where: str
    theirs: str
    ours: str
    reason: str
    change: d.Change | None = None
    tokens: Callable[[Case], Tensor] | None = None
    loss: bool = True

    @property
    def peers(self) -> str:
        """Whose results differ, in words."""
        return " and ".join(name for name in ("verl", "TRL", "polgrad") if name.lower() in self.records)

    def covers(self, record: str) -> bool:
        return re.fullmatch(self.records, record) is not None


OVERFLOW = "exp() of more overflows in single precision"
FIXED = "statistics of a batch are taken once, so that micro-batches add up to the whole"
POPULATION = "mean A² = 1 in every mixed group, so |A| = 1 is the neutral size"
ALONE = "padding a batch with rows without tokens must not change it"
UNWHITENED = "the paper has no whitening; objectives that whiten say so"
WHOLE = "luspo(?!/token)|.*/sequence"  # one ratio for a whole response

LOSSES = [
    Deviation(
        "trl-loss-(grpo|dr_grpo|sapo|luspo).*-tiny-0",
        "mean over responses, one of them without kept tokens",
        "counts it",
        "leaves it out, as verl does",
        ALONE,
        change=d.times(d.kept_share),
    ),
    Deviation(
        "verl-loss-geo_mean.*-tiny-0",
        "GMPO, a response without kept tokens",
        "counts it",
        "leaves it out, as in all means over responses",
        ALONE,
        change=d.times(d.kept_share),
    ),
    Deviation(
        "trl-loss-gmpo.*-tiny-0",
        "GMPO, a response without kept tokens",
        "counts it, and adds the constant −A to the loss",
        "leaves it out, as in all means over responses",
        ALONE,
        change=d.times(d.kept_share),
        loss=False,
    ),
    Deviation(
        "trl-loss-.*/beta.*-extreme-.*",
        "k3 penalty, ratios beyond e^±20",
        "bounds neither log π/π_old nor log π/π_ref",
        "bounds both at ±20",
        OVERFLOW,
        tokens=d.far_from_either,
    ),
    Deviation(
        f"(trl-loss-(?!vespo|gmpo|{WHOLE}).*|verl-loss-(dro|clip_cov|kl_cov).*)-extreme-.*",
        "ratios beyond e^±20",
        "does not bound log π/π_old",
        "bounds it at ±20 with gradient 0 beyond, as verl's other losses do",
        OVERFLOW,
        tokens=d.far_from_old,
    ),
    Deviation(
        "(verl-loss-geo_mean|trl-loss-gmpo).*-extreme-.*",
        "GMPO, ratios of a token beyond e^±20",
        "does not bound log π/π_old",
        "bounds it at ±20 with gradient 0 beyond",
        OVERFLOW,
        tokens=d.far_response,
    ),
    Deviation(
        f"trl-loss-({WHOLE}).*-extreme-.*",
        "GSPO and LUSPO, mean log-ratio of a response beyond ±20",
        "does not bound it",
        "bounds it at ±20 with gradient 0 beyond",
        OVERFLOW,
        tokens=lambda case: d.mean_log_ratio(case).abs() > d.LIMIT,
    ),
    Deviation(
        "verl-loss-gspo.*-extreme-.*",
        "GSPO, mean log-ratio of a response above 10",
        "bounds it at 10",
        "bounds it at 20",
        "one bound for all ratios",
        tokens=lambda case: d.mean_log_ratio(case) > 10,
    ),
    Deviation(
        "verl-loss-kl_cov-.*",
        "KL-Cov, which tokens are tied",
        "those of the largest covariance at every update",
        "those of the start of the update, if it is positive",
        FIXED,
        tokens=d.otherwise_tied(0.2),
    ),
    Deviation(
        "verl-loss-kl_cov/one-.*",
        "KL-Cov, which token is tied",
        "that of the largest covariance at every update",
        "that of the start of the update, if it is positive",
        FIXED,
        tokens=d.otherwise_tied(2e-4),
    ),
    Deviation(
        "verl-loss-clip_cov/all-.*",
        "Clip-Cov, which tokens can be left out",
        "by their covariance at every update, if PPO's clip has not left them out",
        "by their covariance at the start of the update",
        FIXED,
        tokens=d.otherwise_clipped(0.2, 2.0),
    ),
    Deviation(
        "verl-loss-bypass_mode/rejected-.*",
        "mean over tokens after responses were rejected",
        "over the tokens that are left",
        "over all tokens",
        "the other tokens do not count more for it, and micro-batches add up",
        change=d.times(d.inverse_kept_tokens(0.4)),
    ),
    Deviation(
        "trl-loss-vespo/weighted-.*",
        "VESPO with a rollout correction",
        "puts it into W",
        "multiplies the objective by it, as everywhere",
        "a correction does the same to every objective",
        tokens=lambda case: case["response_mask"],
    ),
    Deviation(
        "trl-loss-dapo/high-entropy-.*",
        "mean over the fifth of the tokens with the highest entropy",
        "divides by the number of all tokens",
        "divides by the number of chosen ones, as the paper's authors do",
        "the share should not change the size of the update",
        change=d.times(d.high_entropy_share),
    ),
    Deviation(
        "verl-kl-k3.*-extreme-.*",
        "k3 penalty above 10",
        "bounds it at 10, with gradient 0 beyond",
        "the estimator itself",
        "the farther from the reference, the more it must pull back",
        tokens=d.large_k3,
    ),
]
WHITENED = (
    "REINFORCE++, whitening over the tokens of the batch",
    "variance of the sample, plus 1e-8 below the root",
    "standard deviation of the population, plus 1e-6",
    "as in GRPO",
)
ADVANTAGES = [
    Deviation(
        "verl-advantage-grpo(_vectorized)?-.*",
        "GRPO, standard deviation of a group",
        "of the sample, plus 1e-6",
        "of the population; `etr.advantages.group_zscore` has both",
        POPULATION,
        change=d.times(d.spread_ratio(1e-6)),
    ),
    Deviation(
        "trl-advantage-scale_rewards/group-.*",
        "GRPO, standard deviation of a group",
        "of the sample, plus 1e-4",
        "of the population; `etr.advantages.group_zscore` has both",
        POPULATION,
        change=d.times(d.spread_ratio(1e-4)),
    ),
    Deviation(
        "trl-advantage-scale_rewards/batch-.*",
        "centred rewards, standard deviation of the batch",
        "of the rewards themselves, sample's, plus 1e-4",
        "of the centred rewards, population's, plus 1e-6 (`reinforce_plus_plus_baseline`)",
        "the scale of what is learned from is 1, however much prompts differ in difficulty",
        change=d.times(d.raw_spread),
    ),
    Deviation(
        "verl-advantage-grpo_passk-.*",
        "pass@k by the best response, divided by the standard deviation",
        "of the sample",
        "of the population",
        "as in GRPO",
        change=d.times(d.spread_ratio(1e-6, ours=1e-6)),
    ),
    Deviation("verl-advantage-reinforce_plus_plus-.*", *WHITENED, change=d.times(d.whitening_ratio())),
    Deviation(
        "verl-advantage-reinforce_plus_plus/discounted-.*", *WHITENED, change=d.times(d.whitening_ratio(gamma=0.9))
    ),
    Deviation("verl-advantage-reinforce_plus_plus/kl-.*", *WHITENED, change=d.times(d.whitening_ratio(beta=0.1))),
    Deviation(
        "verl-advantage-reinforce_plus_plus_baseline-.*", *WHITENED, change=d.times(d.whitening_ratio(baseline=True))
    ),
    Deviation(
        "verl-advantage-gpg-.*",
        "GPG, responses that carry a gradient",
        "counts rewards other than 0",
        "counts responses in groups of unequal rewards",
        "the paper's count: a group of equal rewards above 0 teaches nothing either",
        change=d.times(lambda case: d.in_mixed_groups(case) / case["rewards"].count_nonzero()),
    ),
    Deviation(
        "verl-advantage-gae.*",
        "GAE",
        "whitens the advantages over the tokens of the batch",
        "as they are (`tppo` without a window)",
        UNWHITENED,
        change=d.whiten_tokens,
    ),
    Deviation(
        "trl-advantage-rloo/normalised-.*",
        "RLOO with `normalize_advantages`",
        "whitens the advantages over the batch",
        "as they are",
        UNWHITENED,
        change=d.whiten_responses,
    ),
    Deviation(
        "verl-weights-sequence/normalised-.*",
        "weights of whole responses, normalised",
        "to mean 1 over responses",
        "to mean 1 over tokens",
        "it is tokens that they multiply",
        change=d.mean_one_per_response,
    ),
]
DEVIATIONS = [*LOSSES, *ADVANTAGES]
POLGRAD = {
    "ratios": Deviation(
        "polgrad-loss-.*-extreme-.*",
        "ratios beyond e^±20",
        "does not bound log π/π_old",
        "bounds it at ±20 with gradient 0 beyond",
        OVERFLOW,
        tokens=d.far_from_old,
    ),
    "spread": Deviation(
        "polgrad-advantage-grpo-.*",
        "GRPO, standard deviation of a group",
        "of the sample, plus 1e-4",
        "of the population; `etr.advantages.group_zscore` has both",
        POPULATION,
        change=d.times(d.spread_ratio(1e-4)),
    ),
}


def rows() -> list[tuple[str, ...]]:
    """The table of the documentation: (whose, where, theirs, ours, reason), no line twice."""
    found = [
        (known.peers, known.where, known.theirs, known.ours, known.reason) for known in (*DEVIATIONS, *POLGRAD.values())
    ]
    return list(dict.fromkeys(found))
