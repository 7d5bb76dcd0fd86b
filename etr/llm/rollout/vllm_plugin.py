"""What etr adds to a vLLM server: a way for weights to come over TCP, under the name etr_tcp.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`). Its own backends, nccl and ipc,
begin with `torch.accelerator`, which a host without a GPU does not have (vLLM 0.32: `worker_init_process_group` in
distributed/weight_transfer/nccl_common.py).
"""

from __future__ import annotations

TCP = "etr_tcp"


def register() -> None:
    """Tell vLLM's factory where the backend is; it is imported when a server asks for it. Safe to call twice."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as Factory

    if TCP not in Factory._registry:
        Factory.register_engine(TCP, "etr.llm.rollout.vllm_worker", "TcpWeightTransferEngine")
