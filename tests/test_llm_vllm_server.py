"""The server engine: against a stand-in that speaks the server's protocol, and (slow) against a real vLLM server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import disturb, wide_heads

from etr.errors import InputError
from etr.llm.canary import Canary
from etr.llm.export import exported_weights
from etr.llm.models import LanguageModel
from etr.llm.rollout import (
    EngineError,
    EngineSettings,
    TransformersEngine,
    make_engine,
    request_seeds,
    vllm_compat,
)

pytest.importorskip("transformers")

PROMPTS = [[3, 4, 5], [6, 7], [8]]
SEEDS = request_seeds(0, 1, [0, 1, 2], 4)


class StandIn(ThreadingHTTPServer):
    """The paths of a vLLM server that the engine uses, answered by a transformers model."""

    def __init__(self, takes_weights: bool = True, before_temperature: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.language_model = wide_heads(seed=5)
        self.takes_weights, self.before_temperature = takes_weights, before_temperature
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
        if path == "/collective_rpc" and self.takes_weights:
            assert body["method"] == "reload_weights"
            weights = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            self.language_model.model.load_state_dict(weights)
            return {"results": [None]}
        return {} if path == "/reset_prefix_cache" and self.takes_weights else None

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


class Answer(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        with self.server.lock:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            found = self.server.answer(self.path, body)
        self.send_response(404 if found is None else 200)
        self.end_headers()
        self.wfile.write(json.dumps(found).encode())

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@dataclass
class Trained:
    language_model: LanguageModel


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server
        server.shutdown()


def check_engine(address: str) -> None:
    """Weights arrive and are the trainer's; samples have the trainer's log-probs and their own seeds."""
    language_model = wide_heads()
    engine = make_engine(address, language_model, EngineSettings(8, temperature=0.7))
    canary = Canary.create(language_model)
    for step in (1, 2):
        disturb(language_model, 0.2, step)
        engine.sync(exported_weights(language_model.model), step)
        assert canary.check(engine, Trained(language_model), step)["mismatch/canary"] < 1e-4
    rollout = engine.generate(PROMPTS, 4, SEEDS)
    own = TransformersEngine(language_model, 8, 0.7)
    assert rollout.log_probs is not None
    for row, length in enumerate(rollout.lengths.tolist()):
        ids = rollout.sequences[row][rollout.attention_mask[row].bool()]
        with torch.no_grad():
            logits = own.language_model.model(input_ids=ids[None]).logits[0, :-1, : len(language_model.tokenizer)]
        log_pi = (logits / 0.7).log_softmax(-1).gather(-1, ids[1:, None]).squeeze(-1)
        assert torch.allclose(rollout.log_probs[row, :length], log_pi[-length:], atol=1e-4)
        assert bool(rollout.finished[row]) == (int(ids[-1]) in language_model.eos_ids)
    alone = engine.generate([PROMPTS[1]], 1, SEEDS[5:6])
    assert torch.equal(alone.completions[0, : alone.lengths[0]], rollout.completions[5, : rollout.lengths[5]])


def test_the_engine_speaks_the_servers_protocol(server: StandIn) -> None:
    check_engine(server.address)
    asked = server.asked[-1]
    assert (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert asked["ignore_eos"] and asked["stop_token_ids"] == [1] and asked["return_token_ids"]
    assert set(asked["logit_bias"]) == {str(i) for i in range(18, 24)}


def test_a_server_that_takes_no_weights_is_refused() -> None:
    with StandIn(takes_weights=False) as server:
        language_model = wide_heads()
        engine = make_engine(server.address, language_model, EngineSettings(8))
        with pytest.raises(
            InputError, match=r"takes no weights \(it has no /collective_rpc\); start it with: VLLM_SER"
        ):
            engine.sync(exported_weights(language_model.model), 1)
        assert engine.version == 0
        server.shutdown()


def test_log_probs_from_before_the_temperature_are_refused() -> None:
    with StandIn(before_temperature=True) as server:
        with pytest.raises(InputError, match=r"from before the temperature \(0.7\) is applied"):
            make_engine(server.address, wide_heads(), EngineSettings(8, temperature=0.7))
        server.shutdown()


def test_a_dead_server_is_named(server: StandIn) -> None:
    engine = make_engine(server.address, wide_heads(), EngineSettings(8))
    server.shutdown()
    server.server_close()
    with pytest.raises(EngineError, match=rf"server at {server.address} failed at /v1/completions .*version 0"):
        engine.generate(PROMPTS, 4, SEEDS)


def test_weights_that_are_missing_never_reach_the_server(server: StandIn) -> None:
    language_model = wide_heads()
    engine = make_engine(server.address, language_model, EngineSettings(8))
    weights = [pair for pair in exported_weights(language_model.model) if pair[0] != "lm_head.weight"]
    with pytest.raises(InputError, match=r"1 weights of the model were not in the push .*\(lm_head.weight\)"):
        engine.sync(weights, 1)


@pytest.mark.slow
@pytest.mark.skipif(vllm_compat.installed() is None or not vllm_compat.for_cpu(), reason="needs vLLM's build for CPUs")
def test_a_real_server(tmp_path: Path) -> None:
    language_model = wide_heads()
    language_model.model.save_pretrained(tmp_path / "model")
    language_model.tokenizer.save_pretrained(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = "--dtype float32 --enforce-eager --logprobs-mode processed_logprobs --generation-config vllm"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split(), "--host", "127.0.0.1"]
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--model", str(tmp_path / "model"), "--port", str(port)],
            stdout=log, stderr=log, env=os.environ | environment | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "log")
            check_engine(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()
            process.wait(60)


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])
