"""A vLLM server over HTTP: one completion a request, token ids and log-probs in JSON; weights by the server's own API.

Start it on this host or another, as `etr.llm.rollout.server_http.START` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.distributed import World
from etr.llm.export import checked, exported_weights, weight_names
from etr.llm.models import LanguageModel
from etr.llm.rollout import vllm_compat
from etr.llm.rollout.base import EngineError, EngineSettings, Rollout, check_prompts, pack_lists, vocabulary_size
from etr.llm.rollout.seeds import check_seeds
from etr.llm.rollout.server_http import START, Server
from etr.llm.rollout.weight_push import Push, choose_push
from etr.llm.rollout.weight_stream import Described

AT_ONCE = 64  # requests in flight; the server batches them


class ServerEngine:
    """The rollout engine behind an address. Its weights arrive the way the server was started for (`choose_push`)."""

    name = "vllm-server"

    def __init__(self, address: str, language_model: LanguageModel, settings: EngineSettings) -> None:
        """Raises EngineError when nobody answers there, InputError when its log-probs are not those of sampling."""
        self.server = Server(address, settings.timeout)
        self.language_model, self.settings = language_model, settings
        model = language_model.model
        # In the format that the engine samples in: what is trained may be its float32 masters.
        self._described = [Described(name, x.dtype, tuple(x.shape)) for name, x in exported_weights(model)]
        self._names = weight_names(model)
        self._bias = vllm_compat.bias(vocabulary_size(language_model), model.config.get_text_config().vocab_size)
        self._push: Push | None = None
        self._shows_head = True
        self._served = str(self.server.ask("/v1/models")["data"][0]["id"])
        if settings.temperature != 1.0:
            self._check_mode()

    def generate(self, prompts: list[list[int]], group_size: int, seeds: Sequence[int]) -> Rollout:
        """Sample as `RolloutEngine.generate` says; all requests are in flight at once."""
        check_prompts(prompts)
        check_seeds(seeds, len(prompts), group_size)
        repeated = [prompt for prompt in prompts for _ in range(group_size)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(self._sample, repeated, seeds))
        tokens, log_probs = zip(*answers, strict=True)
        return pack_lists(self.language_model, prompts, group_size, tokens, log_probs)

    def score(self, sequences: Sequence[list[int]]) -> list[Tensor]:
        """log p of each token but the first, temperature 1, over the model's whole vocabulary."""
        check_prompts(sequences)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._score, sequences))

    def head_digest(self) -> str | None:
        """As `etr.llm.rollout.head.ShowsHead` says; None from a server that was started without the extension."""
        if not self._shows_head:
            return None
        try:
            found = self.server.ask("/collective_rpc", {"method": "etr_head_digest"})["results"]
        except InputError:
            self._shows_head = False  # it lacks the method, or is gone, which the next question will tell
            return None
        return " ".join(found)

    @property
    def version(self) -> int:
        """That of the weights which the server got last."""
        return self.server.version

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Send the weights, of several processes by the main one; InputError where the server takes none."""
        world, stream = World.present(), checked(weights, self._names)

        def pushed() -> None:
            try:
                if world.main:
                    self._send(stream, version)
            finally:
                for _ in stream:  # sharded weights are gathered by all processes together, to the last
                    pass

        world.together(pushed)
        self.server.version = version

    def _send(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        if self._push is None:
            self._push = choose_push(self.server, self._described, self.language_model.device)
        self._push.send(weights, version)
        self.server.ask("/reset_prefix_cache", {})

    def sleep(self) -> None:
        """Nothing: the server's memory is its own."""

    def wake(self) -> None:
        """Nothing: the server never slept."""

    def close(self) -> None:
        """Close the way for weights; the server goes on."""
        if self._push is not None:
            with suppress(EngineError, OSError):
                self._push.close()
            self._push = None

    def _sample(self, prompt: list[int], seed: int) -> tuple[list[int], list[float]]:
        settings = self.settings
        choice = self._complete(
            prompt=prompt, max_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed, logprobs=0
        )
        tokens, values = choice.get("token_ids"), choice["logprobs"]["token_logprobs"]
        if tokens is None or len(tokens) != len(values):
            raise EngineError(
                f"the vllm server at {self.server.address} sends no token ids; it needs vLLM 0.24 or newer"
            )
        return tokens, values

    def _score(self, sequence: list[int]) -> Tensor:
        choice = self._complete(prompt=sequence, max_tokens=1, temperature=1.0, seed=0, prompt_logprobs=0)
        pairs = zip(sequence[1:], choice["prompt_logprobs"][1:], strict=True)
        return torch.tensor([table[str(token)]["logprob"] for token, table in pairs])

    def _complete(self, **options: Any) -> dict[str, Any]:
        bias = {} if self._bias is None else {"logit_bias": {str(i): value for i, value in self._bias.items()}}
        pure = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1, "add_special_tokens": False}
        ends = {"ignore_eos": True, "stop_token_ids": list(self.language_model.eos_ids), "return_token_ids": True}
        answer = self.server.ask("/v1/completions", {"model": self._served, **pure, **ends, **bias, **options})
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    def _check_mode(self) -> None:
        """Refuse a server whose log-probs are those before the temperature: every ratio would be wrong."""
        prompt = [self.language_model.eos_ids[0]]
        tokens, values = self._sample(prompt, seed=0)
        raw = self._score([*prompt, *tokens])
        if torch.allclose(torch.tensor(values), raw, atol=1e-4):
            raise InputError(
                f"the vllm server at {self.server.address} gives log-probs from before the temperature "
                f"({self.settings.temperature:g}) is applied; start it with: {START}"
            )
