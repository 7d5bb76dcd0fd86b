"""etr: understand, invent and use trust-region objectives for reinforcement learning with verifiable rewards.

The same loss object runs on a bandit, on token environments and on a real LLM:

>>> import torch, etr
>>> rewards, prompts = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.zeros(4, dtype=torch.long)
>>> objective = etr.get("etr", micro=0.5)
>>> log_probs = torch.full((4, 1), -1.5, requires_grad=True)
>>> batch = etr.Batch(log_probs=log_probs, old_log_probs=log_probs.detach(), response_mask=torch.ones(4, 1) > 0,
...                   advantages=objective.advantage(rewards, prompts), group=etr.group_stats(rewards, prompts))
>>> etr.policy_loss(objective, batch).loss.backward()
>>> etr.gradient_coefficient(objective, batch).squeeze(-1)
tensor([ 1.7321, -0.5774, -0.5774, -0.5774])
"""

from typing import TYPE_CHECKING, Any

from etr import advantages, aggregation, objectives, ratios, regions, regularizers, surrogates
from etr._version import __version__
from etr.batch import Batch, LossOutput, Mean, Region
from etr.errors import FieldError, InputError
from etr.groups import GroupStats, group_stats
from etr.loss import gradient_coefficient, policy_loss
from etr.objective import Objective, Paper, Reduction
from etr.registry import get, list_objectives, register

if TYPE_CHECKING:
    from etr.recipe import Recipe, load_recipe

__all__ = [
    "Batch",
    "FieldError",
    "GroupStats",
    "InputError",
    "LossOutput",
    "Mean",
    "Objective",
    "Paper",
    "Recipe",
    "Reduction",
    "Region",
    "__version__",
    "advantages",
    "aggregation",
    "get",
    "gradient_coefficient",
    "group_stats",
    "list_objectives",
    "load_recipe",
    "objectives",
    "policy_loss",
    "ratios",
    "regions",
    "register",
    "regularizers",
    "surrogates",
]


def __getattr__(name: str) -> Any:
    """Recipes read YAML; they are imported on first use so that the core needs torch alone."""
    if name in ("Recipe", "load_recipe"):
        from etr import recipe

        return getattr(recipe, name)
    raise AttributeError(f"module 'etr' has no attribute '{name}'")
