"""The server engine: against a stand-in that speaks the server's protocol, and (slow) against a real vLLM server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small_models import disturb, wide_heads
from stand_in_server import StandIn

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
from etr.llm.rollout.server_engine import ServerEngine

pytest.importorskip("transformers")

PROMPTS = [[3, 4, 5], [6, 7], [8]]
SEEDS = request_seeds(0, 1, [0, 1, 2], 4)


@dataclass
class Trained:
    language_model: LanguageModel


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn() as server:
        yield server
        server.shutdown()


def check_engine(address: str) -> ServerEngine:
    """Weights arrive and are the trainer's; samples have the trainer's log-probs and their own seeds."""
    language_model = wide_heads()
    engine = make_engine(address, language_model, EngineSettings(8, temperature=0.7))
    assert isinstance(engine, ServerEngine)
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
    return engine


def check_head(engine: ServerEngine) -> None:
    """The server's head is the trainer's after each push: its digest changes when the weights do, and only then."""
    found = []
    for step, size in ((3, 0.0), (4, 1e-3), (5, 0.0)):
        disturb(engine.language_model, size, step)
        engine.sync(exported_weights(engine.language_model.model), step)
        found.append(engine.head_digest())
    assert None not in found and found[0] != found[1] == found[2]


@pytest.mark.parametrize("backend", [None, "etr_tcp"])
def test_the_engine_speaks_the_servers_protocol(backend: str | None) -> None:
    with StandIn(backend=backend) as server:
        check_engine(server.address)
        assert server.update.version == ("default" if backend is None else "2")
        asked = server.asked[-1]
        server.shutdown()
    assert (asked["top_p"], asked["top_k"], asked["min_p"], asked["repetition_penalty"]) == (1.0, 0, 0.0, 1.0)
    assert asked["ignore_eos"] and asked["stop_token_ids"] == [1] and asked["return_token_ids"]
    assert set(asked["logit_bias"]) == {str(i) for i in range(18, 24)}


def test_a_server_that_takes_no_weights_is_refused() -> None:
    with StandIn(takes_weights=False) as server:
        language_model = wide_heads()
        engine = make_engine(server.address, language_model, EngineSettings(8))
        with pytest.raises(
            InputError, match=r"takes no weights \(it has no /server_info[^)]*\); start it with: VLLM_SER"
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


def plugged_in(folder: Path) -> str:
    """A search path on which this version of etr announces its vLLM plugin, installed or not."""
    site = folder / "etr_plugin-0.dist-info"
    site.mkdir(parents=True)
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: etr-plugin\nVersion: 0\n")
    (site / "entry_points.txt").write_text("[vllm.general_plugins]\netr = etr.llm.rollout.vllm_plugin:register\n")
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.mark.slow
@pytest.mark.skipif(vllm_compat.installed() is None or not vllm_compat.for_cpu(), reason="needs vLLM's build for CPUs")
def test_a_real_server(tmp_path: Path) -> None:
    """Weights over TCP by vLLM's own weight-transfer API; the model's head is tied to its embedding."""
    language_model = wide_heads()
    language_model.model.save_pretrained(tmp_path / "model")
    language_model.tokenizer.save_pretrained(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = "--dtype float32 --enforce-eager --logprobs-mode processed_logprobs --generation-config vllm"
    options += " --weight-transfer-config.backend etr_tcp --host 127.0.0.1"
    options += " --worker-extension-cls etr.llm.rollout.vllm_worker.HeadProbe"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()]
    environment = {
        "PYTHONPATH": plugged_in(tmp_path / "site"), "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--model", str(tmp_path / "model"), "--port", str(port)],
            stdout=log, stderr=log, env=os.environ | environment,
        )  # fmt: skip
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, tmp_path / "log")
            engine = check_engine(f"http://127.0.0.1:{port}")
            check_head(engine)
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
