"""Record what other projects' own code returns, so that `tests/test_parity.py` needs none of them installed.

Run by hand, each peer in a virtual environment of its own (their pins exclude one another):

    pip install torch verl==0.9.1 && python tests/peers/record.py verl > tests/peers/verl.json
    pip install torch trl==1.16.0 && python tests/peers/record.py trl > tests/peers/trl.json

A loss record holds the loss and ∂loss/∂log_probs on the kept tokens, row by row. All is float64 on the CPU,
with inputs from `cases.json` (written by `cases.py`).
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

GROUP = 4  # responses per prompt in cases.json
LENGTH = 10  # a constant generation limit that differs from the padded length 7
NO_DUAL_CLIP = {"clip_ratio_c": 1e30}
SCALE = {"global_batch_info": {"loss_scale_factor": LENGTH}}
Record = dict[str, Any]

# name: (policy loss, aggregation, ActorConfig fields); ActorConfig's default is to clip at 0.2 on both sides
VERL_LOSSES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vanilla": ("vanilla", "token-mean", NO_DUAL_CLIP),
    "vanilla/dual-clip": ("vanilla", "token-mean", {"clip_ratio_c": 3.0}),
    "vanilla/clip-higher": ("vanilla", "token-mean", {**NO_DUAL_CLIP, "clip_ratio_high": 0.28}),
    "vanilla/seq-mean-token-mean": ("vanilla", "seq-mean-token-mean", NO_DUAL_CLIP),
    "vanilla/seq-mean-token-sum": ("vanilla", "seq-mean-token-sum", NO_DUAL_CLIP),
    "vanilla/seq-mean-token-sum-norm": ("vanilla", "seq-mean-token-sum-norm", {**NO_DUAL_CLIP, **SCALE}),
    "gspo": ("gspo", "seq-mean-token-mean", {"clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}),
    "gspo/wide": ("gspo", "seq-mean-token-mean", {"clip_ratio_high": 0.28}),
    "cispo": ("cispo", "token-mean", {"clip_ratio_high": 0.28}),
    "gpg": ("gpg", "token-mean", {}),
}
VERL_ADVANTAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "advantage/grpo": ("grpo", {}),
    "advantage/grpo/no-std": ("grpo", {"norm_adv_by_std_in_grpo": False}),
    "advantage/rloo": ("rloo", {}),
    "advantage/reinforce_plus_plus_baseline": ("reinforce_plus_plus_baseline", {}),
}

CLIP = {"epsilon": 0.2, "epsilon_high": 0.28}
PARTS = {"gradient_accumulation_steps": 4}  # one optimiser step over four micro-batches of three responses
SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
# name: GRPOConfig fields
TRL_LOSSES: dict[str, dict[str, Any]] = {
    **{kind: {"loss_type": kind, **CLIP} for kind in ("grpo", "bnpo", "dr_grpo", "dapo")},
    **{f"{kind}/parts": {"loss_type": kind, **CLIP, **PARTS} for kind in ("grpo", "bnpo", "dr_grpo", "dapo")},
    "grpo/beta": {"loss_type": "grpo", "beta": 0.1, "use_bias_correction_kl": False, **CLIP},
    "dapo/beta": {"loss_type": "dapo", "beta": 0.1, "use_bias_correction_kl": False, **CLIP},
    "grpo/beta-corrected": {"loss_type": "grpo", "beta": 0.1, **CLIP},  # the default in TRL 1.16
    "grpo/delta": {"loss_type": "grpo", "delta": 3.0, **CLIP},
    "gspo": {**SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4},
    "gspo/wide": {**SEQUENCE, **CLIP},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.28},
}
TRL_ADVANTAGES = {f"advantage/{scale}": {"scale_rewards": scale} for scale in ("group", "none")}


def load_cases() -> Any:
    """The stored inputs: numbers as float64, masks and ids as the integers that every peer accepts."""
    cases = json.loads(Path(__file__).with_name("cases.json").read_text())
    for case in cases.values():
        for key, value in case.items():
            integer = key in ("response_mask", "group_ids")
            case[key] = torch.tensor(value, dtype=torch.long if integer else torch.float64)
    return cases


def differentiated(case: dict[str, torch.Tensor], leaf: torch.Tensor, loss: torch.Tensor) -> Record:
    """The loss and its gradient on the kept tokens."""
    (gradient,) = torch.autograd.grad(loss, leaf)
    return {"loss": loss.item(), "gradient": gradient[case["response_mask"].bool()].tolist()}


def record_verl() -> Iterator[Record]:
    """verl.trainer.ppo.core_algos: policy losses and KL penalties on every case, advantages once."""
    from verl.trainer.ppo import core_algos
    from verl.workers.config import ActorConfig

    for case_name, case in load_cases().items():
        leaf, mask = case["log_probs"].requires_grad_(), case["response_mask"]
        for name, (mode, aggregation, fields) in VERL_LOSSES.items():
            config = ActorConfig(strategy="fsdp", rollout_n=GROUP, ppo_micro_batch_size_per_gpu=len(mask), **fields)
            function = core_algos.get_policy_loss_fn(mode)
            advantages = case["advantages"][:, None].expand_as(leaf)
            loss, _ = function(case["old_log_probs"], leaf, advantages, mask, aggregation, config)
            yield entry(case_name, name, function, fields, **differentiated(case, leaf, loss))
        for kind in ("k1", "k2", "k3"):
            values = core_algos.kl_penalty(leaf, case["ref_log_probs"], kind)[mask.bool()]
            found = differentiated(case, leaf, values.sum())
            yield entry(case_name, kind, core_algos.kl_penalty, {}, values=values.tolist(), **found)
    # Rewards are the same in every case. All responses get one length here, because verl whitens over tokens.
    whole, outcome = torch.ones_like(mask), torch.zeros_like(leaf)
    outcome[:, -1] = case["rewards"]
    for name, (estimator, options) in VERL_ADVANTAGES.items():
        function = core_algos.get_adv_estimator_fn(estimator)
        values = function(outcome, whole, index=case["group_ids"].numpy(), **options)[0][:, 0]
        yield entry("any", name, function, options, values=values.tolist())


def record_trl() -> Iterator[Record]:
    """trl.GRPOTrainer: a real trainer, of which only the model call is replaced, to hand it our log-probs."""
    from trl import GRPOTrainer

    cases = load_cases()
    for name, fields in TRL_LOSSES.items():
        with trl_trainer(fields) as trainer:
            for case_name, case in cases.items():
                leaf = case["log_probs"].requires_grad_()
                loss = torch.stack(list(trl_losses(trainer, case, leaf))).sum()  # gradients of micro-batches add up
                yield entry(case_name, name, GRPOTrainer._compute_loss, fields, **differentiated(case, leaf, loss))
    for name, fields in TRL_ADVANTAGES.items():
        with trl_trainer(fields) as trainer:
            trainer.reward_funcs = [lambda **_: case["rewards"].tolist()]
            found = trainer._generate_and_score_completions([{"prompt": "a"}] * len(case["rewards"]))
        function, values = GRPOTrainer._generate_and_score_completions, found["advantages"].tolist()
        yield entry("any", name, function, fields, values=values)


def trl_losses(trainer: Any, case: dict[str, torch.Tensor], leaf: torch.Tensor) -> Iterator[torch.Tensor]:
    """The loss of each micro-batch of one optimiser step."""
    parts = trainer.args.gradient_accumulation_steps
    trainer.current_gradient_accumulation_steps = parts  # this and the next line: what the training loop does
    trainer.model.train()
    for rows in torch.arange(len(leaf)).chunk(parts):
        mask = case["response_mask"][rows]
        stub = (leaf[rows], torch.zeros_like(leaf[rows]), None)  # log-probs, entropies, auxiliary loss
        trainer._get_per_token_logps_and_entropies = lambda *_, stub=stub, **__: stub
        inputs = {
            "prompt_ids": torch.zeros_like(mask[:, :1]),
            "prompt_mask": torch.ones_like(mask[:, :1]),
            "completion_ids": torch.zeros_like(mask),
            "completion_mask": mask,
            "advantages": case["advantages"][rows],
            "old_per_token_logps": case["old_log_probs"][rows],
            "ref_per_token_logps": case["ref_log_probs"][rows],
            "num_items_in_batch": case["response_mask"].sum(),
        }
        yield trainer._compute_loss(trainer.model, inputs)


@contextlib.contextmanager
def trl_trainer(fields: dict[str, Any]) -> Iterator[Any]:
    """A GRPOTrainer around a tiny random model, with 12 responses per optimiser step."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=2, bos_token_id=0, eos_token_id=1, num_attention_heads=1, **sizes)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        arguments = GRPOConfig(
            folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            num_generations=GROUP,
            max_completion_length=LENGTH,
            per_device_train_batch_size=12 // fields.get("gradient_accumulation_steps", 1),
            **fields,
        )
        data = Dataset.from_list([{"prompt": "a"}] * 3)
        yield GRPOTrainer(folder, lambda **_: [], arguments, data, processing_class=tokenizer)


def entry(case: str, name: str, function: Any, settings: dict[str, Any], **numbers: Any) -> Record:
    """One record, with the peer's function that produced it."""
    source = f"{function.__module__}.{function.__qualname__}"
    return {"case": case, "name": name, "function": source, "settings": settings, **numbers}


if __name__ == "__main__":
    peer = sys.argv[1]
    with contextlib.redirect_stdout(sys.stderr):  # the peers print to stdout while they work
        records = list({"verl": record_verl, "trl": record_trl}[peer]())
    versions = {package: metadata.version(package) for package in (peer, "torch", "transformers")}
    lines = ",\n".join(json.dumps(record) for record in records)
    print(f'{{"versions": {json.dumps(versions)},\n"records": [\n{lines}\n]}}')
