"""Which rollout engine to use, and the sentence that says why."""

from __future__ import annotations

from collections.abc import Callable

from etr import plugins
from etr.errors import InputError, unknown
from etr.llm.extensions import ENGINES, OWN_ENGINES, plugin_engine
from etr.llm.models import LanguageModel
from etr.llm.rollout import vllm_compat
from etr.llm.rollout.base import EngineError, EngineSettings, RolloutEngine
from etr.llm.rollout.transformers_engine import TransformersEngine


def make_engine(
    name: str, language_model: LanguageModel, settings: EngineSettings, say: Callable[[str], None] = lambda text: None
) -> RolloutEngine:
    """The engine of that name: auto, transformers, vllm, a plugin's, or a vLLM server's address; `say` hears which.

    `auto` is vLLM where it is installed and runs this model, transformers otherwise. Raises InputError for an unknown
    name, for vllm where it is not installed or cannot run the model, and EngineError where it does not start.
    """
    if name.startswith(("http://", "https://")):
        from etr.llm.rollout.server_engine import ServerEngine

        return ServerEngine(name, language_model, settings)
    if name not in OWN_ENGINES:
        brought: RolloutEngine | None = plugin_engine(name, language_model, settings)
        if brought is None:
            hint = ", or the http:// address of a vLLM server"
            raise InputError(unknown("engine", name, (*OWN_ENGINES, *ENGINES)) + hint)
        say(f"rollout engine: {name} ({plugins.origin(ENGINES[name])})")
        return brought
    chosen, reason = choose_engine(name, language_model)
    if chosen == "vllm":
        from etr.llm.rollout.vllm_engine import VllmEngine

        try:
            engine = VllmEngine(language_model, settings)
        except EngineError as error:
            if name != "auto":
                raise
            reason = str(error).split(";")[0]
        else:
            say(f"rollout engine: vllm ({reason})")
            return engine
    say(f"rollout engine: transformers ({reason})")
    return TransformersEngine(language_model, settings.max_new_tokens, settings.temperature)


def choose_engine(name: str, language_model: LanguageModel) -> tuple[str, str]:
    """The engine that `name` stands for with this model, and the reason, without starting anything."""
    if name != "auto":
        return name, "as asked for"
    reason = vllm_compat.obstacle(language_model.model)
    if reason is None:
        return "vllm", f"vLLM {vllm_compat.installed()} is installed and runs this model"
    return "transformers", reason
