"""Owns what each dialect takes and refuses, and the form of its errors: read in the servers' sources and the providers' own SDKs.

It imports nothing of ours. facts: trtllm-serve's request models are closed (`extra="forbid"`), vLLM ignores what it does not know,
OpenAI, Azure and Anthropic refuse it; Anthropic's API of 2026-10-21 takes no temperature, OpenAI's reasoning models only that of 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.counterparts.faultwall.replies import DialectName, Json, rows, table

KEY = "wall-key"
MODEL = "wall"


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


OPENAI_FIELDS = _names("""audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages metadata modalities
    model moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention
    reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options temperature tool_choice
    tools top_logprobs top_p user verbosity web_search_options""")
ANTHROPIC_FIELDS = _names("""cache_control container diagnostics inference_geo max_tokens messages metadata model output_config service_tier speed
    stop_sequences stream system thinking tool_choice tools user_profile_id""")
_SAMPLING = frozenset({"temperature", "top_k", "top_p"})
_SERVED = _names("""frequency_penalty logit_bias logprobs max_completion_tokens max_tokens messages model n parallel_tool_calls presence_penalty
    reasoning_effort response_format seed stop stream stream_options temperature tool_choice tools top_logprobs top_p user
    add_generation_prompt add_special_tokens cache_salt chat_template chat_template_kwargs documents echo ignore_eos
    include_stop_str_in_output length_penalty min_p min_tokens mm_processor_kwargs priority repetition_penalty skip_special_tokens
    spaces_between_special_tokens stop_token_ids thinking_token_budget top_k truncate_prompt_tokens""")
VLLM_FIELDS = _SERVED | _names("""structured_outputs request_id session_id return_token_ids stream_interval vllm_xargs kv_transfer_params prompt_logprobs
    return_tokens_as_token_ids logits_processors allowed_token_ids bad_words""")
TRTLLM_FIELDS = _SERVED | _names("""best_of use_beam_search top_p_min early_stopping prompt_ignore_length lora_request disaggregated_params conversation_params
    prompt_token_ids thinking media_io_kwargs agent_hierarchy""")
FIELDS: dict[DialectName, frozenset[str]] = {
    "vllm": VLLM_FIELDS,
    "trtllm": TRTLLM_FIELDS,
    "openai": OPENAI_FIELDS,
    "azure": OPENAI_FIELDS,
    "anthropic": ANTHROPIC_FIELDS,
}
CHAT_PATHS: dict[DialectName, str] = {
    "vllm": "/v1/chat/completions",
    "trtllm": "/v1/chat/completions",
    "openai": "/v1/chat/completions",
    "azure": "/openai/v1/chat/completions",
    "anthropic": "/v1/messages",
}
_REASONING = re.compile(r"(o\d|gpt-5)")
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is refused: HTTP status, what is said, the dialect's word for it, the field."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


def unauthorised(dialect: DialectName, headers: dict[str, str]) -> Refusal | None:
    """Whether the key is missing or wrong; vLLM and trtllm-serve are run without one here."""
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    match dialect:
        case "openai" if bearer != KEY:
            return Refusal(401, "Incorrect API key provided.", "invalid_api_key")
        case "azure" if headers.get("api-key", bearer) != KEY:
            return Refusal(401, "Access denied due to invalid subscription key or wrong API endpoint.", "401")
        case "anthropic" if headers.get("x-api-key", bearer) != KEY:
            return Refusal(401, "invalid x-api-key", "authentication_error")
        case _:
            return None


def refusal(dialect: DialectName, headers: dict[str, str], body: Json) -> Refusal | None:
    """Why the real one would not take this request; None where it would."""
    denied = unauthorised(dialect, headers) or _version(dialect, headers) or _unknown(dialect, headers, body)
    if denied is not None:
        return denied
    said = _anthropic(body) if dialect == "anthropic" else _chat(dialect, body)
    return said or _model(dialect, body)


def ignored(dialect: DialectName, body: Json) -> frozenset[str]:
    """Fields that it takes without a word and does nothing with."""
    return frozenset(body) - FIELDS[dialect]


def _version(dialect: DialectName, headers: dict[str, str]) -> Refusal | None:
    if dialect == "anthropic" and headers.get("anthropic-version") not in {"2023-06-01", "2026-10-21"}:
        return Refusal(400, "anthropic-version: header is required", "invalid_request_error")
    return None


def _unknown(dialect: DialectName, headers: dict[str, str], body: Json) -> Refusal | None:
    older = _SAMPLING if headers.get("anthropic-version") == "2023-06-01" else frozenset[str]()
    extra = sorted(frozenset(body) - FIELDS[dialect] - older)
    if not extra or dialect == "vllm":
        return None
    if dialect == "trtllm":
        return Refusal(400, f"[{{'type': 'extra_forbidden', 'loc': ('body', '{extra[0]}')}}]", "extra")
    if dialect == "anthropic":
        return Refusal(400, f"{extra[0]}: Extra inputs are not permitted", "invalid_request_error")
    return Refusal(400, f"Unknown parameter: '{extra[0]}'.", "unknown_parameter", extra[0])


def _model(dialect: DialectName, body: Json) -> Refusal | None:
    model = str(body.get("model"))
    if dialect == "trtllm" or model.startswith(MODEL) or _REASONING.match(model):
        return None
    match dialect:
        case "azure":
            return Refusal(404, "The API deployment for this resource does not exist.", "DeploymentNotFound")
        case "anthropic":
            return Refusal(404, f"model: {model}", "not_found_error")
        case "openai":
            return Refusal(404, f"The model `{model}` does not exist.", "model_not_found")
        case _:
            return Refusal(404, f"The model `{model}` does not exist.", "404", "model")


def _chat(dialect: DialectName, body: Json) -> Refusal | None:
    bad = _bad_field(body) or _bad_messages(body.get("messages")) or _bad_tools(body) or _bad_format(dialect, body)
    if bad is None and dialect in {"openai", "azure"}:
        bad = _bad_for_reasoning(body)
    return None if bad is None else Refusal(400, bad, "invalid_value")


def _bad_field(body: Json) -> str | None:
    for name, kinds in (
        ("temperature", (int, float)),
        ("max_tokens", int),
        ("max_completion_tokens", int),
        ("seed", int),
    ):
        if name in body and (not isinstance(body[name], kinds) or isinstance(body[name], bool)):
            return f"{name}: wrong type"
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name, 1) < 1:
            return f"{name} must be at least 1"
    if not 0 <= body.get("temperature", 0) <= 2:
        return "temperature must be between 0 and 2"
    if "stream_options" in body and not body.get("stream"):
        return "stream_options is only allowed when stream is enabled"
    if "stop" in body and not 1 <= len(body["stop"]) <= 4:
        return "stop: between 1 and 4"
    return None


def _bad_messages(messages: Any) -> str | None:
    if not rows(messages):
        return "messages: at least one"
    waiting: set[str] = set()
    for message in map(table, rows(messages)):
        if message.get("role") == "tool":
            if message.get("tool_call_id") not in waiting:
                return "messages with role 'tool' must be a response to a preceding message with 'tool_calls'"
            waiting.discard(message["tool_call_id"])
        elif waiting:
            return "an assistant message with 'tool_calls' must be followed by tool messages"
        else:
            calls = rows(message.get("tool_calls"))
            waiting = {call["id"] for call in calls if _well_formed(call)}
            if len(waiting) != len(calls) or not _speaks(message, calls):
                return "messages: not well formed"
    return "tool messages are missing" if waiting else None


def _well_formed(call: Json) -> bool:
    return call["type"] == "function" and isinstance(call["function"]["arguments"], str)


def _speaks(message: Json, calls: list[Any]) -> bool:
    known = message.get("role") in {"system", "developer", "user", "assistant"}
    return known and (message.get("content") is not None or bool(calls))


def _bad_tools(body: Json) -> str | None:
    if "tools" not in body:
        return "tool_choice is only allowed when tools are specified" if "tool_choice" in body else None
    names: set[str] = set()
    for tool in body["tools"]:
        if set(tool) != {"type", "function"} or set(tool["function"]) - {"name", "description", "parameters", "strict"}:
            return "tools: not well formed"
        if not _NAME.fullmatch(tool["function"]["name"]):
            return "tools: a name may have letters, digits, _ and - only"
        names.add(tool["function"]["name"])
    choice = body.get("tool_choice", "auto")
    if not body["tools"]:
        return "tools: at least one"
    if isinstance(choice, dict):
        return None if choice["function"]["name"] in names else "tool_choice: no such tool"
    return None if choice in {"auto", "none", "required"} else "tool_choice: not one of auto, none, required"


def _bad_format(dialect: DialectName, body: Json) -> str | None:
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kinds = {"text", "json_object", "json_schema"}
    if dialect == "trtllm":
        kinds |= {"json", "regex", "ebnf", "structural_tag"}
        if set(wanted) - {"type", "schema", "json_schema", "regex", "ebnf", "format"}:
            return "response_format: Extra inputs are not permitted"
    if wanted.get("type") not in kinds:
        return "response_format: no such type"
    if wanted["type"] == "json_schema" and dialect in {"openai", "azure"} and wanted["json_schema"].get("strict"):
        return _bad_strict(wanted["json_schema"]["schema"])
    return None


def _bad_strict(said: Any) -> str | None:
    """OpenAI's strict schemas are closed objects whose fields are all required."""
    schema = table(said)
    if schema.get("type") == "object" or "properties" in schema:
        if schema.get("additionalProperties") is not False:
            return "Invalid schema for response_format: 'additionalProperties' must be supplied and be false."
        if set(rows(schema.get("required"))) != set(table(schema.get("properties"))):
            return "Invalid schema for response_format: 'required' must include every key in properties."
    return next((bad for each in [*schema.values(), *rows(said)] if (bad := _bad_strict(each))), None)


def _bad_for_reasoning(body: Json) -> str | None:
    if not _REASONING.match(str(body.get("model"))):
        return None
    if body.get("temperature", 1) != 1:
        return "Unsupported value: 'temperature' does not support this value with this model."
    for name in ("max_tokens", "stop"):
        if name in body:
            return f"Unsupported parameter: '{name}' is not supported with this model."
    return None


def _anthropic(body: Json) -> Refusal | None:
    bad = _bad_turns(body)
    return None if bad is None else Refusal(400, bad, "invalid_request_error")


def _bad_turns(body: Json) -> str | None:
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 0:
        return "max_tokens: Field required"
    waiting: set[str] = set()
    for place, message in enumerate(map(table, rows(body.get("messages")) or [{}])):
        if message.get("role") not in {"user", "assistant"} or (place == 0 and message["role"] != "user"):
            return "messages: first message must use the user role"
        blocks = _blocks(message)
        if not blocks:
            return f"messages.{place}: text content blocks must be non-empty"
        results = {b["tool_use_id"] for b in blocks if b["type"] == "tool_result"}
        if results != waiting:
            return f"messages.{place}: `tool_use` ids were found without `tool_result` blocks immediately after"
        waiting = {b["id"] for b in blocks if b["type"] == "tool_use" and isinstance(b["input"], dict)}
    if waiting:
        return "messages: `tool_use` ids were found without `tool_result` blocks"
    return _bad_anthropic_tools(body)


def _blocks(message: Json) -> list[Json]:
    content = message["content"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return [] if any(block["type"] == "text" and not block["text"] for block in blocks) else blocks


def _bad_anthropic_tools(body: Json) -> str | None:
    for tool in body.get("tools", ()):
        if set(tool) - {
            "name",
            "description",
            "input_schema",
            "strict",
            "type",
            "cache_control",
        } or not _NAME.fullmatch(tool["name"]):
            return "tools: not well formed"
        if tool["input_schema"].get("type") != "object":
            return "tools.input_schema.type: Field required"
    choice = body.get("tool_choice")
    if choice is not None and ("tools" not in body or choice.get("type") not in {"auto", "any", "tool", "none"}):
        return "tool_choice: may only be specified while providing tools"
    wanted = table(table(body.get("output_config")).get("format"))
    if wanted and (wanted.get("type") != "json_schema" or set(wanted) != {"type", "schema"}):
        return "output_config.format: not well formed"
    return None


def told(dialect: DialectName, denied: Refusal) -> Json:
    """A refusal in the dialect's own form."""
    match dialect:
        case "anthropic":
            kind = denied.code or {429: "rate_limit_error", 529: "overloaded_error"}.get(denied.status, "api_error")
            error = {"type": kind, "message": denied.message}
            return {"type": "error", "error": error, "request_id": "req_wall"}
        case "trtllm" if denied.code == "extra":
            return {"error": denied.message}
        case "trtllm":
            return {
                "object": "error",
                "message": denied.message,
                "type": "BadRequestError",
                "param": None,
                "code": denied.status,
            }
        case "vllm":
            error = {"message": denied.message, "type": "BadRequestError", "param": denied.param, "code": denied.status}
            return {"error": error}
        case _:
            kind = "invalid_request_error" if denied.status < 500 else "server_error"
            return {"error": {"message": denied.message, "type": kind, "param": denied.param, "code": denied.code}}


def of_fault(dialect: DialectName, fault: str) -> Refusal | None:
    """The refusal of a fault that is one."""
    hosted = dialect in {"openai", "azure"}
    headers = (("Retry-After", "30"),) if fault == "rate_limited_for" else ()
    limited = Refusal(429, "Rate limit reached.", "rate_limit_exceeded" if hosted else None, headers=headers)
    overloaded = Refusal(529 if dialect == "anthropic" else 503, "The engine is currently overloaded.")
    found = {
        "rate_limited": limited,
        "rate_limited_for": limited,
        "failed": Refusal(500, "The server had an error while processing your request."),
        "unavailable": overloaded,
        "unauthorised": Refusal(401, "No.", "authentication_error" if dialect == "anthropic" else "invalid_api_key"),
        "budget": _no_money(dialect),
        "too_long": _too_long(dialect),
    }
    return found.get(fault)


def _no_money(dialect: DialectName) -> Refusal:
    if dialect in {"openai", "azure"}:
        return Refusal(
            429, "You exceeded your current quota, please check your plan and billing details.", "insufficient_quota"
        )
    if dialect == "anthropic":
        text = "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade."
        return Refusal(400, text, "invalid_request_error")
    return Refusal(402, "Payment required.")  # neither asks for money; a gateway before them does


def _too_long(dialect: DialectName) -> Refusal:
    if dialect == "anthropic":
        return Refusal(400, "prompt is too long: 210034 tokens > 200000 maximum", "invalid_request_error")
    text = "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens."
    return Refusal(400, text, "context_length_exceeded" if dialect in {"openai", "azure"} else None)
