"""Memory of one GPU of a cluster: the doctor's plan for one GPU, with the trainer's state sharded over all.

Sharding is FSDP's (ZeRO-3, 1910.02054): each of D GPUs keeps 1/D of weights, masters, moments and gradients, and
gathers the layers that it computes. Activations and logits belong to a GPU's own micro-batch and are not sharded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

from etr.llm.config import TrainConfig
from etr.llm.doctor.memory import KEPT, MemoryPlan, plan_memory
from etr.llm.doctor.outline import Outline
from etr.llm.doctor.work import Work
from etr.plan.devices import Device
from etr.plan.job import Job
from etr.plan.models import Shape
from etr.recipe import load_recipe

USABLE = 0.9  # share of the memory that a plan may fill: the rest is for what it does not see, as in the doctor
SHARDED = ("weights", "rest of float32 masters", "optimizer state", "gradients")
OWN = ("activations", "logits and scratch")
FEW = (2, 3)  # layers to imagine: all parts grow by the same amount with each further one
SCORED = 512  # tokens through the head: it takes more of them in blocks, one after the other, and these fill a block
GATHERED = 2  # layers that are whole at a time: one that is computed and the next


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU. parts: by what they are; update, rollout: the peaks of both phases; usable: what may be filled.

    tensor_parallel: GPUs of one copy of the engine; concurrent: sequences whose keys and values it has room for.
    """

    parts: dict[str, float]
    update: float
    rollout: float
    usable: float
    tensor_parallel: int
    concurrent: int

    @property
    def fits(self) -> bool:
        """Whether both phases fit, with room for at least one sequence."""
        return max(self.update, self.rollout) <= self.usable and self.concurrent >= 1

    @property
    def lacking(self) -> str:
        """What does not fit, in words."""
        phase, size = ("update", self.update) if self.update > self.usable else ("rollout", self.rollout)
        if phase == "rollout" and self.rollout <= self.usable:
            return "the engine has no room for the keys and values of a single sequence"
        return f"the {phase} needs {size / 2**30:.1f} GiB on each GPU, and {self.usable / 2**30:.1f} GiB may be filled"


def plan(job: Job, shape: Shape, device: Device) -> Memory:
    """The memory of one GPU that trains, and of one that samples (the same GPU where there is no engine share)."""
    single = one_gpu(job, shape)
    shards, each = job.trainer_gpus, job.bytes_each
    parts = {name: single.parts[name] / shards for name in SHARDED} | {name: float(single.parts[name]) for name in OWN}
    layer = (shape.weights - shape.head * (1 if shape.tied else 2)) / shape.layers
    whole = GATHERED * layer + shape.head * (1 if shape.tied else 2)
    parts["layers gathered"] = whole * each if shards > 1 else 0.0
    update = sum(parts.values()) if shards > 1 else float(single.phases["update"])
    resident = sum(parts[name] for name in SHARDED if name != "gradients")
    resident = 0.0 if job.offload or job.engine_share else resident
    usable = USABLE * device.memory
    weights = float(shape.weights * each)
    apart = job.tensor_parallel or _fewest(weights, usable - resident, min(job.engine_gpus, device.node))
    room = usable - resident - weights / apart
    sequence = job.length * shape.cache_bytes(each)
    concurrent = max(0, int(apart * room // sequence))
    wanted = -(-job.sequences * apart // job.engine_gpus)
    parts["engine's weights"] = weights / apart
    parts["keys and values"] = float(min(concurrent, wanted) * sequence / apart)
    rollout = resident + parts["engine's weights"] + parts["keys and values"]
    return Memory(parts, update, rollout, usable, apart, concurrent)


def _fewest(weights: float, room: float, most: int) -> int:
    """The smallest power of two whose share of the weights leaves half of the room to keys and values; at most `most`.

    >>> [_fewest(weights, room=40, most=8) for weights in (10, 30, 60, 600)]
    [1, 2, 4, 8]
    """
    apart = 1
    while 2 * apart <= most and weights / apart > room / 2:
        apart *= 2
    return apart


def one_gpu(job: Job, shape: Shape) -> MemoryPlan:
    """The doctor's plan for this job on one GPU, from two models with few layers."""
    micro = job.micro_batch_tokens
    passes = -(-job.sequences * job.length // (micro * job.trainer_gpus))  # two show what any more would
    work = Work(1, 1, 1, "padded", min(passes, 2), 1, micro, min(SCORED, micro))  # the rollout is counted elsewhere
    whole = extrapolated(shape, work, job.dtype, job.gradient_checkpointing, job.optimizer_state)
    if not job.lora_rank:
        return whole
    trained = shape.adapters(job.lora_rank)  # float32, with two moments; only they have gradients
    parts = whole.parts | {
        "weights": whole.parts["weights"] + 4 * trained,
        "rest of float32 masters": 0,
        "optimizer state": round(KEPT[job.optimizer_state] * 8 * trained),
        "gradients": 4 * trained,
    }
    return MemoryPlan(parts, {"update": sum(parts.values())})


@lru_cache(maxsize=64)
def extrapolated(shape: Shape, work: Work, dtype: str, recomputing: bool, state: str) -> MemoryPlan:
    """`plan_memory` of the whole model as the straight line through two with few layers, which takes seconds less.

    The layers of an expert model are imagined with as many experts as a token visits; what every weight costs is then
    scaled to all of them.
    """
    config = TrainConfig(dtype=dtype, gradient_checkpointing=recomputing, optimizer_state=state)
    if shape.layers <= max(FEW):
        return _imagined(shape, shape.layers, config, work)
    low, high = (_imagined(shape, layers, config, work) for layers in FEW)
    further = (shape.layers - FEW[0]) / (FEW[1] - FEW[0])
    parts = {name: max(0, size + round(further * (high.parts[name] - size))) for name, size in low.parts.items()}
    phases = {name: size + round(further * (high.phases[name] - size)) for name, size in low.phases.items()}
    if shape.experts:
        every = shape.weights / dataclasses.replace(shape, experts=1, mlp=shape.mlp * shape.chosen).weights
        parts |= {name: round(every * parts[name]) for name in SHARDED}
    return MemoryPlan(parts, phases, low.host + round(further * (high.host - low.host)))


def _imagined(shape: Shape, layers: int, config: TrainConfig, work: Work) -> MemoryPlan:
    from transformers import AutoConfig

    kind = shape.kind if shape.kind in ("llama", "qwen2", "qwen3") else "llama"
    model = AutoConfig.for_model(
        kind, vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=layers,
        intermediate_size=shape.mlp * max(1, shape.chosen), num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, tie_word_embeddings=shape.tied,
    )  # fmt: skip
    return plan_memory(Outline(shape.name, model, None), load_recipe("grpo"), config, work)
