"""vLLM in the process of the trainer, on its CPU or GPU; weights are pushed by reference, never through a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.export import checked, exported_weights, weight_names
from etr.llm.models import LanguageModel
from etr.llm.rollout import vllm_compat
from etr.llm.rollout.base import EngineError, EngineSettings, Rollout, check_prompts, pack_lists, vocabulary_size
from etr.llm.rollout.head import vllm_digest
from etr.llm.rollout.process_state import own_state
from etr.llm.rollout.seeds import check_seeds


class VllmEngine:
    """One vLLM engine, started with the shape of the trainer's model and then fed with its weights."""

    name = "vllm"

    def __init__(self, language_model: LanguageModel, settings: EngineSettings) -> None:
        """Raises EngineError when vLLM does not start, InputError when it cannot run this model."""
        self.language_model, self.settings = language_model, settings
        self.version = 0
        model = language_model.model
        reason = vllm_compat.obstacle(model)
        if reason is not None:
            raise InputError(f"engine vllm cannot run '{language_model.name}': {reason}; use --engine transformers")
        self._names = weight_names(model)
        self._bias = vllm_compat.bias(vocabulary_size(language_model), model.config.get_text_config().vocab_size)
        self._asleep = False
        self._dead: str | None = None
        with self._failing("starting"):
            self._llm = vllm_compat.start(
                model, settings.max_model_len, settings.kv_cache_gib, settings.gpu_memory
            )  # fmt: skip
        self.sync(exported_weights(model), 0)

    def generate(self, prompts: list[list[int]], group_size: int, seeds: Sequence[int]) -> Rollout:
        """Sample as `RolloutEngine.generate` says: a request for each completion, the prompt's cache shared."""
        check_seeds(seeds, len(prompts), group_size)
        settings, stops = self.settings, list(self.language_model.eos_ids)
        parameters = [
            vllm_compat.sampling(
                temperature=settings.temperature, max_tokens=settings.max_new_tokens, seed=seed, logprobs=0,
                stop_token_ids=stops, logit_bias=self._bias,
            )
            for seed in seeds
        ]  # fmt: skip
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        outputs = self._run("sampling", repeated, parameters)
        tokens, log_probs = zip(*map(vllm_compat.sampled, outputs), strict=True)
        return pack_lists(self.language_model, prompts, group_size, tokens, log_probs)

    def score(self, sequences: Sequence[list[int]]) -> list[Tensor]:
        """log p of each token but the first, temperature 1, over the model's whole vocabulary."""
        parameters = vllm_compat.sampling(temperature=1.0, max_tokens=1, prompt_logprobs=0, seed=0)
        outputs = self._run("scoring", sequences, [parameters] * len(sequences))
        return [torch.tensor(vllm_compat.prompt_scores(output)) for output in outputs]

    def head_digest(self) -> str | None:
        """As `etr.llm.rollout.head.ShowsHead` says."""
        with self._failing("asking its head"), own_state():
            found: list[str] = self._llm.apply_model(vllm_digest)
        return found[0]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Push all weights; InputError when one is missing among them, EngineError when the engine fails."""
        self.wake()
        with self._failing("loading weights"), torch.no_grad(), own_state():
            missing = vllm_compat.load(self._llm, checked(weights, self._names))
        if missing:
            raise InputError(
                f"vLLM did not load {len(missing)} of its weights ({', '.join(sorted(missing)[:3])}) at version "
                f"{version}; its names differ from the model's, so use --engine transformers"
            )
        self.version = version

    def sleep(self) -> None:
        """On a GPU: weights to the computer's memory, keys and values dropped. Nothing on a CPU."""
        if not vllm_compat.for_cpu() and not self._asleep:
            with self._failing("going to sleep"):
                self._llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Fetch what `sleep` put away."""
        if self._asleep:
            with self._failing("waking up"):
                self._llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        """Stop vLLM and free its memory."""
        if self._dead is None:
            self._dead = "it was closed"
            vllm_compat.shut_down(self._llm)
            del self._llm

    def _run(self, doing: str, prompts: Sequence[list[int]], parameters: Sequence[Any]) -> list[Any]:
        check_prompts(prompts)
        self.wake()
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        with self._failing(doing), own_state():
            outputs: list[Any] = self._llm.generate(requests, parameters, use_tqdm=False)
        return outputs

    @contextmanager
    def _failing(self, doing: str) -> Iterator[None]:
        """Turns whatever vLLM raises into one sentence, and refuses to go on with a broken engine afterwards."""
        if self._dead is not None:
            raise EngineError(
                f"the vllm engine cannot be used any more: {self._dead}; continue with etr train --resume"
            )
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # an engine fails in many ways: out of memory, a killed worker, a bug
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self._dead = f"{type(error).__name__}: {lines[0] if lines else 'no message'}".rstrip(".")
            raise EngineError(
                f"the vllm engine failed while {doing} (weights of version {self.version}): {self._dead}; continue "
                "from the last checkpoint with etr train --resume, with less memory for it or --engine transformers"
            ) from error
