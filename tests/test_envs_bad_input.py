"""Bad input to toy environments: one sentence that says what is wrong, where, and how to mend it."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from toy_envs import (
    Bandit,
    ExactModel,
    ModArithmetic,
    TokenTree,
    TwoStage,
    draw_accepting,
    make_model,
)

IDS = sorted(name for name in gymnasium.registry if name.startswith("toy_envs/"))
EASY = "toy_envs/TokenTree-easy-v0"


BAD_CONSTRUCTIONS = [
    (lambda: Bandit([]), "success is empty; give one list of probabilities per prompt"),
    (
        lambda: Bandit([[0.1, 0.2], [0.3]]),
        "prompt 1 has 1 arms but prompt 0 has 2; give every prompt the same",
    ),
    (lambda: Bandit([[0.5]]), "vocab_size 1 and horizon 1 leave nothing to choose; give at least 2 tokens"),
    (
        lambda: Bandit([[0.1, 1.2]]),
        "success of prompt 0, sequence (arm) 1 is 1.2; give probabilities in [0, 1]",
    ),
    (lambda: Bandit([[-0.1, 0.2]]), "success of prompt 0, sequence (arm) 0 is -0.1; give probabilities in"),
    (lambda: Bandit([[0.1, float("nan")]]), "sequence (arm) 1 is nan; give probabilities in [0, 1]"),
    (
        lambda: TokenTree(7, 6, [[(0,) * 6]]),
        "vocab_size 7 with horizon 6 has 117649 sequences per prompt, too many to enumerate; stay at 46656 or below",
    ),
    (lambda: TokenTree(2, 2, []), "accepting is empty; give one collection of sequences per prompt"),
    (lambda: TokenTree(2, 2, [[(0, 0)], []]), "prompt 1 accepts no sequence; give at least one"),
    (
        lambda: TokenTree(2, 2, [[(0, 2)]]),
        "prompt 0 accepts (0, 2), which no episode can write; give 2 tokens",
    ),
    (
        lambda: TokenTree(2, 2, [[(0,)]]),
        "prompt 0 accepts (0,), which no episode can write; give 2 tokens from 0 to 1",
    ),
    (lambda: Bandit([["a", "b"]]), "success holds something that is no number; give probabilities in [0, 1]"),  # type: ignore[list-item]
    (lambda: draw_accepting(2, 2, [4, 9]), "prompt 1 asks for 9 of 4 sequences; give a number from 0 to that"),
    (lambda: ModArithmetic(300), "90000 prompts with 300 sequences each need a table of 27000000 numbers; stay at"),
    (
        lambda: TwoStage([[0.5, 0.5]], [[0, 0]], answer_length=0),
        "answer_length is 0; give at least one token to answer with",
    ),
    (
        lambda: Bandit([[0.5, 0.5]]).reset(options={"promt": 0}),
        "unknown reset option 'promt'; did you mean 'prompt'? Valid: prefix, prompt",
    ),
    (
        lambda: TokenTree.from_preset("easy").reset(options={"prefix": 3}),
        "prefix is 3; give a list of tokens, for example [0]",
    ),
    (lambda: ExactModel(2, 2, torch.zeros(1, 3).double()), "success has shape (1, 3); give [prompts, 4]"),
    (lambda: ExactModel(2, 1, torch.zeros(1, 2)), "success has dtype torch.float32; give success.double()"),
    (
        lambda: Bandit.from_preset("sprad"),
        "unknown Bandit preset 'sprad'; did you mean 'spread'? Valid: deceptive",
    ),
    (lambda: TokenTree.from_preset("x"), "unknown TokenTree preset 'x'; Valid: easy, hard, medium"),
    (
        lambda: make_model("tree-eazy"),
        "unknown environment 'tree-eazy'; did you mean 'tree-easy'? Valid: bandit, ",
    ),
]


def small_tree() -> TokenTree:
    return TokenTree(2, 2, [[(0, 1)], [(1, 0), (1, 1)], [(0, 0), (0, 1), (1, 0)]])


@pytest.mark.parametrize(("build", "sentence"), BAD_CONSTRUCTIONS)
def test_bad_constructions(build: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        build()


MODEL = Bandit([[0.5, 0.5, 0.5], [0.1, 0.2, 0.3]]).model
TOKENS = torch.zeros(2, 4, 1, dtype=torch.int64)
NOISE = torch.zeros(2, 4, 1)
BAD_CALLS = [
    (
        lambda: MODEL.verify(TOKENS + 3, NOISE),
        "token 3 at index [0, 0, 0] is outside the vocabulary; give tokens",
    ),
    (lambda: MODEL.sequence_index(TOKENS - 1), "token -1 at index [0, 0, 0] is outside the vocabulary"),
    (lambda: MODEL.prefix_states(TOKENS.float()), "dtype torch.float32; give int64 tokens of shape [..., 1]"),
    (lambda: MODEL.verify(TOKENS[0], NOISE), "sequences have shape (4, 1); give [..., 2, group, 1]"),
    (
        lambda: MODEL.verify(TOKENS, NOISE[:1]),
        "noise have shape (1, 4, 1) and dtype torch.float32; give floating",
    ),
    (lambda: MODEL.verify(TOKENS, NOISE + 1), "noise at index [0, 0, 0] is 1; give uniform numbers in [0, 1)"),
    (
        lambda: MODEL.sample(torch.zeros(2, 1, 2), NOISE),
        "logits have shape (2, 1, 2); give [..., 2, 1, 3]",
    ),
    (
        lambda: MODEL.sample(torch.zeros(2, 1, 3), NOISE[..., 0]),
        "uniforms have shape (2, 4) and dtype torch.float32; give",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), BAD_CALLS)
def test_bad_calls(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()


def test_bad_steps() -> None:
    env = small_tree()
    with pytest.raises(ValueError, match=re.escape("no episode is running; call reset() before step()")):
        env.step(np.int64(0))
    with pytest.raises(ValueError, match=re.escape("prompt 3 does not exist; give options={'prompt': 0 to 2}")):
        env.reset(options={"prompt": 3})
    for prefix in ([0, 1], [2]):
        with pytest.raises(ValueError, match=re.escape(f"prefix {prefix} cannot be continued; give at most 1 tokens")):
            env.reset(options={"prefix": prefix})
    env.reset(seed=0)
    with pytest.raises(ValueError, match="token 2 is outside the vocabulary; give tokens from 0 to 1"):
        env.step(np.int64(2))
