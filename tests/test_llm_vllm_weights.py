"""How weights get into a vLLM server: every way against a stand-in server; the real one is in test_llm_vllm_server."""

from __future__ import annotations

import socket
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import disturb, wide_heads
from stand_in_server import StandIn

from etr.errors import InputError
from etr.llm.distributed import World
from etr.llm.export import exported_weights
from etr.llm.rollout import EngineError, EngineSettings, vllm_compat, vllm_plugin, weight_push
from etr.llm.rollout.server_engine import ServerEngine
from etr.llm.rollout.server_http import Server
from etr.llm.rollout.weight_stream import Described, Listener, receive, send

pytest.importorskip("transformers")

needs_vllm = pytest.mark.skipif(vllm_compat.installed() is None, reason="needs vLLM's own classes")


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(backend="etr_tcp") as server:
        yield server
        server.shutdown()


def started(server: StandIn, **options: Any) -> ServerEngine:
    return ServerEngine(server.address, wide_heads(), EngineSettings(8, **options))


def same(server: StandIn, engine: ServerEngine) -> bool:
    own = engine.language_model.model.state_dict()
    return all(torch.equal(x, own[name]) for name, x in server.language_model.model.state_dict().items())


@pytest.mark.parametrize("backend", [None, "etr_tcp"])
def test_weights_arrive_bit_for_bit(backend: str | None) -> None:
    with StandIn(backend=backend) as server:
        engine = started(server)
        for step in (1, 2):
            disturb(engine.language_model, 0.1, step)
            assert not same(server, engine)
            engine.sync(exported_weights(engine.language_model.model), step)
            assert same(server, engine) and engine.version == step
        engine.close()
        server.shutdown()


def test_masters_are_rounded_before_they_travel(server: StandIn) -> None:
    engine = ServerEngine(server.address, wide_heads(dtype=torch.bfloat16), EngineSettings(8))
    trained = wide_heads(seed=3)
    engine.sync(exported_weights(trained.model), 1)
    for name, x in server.language_model.model.state_dict().items():
        assert torch.equal(x, trained.model.state_dict()[name].bfloat16().float()), name


def test_weights_that_are_missing_or_others_are_named(server: StandIn) -> None:
    engine = started(server)
    weights = list(exported_weights(engine.language_model.model))
    with pytest.raises(InputError, match=r"1 weights of the model were not in the push .*\(lm_head.weight\)"):
        engine.sync([pair for pair in weights if pair[0] != "lm_head.weight"], 1)
    with pytest.raises(InputError, match=r"model.embed_tokens.weight \[24, 64\] was announced .* gave lm_head.weight"):
        engine.sync(weights[::-1], 1)
    assert engine.version == 0
    engine.sync(weights, 1)  # and the next push heals what they left
    assert same(server, engine)


def test_a_server_without_the_extension_shows_no_head(server: StandIn) -> None:
    assert started(server).head_digest() is None


def test_a_server_that_fails_is_quoted_and_nobody_waits(server: StandIn) -> None:
    server.update.fails = True
    engine, start = started(server), time.monotonic()
    with pytest.raises(EngineError, match=r"failed at /update_weights \(500: .*no room for weights"):
        engine.sync(exported_weights(engine.language_model.model), 1)
    assert time.monotonic() - start < 10 and engine.version == 0


def test_a_worker_that_never_comes_is_not_waited_for(server: StandIn) -> None:
    server.workers = 2  # and only one comes
    engine, start = started(server, timeout=2.0), time.monotonic()
    with pytest.raises(EngineError, match=rf"server at {server.address}"):
        engine.sync(exported_weights(engine.language_model.model), 1)
    assert time.monotonic() - start < 20


def test_a_way_that_the_trainer_cannot_go_is_refused() -> None:
    for backend, reason in (("ipc", "etr sends by etr_tcp or nccl"), ("nccl", "for that the trainer needs a GPU")):
        with StandIn(backend=backend) as server:
            engine = started(server)
            with pytest.raises(InputError, match=rf"takes weights by {backend}; {reason}.*etr_tcp"):
                engine.sync(exported_weights(engine.language_model.model), 1)
            server.shutdown()


def test_an_address_that_is_not_this_hosts_is_refused(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETR_WEIGHTS_ADDRESS", "192.0.2.1")  # of the block for documentation
    engine = started(server)
    with pytest.raises(EngineError, match=r"have no way out of this host .*; set ETR_WEIGHTS_ADDRESS"):
        engine.sync(exported_weights(engine.language_model.model), 1)


def test_strangers_get_nothing_and_receivers_get_every_format() -> None:
    tensors = [torch.randn(3, 4), torch.randn(5).bfloat16(), torch.tensor(7), torch.randn(4, 2).T, torch.empty(0)]
    described = [Described(str(i), x.dtype, tuple(x.shape)) for i, x in enumerate(tensors)]
    listener = Listener("127.0.0.1")
    found: list[list[torch.Tensor]] = []

    def read(token: str) -> None:
        try:
            found.append(list(receive("127.0.0.1", listener.port, token, described, 10)))
        except ConnectionError:
            found.append([])

    threads = [threading.Thread(target=read, args=(token,)) for token in ("x" * 32, listener.token, listener.token)]
    threads[0].start()
    for thread in threads[1:]:
        time.sleep(0.1)
        thread.start()
    connections = listener.accept(2, lambda: False, 10)
    send(connections, tensors)
    for thread in threads:
        thread.join(10)
    listener.close()
    assert sorted(map(len, found)) == [0, 5, 5]
    for row in found:
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(row, tensors, strict=False))


def test_a_trainer_that_dies_within_a_tensor_is_noticed() -> None:
    listener = Listener("127.0.0.1")

    def half() -> None:
        (connection,) = listener.accept(1, lambda: False, 10)
        connection.sendall(b"\0" * 5)
        connection.close()

    thread = threading.Thread(target=half)
    thread.start()
    with pytest.raises(ConnectionError, match="hung up before w was whole"):
        list(receive("127.0.0.1", listener.port, listener.token, [Described("w", torch.float32, (4,))], 10))
    thread.join()
    listener.close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", listener.port), timeout=1)


class Second(World):
    """The second of two processes; the first says `main_says`."""

    def gather(self, value: Any) -> list[Any]:
        return [main_says, value]


main_says: EngineError | None = None


def test_of_several_processes_the_main_one_sends_and_all_read(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a sharded weight is a collective; a failure of the main process is one of all."""
    engine = started(server)
    monkeypatch.setattr(World, "present", staticmethod(lambda: Second(1, 2)))
    stream = iter(list(exported_weights(engine.language_model.model)))
    engine.sync(stream, 1)
    assert next(stream, None) is None and engine.version == 1 and not server.update.source
    monkeypatch.setattr(sys.modules[__name__], "main_says", EngineError("the vllm server broke off"))
    with pytest.raises(EngineError, match="the vllm server broke off"):
        engine.sync(exported_weights(engine.language_model.model), 2)
    assert engine.version == 1


@needs_vllm
def test_nccl_goes_through_vllms_own_trainer_engine(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's engine with its real handshake and bookkeeping; only the wire between the GPUs is a queue."""
    from vllm.distributed.weight_transfer import nccl_engine

    class Group:
        def destroy(self) -> None:
            joined.append("left")

    def broadcast(iterator: Any, group: Any, src: int, post_iter_func: Any, **sizes: int) -> None:
        assert isinstance(group, Group) and src == 0
        for item in iterator:
            server.update.wire.put(post_iter_func(item).clone())

    def join(info: Any) -> Group:
        joined.append(info)
        return Group()

    joined: list[Any] = []
    monkeypatch.setattr(nccl_engine, "open_trainer_endpoint", join)
    monkeypatch.setattr(nccl_engine, "packed_nccl_broadcast_producer", broadcast)
    engine = started(server)
    engine._push = weight_push.NcclPush(Server(server.address, 20.0), engine._described)
    told = nccl_engine.NCCLWeightTransferInitInfo(**server.update.source)  # vLLM's worker would take it
    assert (told.master_address, told.rank_offset, told.world_size, told.packed) == ("127.0.0.1", 1, 2, True)
    assert told.master_port == joined[0].master_port
    for step in (1, 2):
        disturb(engine.language_model, 0.1, step)
        engine.sync(exported_weights(engine.language_model.model), step)
        assert same(server, engine) and server.update.version == str(step)
    reverse = list(exported_weights(engine.language_model.model))[::-1]
    with pytest.raises(InputError, match="was announced to the vllm server"):
        engine.sync(reverse, 3)
    server.update.wire.put(torch.zeros(1))  # lets the stand-in go
    engine.close()
    assert joined[-1] == "left"


@needs_vllm
def test_vllm_finds_the_plugin() -> None:
    from vllm.distributed.weight_transfer.base import WeightTransferEngine
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for _ in range(2):
        vllm_plugin.register()
    found = WeightTransferEngineFactory._registry[vllm_plugin.TCP]()
    assert issubclass(found, WeightTransferEngine) and not found.__abstractmethods__


def test_the_package_announces_its_plugin() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["vllm.general_plugins"] == {"etr": "etr.llm.rollout.vllm_plugin:register"}
