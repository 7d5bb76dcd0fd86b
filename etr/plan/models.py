"""Shapes of models: published ones by name, any other from its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etr.errors import InputError, unknown
from etr.files import read_json


@dataclass(frozen=True)
class Shape:
    """A decoder with grouped-query attention and gated MLPs, dense or with experts in every layer.

    kind: transformers' model_type; heads, kv_heads, head_dim: of attention; mlp: width of an MLP or of one expert;
    experts: in a layer (0: a plain MLP), of which each token visits `chosen`; tied: the head is the embedding.
    """

    name: str
    kind: str
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    tied: bool
    experts: int = 0
    chosen: int = 0

    @property
    def attention(self) -> int:
        """Weights of one layer's four projections, norms and biases left out."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def head(self) -> int:
        """Weights of the head, which are also the size of the embedding."""
        return self.vocabulary * self.hidden

    @property
    def weights(self) -> int:
        """All weights, norms and biases left out (together under 0.1 %)."""
        layer = self.attention + 3 * self.hidden * self.mlp * max(1, self.experts) + self.hidden * self.experts
        return self.layers * layer + self.head * (1 if self.tied else 2)

    @property
    def multiplied(self) -> int:
        """Weights that one token is multiplied with: the head counts, looking up the embedding does not."""
        layer = self.attention + 3 * self.hidden * self.mlp * max(1, self.chosen) + self.hidden * self.experts
        return self.layers * layer + self.head

    def adapters(self, rank: int) -> int:
        """Weights of LoRA adapters on all linear layers but the head (2106.09685): r · (in + out) for each of them."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        return self.layers * rank * (sides + 3 * (self.hidden + self.mlp) * max(1, self.experts))

    def forward_flops(self, context: float) -> float:
        """Operations for one token that attends to `context` tokens: 2 a weight, and 4 · layers · heads · width each.

        Backward takes twice as many. The count is that of verl 0.9.1's flops_counter.py (read in code), which leaves
        out softmax, norms and activations; its context is half the sequence, as here.
        """
        return 2.0 * self.multiplied + 4.0 * self.layers * self.heads * self.head_dim * context

    def cache_bytes(self, each: int = 2) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * each


def _qwen2(name: str, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, tied: bool = False) -> Shape:
    vocabulary = 151936 if tied else 152064
    return Shape(name, "qwen2", vocabulary, hidden, layers, heads, kv_heads, hidden // heads, mlp, tied)


def _qwen3(name: str, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, tied: bool = False) -> Shape:
    return Shape(name, "qwen3", 151936, hidden, layers, heads, kv_heads, 128, mlp, tied)


def _llama(name: str, hidden: int, layers: int, heads: int, mlp: int, tied: bool = False) -> Shape:
    return Shape(name, "llama", 128256, hidden, layers, heads, 8, hidden // heads, mlp, tied)


# Published shapes (the models' config.json). A test adds up each and compares with the size that its card states.
SHAPES = {
    shape.name: shape
    for shape in (
        _qwen2("qwen2.5-0.5b", 896, 24, 14, 2, 4864, tied=True),
        _qwen2("qwen2.5-1.5b", 1536, 28, 12, 2, 8960, tied=True),
        _qwen2("qwen2.5-3b", 2048, 36, 16, 2, 11008, tied=True),
        _qwen2("qwen2.5-7b", 3584, 28, 28, 4, 18944),
        _qwen2("qwen2.5-14b", 5120, 48, 40, 8, 13824),
        _qwen2("qwen2.5-32b", 5120, 64, 40, 8, 27648),
        _qwen2("qwen2.5-72b", 8192, 80, 64, 8, 29568),
        _qwen3("qwen3-0.6b", 1024, 28, 16, 8, 3072, tied=True),
        _qwen3("qwen3-1.7b", 2048, 28, 16, 8, 6144, tied=True),
        _qwen3("qwen3-4b", 2560, 36, 32, 8, 9728, tied=True),
        _qwen3("qwen3-8b", 4096, 36, 32, 8, 12288),
        _qwen3("qwen3-14b", 5120, 40, 40, 8, 17408),
        _qwen3("qwen3-32b", 5120, 64, 64, 8, 25600),
        Shape("qwen3-30b-a3b", "qwen3", 151936, 2048, 48, 32, 4, 128, 768, False, experts=128, chosen=8),
        _llama("llama3.2-1b", 2048, 16, 32, 8192, tied=True),
        _llama("llama3.2-3b", 3072, 28, 24, 8192, tied=True),
        _llama("llama3.1-8b", 4096, 32, 32, 14336),
        _llama("llama3.1-70b", 8192, 80, 64, 28672),
        Shape("smollm2-135m", "llama", 49152, 576, 30, 9, 3, 64, 1536, tied=True),
    )
}
SIZES: dict[str, str] = {}  # a size alone means the first family above that has it
for _name in SHAPES:
    SIZES.setdefault(_name.split("-", 1)[1], _name)


def shape_of(name: str) -> Shape:
    """A shape by name (`qwen3-8b`), by size alone (`7b`: Qwen2.5 where it has that size), or of a config.json.

    Raises InputError for an unknown name, and for a config whose shape is not a decoder of this kind.
    """
    key = name.lower()
    key = SIZES.get(key, key)
    if key in SHAPES:
        return SHAPES[key]
    path = Path(name).expanduser()
    path = path / "config.json" if path.is_dir() else path
    if path.is_file():
        return from_config(path.parent.name or name, read_json(path))
    raise InputError(f"{unknown('model', name, [*SHAPES, *SIZES])}; or give a folder with a config.json")


def from_config(name: str, config: dict[str, Any]) -> Shape:
    """The shape that a config.json states. Raises InputError where it misses a number or has another kind of layer."""
    text = config.get("text_config", config) if isinstance(config, dict) else {}
    try:
        hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
        experts = int(text.get("num_experts") or text.get("num_local_experts") or 0)
        return Shape(
            name,
            kind=str(text.get("model_type", "llama")),
            vocabulary=int(text["vocab_size"]),
            hidden=hidden,
            layers=int(text["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(text.get("num_key_value_heads") or heads),
            head_dim=int(text.get("head_dim") or hidden // heads),
            mlp=int((text.get("moe_intermediate_size") if experts else None) or text["intermediate_size"]),
            tied=bool(text.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            experts=experts,
            chosen=int(text["num_experts_per_tok"]) if experts else 0,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"the config of '{name}' does not state the shape of a decoder ({error!r}); `etr plan` knows models with "
            "hidden_size, num_hidden_layers, num_attention_heads, intermediate_size and vocab_size"
        ) from error
