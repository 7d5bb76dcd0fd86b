"""One contender of `etr bench llm` in a process of its own, so that its peak memory is its own.

python -m etr.bench.llm_child WHAT '{"model": "folder", ...}'     prints one line of JSON
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from etr.bench import paired, timed
from etr.bench.llm_work import Work, write_questions
from etr.errors import InputError
from etr.llm.config import TrainConfig
from etr.llm.peak import Peak, resident
from etr.llm.rollout import EngineSettings, make_engine, request_seeds
from etr.llm.setup import build
from etr.llm.tasks import encode
from etr.llm.train import Trainer
from etr.recipe import load_recipe

REWARD = "etr.bench.llm_work:vowels"


def iteration(work: Work) -> dict[str, Any]:
    """Whole steps of the trainer: seconds of each, of its phases, and memory."""
    device = torch.device(work.device)
    memory = Peak(device)
    with tempfile.TemporaryDirectory() as folder, trainer_for(work, Path(folder)) as trainer:
        built = memory.now()
        if work.engine != "transformers":  # started after the trainer, so that each one's memory is known
            settings = EngineSettings(work.tokens, 1.0)
            trainer.collector.engine = make_engine(work.engine, trainer.language_model, settings)
        engine = memory.now() - built
        rows, seconds = [], []
        for step in range(1, work.iterations + 2):
            cpu = time.process_time()
            rows.append(trainer.step(step))
            seconds.append(time.process_time() - cpu)
    return {
        "iteration": [row["seconds"] for row in rows],
        **{name: [row[f"seconds/{name}"] for row in rows] for name in ("rollout", "update", "sync")},
        "cpu": seconds,
        "tokens": [round(row["length"] * work.prompts * work.group_size) for row in rows],
        "peak": peak_bytes(device),
        "engine_bytes": engine,
    }


def trainer_for(work: Work, folder: Path) -> Trainer:
    """The trainer with the embedded engine; questions go through a file, as a user's do."""
    torch.set_num_threads(work.threads)
    config = TrainConfig(
        model=work.model, task=str(write_questions(folder / "questions.jsonl", work.questions)), reward=REWARD,
        steps=work.iterations + 1, prompts=work.prompts, group_size=work.group_size, max_new_tokens=work.tokens,
        engine="transformers", device=work.device, dtype=work.dtype, micro_batch_tokens=work.micro_batch_tokens,
        eval_items=0, observe_every=0, compile_layers=work.compile_layers,
    )  # fmt: skip
    recipe = load_recipe("grpo", {"optimizer.updates": work.updates, "optimizer.lr": 1e-6})
    return build(recipe, config, lambda text: None)


def rollout(work: Work) -> dict[str, Any]:
    """Sampling alone, in turns on one engine: ours, and for vLLM its own `generate` with what training needs of it."""
    with tempfile.TemporaryDirectory() as folder, trainer_for(work, Path(folder)) as trainer:
        lm, items = trainer.language_model, trainer.collector.task.items[: work.prompts]
        prompts = [encode(lm.tokenizer, item) for item in items]
        seeds = request_seeds(0, 1, range(work.prompts), work.group_size)
        engine = make_engine(work.engine, lm, EngineSettings(work.tokens, 1.0))
        candidates: dict[str, Callable[[], object]] = {
            f"etr, {work.engine}": lambda: engine.generate(prompts, work.group_size, seeds)
        }
        if work.engine == "vllm":
            candidates["bare vllm"] = bare_vllm(engine, prompts, work)
        else:
            candidates["bare transformers"] = bare_transformers(lm, prompts, work)
        seconds = paired({name: timed(run) for name, run in candidates.items()}, work.iterations)
        engine.close()
    return {"seconds": seconds, "tokens": work.prompts * work.group_size * work.tokens}


def bare_vllm(engine: Any, prompts: list[list[int]], work: Work) -> Callable[[], object]:
    """vLLM as one would call it by hand: a request for each prompt with n samples, log-probs of the sampled tokens."""
    from vllm import SamplingParams

    parameters = SamplingParams(
        n=work.group_size, temperature=1.0, max_tokens=work.tokens, logprobs=0, ignore_eos=True, detokenize=False
    )
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    return lambda: engine._llm.generate(requests, parameters, use_tqdm=False)


def bare_transformers(lm: Any, prompts: list[list[int]], work: Work) -> Callable[[], object]:
    """transformers' `generate` on the padded prompts, each repeated for its group."""
    from etr.llm.rollout.base import left_pad

    ids, mask = (x.repeat_interleave(work.group_size, 0) for x in left_pad(prompts, lm.pad_id, lm.device))

    def run() -> object:
        with torch.no_grad():
            return lm.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=work.tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
            )

    return run


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process: of torch's allocator on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM")  # getrusage's peak would begin with that of the process which started this one


WHAT: dict[str, Callable[[Work], dict[str, Any]]] = {"iteration": iteration, "rollout": rollout}


def main(what: str, spec: str) -> None:
    values = json.loads(spec)
    work = Work(**{**values, "questions": tuple(values["questions"])})
    try:
        result = WHAT[what](work)
    except InputError as error:
        result = {"skipped": str(error)}
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
