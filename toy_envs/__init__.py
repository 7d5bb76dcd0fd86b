"""Toy environments for RLVR objectives, with exact models; importing this registers them with Gymnasium.

>>> import gymnasium, toy_envs
>>> env = gymnasium.make("toy_envs/TokenTree-easy-v0")
>>> toy_envs.list_envs()[:3]
['bandit-deceptive', 'bandit-fixed-gap', 'bandit-multi-optimum']
>>> toy_envs.make_model("bandit").prompts
16
"""

from __future__ import annotations

from toy_envs.accepting import draw_accepting
from toy_envs.bandit import Bandit
from toy_envs.base import ExactEnv
from toy_envs.copy_reverse import CopyReverse
from toy_envs.key_chain import KeyChain
from toy_envs.mod_arithmetic import ModArithmetic
from toy_envs.model import ExactModel
from toy_envs.multi_mode import MultiMode
from toy_envs.multi_reward import MultiReward
from toy_envs.noisy import NoisyVerifier
from toy_envs.random_reward import RandomReward
from toy_envs.registry import (
    FAMILIES,
    add_source,
    list_envs,
    make_env,
    make_model,
    register,
    register_all,
    resolve,
)
from toy_envs.token_tree import TokenTree
from toy_envs.two_stage import TwoStage

__all__ = [
    "FAMILIES",
    "Bandit",
    "CopyReverse",
    "ExactEnv",
    "ExactModel",
    "KeyChain",
    "ModArithmetic",
    "MultiMode",
    "MultiReward",
    "NoisyVerifier",
    "RandomReward",
    "TokenTree",
    "TwoStage",
    "add_source",
    "draw_accepting",
    "list_envs",
    "make_env",
    "make_model",
    "register",
    "resolve",
]

register_all()
