"""Owns engine profiles: settings of models.toml as the command line and the configuration file of the server they are for."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import orjson

from body_broker.calls import Json
from body_broker.errors import NotFound, SettingsError
from tiers.catalogue import Catalogue, EngineSpec, Profile
from tiers.model import Tier

_HOST = "127.0.0.1"
_SERVED: Mapping[str, str] = {"trtllm": "--served_model_name", "vllm": "--served-model-name"}
_Server = tuple[list[str], str | None, str]
"""Its command, the name of its configuration file, and what stands in that."""
_TRT_NESTED: Mapping[str, tuple[str, ...]] = {
    "kv_cache_free_gpu_memory_fraction": ("kv_cache_config", "free_gpu_memory_fraction"),
    "enable_block_reuse": ("kv_cache_config", "enable_block_reuse"),
    "max_attention_window": ("kv_cache_config", "max_attention_window"),
    "host_cache_size": ("kv_cache_config", "host_cache_size"),
    "speculative_draft_model": ("speculative_config", "speculative_model"),
    "speculative_tokens": ("speculative_config", "max_draft_len"),
    "waiting_queue_policy": ("scheduler_config", "waiting_queue_policy"),
}
_TRT_FLAT = frozenset(
    {"max_batch_size", "max_seq_len", "max_num_tokens", "guided_decoding_backend", "enable_iter_perf_stats"}
)
_SPECULATIVE = ("speculative_draft_model", "speculative_tokens")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A profile as its server takes it.

    Attributes:
        command: What starts the server.
        file: The name of its configuration file; None where the command line says all.
        configuration: What stands in that file.
        setting: What tells the hub of it.
        place: Where that is said.
    """

    command: str
    file: str | None
    configuration: str
    setting: str
    place: str


def profile_of(catalogue: Catalogue, name: str) -> Profile:
    """The profile of this name.

    Raises:
        NotFound: There is none.
    """
    found = catalogue.profiles.get(name)
    if found is None:
        raise NotFound(
            "models.toml has no profile of that name.", next_step=f"It has: {', '.join(sorted(catalogue.profiles))}."
        )
    return found


def render(profile: Profile, engines: Mapping[str, EngineSpec]) -> Rendered:
    """The command line and configuration of a profile.

    Args:
        profile: The one.
        engines: By name; the server calls its model what its engine asks for.

    Raises:
        SettingsError: A setting is none that this server's profiles have.
    """
    missing = [name for name in _SPECULATIVE if name not in profile.settings]
    if len(missing) == 1:
        given = next(name for name in _SPECULATIVE if name not in missing)
        raise SettingsError(f"profiles.{profile.name} has {given} without {missing[0]}.")
    known = engines.get(profile.engine)
    model = profile.says.get("model", known and known.model)
    command, file, configuration = _RENDERERS[profile.serves](profile)
    if model is not None and "served_model_name" not in profile.settings:
        command += [_SERVED[profile.serves], str(model)]
    url = f"http://{_HOST}:{profile.port}"
    if profile.engine in {Tier.GOLD, Tier.SILVER} and not profile.says:
        setting, place = f"BODY_BROKER_{profile.engine.upper()}_URL={url}", "the environment"
    else:
        lines = [f"{name} = {_yaml(value)}" for name, value in {"url": url, **profile.says}.items()]
        setting, place = "\n".join([f"[engines.{profile.engine}]", *lines]), "the file of BODY_BROKER_MODELS"
    return Rendered(shlex.join(command), file, configuration, setting, place)


def _trtllm(profile: Profile) -> _Server:
    settings = dict(profile.settings)
    model = str(settings.pop("model"))
    if unknown := sorted(set(settings) - set(_TRT_NESTED) - _TRT_FLAT):
        raise SettingsError(
            f"profiles.{profile.name} has settings that a TensorRT-LLM profile does not: {', '.join(unknown)}.",
            next_step=f"It may have: {', '.join(sorted({*_TRT_NESTED, *_TRT_FLAT}))}.",
            details={"problems": [f"profiles.{profile.name}.{name}: unknown" for name in unknown]},
        )
    tables: dict[str, dict[str, Json]] = {}
    flat: dict[str, Json] = {}
    for name, value in settings.items():
        if name in _TRT_FLAT:
            flat[name] = value
        else:
            table, key = _TRT_NESTED[name]
            tables.setdefault(table, {})[key] = [value] if name == "max_attention_window" else value
    if "speculative_config" in tables:
        tables["speculative_config"] = {"decoding_type": "Draft_Target", **tables["speculative_config"]}
    lines = [f"{name}: {_yaml(value)}" for name, value in flat.items()]
    for table, values in tables.items():
        lines += [f"{table}:", *(f"  {name}: {_yaml(value)}" for name, value in values.items())]
    file = f"{profile.name}.yaml"
    command = ["trtllm-serve", model, "--host", _HOST, "--port", str(profile.port), "--config", file]
    return command, file, "\n".join(lines) + "\n"


def _vllm(profile: Profile) -> _Server:
    settings = dict(profile.settings)
    command = ["vllm", "serve", str(settings.pop("model")), "--host", _HOST, "--port", str(profile.port)]
    if (backend := settings.pop("structured_outputs_backend", None)) is not None:
        # Without the second a small model may write blanks until max_tokens.
        wanted = {"backend": backend, "disable_any_whitespace": True}
        command += ["--structured-outputs-config", orjson.dumps(wanted).decode()]
    draft, tokens = (settings.pop(name, None) for name in _SPECULATIVE)
    if draft is not None:
        speculative = {"method": "draft_model", "model": draft, "num_speculative_tokens": tokens}
        command += ["--speculative-config", orjson.dumps(speculative).decode()]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            command += [f"--{flag}", str(value)]
    return command, None, ""


def _yaml(value: Json) -> str:
    """JSON is YAML, and such values are TOML too: quoted text, numbers, true and false, lists."""
    return orjson.dumps(value).decode()


_RENDERERS: Mapping[str, Callable[[Profile], _Server]] = {"trtllm": _trtllm, "vllm": _vllm}
