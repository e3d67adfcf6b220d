"""The messages: golden bytes and schema are what the code says, and what is not a message is told in words."""

from __future__ import annotations

from typing import Any, cast

import jsonschema
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from body_broker.background import running
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.text import canonical_json
from body_broker.world.engine.coding import Unreadable, encode, fault_of, read_order, read_report
from body_broker.world.engine.fitting import Unfit, plain
from body_broker.world.engine.messages import (
    DATA_DEPTH_MAX,
    NUMBER_MAX,
    ORDERS,
    REPORTS,
    TO_ENGINE,
    TO_HUB,
    Hello,
    Outcome,
)
from body_broker.world.model import EVENT_STREAM
from tests.body_broker.world.engine.scene import load, own_engine, relay_of
from tests.components import PROJECT
from tests.tools import protocol
from tests.waiting import wait_until

DOCS = PROJECT / "docs" / "engine-protocol"
SCHEMA = orjson.loads((DOCS / "schema.json").read_bytes())
GOLDEN = (DOCS / "golden.jsonl").read_bytes().splitlines()
EXAMPLE = PROJECT / "examples" / "engine" / "godot" / "body_broker_client.gd"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("line", GOLDEN, ids=[orjson.loads(line)["type"] for line in GOLDEN])
def test_golden_bytes_are_read_written_and_described_alike(line: bytes) -> None:
    reports = {kind.model_fields["type"].default for kind in REPORTS}
    message = (read_report if orjson.loads(line)["type"] in reports else read_order)(line)

    assert not isinstance(message, Unreadable)
    assert encode(message) == line == canonical_json(orjson.loads(line))
    jsonschema.validate(orjson.loads(line), SCHEMA)


def test_every_message_has_golden_bytes_and_a_schema() -> None:
    every = {kind.model_fields["type"].default for kind in (*REPORTS, *ORDERS)}

    assert {orjson.loads(line)["type"] for line in GOLDEN} == every
    assert every <= set(SCHEMA["$defs"])


@pytest.mark.parametrize("line", GOLDEN, ids=[orjson.loads(line)["type"] for line in GOLDEN])
def test_code_and_schema_agree_on_what_is_no_message(line: bytes) -> None:
    validator: Any = jsonschema.Draft202012Validator(SCHEMA)
    body = orjson.loads(line)
    reports = {kind.model_fields["type"].default for kind in REPORTS}
    read = read_report if body["type"] in reports else read_order
    for name in body:
        without = {key: value for key, value in body.items() if key != name}
        other = body | {name: {"no": "value of it"}}
        for wrong in (without, other):
            assert isinstance(read(orjson.dumps(wrong)), Unreadable) == (not validator.is_valid(wrong)), wrong


async def test_what_lies_in_redis_for_readers_is_as_the_schema_says(
    pool: Pool, redis: Redis, database_url: str
) -> None:
    await load(pool)
    async with running(relay_of(pool, redis, database_url).run(), name="relay"), own_engine(redis):
        key = await wait_until(lambda: redis.get("npc:ada"), "the key is there")
        region = await wait_until(lambda: redis.get("world:morgue"), "the region's too")
        entries: Any = await redis.xrange(EVENT_STREAM, count=1)

    for found in (key, region, protocol.forms()["key"]):
        jsonschema.validate(orjson.loads(found or b""), SCHEMA["$defs"]["entity_in_redis"])
    fields = entries[0][1]
    for found in (fields[b"event"], protocol.forms()["event"]):
        jsonschema.validate(orjson.loads(found), SCHEMA["$defs"]["event_in_redis"])


@given(JSON)
def test_whatever_json_comes_it_is_a_message_or_told_why_not(value: object) -> None:
    for read in (read_report, read_order):
        found = read(orjson.dumps(value))
        assert isinstance(found, Unreadable)
        assert found.message.endswith(".")


@given(st.binary(max_size=200))
def test_whatever_bytes_come_nothing_breaks(raw: bytes) -> None:
    assert isinstance(read_report(raw), Unreadable)


@given(JSON)
def test_a_number_that_is_whole_stays_equal_when_it_is_made_plain(value: object) -> None:
    if fault_of(value) is None and is_exact(value):
        assert plain(plain(value)) == plain(value) == plain(orjson.loads(orjson.dumps(plain(value))))


def is_exact(value: object) -> bool:
    """Whether no whole number in it is beyond what a double holds."""
    if isinstance(value, dict | list):
        inner = cast("dict[str, object]", value).values() if isinstance(value, dict) else cast("list[object]", value)
        return all(map(is_exact, inner))
    return not isinstance(value, int | float) or abs(value) <= NUMBER_MAX


@pytest.mark.parametrize("number", [1e20, -1e20, 2.0**53, 2**53, 2**64 - 1, 1.7e308])
def test_a_number_that_a_double_does_not_hold_exactly_is_unfit(number: float) -> None:
    with pytest.raises(Unfit, match="number"):
        plain({"a": [number]})


def test_json_is_taken_up_to_its_depth_and_not_beyond() -> None:
    def nested(levels: int) -> object:
        value: object = 1
        for _ in range(levels):
            value = [value]
        return value

    assert fault_of(nested(DATA_DEPTH_MAX - 1)) is None
    assert "levels deep" in (fault_of(nested(DATA_DEPTH_MAX)) or "")
    assert "NUL" in (fault_of({"a": ["\0"]}) or "")
    assert "NUL" in (fault_of({"\0": 1}) or "")


def test_whole_numbers_may_come_as_floats_and_nothing_else_may() -> None:
    line = b'{"v":1.0,"type":"outcome","epoch":7.0,"n":2.0,"tick":3.0,"outcomes":[{"change_id":"a","state":"conflict","current_version":%b}]}'

    assert isinstance(read_report(line % b"5.0"), Outcome)
    for wrong in (b"5.5", b'"5"', b"true", b"-1", b"9007199254740993.0", b"1e300"):
        assert isinstance(read_report(line % wrong), Unreadable)


def test_a_refusal_repeats_nothing_of_the_message_s_values() -> None:
    found = read_report(b'{"v":1,"type":"hello","engine":"s3cret value","instance":"1","\\u202e":1}')

    assert isinstance(found, Unreadable)
    assert "s3cret" not in found.message
    assert "\u202e" not in found.message


def test_the_client_in_gdscript_names_what_the_protocol_names() -> None:
    # Whether it keeps to it, the real Godot shows (test_godot.py).
    text = EXAMPLE.read_text("utf-8")

    for name in (TO_ENGINE, TO_HUB, *(kind.model_fields["type"].default for kind in (*REPORTS, *ORDERS))):
        assert f'"{name}"' in text, name
    assert isinstance(read_report(encode(Hello(engine="a", instance="b"))), Hello)
