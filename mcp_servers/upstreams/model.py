"""Owns the words of upstream servers: how one is joined, what it says it offers, and which of that is pinned. No store, no protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from body_broker.calls import Effect, Json
from body_broker.text import digest

Kind = Literal["tool", "prompt", "resource", "template"]
State = Literal["pinned", "changed", "new", "gone"]
Auth = Literal["none", "token", "oauth"]

NAME = r"[a-z][a-z0-9_]{0,30}"
"""What an upstream may be called: the prefix of all that it offers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """What the studio says one operation of an upstream is; whatever it does not name is a write that destroys and reaches outside.

    Attributes:
        group: A granting group of `policies.catalogue.GROUPS`; None is unclassified.
        modifiers: Of `policies.catalogue.MODIFIERS`.
        effect: As of `body_broker.calls.Operation`; nobody knows of an unclassified one whether it may be repeated.
    """

    group: str | None = None
    modifiers: frozenset[str] = frozenset()
    effect: Effect = "once"


UNCLASSIFIED = Classified()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """One server of others, as a section of upstreams.toml joins it: a command for stdio, or a URL for HTTP.

    Attributes:
        name: Prefix of its tools and prompts (`name_`) and resources (`name+`).
        command: The program and its arguments; empty with a URL.
        folder: Where the program runs; None is a folder of its own under the data dir.
        env: What its environment holds beside PATH, HOME and the locale.
        secret_env: Names of variables whose values are kept sealed (`body-broker upstream token NAME --env VARIABLE`).
        url: Where it listens; None with a command.
        auth: How the hub shows itself there.
        timeout_s: How long one request may take.
        concurrency: How many calls it gets at once; more wait.
        recheck_s: How old its list may be for a read; before any other call it is read anew.
        watch_s: How often it is looked at without being asked.
        operations: What the studio says of its operations, by kind and by the name that it gives them.
    """

    name: str
    command: tuple[str, ...] = ()
    folder: str | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    secret_env: tuple[str, ...] = ()
    url: str | None = None
    auth: Auth = "none"
    timeout_s: float = 30.0
    concurrency: int = 8
    recheck_s: float = 5.0
    watch_s: float = 60.0
    operations: Mapping[tuple[Kind, str], Classified] = field(default_factory=dict[tuple[Kind, str], Classified])

    def classified(self, kind: Kind, name: str) -> Classified:
        """What the studio says of one of its operations."""
        return self.operations.get((kind, name), UNCLASSIFIED)


@dataclass(frozen=True, slots=True)
class Definition:
    """What an upstream says one of its operations is.

    Attributes:
        kind: What it is in MCP.
        name: What the upstream calls it: a tool's or prompt's name, a resource's URI or a template's.
        body: Name, title, description, schemas and annotations, exactly as they came; nothing that changes without meaning.
    """

    kind: Kind
    name: str
    body: Mapping[str, Json]

    @property
    def digest(self) -> str:
        """SHA-256 of it all in canonical JSON."""
        return digest({"kind": self.kind, "name": self.name, "body": self.body})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What is known of one operation of an upstream.

    Attributes:
        state: `pinned` is served; `changed`, `new` and `gone` are withheld.
        accepted: The definition that is served; None where none ever was.
        seen: What the upstream says now where that is another one; None where it is the same, or gone.
    """

    upstream: str
    kind: Kind
    name: str
    state: State
    accepted: Definition | None
    seen: Definition | None = None
