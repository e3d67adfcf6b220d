"""Owns the rounds of a call that asks its client (MCP's input_required): what came back, what goes along, sealed, and its form."""

from __future__ import annotations

import base64
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import mcp_types as types
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from mcp.shared.exceptions import MCPError
from mcp_types import CLIENT_CAPABILITIES_META_KEY
from pydantic import TypeAdapter, ValidationError

from body_broker.calls import Json
from body_broker.errors import BadInput
from body_broker.inputs import STATE_BYTES_MAX, AskClient, Form, Inputs, Link, Question, Roots, Turn
from body_broker.text import canonical_json
from mcp_servers.hub.guard import clean_arguments

TTL_S = 600
CHARACTERS_MAX = 2 * STATE_BYTES_MAX
_NONCE_BYTES = 12
_ANSWERS: TypeAdapter[types.InputResponses] = TypeAdapter(types.InputResponses)


class BadRound(BadInput):
    """Answers or a state that do not hold; the protocol wants a JSON-RPC error for them, of a tool call too."""


class Rounds:
    """Reads and seals with a key that all hubs share, so that each round may come to another hub.

    Args:
        key: 32 bytes, derived for this purpose alone.
        clock: Unix seconds.
    """

    __slots__ = ("_cipher", "_clock")

    def __init__(self, key: bytes, clock: Callable[[], float] = time.time) -> None:  # noqa: TID251 - the parameter's default
        self._cipher, self._clock = AESGCM(key), clock

    def read(self, bound_to: str, sent: Mapping[str, Json]) -> Inputs:
        """What a client sent beside the arguments; `sent` are the parameters of its request.

        Raises:
            BadRound: An answer has no form of the protocol; or the state was changed, is too old or belongs to another call.
            TooLarge: More than arguments may hold.
        """
        state = sent.get("requestState")
        return Inputs(
            answers=_answers(sent["inputResponses"]) if "inputResponses" in sent else {},
            state=None if state is None else self._open(bound_to, state),
            askable=_askable(sent),
        )

    def seal(self, bound_to: str, state: Json) -> str:
        """The text of a state, which only `read` with the same binding opens, for as long as `TTL_S`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        payload = canonical_json([self._clock() + TTL_S, state])
        return base64.urlsafe_b64encode(nonce + self._cipher.encrypt(nonce, payload, _hashed(bound_to))).decode()

    def _open(self, bound_to: str, sealed: Json) -> Json:
        if not isinstance(sealed, str) or len(sealed) > CHARACTERS_MAX:
            raise _foreign()
        try:
            raw = base64.b64decode(sealed, altchars=b"-_", validate=True)
            payload = self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _hashed(bound_to))
        except (ValueError, InvalidTag) as error:
            raise _foreign() from error
        until, state = orjson.loads(payload)
        if self._clock() >= until:
            raise _foreign()
        return state


def input_required(ask: AskClient, sent: Mapping[str, Json]) -> dict[str, Any]:
    """The result that asks the client.

    Raises:
        MCPError: The client did not declare that it can be asked for all of it (-32021, with what is missing).
    """
    missing: dict[str, Any] = {}
    for kind in {type(question) for question in ask.questions.values()} - _askable(sent):
        capability, mode = _CAPABILITIES[kind]
        missing.setdefault(capability, {}).update({mode: {}} if mode else {})
    if missing:
        raise MCPError(
            code=types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            message=f"{ask.code}: {ask.message}",
            data={"requiredCapabilities": missing},
        )
    found: dict[str, Any] = {
        "resultType": "input_required",
        "inputRequests": {name: _request(question) for name, question in ask.questions.items()},
    }
    return found if ask.sealed is None else found | {"requestState": ask.sealed}


# The client's capability that each kind of question needs, and its mode.
_CAPABILITIES: dict[type[Question], tuple[str, str | None]] = {
    Form: ("elicitation", "form"),
    Link: ("elicitation", "url"),
    Turn: ("sampling", None),
    Roots: ("roots", None),
}


def _askable(sent: Mapping[str, Json]) -> frozenset[type[Question]]:
    meta = sent.get("_meta")
    declared = cast("dict[str, Json]", meta).get(CLIENT_CAPABILITIES_META_KEY) if isinstance(meta, dict) else None
    if not isinstance(declared, dict):
        return frozenset()
    found = cast("dict[str, Json]", declared)
    kinds = {kind for kind, (capability, _) in _CAPABILITIES.items() if isinstance(found.get(capability), dict)}
    modes: dict[str, Json] = found["elicitation"] if Form in kinds else {}
    # An elicitation capability without modes means forms, as it did before there were links.
    if "url" not in modes:
        kinds.discard(Link)
    if modes and "form" not in modes:
        kinds.discard(Form)
    return frozenset(kinds)


def _request(question: Question) -> dict[str, Any]:
    match question:
        case Form():
            schema = {"type": "object", "properties": dict(question.fields), "required": list(question.required)}
            params = {"mode": "form", "message": question.message, "requestedSchema": schema}
            return {"method": "elicitation/create", "params": params}
        case Link():
            params = {"mode": "url", "message": question.message, "url": question.url}
            return {"method": "elicitation/create", "params": params}
        case Turn():
            message = {"role": "user", "content": {"type": "text", "text": question.prompt}}
            params = {"messages": [message], "maxTokens": question.tokens_max}
            return {"method": "sampling/createMessage", "params": params}
        case Roots():
            return {"method": "roots/list", "params": {}}


def _answers(raw: Json) -> dict[str, Json]:
    if not isinstance(raw, dict):
        raise BadRound("The input responses must be a JSON object.")
    try:
        found = _ANSWERS.validate_python(clean_arguments(raw), by_name=False)
    except ValidationError as error:
        raise BadRound("One of the input responses has no form that the protocol knows.") from error
    return {name: _answer(given) for name, given in found.items()}


def _answer(given: types.InputResponse) -> Json:
    match given:
        case types.ElicitResult():
            return (given.content or {}) if given.action == "accept" else None
        case types.ListRootsResult():
            return [str(root.uri) for root in given.roots]
        case types.CreateMessageResult() | types.CreateMessageResultWithTools():
            blocks = given.content if isinstance(given.content, list) else [given.content]
            return "\n".join(block.text for block in blocks if isinstance(block, types.TextContent))


def _hashed(bound_to: str) -> bytes:
    return hashlib.sha256(bound_to.encode()).digest()


def _foreign() -> BadRound:
    return BadRound(
        "The request state does not belong to this call, or is too old.",
        next_step="Make the call again without requestState and inputResponses.",
    )
