"""Owns one call of an upstream: what it says the operation is, looked at again; the call; its answer, checked and made safe to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from body_broker.calls import Call, Effect, Json, Progress
from body_broker.errors import BodyBrokerError, OutcomeUnknown, Unavailable
from mcp_servers.upstreams.model import Definition, Kind, Upstream
from mcp_servers.upstreams.results import (
    UNFIT,
    NotShownError,
    UpstreamContents,
    UpstreamPrompt,
    contents_of,
    messages_of,
    prefix_of,
    told,
)
from mcp_servers.upstreams.schemas import TooMuchWorkError, problems_of

KEY_META = "body-broker/key"
"""The `_meta` key under which a repeatable effect says that it is the same one again."""


class Answered(Protocol):
    """What a link brings of a tool's answer."""

    @property
    def blocks(self) -> Sequence[Json]:
        """MCP's content blocks, as they came."""
        ...

    @property
    def structured(self) -> Json:
        """The structured content, as it came."""
        ...

    @property
    def is_error(self) -> bool:
        """As it came."""
        ...


class Link(Protocol):
    """The way to an upstream, as calls use it."""

    async def call(
        self, name: str, arguments: Mapping[str, Json], *, progress: Progress, meta: Mapping[str, Json], effect: Effect
    ) -> Answered:
        """The answer of a tool; `effect` is what is lost where none comes."""
        ...

    async def read(self, uri: str) -> Sequence[Json]:
        """The contents of a resource."""
        ...

    async def prompt(self, name: str, arguments: Mapping[str, str]) -> Sequence[Json]:
        """The messages of a prompt."""
        ...


class Looks(Protocol):
    """Looks whether an upstream still says what is pinned, as calls use it."""

    async def require_current(self, kind: Kind, name: str, digest: str, *, within_s: float) -> None:
        """Return where it does; raises Conflict where it says otherwise."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """What the rows of one upstream are given.

    Attributes:
        upstream: As the file joins it.
        link: The way to it.
        looking: What knows whether it still says what is pinned.
    """

    upstream: Upstream
    link: Link
    looking: Looks

    async def call(
        self, definition: Definition, arguments: Mapping[str, Json], call: Call, *, shape: Mapping[str, Json] | None
    ) -> dict[str, Any]:
        """The fields of a tool's result.

        Args:
            definition: The one that is served.
            arguments: They fit its schema.
            call: Passed the gate.
            shape: What its structured answer is to fit; None where it promises nothing.

        Raises:
            BodyBrokerError: It is away, or says otherwise now; of an effect whose answer was lost, `OutcomeUnknown`.
        """
        await self._current(definition, call)
        effect = call.operation.effect
        meta: dict[str, Json] = {KEY_META: call.key} if effect == "repeatable" and call.key is not None else {}
        answer = await self.link.call(definition.name, arguments, progress=call.progress, meta=meta, effect=effect)
        try:
            found = told(self._prefix, answer.blocks, answer.structured, is_error=answer.is_error)
            if (
                not answer.is_error
                and shape is not None
                and (found["structured"] is None or problems_of(shape, found["structured"]))
            ):
                found = dict(UNFIT)
        except (NotShownError, TooMuchWorkError):
            found = dict(UNFIT)  # it ran: an error that could be tried again would be a lie
        return found | {"upstream": self.upstream.name}

    async def prompt(self, definition: Definition, arguments: Mapping[str, str], call: Call) -> UpstreamPrompt:
        """A filled prompt.

        Raises:
            BodyBrokerError: It is away, says otherwise now, or answers what is no prompt.
        """
        await self._current(definition, call)
        raw = await self.link.prompt(definition.name, arguments)
        try:
            return messages_of(self._prefix, raw)
        except NotShownError as error:
            raise self._unfit(call) from error

    async def read(self, definition: Definition, fields: Mapping[str, str], call: Call) -> UpstreamContents:
        """What a resource holds.

        Raises:
            BodyBrokerError: It is away, says otherwise now, or answers what is no resource.
        """
        await self._current(definition, call)
        uri = definition.name
        for name, text in fields.items():
            uri = uri.replace("{" + name + "}", quote(text, safe=""))
        raw = await self.link.read(uri)
        try:
            return contents_of(self._prefix, raw)
        except NotShownError as error:
            raise self._unfit(call) from error

    @property
    def _prefix(self) -> str:
        return prefix_of(self.upstream.name)

    async def _current(self, definition: Definition, call: Call) -> None:
        """Whether it still says what is pinned; before anything with an effect it is asked anew."""
        within_s = self.upstream.recheck_s if call.operation.effect == "none" else 0.0
        await self.looking.require_current(definition.kind, definition.name, definition.digest, within_s=within_s)

    def _unfit(self, call: Call) -> BodyBrokerError:
        words = f"The upstream server {self.upstream.name} answered what cannot be passed on."
        details = {"component": f"upstream {self.upstream.name}"}
        if call.operation.effect == "none":
            return Unavailable(words, next_step="Tell the people who run this hub.", details=details)
        return OutcomeUnknown(words, details={"effect": call.operation.name})
