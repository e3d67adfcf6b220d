"""Owns what an operation is to the policies: its one granting group, its modifiers, its visible arguments (DESIGN.md §4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from body_broker.calls import Operation, Room
from body_broker.errors import PolicyError
from policies.arguments import Attribute, attributes_of

# A permit names these and nothing else; an operation is in exactly one.
GROUPS = (
    "own",
    "state_read",
    "retrieval",
    "config_read",
    "security_read",
    "admin_read",
    "security_scan",
    "draft",
    "intent",
    "queued",
    "write",
    "admin_change",
)
# These only forbid; an operation may have any number.
MODIFIERS = ("long_running", "spend", "destructive", "external")

UNCLASSIFIED_GROUP = "write"
UNCLASSIFIED_MODIFIERS = frozenset({"destructive", "external"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation as policies see it: a Cedar action on the server that owns it."""

    name: str
    server: str
    group: str
    modifiers: frozenset[str] = frozenset()
    attributes: tuple[Attribute, ...] = ()


class Catalogue:
    """Every operation the hub serves, by name; frozen once made.

    Raises:
        PolicyError: A name is taken twice or is a group's, or a group or modifier is unknown.
    """

    def __init__(self, entries: Iterable[Entry]) -> None:
        found: dict[str, Entry] = {}
        for entry in entries:
            _check(entry, found)
            found[entry.name] = entry
        self.entries: Mapping[str, Entry] = MappingProxyType(dict(sorted(found.items())))

    @classmethod
    def of(cls, rooms: Sequence[Room]) -> Self:
        """The catalogue of these rooms' tools, resources and prompts.

        Give it every room of the hub, not only those being served: policies name operations, and a name that is not here
        stops the start.
        """
        return cls(_entry(room.name, operation) for room in rooms for operation in room.operations())

    def with_entries(self, more: Iterable[Entry]) -> Self:
        """This catalogue and more."""
        return type(self)([*self.entries.values(), *more])


def _entry(server: str, operation: Operation) -> Entry:
    group, modifiers = operation.group, operation.modifiers
    if group is None:
        group, modifiers = UNCLASSIFIED_GROUP, modifiers | UNCLASSIFIED_MODIFIERS
    visible = attributes_of(operation.arguments) if operation.arguments.ours else ()
    return Entry(operation.name, server, group, modifiers, visible)


def _check(entry: Entry, found: Mapping[str, Entry]) -> None:
    row = f"The operation {entry.name} of the server {entry.server}"
    advice = "Correct the operation's row in its server.py."
    if entry.name in found:
        raise PolicyError(f"{row} has a name that {found[entry.name].server} already has.", next_step=advice)
    if entry.name in GROUPS or entry.name in MODIFIERS:
        raise PolicyError(f"{row} has the name of a group or modifier.", next_step=advice)
    if entry.group not in GROUPS:
        raise PolicyError(f"{row} has the unknown granting group {entry.group}.", next_step=advice)
    if unknown := sorted(entry.modifiers.difference(MODIFIERS)):
        raise PolicyError(f"{row} has the unknown modifier {unknown[0]}.", next_step=advice)
