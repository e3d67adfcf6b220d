"""Owns what an engine must do, as named checks: each plays one situation of docs/engine-protocol.md and says what went wrong."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass

from body_broker.background import running
from body_broker.storage.redis import Redis
from body_broker.world.engine.messages import (
    Change,
    EntityPart,
    Heartbeat,
    Hello,
    Outcome,
    OutcomePart,
    Refusal,
    Taken,
)
from body_broker.world.engine.partner import Broken, Partner
from body_broker.world.patching import merged

START_S = 30.0
LEASE_MS = 3_000
_SEVERAL = 20
_BEATS = 3
_SECOND = 2

Play = Callable[[Partner], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Check:
    """One situation.

    Attributes:
        name: As the table shows it.
        promise: What an engine does in it.
        play: Raises Broken where it does not.
    """

    name: str
    promise: str
    play: Play


@dataclass(frozen=True, slots=True)
class Finding:
    """How a check went; `fault` is None where it passed."""

    check: Check
    fault: str | None


def world(*, ada_version: int = 1, ada_health: int = 80) -> tuple[EntityPart, ...]:
    """The world that the checks play in."""

    def part(
        entity_id: str, kind: str, version: int, region: str | None, *, removed: bool = False, **data: object
    ) -> EntityPart:
        return EntityPart.model_validate(
            {"id": entity_id, "kind": kind, "region": region, "version": version, "removed": removed, "data": data}
        )

    return (
        part("morgue", "region", 1, None, name="The Morgue"),
        part("hall", "place", 3, "morgue", name="Hall"),
        part("ada", "npc", ada_version, "morgue", name="Ada", place="hall", health=ada_health),
        part("cleo", "npc", 7, "morgue", name="Cleo", place="hall", health=100),
        part("ben", "npc", 4, "morgue", name="Ben", place="hall", health=0, alive=False),
        part("ghost", "npc", 9, "morgue", removed=True, name="Ghost"),
    )


def _applied(said: OutcomePart, entity_id: str, version: int, **fields: object) -> None:
    """The outcome says that this entity is of this version now, and its fields so."""
    if said.state != "applied":
        raise Broken(f"it was {said.state}{f' by {said.rule}' if said.rule else ''}, not applied")
    effects = [effect for effect in said.effects if effect.entity_id == entity_id]
    if not effects:
        raise Broken(f"it was applied, and has no effect on {entity_id}")
    if effects[0].version != version:
        raise Broken(f"its effect on {entity_id} has version {effects[0].version}, not {version}")
    patch: dict[str, object] = {}
    for effect in effects:
        patch = merged(patch, effect.patch)
    for name, value in fields.items():
        if patch.get(name) != value:
            raise Broken(f"{entity_id}'s {name} is {patch.get(name)!r} afterwards, not {value!r}")


def _refused(said: OutcomePart, state: str) -> None:
    if said.state != state:
        raise Broken(f"it was {said.state}, not {state}")
    if said.effects:
        raise Broken(f"it was {state}, and has effects")
    if state == "rejected" and not said.rule:
        raise Broken("it was rejected, and no rule is named")


async def _stands(hub: Partner, version: int = 2, health: int = 75) -> None:
    """Ada is as the check left her: the next hurt leads to this version and health."""
    _applied(await hub.decide("ada", "hurt", {"by": 5}), "ada", version, health=health)


async def _says_hello(hub: Partner) -> None:
    await hub.hello(hub.start_s)


async def _asks_again(hub: Partner) -> None:
    hello = await hub.hello()
    place = hub.place
    await hub.say(Taken(engine=hello.engine, instance=hello.instance, retry_ms=200))
    again = await hub.expect(Hello, "hello again after taken", after=place)
    if again.instance != hello.instance:
        raise Broken("it says hello as another instance, though it was not started again")
    await hub.begin(world())
    await _stands(hub)


async def _beats(hub: Partner) -> None:
    await hub.begin(world())
    place = hub.place
    for _ in range(_BEATS):
        beat = await hub.expect(Heartbeat, "a heartbeat within the lease", after=place, patience_s=hub.lease_ms / 1000)
        place = hub.place
        if beat.epoch != hub.epoch:
            raise Broken(f"its heartbeat is of epoch {beat.epoch}, not {hub.epoch}")


async def _applies(hub: Partner) -> None:
    await hub.begin(world())
    _applied(await hub.decide("ada", "hurt", {"by": 5}), "ada", 2, health=75)
    _applied(await hub.decide("ada", "heal", {"by": 1}), "ada", 3, health=76)
    _applied(await hub.decide("cleo", "hurt", {"by": 1}), "cleo", 8, health=99)


async def _sets_text(hub: Partner) -> None:
    await hub.begin(world())
    text = 'Ærøskøbing “\\" 霊安室 🕯'
    said = await hub.decide("ada", "set", {"fields": {"description": text}}, expect_version=1)
    _applied(said, "ada", 2, description=text)


async def _tells_conflict(hub: Partner) -> None:
    await hub.begin(world())
    await _stands(hub)
    said = await hub.decide("ada", "set", {"fields": {"mood": "grim"}}, expect_version=1)
    _refused(said, "conflict")
    if said.current_version != _SECOND:
        raise Broken(f"it says that the current version is {said.current_version}, not 2")
    _applied(await hub.decide("ada", "set", {"fields": {"mood": "grim"}}, expect_version=2), "ada", 3, mood="grim")


def _rejects(entity_id: str, op: str, payload: dict[str, object]) -> Play:
    async def play(hub: Partner) -> None:
        await hub.begin(world())
        _refused(await hub.decide(entity_id, op, payload), "rejected")
        await _stands(hub)

    return play


async def _answers_again(hub: Partner) -> None:
    await hub.begin(world())
    change = hub.change("ada", "hurt", {"by": 5})
    first = await hub.outcome(change, after=await hub.send(change))
    second = await hub.outcome(change, after=await hub.send(change))
    _applied(first, "ada", 2, health=75)
    if first != second:
        raise Broken("the same change sent again has another outcome")
    await _stands(hub, 3, 70)


async def _applies_whole(hub: Partner) -> None:
    await hub.begin(world())
    changes = hub.change("ada", "hurt", {"by": 5}), hub.change("cleo", "hurt", {"by": 5})
    place = await hub.send(*changes, atomic=True)
    _applied(await hub.outcome(changes[0], after=place), "ada", 2, health=75)
    _applied(await hub.outcome(changes[1], after=place), "cleo", 8, health=95)
    if len(hub.since(place, Outcome)) != 1:
        raise Broken("the outcomes of one message came in several")


async def _applies_none(hub: Partner) -> None:
    await hub.begin(world())
    changes = hub.change("ada", "hurt", {"by": 5}), hub.change("ben", "hurt", {"by": 5})
    place = await hub.send(*changes, atomic=True)
    for change in changes:
        _refused(await hub.outcome(change, after=place), "rejected")
    await _stands(hub)


async def _keeps_order(hub: Partner) -> None:
    await hub.begin(world())
    place = hub.place
    changes = [hub.change("cleo", "hurt", {"by": 1 + number % 3}) for number in range(_SEVERAL)]
    for change in changes:
        await hub.send(change)
    await hub.outcome(changes[-1], after=place)
    order = [part.change_id for said in hub.since(place, Outcome) for part in said.outcomes]
    if order != [change.change_id for change in changes]:
        raise Broken("the outcomes are not in the order of the changes")
    health = 100
    for number, change in enumerate(changes):
        health -= 1 + number % 3
        _applied(await hub.outcome(change, after=place), "cleo", 8 + number, health=health)


async def _lets_expire(hub: Partner) -> None:
    await hub.begin(world())
    _refused(await hub.decide("ada", "hurt", {"by": 5}, expires_in_ms=-1), "expired")
    await _stands(hub)


async def _passes_over_old_epochs(hub: Partner) -> None:
    await hub.begin(world())
    old = hub.change("ada", "hurt", {"by": 5})
    place = await hub.send(old, epoch=hub.epoch - 1)
    await _stands(hub)
    if any(part.change_id == old.change_id for said in hub.since(place, Outcome) for part in said.outcomes):
        raise Broken("it decided a change of an epoch that is over")


async def _reloads(hub: Partner) -> None:
    await hub.begin(world())
    change = hub.change("ada", "hurt", {"by": 5})
    _applied(await hub.outcome(change, after=await hub.send(change)), "ada", 2, health=75)
    await hub.begin(world(ada_version=41, ada_health=50), parts=3)
    # The new world does not have it: the same change is to be decided anew.
    _applied(await hub.outcome(change, after=await hub.send(change)), "ada", 42, health=45)


async def _begins_anew_where_welcome(hub: Partner) -> None:
    await hub.begin(world())
    await _stands(hub)
    await hub.end("lost")
    await hub.hello()
    await hub.begin(world())
    await _stands(hub)


async def _sees_gaps(hub: Partner) -> None:
    await hub.begin(world())
    await _stands(hub)
    hub.next_n()
    lost = hub.change("ada", "hurt", {"by": 5})
    await hub.send(lost)
    await hub.hello()
    await hub.begin(world())
    await _stands(hub)


async def _survives_nonsense(hub: Partner) -> None:
    await hub.begin(world())
    for raw in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"v":1}',
        b'{"v":1,"type":"sing","epoch":%d}' % hub.epoch,
        b"\xff\xfe",
        b'{"v":1,"type":"change"}',
    ):
        await hub.say(raw)
    await _stands(hub)


async def _survives_refusals(hub: Partner) -> None:
    await hub.begin(world())
    await hub.say(Refusal(of="0-1", code="bad_message", message="A refusal of the check's.", epoch=hub.epoch))
    await _stands(hub)
    place = hub.place
    await hub.say(Refusal(of="0-1", code="old_epoch", message="A refusal of the check's.", epoch=hub.epoch))
    await hub.expect(Hello, "hello after a refusal that says its epoch is over", after=place)


async def _passes_over_new_fields(hub: Partner) -> None:
    await hub.begin(world(), extra={"later": {"a": [1]}})
    change = hub.change("ada", "hurt", {"by": 5})
    place = hub.place
    await hub.say_next(lambda n: Change(epoch=hub.epoch, n=n, atomic=False, changes=(change,)), {"later": {"b": None}})
    _applied(await hub.outcome(change, after=place), "ada", 2, health=75)


async def _lets_go(hub: Partner) -> None:
    await hub.begin(world())
    await _stands(hub)
    old = hub.epoch
    place = hub.place
    hub.leasing = False
    await hub.expect(
        Hello, "hello after a lease that nobody renewed", after=place, patience_s=2 * hub.lease_ms / 1000 + 2
    )
    late = hub.change("ada", "hurt", {"by": 5})
    await hub.send(late)
    await hub.begin(world())
    await _stands(hub)
    if any(said.epoch == old and said.outcomes[0].change_id == late.change_id for said in hub.since(place, Outcome)):
        raise Broken("it decided a change after its lease had lapsed")


CHECKS = (
    Check("hello", "says hello, with its id and its instance", _says_hello),
    Check("taken", "says hello again, as the same instance, when the wait it was told is over", _asks_again),
    Check("heartbeat", "sends heartbeats of its epoch, more than one in a lease, numbered without gaps", _beats),
    Check("applies", "applies hurt and heal, and names version and fields that it observed", _applies),
    Check("text", "sets a text of many scripts, unharmed", _sets_text),
    Check("conflict", "answers a stale expect_version with conflict and the current version", _tells_conflict),
    Check("unknown-entity", "rejects a change of what is not there", _rejects("nobody", "hurt", {"by": 5})),
    Check("unknown-operation", "rejects an operation that it does not know", _rejects("ada", "sing_backwards", {})),
    Check("bad-payload", "rejects a payload that does not fit", _rejects("ada", "hurt", {"by": "much"})),
    Check("removed-entity", "rejects a change of what is gone", _rejects("ghost", "hurt", {"by": 5})),
    Check("dead-actor", "rejects what only the living do", _rejects("ben", "hurt", {"by": 5})),
    Check(
        "duplicate", "answers a change that is sent twice with the same outcome, and applies it once", _answers_again
    ),
    Check("batch-applied", "applies an atomic batch, and answers it in one message", _applies_whole),
    Check("batch-refused", "applies nothing of an atomic batch where one change cannot be", _applies_none),
    Check("order", f"decides {_SEVERAL} changes of one entity in the order in which they came", _keeps_order),
    Check("expired", "does not apply what has expired", _lets_expire),
    Check("old-epoch", "passes over a change of another epoch", _passes_over_old_epochs),
    Check("reload", "takes the new world at a new epoch, in parts, and forgets the old one's outcomes", _reloads),
    Check("ended", "says hello when its epoch has ended", _begins_anew_where_welcome),
    Check("gap", "says hello when the hub's numbers skip: a message is lost", _sees_gaps),
    Check("nonsense", "survives messages that are none", _survives_nonsense),
    Check("refusal", "survives a refusal, and says hello where it says that the epoch is over", _survives_refusals),
    Check("new-fields", "passes over fields that it does not know", _passes_over_new_fields),
    Check("lease", "stops and says hello when nobody renews its lease", _lets_go),
)


async def run_checks(
    redis: Redis,
    *,
    engine: str | None = None,
    patience_s: float = 5.0,
    start_s: float = START_S,
    checks: tuple[Check, ...] = CHECKS,
) -> AsyncGenerator[Finding]:
    """Play every check against the engine that says hello on this Redis, one after the other.

    Args:
        redis: A Redis that nothing else uses.
        engine: The id of the engine that is meant; None takes the first that says hello.
        patience_s: How long an answer may take.
        start_s: How long the first hello may take.
        checks: Which.
    """
    hub = Partner(redis, engine=engine, patience_s=patience_s, start_s=start_s, lease_ms=LEASE_MS)
    async with running(hub.listen(), name="engine-check"):
        for check in checks:
            try:
                await check.play(hub)
            except Broken as broken:
                yield Finding(check, str(broken))
                if check.play is _says_hello:
                    return
            else:
                yield Finding(check, None)
