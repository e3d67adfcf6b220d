"""Owns the words every room speaks: operations (tools, resources, prompts), rooms, callers and calls. No protocol, no store."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, Self, get_type_hints

from pydantic import BaseModel, ConfigDict

from body_broker.blocks import Block
from body_broker.inputs import NO_INPUTS, Inputs

Json = Any  # a JSON value; spelling the recursive type out makes pydantic and pyright slow and says no more
Effect = Literal["none", "repeatable", "once"]
Output = Literal["ours", "outside", "as_marked"]
Profile = Literal["core", "all"]

SUGGESTIONS_MAX = 100
"""MCP's bound on the values of one completion."""
WAIT_META = "body-broker/wait_s"
"""The `_meta` key by which a client says how long its call may wait for people."""
OUTSIDE_META = "body-broker/outside"
"""The `_meta` key of a result that holds text from outside."""


class Arguments(BaseModel):
    """Base of every operation's arguments: strict, closed, frozen, no NaN; validated, decided, hashed and run as one dict."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    exact: ClassVar[frozenset[str]] = frozenset()
    """Fields that tell one from another: what would have to be cleaned to be one of them is refused, not cleaned."""
    ours: ClassVar[bool] = True
    """Whether the schema is ours: of others' policies see no argument, whatever a schema says of it."""


class Result(BaseModel):
    """Base of every operation's result."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def outside(self) -> bool:
        """Whether text from outside is in this result; asked only where the operation's output is `as_marked`."""
        return True

    def text(self) -> str | None:
        """Short text for clients that do not read structured results; None means the JSON form itself."""
        return None

    def blocks(self) -> Sequence[Block] | None:
        """Content blocks in place of the text, for results that are pictures, sound or documents; None for all others.

        Of a prompt each is a message. Fields that only blocks show are excluded from the structured result.
        """
        return None

    def handle(self) -> str | None:
        """The job that goes on and will have this very result, where it is not there yet; None where this is it.

        Clients that have MCP's tasks get the job as a task in its place; the row names the job's kind in `work`.
        """
        return None


# Any: a room's services are its own type; the hub passes what the room's `services` built.
Run = Callable[[Any, "Call", Any], Awaitable[Result]]
Complete = Callable[[str, Mapping[str, str], "Call", Any], Awaitable["Suggestions"]]
"""`async (value so far, the other arguments given, call, services) -> Suggestions` for one argument of a prompt or resource."""
Establish = Callable[[Any, "Caller", Any], Awaitable[frozenset[str]]]
"""`async (arguments, caller, services) -> facts`: what the hub itself finds out about one call before it is decided (ADR 7)."""
Explain = Callable[[Any, "Caller", Any], Awaitable[str]]
"""`async (arguments, caller, services) -> why`: in words for the caller alone, why a fact that a rule asked for does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a call would do, found out before people are asked for it.

    Attributes:
        headline: Verb and target in words, one line: `Set the flag night_market to true`.
        text: What would change, such as a diff; shown whole to whoever decides. None where the arguments say it all.
        basis: What the text was made of, such as a version: the call gets it back as `Call.basis` and refuses with
            Conflict where it is no longer so. None where it does not matter.
    """

    headline: str
    text: str | None = None
    basis: str | None = None


Foresee = Callable[[Any, "Caller", Any], Awaitable[Preview]]
"""`async (arguments, caller, services) -> Preview` without any effect; raises what the call could only fail with, unasked."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What the gate decides on and runs: a frozen row in a room's server.py.

    Attributes:
        name: The action's name; unique in the hub.
        run: `async (arguments, call, services) -> Result`; the models are read from its signature.
        title: A few words for people.
        description: When to use it and when not.
        group: The granting group (DESIGN.md §4). None is unclassified: write, destructive, external.
        modifiers: What forbids: long_running, spend, destructive, external.
        effect: none for reads; repeatable under a key; once.
        output: Whether its text is ours, from outside, or marked part by part.
        needs: The setting without which it is absent from lists and answers `not_configured`.
        profile: core is listed by default, all only with `--tools all`.
        open_world: MCP's openWorldHint: it reaches systems beyond the hub.
        reports_progress: It reports progress, so its calls are streamed.
        asks: It may ask its client for input (body_broker/inputs.py); only then are answers read.
        establishes: What finds out the facts that rules read of its calls; what is not found out is false.
        explains: What says why such a fact does not hold, where it is all that a call is refused for.
        foresees: What tells people, when they are asked for a call, what it would do.
        withheld: Why it is neither listed nor run, though policies know it.
        defined: The digest of what others define it as: an approval is bound to that too.
        work: The kind of durable work whose result is this row's result, where its answer may be a job's handle.
    """

    kind: ClassVar[Literal["tool", "resource", "prompt"]]

    name: str
    run: Run
    title: str
    description: str
    group: str | None = None
    modifiers: frozenset[str] = frozenset()
    effect: Effect = "none"
    output: Output = "ours"
    needs: str | None = None
    profile: Profile = "core"
    open_world: bool = False
    reports_progress: bool = False
    asks: bool = False
    establishes: Establish | None = None
    explains: Explain | None = None
    foresees: Foresee | None = None
    work: str | None = None
    withheld: str | None = None
    defined: str | None = None

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return get_type_hints(self.run)

    @cached_property
    def arguments(self) -> type[Arguments]:
        """The model of the arguments, from the first parameter of `run`."""
        first = next(iter(inspect.signature(self.run).parameters))
        model: type[Arguments] = self._hints[first]
        return model

    @cached_property
    def result(self) -> type[Result]:
        """The model of the result, from `run`'s return annotation."""
        model: type[Result] = self._hints["return"]
        return model


@dataclass(frozen=True, kw_only=True)
class Tool(Operation):
    """A tool: listed by tools/list, run by tools/call."""

    kind = "tool"


@dataclass(frozen=True, kw_only=True)
class Resource(Operation):
    """A resource template: `uri` holds {fields} of the arguments, such as lore://doc/{id}.

    `run` returns a `ResourceText` or `ResourceBytes`.
    """

    kind = "resource"

    uri: str
    mime_type: str = "text/plain"
    completes: Mapping[str, Complete] = field(default_factory=dict[str, Complete], hash=False)


@dataclass(frozen=True, kw_only=True)
class Prompt(Operation):
    """A prompt: listed by prompts/list, filled by prompts/get. `run` returns a `PromptText`; arguments are strings.

    `completes` says by argument how the hub answers completion/complete, under the same decision as the prompt itself.
    """

    kind = "prompt"

    completes: Mapping[str, Complete] = field(default_factory=dict[str, Complete], hash=False)


class ResourceText(Result):
    """What reading a resource gives."""

    content: str
    from_outside: bool = True

    def outside(self) -> bool:
        """As marked by who read it."""
        return self.from_outside


class ResourceBytes(Result):
    """What reading a resource gives that is no text."""

    content: bytes
    from_outside: bool = True

    def outside(self) -> bool:
        """As marked by who read it."""
        return self.from_outside


class PromptText(Result):
    """What filling a prompt gives: one user message."""

    content: str
    from_outside: bool = True

    def outside(self) -> bool:
        """As marked by who filled it."""
        return self.from_outside


class Suggestions(Result):
    """What an argument may be completed to, the likeliest first; clients are shown `SUGGESTIONS_MAX` of them."""

    values: list[str]
    from_outside: bool = True

    def outside(self) -> bool:
        """As marked by who found them."""
        return self.from_outside


@dataclass(frozen=True, kw_only=True)
class Room:
    """One server: its name and its rows. The hub adds its services and puts it behind the gate."""

    name: str
    title: str
    description: str
    tools: tuple[Tool, ...]
    resources: tuple[Resource, ...] = ()
    prompts: tuple[Prompt, ...] = ()

    def operations(self) -> tuple[Operation, ...]:
        """Every row of this room."""
        return (*self.tools, *self.resources, *self.prompts)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, checked: an identity chain (RFC 8693), the roles of its people, and the session.

    Attributes:
        chain: Principals, the asker first, then who acts for it: ("person:anna", "tier:silver"). Never empty.
        roles: Roles of each person in the chain, by principal.
        session: The login's or the conversation's id; taint and history hang on it.
        conversation_of: The asker's own session, whose taint a conversation sees live; None for a login itself.
        ancestors: Where the asker was in a conversation too: the sessions above `conversation_of`, nearest first.
        expires_at: Unix seconds, or None where the identity is the process itself (`--as`).
        token_id: The token's `jti`, for revocation; None with `--as`.
        asker_token_id: In a conversation the `jti` of the asker's own token.
        depth: How many calls deep a call of theirs is already: their conversation was begun in one.
        call_key: The one call that their token was minted for, as its `Call.key`; None where it was minted for any.
    """

    chain: tuple[str, ...]
    roles: Mapping[str, frozenset[str]]
    session: str
    conversation_of: str | None = None
    ancestors: tuple[str, ...] = ()
    expires_at: float | None = None
    token_id: str | None = None
    asker_token_id: str | None = None
    depth: int = 0
    call_key: str | None = None

    @property
    def asker(self) -> str:
        """Who asked: owns jobs and approvals, is rate-limited."""
        return self.chain[0]

    @property
    def sessions(self) -> tuple[str, ...]:
        """The call's session, then those above it, nearest first."""
        return (self.session, *((self.conversation_of, *self.ancestors) if self.conversation_of else ()))

    @classmethod
    def of_sessions(cls, chain: Sequence[str], roles: Mapping[str, frozenset[str]], sessions: Sequence[str]) -> Self:
        """Who was recorded with these `sessions`; without a token, so for a call that one let in before."""
        above = (*sessions[1:], None)
        return cls(tuple(chain), roles, sessions[0], above[0], tuple(sessions[2:]))

    @property
    def requester(self) -> str:
        """The chain without its session, as text: `person:anna>tier:silver`; what cursors and approvals are bound to."""
        return ">".join(self.chain)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a decision stands on the audit: writer and sequence number. An effect's transaction stores it."""

    writer: str
    sequence: int


class CursorSeal(Protocol):
    """Makes cursors opaque and bound to who got them."""

    def seal(self, bound_to: str, state: Json) -> str:
        """The cursor's text."""
        ...

    def open(self, bound_to: str, cursor: str) -> Json:
        """What was sealed; raises BadInput for any cursor not sealed for exactly this binding."""
        ...


class Progress(Protocol):
    """Tells the client how far the call is; a no-op where the client did not ask."""

    async def __call__(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """`done` of `total` units."""
        ...


class Hear(Protocol):
    """Takes what an operation says before its result is whole. Text from outside is passed on only once the session has its taint."""

    async def __call__(self, said: Any, *, outside: bool) -> None:  # what each operation says is its own
        """`said` is of the operation's own type, such as `tiers.model.Told`."""
        ...


@dataclass(frozen=True, slots=True)
class Issuer:
    """The gate's mark on a call. Only mcp_servers/hub/gate.py makes one (held by tests/test_architecture.py)."""

    gate: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call that passed the gate; without one no operation runs.

    Attributes:
        issuer: Proof that a gate made it.
        id: Unguessable; stands in logs, audit and errors.
        operation: The row being run.
        caller: Who calls.
        receipt: The decision's place on the audit; None for reads, whose records are written in batches.
        tainted: Whether the session had read text from outside when the decision was made.
        depth: How many calls deep this one was caused by others.
        inputs: What the client sent beside the arguments; empty unless the row has `asks`.
        key: A `repeatable` effect under the same key is the same effect: the approval that it runs under, or the call of a job that
            may be made again. None where the call is made once.
        approval: The approval that it runs under, None without one.
        basis: What `foresees` found when people were asked; the call refuses where it is no longer so.
        hear: Hears what the operation says on the way; None where nobody does.
        restarts: Whether who hears can take back what was said.
    """

    issuer: Issuer
    id: str
    operation: Operation
    caller: Caller
    cursors: CursorSeal
    progress: Progress
    receipt: Receipt | None = None
    tainted: bool = False
    depth: int = 0
    inputs: Inputs = NO_INPUTS
    key: str | None = None
    approval: str | None = None
    basis: str | None = None
    hear: Hear | None = None
    restarts: bool = False

    def seal_cursor(self, state: Json | None) -> str | None:
        """A cursor for the next page, bound to this requester and operation; None for None."""
        return None if state is None else self.cursors.seal(self._binding(), state)

    def open_cursor(self, cursor: str | None) -> Json | None:
        """What `seal_cursor` sealed; None for None.

        Raises:
            BadInput: The cursor was not made for this requester and operation, or was changed.
        """
        return None if cursor is None else self.cursors.open(self._binding(), cursor)

    def _binding(self) -> str:
        return f"{self.caller.requester} {self.operation.name}"
