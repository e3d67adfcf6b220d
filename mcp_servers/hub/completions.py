"""Owns /v1/chat/completions and /v1/models: the tool `generate` for clients that speak OpenAI's API, through the same gate."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
from starlette.types import Receive, Scope, Send

from body_broker.calls import Caller, Hear, Json, ResourceText
from body_broker.errors import (
    BadInput,
    BodyBrokerError,
    Detail,
    NotFound,
    WireError,
    on_the_wire,
)
from body_broker.text import new_id
from mcp_servers.hub import chat as forms
from mcp_servers.hub.chat import EXTENSION, Chat
from mcp_servers.hub.exchange import Events, answer_json, read_json, unless_left
from mcp_servers.hub.gate import Gate
from mcp_servers.hub.generating import Generated
from mcp_servers.hub.inferring import Inferring
from mcp_servers.hub.requests import Request
from tiers.model import Told
from tiers.unanswered import NoEngine, OverBudget, rest_s, told_reasons, unanswered

if TYPE_CHECKING:
    from tiers.engine import Engine

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
_BELOW = "/v1/"
_STAND_INS = frozenset({"policy", "template"})


class Completions:
    """The routes, behind the gate.

    Args:
        gate: Runs `generate`.
        inferring: Knows how whoever asks stands with money.
        bytes_max: Size of one body.
    """

    def __init__(self, gate: Gate, inferring: Inferring, *, bytes_max: int) -> None:
        self._gate, self._inferring, self._bytes_max = gate, inferring, bytes_max

    @property
    def paths(self) -> frozenset[str]:
        """Every path; {} stands for one segment."""
        return frozenset({CHAT, MODELS, f"{MODELS}/{{}}"})

    def takes(self, path: str) -> bool:
        """Whether a path is one of these, or one of OpenAI's that is not here."""
        return path.startswith(_BELOW)

    def told(self, path: str, told: WireError) -> tuple[int, dict[str, Any]] | None:
        """An error in OpenAI's form."""
        return forms.error_of(told) if self.takes(path) else None

    async def __call__(self, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, whose Host, Origin and token were checked; errors are told in OpenAI's form."""
        path, verb = scope["path"], "POST" if scope["path"] == CHAT else "GET"
        head, _, last = path.rpartition("/")
        name = last if head == MODELS else ""
        try:
            if path not in {CHAT, MODELS} and not name:
                raise NotFound(
                    "Of OpenAI's API only chat completions and models are here.",
                    next_step=f"Use {CHAT}, {MODELS} or {MODELS}/NAME.",
                )
            if scope["method"] != verb:
                await answer_json(send, _wrong_method(verb), status=405, headers={"allow": verb})
            elif path == CHAT:
                await self._chat(caller, receive, send)
            else:
                await self._models(caller, name, send)
        except BodyBrokerError as error:
            await _answer_error(send, error)

    async def _models(self, caller: Caller, name: str, send: Send) -> None:
        answer = await self._gate.run(Request(name="hub_models", kind="resource", arguments={}, caller=caller))
        assert isinstance(answer.result, ResourceText)
        known: dict[str, Json] = orjson.loads(answer.result.content)
        models = [{"id": each, "object": "model", "created": 0, "owned_by": "body-broker"} for each in known["models"]]
        if not name:
            await answer_json(send, {"object": "list", "data": models})
            return
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            raise NotFound(
                "There is no model of that name that could answer.", details={"problems": ["model: unknown"]}
            )
        await answer_json(send, found)

    async def _chat(self, caller: Caller, receive: Receive, send: Send) -> None:
        chat = Chat.read(await read_json(receive, bytes_max=self._bytes_max))
        id_, created = new_id("chatcmpl"), int(datetime.now(UTC).timestamp())
        if chat.stream:
            await self._stream(caller, chat, _Chunks(chat, Events(send), id_, created), receive)
            return
        answer = await unless_left(receive, self._generate(caller, chat))
        await answer_json(send, forms.completion_of(chat, answer, id_=id_, created=created))

    async def _stream(self, caller: Caller, chat: Chat, chunks: _Chunks, receive: Receive) -> None:
        async def work() -> None:
            async with chunks.events.writing():
                try:
                    chunks.end(await self._generate(caller, chat, chunks.hear))
                except BodyBrokerError as error:
                    if not chunks.events.begun:
                        raise
                    chunks.broke(error)

        await unless_left(receive, work())

    async def _generate(self, caller: Caller, chat: Chat, hear: Hear | None = None) -> Generated:
        """A model's answer; what stands in for one is an error here.

        Raises:
            BodyBrokerError: No model gave one, or the gate refused it.
        """
        request = Request(name="generate", kind="tool", arguments=chat.arguments(), caller=caller, hear=hear)
        found = (await self._gate.run(request)).result
        assert isinstance(found, Generated)
        if found.source in _STAND_INS:
            tiers = await self._inferring.tiers()
            error = _nobody(found, tiers.engines)
            if isinstance(error, OverBudget) and request.arguments.get("cost_sensitivity") != "high":
                error = error.with_money(tiers.ledger.words(caller.asker))
            raise error
        return found


class _Chunks:
    """A stream of chat.completion.chunk."""

    def __init__(self, chat: Chat, events: Events, id_: str, created: int) -> None:
        self.events, self._chat, self._said = events, chat, False
        self._frame: dict[str, Any] = {
            "id": id_,
            "object": "chat.completion.chunk",
            "created": created,
            "model": chat.model,
        }

    async def hear(self, said: Told, *, outside: bool) -> None:
        """A piece of the answer; the session has its taint already, and the end of the stream says so."""
        del outside
        if said.kind == "text":
            self._text(said.text)

    def _text(self, text: str) -> None:
        delta = {"content": text} if self._said else {"role": "assistant", "content": text}
        self._said = True
        self._put([_choice(delta)])

    def end(self, answer: Generated) -> None:
        """The rest of a whole answer."""
        if not self._said and answer.content:
            self._text(answer.content)
        if answer.tool_calls:
            calls = [{"index": place, **call} for place, call in enumerate(forms.calls_of(answer))]
            self._put([_choice(({} if self._said else {"role": "assistant", "content": None}) | {"tool_calls": calls})])
        facts = {EXTENSION: forms.facts_of(answer, self._chat)}
        self._put([_choice({}, forms.FINISH[answer.finish])], facts)
        if self._chat.include_usage:
            self._put([], {"usage": forms.usage_of(answer)})
        self.events.put(b"[DONE]")

    def broke(self, error: BodyBrokerError) -> None:
        """It broke off: whoever reads it must not take it for whole."""
        self.events.put(orjson.dumps(forms.error_of(on_the_wire(error))[1]))

    def _put(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> None:
        self.events.put(orjson.dumps({**self._frame, "choices": choices, **(more or {})}))


def _choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _nobody(found: Generated, engines: Mapping[str, Engine]) -> BodyBrokerError:
    """Why no model answered, in one error."""
    reasons = [down.reason for down in found.fallbacks]
    steps = "; ".join(down.words() for down in found.fallbacks)
    said = f"No model answered: {steps or found.note or 'none is configured'}."
    if not (why := told_reasons(reasons)):
        return NoEngine(said)
    details: dict[str, Detail] = {"problems": [forms.TOO_LONG]} if why == frozenset({"too_long"}) else {}
    return unanswered(reasons, said, details=details, retry_after_s=rest_s(found.fallbacks, engines))


def _wrong_method(verb: str) -> dict[str, Any]:
    error = BadInput(f"Only {verb} is answered here.", next_step=f"Send it as {verb}.")
    return forms.error_of(on_the_wire(error))[1]


async def _answer_error(send: Send, error: BodyBrokerError) -> None:
    told = on_the_wire(error)
    status, body = forms.error_of(told)
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if not told.retryable:
        headers["x-should-retry"] = "false"  # OpenAI's clients ask three times whatever is 500 or more
    await answer_json(send, body, status=status, headers=headers)
