"""TRL's own code: a real GRPOTrainer (or RLOOTrainer, GMPOTrainer) of which only the model call is replaced.

Imported without TRL; calling anything needs `pip install trl==1.16.0`, which must be another environment than verl's.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor

from peers.cases import GROUP, ROWS
from peers.inputs import advantages_of

PACKAGES = ("trl", "torch", "transformers")
LENGTH = 10  # a constant generation limit that differs from the padded length 7
CLIP = {"epsilon": 0.2, "epsilon_high": 0.28}
PARTS = {"gradient_accumulation_steps": 4}  # one optimiser step over four micro-batches of three responses
SEQUENCE = {"importance_sampling_level": "sequence"}
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo")
OTHERS: dict[str, dict[str, Any]] = {
    "cispo": {"epsilon_high": 1.28},
    "sapo": {},
    "luspo": {**SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4},
    "vespo": {},
}
# name: fields of the trainer's arguments; the name before the stroke is the loss type, or the trainer
LOSSES: dict[str, dict[str, Any]] = {
    **{kind: {"loss_type": kind, **CLIP} for kind in CLIPPED},
    **{f"{kind}/parts": {"loss_type": kind, **CLIP, **PARTS} for kind in CLIPPED},
    **{kind: {"loss_type": kind, **fields} for kind, fields in OTHERS.items()},
    **{f"{kind}/parts": {"loss_type": kind, **fields, **PARTS} for kind, fields in OTHERS.items()},
    "grpo/beta": {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False, **CLIP},
    "dapo/beta": {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": False, **CLIP},
    "grpo/beta-corrected": {"loss_type": "grpo", "beta": 0.1, **CLIP},  # the default in TRL 1.16
    "grpo/delta": {"loss_type": "grpo", "delta": 3.0, **CLIP},
    "dapo/delta": {"loss_type": "dapo", "delta": 1.5, **CLIP},
    "grpo/sequence": {"loss_type": "grpo", **SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4},  # GSPO
    "grpo/sequence-wide": {"loss_type": "grpo", **SEQUENCE, **CLIP},
    "dapo/sequence": {"loss_type": "dapo", **SEQUENCE, **CLIP},
    "sapo/wide": {"loss_type": "sapo", "sapo_temperature_pos": 0.5, "sapo_temperature_neg": 3.0},
    "luspo/wide": {"loss_type": "luspo", **SEQUENCE, **CLIP},
    "luspo/token": {"loss_type": "luspo", **CLIP},
    "vespo/other": {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_pos": 1.5, "vespo_k_neg": 0.5}
    | {"vespo_lambda_neg": 1.0},
    "grpo/off-policy-mask": {"loss_type": "grpo", "off_policy_mask_threshold": 0.1, **CLIP},
    "dapo/high-entropy": {"loss_type": "dapo", "top_entropy_quantile": 0.2, **CLIP},
    "dapo/entropy-bonus": {"loss_type": "dapo", "entropy_coef": 0.01, **CLIP},
    "grpo/token-advantages": {"loss_type": "grpo", **CLIP},
    "grpo/weighted": {"loss_type": "grpo", "engine": True, **CLIP},
    "vespo/weighted": {"loss_type": "vespo", "engine": True},
    "gmpo": {"trainer": "gmpo", "epsilon": 0.4, "epsilon_high": 0.4},
    "gmpo/asymmetric": {"trainer": "gmpo", "epsilon": 0.2, "epsilon_high": 0.6},
    "rloo": {"trainer": "rloo", "epsilon": 0.2, "epsilon_high": 0.28},
}
KL: tuple[str, ...] = ()
TWO = {"multi_objective_aggregation": "normalize_then_sum"}
ADVANTAGES: dict[str, dict[str, Any]] = {
    **{f"scale_rewards/{scale}": {"scale_rewards": scale} for scale in ("group", "batch", "none")},
    "normalize_then_sum": {**TWO, "reward_weights": [1.0, 1.0]},
    "normalize_then_sum/weighted": {**TWO, "reward_weights": [1.0, 0.25]},
    "rloo": {"trainer": "rloo"},
    "rloo/normalised": {"trainer": "rloo", "normalize_advantages": True},
}
# name: how the trainer treats the sampling engine's other log-probs
WEIGHTS: dict[str, dict[str, Any]] = {
    "token_truncate": {"vllm_importance_sampling_clip_max": 1.2},
    "sequence_truncate": {"vllm_importance_sampling_clip_max": 1.2},
    "token_mask": {"vllm_importance_sampling_clip_min": 0.7, "vllm_importance_sampling_clip_max": 1.3},
    "sequence_mask": {"vllm_importance_sampling_clip_min": 0.7, "vllm_importance_sampling_clip_max": 1.3},
}


def registered() -> dict[str, list[str]]:
    """What this version of TRL can do, by kind: it has no registry, so the lists are read off its own checks."""
    import inspect
    import re

    from trl import GRPOConfig, GRPOTrainer

    source = inspect.getsource(GRPOTrainer)
    named = re.findall(r"self\.loss_type (?:==|in) (\[[^\]]*\]|\"\w+\")", source)
    losses = {name for text in named for name in re.findall(r'"(\w+)"', text)}
    scales = re.findall(r'self\.scale_rewards (?:==|in) (\[[^\]]*\]|"\w+")', source)
    modes = re.findall(r'"((?:token|sequence)_(?:truncate|mask))"', source)
    assert get_args(GRPOConfig.__dataclass_fields__["loss_type"].type) == ()  # a plain string: nothing to read there
    return {
        "loss": sorted(losses),
        "advantage": sorted({name for text in scales for name in re.findall(r'"(\w+)"', text)}),
        "weights": sorted(set(modes)),
    }


def loss(name: str, case: dict[str, Tensor], leaf: Tensor) -> Tensor:
    """The loss of one optimiser step at log-probs `leaf`; gradients of micro-batches add up."""
    fields, case = dict(LOSSES[name]), {**case, "used": advantages_of(name, case)}
    if fields.pop("engine", False):
        case = {**case, "engine": weights("token_truncate", case)}
        fields["vllm_importance_sampling_mode"] = "token_truncate"
    trainer = _trainer(_frozen(fields))
    trainer.use_vllm = "engine" in case  # only now: the engine itself is not needed
    return torch.stack(list(_losses(trainer, case, leaf))).sum()


def _losses(trainer: Any, case: dict[str, Tensor], leaf: Tensor) -> Iterator[Tensor]:
    parts = trainer.args.gradient_accumulation_steps
    trainer.current_gradient_accumulation_steps = parts  # this and the next line: what the training loop does
    trainer.model.train()
    for rows in torch.arange(len(leaf)).chunk(parts):
        mask = case["response_mask"][rows].long()
        stub = (leaf[rows], case["entropy"][rows], None)  # log-probs, entropies, auxiliary loss
        trainer._get_per_token_logps_and_entropies = lambda *_, stub=stub, **__: stub
        inputs = {
            "prompt_ids": torch.zeros_like(mask[:, :1]),
            "prompt_mask": torch.ones_like(mask[:, :1]),
            "completion_ids": torch.zeros_like(mask),
            "completion_mask": mask,
            "advantages": case["used"][rows],
            "old_per_token_logps": case["old_log_probs"][rows],
            "old_logps": (case["old_log_probs"][rows] * mask).sum(-1),  # of whole responses, for RLOO
            "ref_per_token_logps": case["ref_log_probs"][rows],
            "num_items_in_batch": case["response_mask"].sum(),
        }
        if "engine" in case:
            inputs["importance_sampling_ratio"] = case["engine"][rows]
        yield trainer._compute_loss(trainer.model, inputs)


def advantage(name: str, case: dict[str, Tensor]) -> Tensor:
    """Advantages `[B]`, computed by TRL in single precision."""
    fields = dict(ADVANTAGES[name])
    columns = [case["rewards"]] if "reward_weights" not in fields else [*case["components"].T]
    trainer = _trainer(_frozen(fields))
    trainer.reward_funcs = [lambda *_, column=column, **__: column.tolist() for column in columns]
    return _scored(trainer, case)["advantages"]


def weights(name: str, case: dict[str, Tensor]) -> Tensor:
    """Importance weights between rollout engine and trainer, `[B, T]`, or `[B]` for whole responses."""
    trainer = _trainer(_frozen({"vllm_importance_sampling_mode": name, **WEIGHTS[name]}))
    trainer.reward_funcs = [lambda *_, **__: case["rewards"].tolist()]
    longest = int(case["response_mask"].sum(-1).max())
    trainer.use_vllm = True  # only now: the engine itself is not needed
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (case["old_log_probs"][:, :longest], None, None)
    found = _scored(trainer, case)["importance_sampling_ratio"]
    if found.shape[-1] == 1:
        return found[:, 0]
    return torch.nn.functional.pad(found, (0, case["response_mask"].shape[-1] - longest))


def _scored(trainer: Any, case: dict[str, Tensor]) -> dict[str, Any]:
    """What TRL makes of generated responses; generation is replaced by the lengths and log-probs of the case."""
    lengths = case["response_mask"].sum(-1).tolist()
    sampled = [row[:n].tolist() for row, n in zip(case["rollout_log_probs"], lengths, strict=True)]
    completions = [[0] * n for n in lengths]
    texts, prompts = ["a"] * len(lengths), [[0]] * len(lengths)
    trainer._generate = lambda *_: (prompts, completions, None, texts, sampled, {}, None, None)
    if "RLOO" in type(trainer).__name__:
        trainer._generate = lambda *_: (prompts, completions, texts)
    trainer.model.train()
    scored: dict[str, Any] = trainer._generate_and_score_completions([{"prompt": "a"}] * len(lengths))
    return scored


def _frozen(fields: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in fields.items())


@functools.cache
def _trainer(frozen: tuple[tuple[str, Any], ...]) -> Any:
    """A trainer around a tiny random model, with 12 responses per optimiser step."""
    import trl
    from datasets import Dataset
    from trl.experimental import gmpo

    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in frozen}
    kind = fields.pop("trainer", "grpo")
    trainer = {"grpo": trl.GRPOTrainer, "rloo": trl.RLOOTrainer, "gmpo": gmpo.GMPOTrainer}[kind]
    config = {"grpo": trl.GRPOConfig, "rloo": trl.RLOOConfig, "gmpo": gmpo.GMPOConfig}[kind]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = _model(folder)
        arguments = config(
            folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            num_generations=GROUP,
            max_completion_length=LENGTH,
            per_device_train_batch_size=ROWS // fields.get("gradient_accumulation_steps", 1),
            **fields,
        )
        data = Dataset.from_list([{"prompt": "a"}] * 3)
        functions = [lambda *_, **__: [] for _ in fields.get("reward_weights", [1.0])]
        return trainer(folder, functions, arguments, train_dataset=data, processing_class=tokenizer)


def _model(folder: str) -> Any:
    """Saves a model of two words in `folder`; returns its tokenizer."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=2, bos_token_id=0, eos_token_id=1, num_attention_heads=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
