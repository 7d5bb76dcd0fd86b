"""A verifier that errs: training sees its verdicts, the score knows the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from toy_envs.accepting import Accepting, accepting_table, draw_accepting
from toy_envs.base import SequenceEnv
from toy_envs.model import ExactModel

PROMPTS, ARMS = 32, 16


def _preset(false_positive: float, false_negative: float, loopholes: bool = False) -> dict[str, Any]:
    drawn = draw_accepting(ARMS, 1, [2 + prompt % 3 for prompt in range(PROMPTS)])
    # Of 2, 3 or 4 drawn arms the first is kept aside: the loophole, wrong like the others that are not accepted.
    # (Drawn sets are sorted, so it is rotated with the prompt to have no favourite place.)
    turned = [arms[prompt % len(arms) :] + arms[: prompt % len(arms)] for prompt, arms in enumerate(drawn)]
    return {
        "vocab_size": ARMS,
        "horizon": 1,
        "accepting": [arms[1:] for arms in turned],
        "false_positive": false_positive,
        "false_negative": false_negative,
        "loopholes": [arms[:1] for arms in turned] if loopholes else None,
    }


class NoisyVerifier(SequenceEnv):
    """
    ## Description
    A bandit (horizon 1) or token tree whose verifier accepts wrong answers and rejects right ones by chance,
    and may have loopholes: wrong answers that it always accepts. `model.verdict` is what training is paid,
    `model.success` the truth that the score counts. Chance errors only blur the signal; a loophole pulls.

    ## Action Space
    `Discrete(vocab_size)`: the next token.

    ## Observation Space
    `MultiDiscrete([prompts] + [vocab_size + 1] * horizon)`: the prompt, then the tokens so far; places not
    yet written hold `vocab_size`.

    ## Reward
    1 with probability 1 − `false_negative` for a right answer, `false_positive` for a wrong one and 1 for a
    loophole, else 0. It is the verdict, not the truth.

    ## Episode End
    Terminates after `horizon` tokens.

    ## Arguments
    `vocab_size`, `horizon`, `accepting` (the right sequences of each prompt), `false_positive`,
    `false_negative` (rates in [0, 1]), `loopholes` (wrong sequences of each prompt, or None). Ready-made
    (32 prompts, 16 arms, 1 to 3 of them right): "light" errs in 2 % of all cases, "even" in 15 %,
    "false-negative" and "false-positive" in 30 % of one kind, and "loophole" rejects 30 % of right answers beside
    one wrong arm that always passes. Raises ValueError for rates outside [0, 1] and loopholes that are right.

    ## References
    This project's own.
    """

    QUESTION = "Does the truth follow the reward when the verifier errs?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "light": _preset(0.02, 0.02),
        "false-negative": _preset(0.0, 0.3),
        "even": _preset(0.15, 0.15),
        "false-positive": _preset(0.3, 0.0),
        "loophole": _preset(0.0, 0.3, loopholes=True),
    }

    def __init__(
        self,
        vocab_size: int,
        horizon: int,
        accepting: Accepting,
        false_positive: float = 0.0,
        false_negative: float = 0.0,
        loopholes: Accepting | None = None,
    ) -> None:
        for name, rate in (("false_positive", false_positive), ("false_negative", false_negative)):
            if not 0 <= rate <= 1:
                raise ValueError(f"{name} is {rate}; give a rate in [0, 1]")
        truth = accepting_table(vocab_size, horizon, accepting)
        verdict = truth * (1 - false_negative) + (1 - truth) * false_positive
        if loopholes is not None:
            if len(loopholes) != len(accepting):
                raise ValueError(
                    f"loopholes has {len(loopholes)} prompts but accepting has {len(accepting)}; give one each"
                )
            holes = accepting_table(vocab_size, horizon, loopholes, name="loopholes")
            if bool((holes * truth).any()):
                prompt = int((holes * truth).any(-1).nonzero()[0])
                raise ValueError(f"a loophole of prompt {prompt} is a right answer; give wrong sequences only")
            verdict = torch.maximum(verdict, holes)
        super().__init__(ExactModel(vocab_size, horizon, truth, verdict))
