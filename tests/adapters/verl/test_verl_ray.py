"""Two Ray workers that learn of our losses from their environment alone, and average their gradients as verl does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

import ray
import torch
from verl.workers.utils import losses
from verl_batches import config, leaf_of, model_output, numbers, rollout, tensor_dict

import etr
from etr.recipe import load_recipe

HERE = Path(__file__).parent
NAMES = ["etr", "dapo", "gspo", "dr_grpo"]
OWN = """
from dataclasses import dataclass
from etr.objectives.grpo import GRPO

@dataclass(frozen=True)
class Mine(GRPO):
    half: float = 0.5

    def surrogate(self, batch, log_ratio, region):
        return self.half * super().surrogate(batch, log_ratio, region)
"""


def shifted(objective, part, ranks):
    """Gradient of verl's loss of a part with respect to one shared parameter for each place in an answer, `[7]`."""
    batch = rollout(objective)
    micro = batch.rows(part)
    weight = torch.zeros(7, requires_grad=True)
    output = model_output(leaf_of(micro).detach() + weight, micro)
    loss, _ = losses.ppo_loss(config(objective), output, tensor_dict(micro, numbers(batch, ranks)))
    return torch.autograd.grad(loss, weight)[0]


@ray.remote(num_cpus=1)
class Worker:
    """One rank. It never imports `etr.adapters` before verl does."""

    def registered(self) -> tuple[list[str], bool]:
        loaded = "etr.adapters.verl" in sys.modules
        import verl  # noqa: F401
        from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

        return [name for name in POLICY_LOSS_REGISTRY if name.startswith("etr/")], loaded

    def gradient(self, name: str, start: int, stop: int) -> torch.Tensor:
        sys.path.insert(0, str(HERE))
        from test_verl_ray import shifted

        return shifted(etr.get(name), slice(start, stop), 2)


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Two workers, and the recipe of a promoted folder with a user's own objective."""
    from etr.promote.recipes import write_recipe

    folder = tmp_path_factory.mktemp("promoted")
    source = tmp_path_factory.mktemp("own") / "my_objective.py"
    source.write_text(OWN)
    write_recipe(folder, load_recipe(f"{source}:Mine"))
    variables = {
        "VERL_USE_EXTERNAL_MODULES": "etr.adapters.verl",
        "ETR_RECIPE": str(folder / "recipe.yaml"),
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[2]), str(HERE)]),
        "OMP_NUM_THREADS": "1",
    }
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": variables}, logging_level="ERROR")
    yield [Worker.remote() for _ in range(2)]
    ray.shutdown()


def test_workers_know_the_losses_and_the_users_own(workers):
    for names, loaded in ray.get([worker.registered.remote() for worker in workers]):
        assert not loaded
        assert {"etr/etr", "etr/gspo", "etr/Mine"} <= set(names)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_two_ranks_is_the_gradient_of_one(workers, name):
    whole = shifted(etr.get(name), slice(0, 12), 1)
    parts = [workers[0].gradient.remote(name, 0, 5), workers[1].gradient.remote(name, 5, 12)]
    one, other = ray.get(parts)
    assert whole.abs().max() > 1e-4
    torch.testing.assert_close((one + other) / 2, whole, rtol=1e-5, atol=1e-8)
