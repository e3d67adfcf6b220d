"""Owns the generated texts of the engine protocol: JSON Schema and golden bytes of every message, and the tables of its page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, cast

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from body_broker.world.engine.checks import CHECKS
from body_broker.world.engine.coding import encode
from body_broker.world.engine.messages import (
    ORDERS,
    REPORTS,
    TO_ENGINE,
    TO_HUB,
    Bye,
    Change,
    ChangePart,
    EffectPart,
    Ended,
    EntityPart,
    Heartbeat,
    Hello,
    Lease,
    Observation,
    Outcome,
    OutcomePart,
    Recorded,
    Refusal,
    Snapshot,
    Taken,
    Welcome,
)
from body_broker.world.forms import encode as encode_form
from body_broker.world.forms import entity_body, event_body
from body_broker.world.kinds import KINDS
from body_broker.world.model import Entity, Event
from body_broker.world.operation import RULES
from body_broker.world.operations import OPERATIONS, schema_of_operations

_MOVED = EffectPart(
    entity_id="ada", version=13, type="moved", patch={"place": "cellar", "position": None}, region="morgue"
)
_ADA = EntityPart(
    id="ada",
    kind="npc",
    region="morgue",
    version=12,
    removed=False,
    data={"name": "Ada Krähe", "place": "hall", "health": 80},
)
_CHANGE = ChangePart(
    change_id="sch_Zm9vYmFyYmF6cXV4MTIz",
    entity_id="ada",
    op="move",
    payload={"to": "cellar"},
    expect_version=12,
    rank=1,
    priority=0,
    depth=0,
    causation="event:41",
    actor="service:game",
    tainted=False,
    expires_in_ms=59_950,
)
SAMPLES: tuple[BaseModel, ...] = (
    Hello(engine="godot-morgue", instance="3f9a01c2", tick_hz=62.5),
    Heartbeat(epoch=7, n=1, tick=18_000),
    Outcome(
        epoch=7,
        n=2,
        tick=18_003,
        outcomes=(OutcomePart(change_id=_CHANGE.change_id, state="applied", effects=(_MOVED,)),),
    ),
    Outcome(
        epoch=7,
        n=3,
        tick=18_004,
        outcomes=(OutcomePart(change_id="sch_YW5vdGhlciBvbmUgb2Yx", state="conflict", current_version=13),),
    ),
    Observation(
        epoch=7,
        n=4,
        tick=18_009,
        key="step-3f9a01c2-77",
        effects=(EffectPart(entity_id="player-1", version=5, type="moved", patch={"place": "hall"}),),
    ),
    Bye(epoch=7, n=5),
    Welcome(
        engine="godot-morgue", instance="3f9a01c2", epoch=7, n=1, lease_ms=3_000, tick=17_990, entities=1, snapshots=1
    ),
    Snapshot(epoch=7, n=2, entities=(_ADA,)),
    Taken(engine="godot-cellar", instance="b77e10d4", retry_ms=1_840),
    Change(epoch=7, n=3, atomic=False, changes=(_CHANGE,)),
    Lease(epoch=7, n=4, lease_ms=3_000),
    Recorded(epoch=7, n=5, upto=2, pos=42),
    Refusal(of="1763754000000-0", code="old_epoch", message="This epoch is not in force: say hello.", epoch=6),
    Ended(epoch=7, reason="reload"),
)
"""At least one of each message, none of it secret or of this moment."""

_ENTITY = Entity(
    id="ada", kind="npc", region="morgue", version=13, tick=18_003, data={"name": "Ada Krähe", "health": 80}
)
_EVENT = Event(
    pos=42,
    entity_id="ada",
    version=13,
    kind="npc",
    region="morgue",
    type="moved",
    patch={"place": "cellar"},
    removed=False,
    change_id=_CHANGE.change_id,
    causation="event:41",
    epoch=7,
    tick=18_003,
    outside=False,
    at_ms=1_763_754_000_250,
)


def golden_lines() -> list[bytes]:
    """The exact bytes of each sample."""
    return [encode(sample) for sample in SAMPLES]


def golden_text() -> str:
    """docs/engine-protocol/golden.jsonl."""
    return "".join(line.decode() + "\n" for line in golden_lines())


def forms() -> dict[str, bytes]:
    """What lies in Redis for readers: a key's value and an event, as they are written."""
    return {"key": encode_form(entity_body(_ENTITY)), "event": encode_form(event_body(_EVENT))}


def schema() -> dict[str, Any]:
    """JSON Schema of every message, and of what lies in Redis for readers; each by its name in `$defs`."""
    kinds: list[type[BaseModel]] = [*REPORTS, *ORDERS]
    every = [*kinds, *KINDS.values()]
    _, made = models_json_schema([(kind, "validation") for kind in every], ref_template="#/$defs/{model}")
    definitions = cast("dict[str, Any]", _without_titles(made["$defs"]))
    for kind in kinds:
        required = definitions[kind.__name__].setdefault("required", [])
        definitions[kind.__name__]["required"] = ["v", "type", *required]
    named = {type_of(kind): definitions.pop(kind.__name__) for kind in kinds}
    data = {f"data_of_{kind}": definitions.pop(model.__name__) for kind, model in KINDS.items()}
    read = {
        "entity_in_redis": _without_titles(TypeAdapter(Entity).json_schema()),
        "event_in_redis": _without_titles(TypeAdapter(Event).json_schema()),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of the engine protocol, version 1",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in named],
        "$defs": {**named, **definitions, **data, **read},
    }


def schema_text() -> str:
    """docs/engine-protocol/schema.json."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


def type_of(kind: type[BaseModel]) -> str:
    """A message's `type`."""
    return kind.model_fields["type"].default


def _without_titles(value: Any) -> Any:  # JSON Schema
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        return {k: _without_titles(v) for k, v in found.items() if k != "title" or not isinstance(v, str)}
    return [_without_titles(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value


def messages_part() -> str:
    """The page's list of messages: what each is, its fields where they need a word, its golden bytes."""
    return "\n".join(
        [
            f"### From the engine, on `{TO_HUB}`\n",
            *(_message(kind) for kind in REPORTS),
            f"### From the hub, on `{TO_ENGINE}`\n",
            *(_message(kind) for kind in ORDERS),
        ]
    )


def _message(kind: type[BaseModel]) -> str:
    samples = "\n".join(encode(s).decode() for s in SAMPLES if type(s) is kind)
    fields = "\n".join(f"* `{name}`: {said}" for name, said in _fields(kind))
    return f"**{type_of(kind)}**: {kind.__doc__}\n\n```json\n{samples}\n```\n\n" + (f"{fields}\n" if fields else "")


def _fields(kind: type[BaseModel]) -> Iterator[tuple[str, str]]:
    parts: dict[type[BaseModel], tuple[type[BaseModel], ...]] = {
        Outcome: (OutcomePart,),
        Observation: (EffectPart,),
        Change: (ChangePart,),
    }
    for model in (kind, *parts.get(kind, ())):
        yield from ((name, field.description) for name, field in model.model_fields.items() if field.description)


def operations_part() -> str:
    """The page's table of operations."""
    rows = (
        f"| `{name}` | {', '.join(row['kinds']) if len(row['kinds']) < len(ALL_KINDS) else 'all'} | "
        f"{'' if row['needs_version'] else 'yes'} | {row['does']} | {_payload(row['payload'])} |"
        for name, row in schema_of_operations().items()
    )
    return (
        "| op | kinds | without `expect_version` | what it does | payload |\n| --- | --- | --- | --- | --- |\n"
        + "".join(f"{row}\n" for row in rows)
    )


ALL_KINDS = frozenset[str]().union(*(op.kinds for op in OPERATIONS.values()))


def _payload(schema_: dict[str, Any]) -> str:
    required = set(schema_.get("required", ()))
    names = [f"`{name}`" + ("" if name in required else "?") for name in schema_.get("properties", {})]
    return ", ".join(names) or "none"


def rules_part() -> str:
    """The page's table of the rules that our engine names."""
    return "| rule | what it says |\n| --- | --- |\n" + "".join(
        f"| `{name}` | {says} |\n" for name, says in RULES.items()
    )


def checks_part() -> str:
    """The page's table of checks."""
    return "| check | an engine |\n| --- | --- |\n" + "".join(f"| `{c.name}` | {c.promise} |\n" for c in CHECKS)
