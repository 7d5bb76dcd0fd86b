"""A stand-in for a vLLM server: the paths that the server engine uses, answered by a transformers model."""

from __future__ import annotations

import json
import queue
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from small_models import wide_heads

from etr.llm.models import LanguageModel
from etr.llm.rollout import TransformersEngine
from etr.llm.rollout.weight_stream import Described, receive


class StandIn(ThreadingHTTPServer):
    """The paths of a vLLM server that the engine uses, answered by a transformers model."""

    def __init__(
        self, takes_weights: bool = True, before_temperature: bool = False, backend: str | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.language_model = wide_heads(seed=5)
        self.takes_weights, self.before_temperature, self.backend = takes_weights, before_temperature, backend
        self.update = Update(self.language_model)
        self.workers = 1
        self.lock, self.asked = threading.Lock(), list[dict[str, Any]]()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "served"}]}
        if path == "/v1/completions":
            return {"choices": [self.complete(body)]}
        if not self.takes_weights:
            return None
        if path == "/server_info?config_format=json":
            backend = None if self.backend is None else {"backend": self.backend}
            return {"vllm_config": {"weight_transfer_config": backend}}
        if path == "/get_world_size":
            return {"world_size": self.workers}
        if path in self.update.paths:
            return self.update.paths[path](body)
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights", "no such method"  # nor the extension that shows the head
            weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            self.language_model.model.load_state_dict(weights)
            return {"results": [None]}
        return {} if path == "/reset_prefix_cache" else None

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        engine = TransformersEngine(self.language_model, body["max_tokens"], body["temperature"])
        if "prompt_logprobs" in body:
            scores = engine.score([body["prompt"]])[0].tolist()
            pairs = zip(body["prompt"][1:], scores, strict=True)
            return {"prompt_logprobs": [None, *({str(token): {"logprob": value}} for token, value in pairs)]}
        row = engine.generate([body["prompt"]], 1, [body["seed"]])
        tokens, values = row.completions[0, : row.lengths[0]].tolist(), row.log_probs[0].tolist()  # type: ignore[index]
        if self.before_temperature:
            values = engine.score([[*body["prompt"], *tokens]])[0][-len(tokens) :].tolist()
        return {"token_ids": tokens, "logprobs": {"token_logprobs": values[: len(tokens)]}}


@dataclass
class Update:
    """The weight-transfer calls of a server. Over etr_tcp it is one that connects, over NCCL one that reads `wire`."""

    language_model: LanguageModel
    source: dict[str, Any] = field(default_factory=dict)
    state: str = "idle"
    version: str = "default"
    fails: bool = False
    wire: queue.Queue[torch.Tensor] = field(default_factory=queue.Queue)

    @property
    def paths(self) -> dict[str, Any]:
        return {
            "/init_weight_transfer_engine": self.init,
            "/start_weight_update": self.start,
            "/update_weights": self.receive,
            "/finish_weight_update": self.finish,
            "/update_weight_version": self.rename,
        }

    def init(self, body: dict[str, Any]) -> dict[str, Any]:
        self.source = body["init_info"]
        return {}

    def start(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.state == "idle" and self.source
        self.state = "started"
        return {}

    def receive(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.state == "started"
        self.state = "idle"
        if self.fails:
            raise RuntimeError("no room for weights")
        info = body["update_info"]
        columns = zip(info["names"], info["dtype_names"], info["shapes"], strict=True)
        described = [Described(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in columns]
        if "token" in self.source:
            address, port, token = (self.source[key] for key in ("address", "port", "token"))
            tensors = list(receive(address, port, token, described, 20))
        else:
            tensors = [self.wire.get(timeout=20) for _ in described]
        self.language_model.model.load_state_dict(dict(zip(info["names"], tensors, strict=True)))
        self.state = "received"
        return {}

    def rename(self, body: dict[str, Any]) -> dict[str, Any]:
        self.version = body["new_version"]
        return {}

    def finish(self, body: dict[str, Any]) -> dict[str, Any]:
        assert self.state == "received"
        self.state, self.version = "idle", body["weight_version"] or self.version
        return {}


class Answer(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        with self.server.lock:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            try:
                found, code = self.server.answer(self.path, body), 200
            except Exception as error:
                found, code = {"error": str(error)}, 500
        self.send_response(404 if found is None else code)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass
