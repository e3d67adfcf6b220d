"""Owns the proof of the queue's door: what is taken is durable and taken once, what is not is told why."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from body_broker.errors import BadInput, Conflict, NotFound, RateLimited, TooLarge
from body_broker.work.model import Origin
from body_broker.world import purging, queue
from body_broker.world.model import BATCH_MAX, Proposal
from tests.body_broker.world.conftest import Bench, Engine
from tests.body_broker.world.scene import GAME, entities, proposal

GOLD = Origin(chain=("tier:gold",), session="s_gold", tainted=True, depth=3)


async def test_a_change_is_queued_under_an_id_and_says_the_present_version(bench: Bench) -> None:
    (taken,) = await bench.submit(proposal("mara", "hurt", {"by": 5}))

    assert taken.change_id.startswith("sch_")
    assert (taken.state, taken.duplicate, taken.current_version) == ("queued", False, 1)
    assert (await queue.pressure(bench.pool)).queue_depth == 1


async def test_the_same_key_is_the_same_change_and_another_requesters_is_not(bench: Bench) -> None:
    asked = proposal("mara", "hurt", {"by": 5})
    (first,) = await bench.submit(asked)
    (again,) = await bench.submit(asked)
    (theirs,) = await bench.submit(asked, requester="person:anna")

    assert (again.change_id, again.duplicate) == (first.change_id, True)
    assert theirs.change_id != first.change_id
    assert (await queue.pressure(bench.pool)).queue_depth == 2


async def test_a_key_that_stands_for_something_else_is_a_conflict_and_nothing_of_the_call_is_taken(
    bench: Bench,
) -> None:
    await bench.submit(proposal("mara", "hurt", {"by": 5}, key="k"))

    with pytest.raises(Conflict, match="another change"):
        await bench.submit(proposal("ben", "hurt", {"by": 1}), proposal("mara", "hurt", {"by": 6}, key="k"))

    assert (await queue.pressure(bench.pool)).queue_depth == 1


async def test_many_who_send_the_same_change_at_once_get_one(bench: Bench) -> None:
    asked = proposal("mara", "hurt", {"by": 5}, key="k")
    answers = await asyncio.gather(*(bench.submit(asked) for _ in range(12)))

    assert len({each.change_id for (each,) in answers}) == 1
    assert sum(not each.duplicate for (each,) in answers) == 1


async def test_a_batch_that_is_sent_again_is_the_same_and_one_that_mixes_old_and_new_is_refused(bench: Bench) -> None:
    asked = [proposal("mara", "hurt", {"by": n}) for n in (1, 2)]
    first = await bench.submit(*asked, atomic=True)
    again = await bench.submit(*asked, atomic=True)

    assert [each.change_id for each in again] == [each.change_id for each in first]
    with pytest.raises(Conflict, match="taken before"):
        await bench.submit(asked[0], proposal("mara", "hurt", {"by": 3}), atomic=True)
    assert (await queue.pressure(bench.pool)).queue_depth == 2


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (proposal("nobody", "hurt", {"by": 5}), "no entity 'nobody'"),
        (proposal("The Mara", "hurt", {"by": 5}), "cannot be the id"),
        (proposal("mara", "fly", {}), "no operation"),
        (proposal("harbour", "hurt", {"by": 5}), "not for a region"),
        (proposal("mara", "hurt", {"by": float("nan")}), "does not fit hurt"),
        (proposal("mara", "hurt", {"by": 5}, priority=10), "`priority` is 10"),
        (proposal("mara", "hurt", {"by": 5}, expires_in_ms=0), "`expires_in_ms` is 0"),
        (proposal("mara", "hurt", {"by": 5}, expires_in_ms=10**9), "`expires_in_ms`"),
        (proposal("mara", "hurt", {"by": 5}, expect_version=-1), "`expect_version` is -1"),
        (proposal("mara", "hurt", {"by": 5}, key=""), "idempotency key"),
        (proposal("mara", "hurt", {"by": 5}, key="k\u202e"), "idempotency key"),
        (proposal("mara", "hurt", {"by": 5}, causation="sch_nothing"), "no change or event"),
        (proposal("mara", "hurt", {"by": 5}, causation="event:999"), "no change or event"),
        (proposal("mara", "hurt", {"by": 5}, causation="event:-1; DROP"), "event:POS"),
        (proposal("mara", "move", {"to": "alley"}), "does not commute"),
    ],
)
async def test_the_door_says_what_is_wrong(bench: Bench, asked: Proposal, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        await bench.submit(asked)

    assert (await queue.pressure(bench.pool)).queue_depth == 0


async def test_who_forgets_the_version_is_told_the_present_one(bench: Bench) -> None:
    with pytest.raises(BadInput) as caught:
        await bench.submit(proposal("mara", "move", {"to": "alley"}))

    assert caught.value.details["current_version"] == 1


async def test_huge_payloads_and_huge_batches_are_refused(bench: Bench) -> None:
    with pytest.raises(TooLarge):
        await bench.submit(proposal("mara", "set", {"fields": {"description": "x" * 17_000}}, expect_version=1))
    with pytest.raises(TooLarge):
        await bench.submit(*(proposal("mara", "hurt", {"by": 1}, key=str(n)) for n in range(BATCH_MAX + 1)))
    with pytest.raises(BadInput, match="same idempotency key"):
        await bench.submit(*(proposal("mara", "hurt", {"by": 1}, key="k") for _ in range(2)))


async def test_one_requesters_full_queue_is_nobody_elses(bench: Bench) -> None:
    asked = [proposal("mara", "hurt", {"by": 1}, key=str(n)) for n in range(10)]
    await bench.submit(*asked, open_changes_max=10)

    with pytest.raises(RateLimited) as caught:
        await bench.submit(proposal("mara", "hurt", {"by": 1}, key="one more"), open_changes_max=10)
    assert caught.value.retry_after_s
    assert all(each.duplicate for each in await bench.submit(*asked, open_changes_max=10)), "a repeat is no new change"
    await bench.submit(proposal("mara", "hurt", {"by": 1}), requester="person:anna", open_changes_max=10)


async def test_what_causes_a_change_passes_on_its_taint_and_its_depth(bench: Bench) -> None:
    (first,) = await bench.submit(proposal("mara", "say", {"text": "A"}), origin=GOLD, requester="tier:gold", rank=0)
    (second,) = await bench.submit(proposal("ben", "say", {"text": "B"}, causation=first.change_id))

    row = await bench.pool.fetchrow("SELECT depth, tainted FROM world_change WHERE id = $1", second.change_id)
    assert row is not None
    assert (row["depth"], row["tainted"]) == (4, True)


async def test_changes_that_cause_each_other_end_at_a_depth_and_at_the_first_that_comes_round(
    bench: Bench, engine: Engine
) -> None:
    cause: str | None = None
    states: list[str] = []
    async with engine():
        for n in range(4):
            who = ("mara", "ben")[n % 2]
            asked = proposal(who, "say", {"text": "You first."}, causation=cause, key=str(n))
            taken = await bench.submit(asked)
            await bench.decided()
            states += await bench.states(taken)
            cause = taken[0].change_id

        assert states == ["applied", "applied", "same_cause", "same_cause"]

        for n in range(4, 9):
            taken = await bench.submit(proposal("mara", "say", {"text": f"{n}"}, causation=cause, key=str(n)))
            cause = taken[0].change_id
        with pytest.raises(BadInput, match="9 deep"):
            await bench.submit(proposal("mara", "say", {"text": "9"}, causation=cause))


async def test_an_event_is_a_cause_too(bench: Bench, engine: Engine) -> None:
    async with engine():
        await bench.submit(proposal("anna", "say", {"text": "Help."}, player="anna"))
        await bench.decided()
        pos = await bench.pool.fetchval("SELECT max(pos) FROM world_event")
        (taken,) = await bench.submit(proposal("mara", "say", {"text": "No."}, causation=f"event:{pos}"))

    row = await bench.pool.fetchrow("SELECT depth, tainted FROM world_change WHERE id = $1", taken.change_id)
    assert row is not None
    assert (row["depth"], row["tainted"]) == (1, True), "a player's words moved it"


async def test_only_the_game_server_reports_a_players_input(bench: Bench) -> None:
    (game,) = await bench.submit(proposal("mara", "hurt", {"by": 1}, player="anna"), rank=1)
    (agent,) = await bench.submit(proposal("mara", "hurt", {"by": 2}, player="anna"), rank=0)

    ranks = {row["id"]: row["rank"] for row in await bench.pool.fetch("SELECT id, rank FROM world_change")}
    assert ranks == {game.change_id: 2, agent.change_id: 0}


async def test_a_change_is_its_requesters_alone(bench: Bench) -> None:
    (taken,) = await bench.submit(proposal("mara", "hurt", {"by": 5}, key="mine"))

    assert (await queue.standing(bench.pool, "mine", "service:game")).change_id == taken.change_id
    for ref in (taken.change_id, "mine"):
        with pytest.raises(NotFound):
            await queue.standing(bench.pool, ref, "person:eve")
    with pytest.raises(NotFound):
        await queue.cancel(bench.pool, taken.change_id, "person:eve")
    assert (await queue.standing(bench.pool, taken.change_id, "service:game")).state == "queued"


async def test_what_is_cancelled_is_never_applied_and_takes_its_batch_along(bench: Bench, engine: Engine) -> None:
    taken = await bench.submit(*(proposal("mara", "hurt", {"by": n}) for n in (1, 2)), atomic=True)

    assert (await queue.cancel(bench.pool, taken[0].change_id, "service:game")).state == "cancelled"
    assert (await queue.cancel(bench.pool, taken[0].change_id, "service:game")).state == "cancelled"
    async with engine():
        (other,) = await bench.submit(proposal("mara", "hurt", {"by": 3}))
        await bench.decided()

    assert await bench.states(taken) == ["cancelled", "batch"]
    assert await bench.version("mara") == 2
    with pytest.raises(Conflict, match="applied already"):
        await queue.cancel(bench.pool, other.change_id, "service:game")


async def test_what_another_engine_was_told_of_is_not_cancelled_behind_its_back(bench: Bench) -> None:
    (taken,) = await bench.submit(proposal("mara", "hurt", {"by": 5}))
    await bench.pool.execute("UPDATE world_change SET sent_epoch = 7")

    with pytest.raises(Conflict, match="has this change already"):
        await queue.cancel(bench.pool, taken.change_id, "service:game")


async def test_a_rehearsal_says_what_would_become_of_a_change_and_does_nothing(bench: Bench) -> None:
    async def rehearsed(entity_id: str, op: str, payload: dict[str, Any], **fields: Any) -> tuple[str, str | None]:
        verdict = await queue.rehearse(
            bench.pool,
            entities(),
            proposal(entity_id, op, payload, **fields),
            origin=GAME,
            requester="service:game",
            rank=1,
        )
        return verdict.state, verdict.rule

    assert await rehearsed("mara", "move", {"to": "alley"}, expect_version=1) == ("applied", None)
    assert await rehearsed("mara", "move", {"to": "vault"}, expect_version=1) == ("rejected", "not_reachable")
    assert await rehearsed("mara", "move", {"to": "alley"}, expect_version=2) == ("conflict", None)
    assert await bench.pool.fetchval("SELECT count(*) FROM world_change") == 0
    assert await bench.version("mara") == 1


async def test_decided_changes_are_forgotten_after_a_week_and_waiting_ones_never(bench: Bench, engine: Engine) -> None:
    async with engine():
        await bench.submit(proposal("mara", "hurt", {"by": 1}))
        await bench.submit(proposal("mara", "hurt", {"by": 2}))
        await bench.decided()
    await bench.submit(proposal("mara", "hurt", {"by": 3}))
    await bench.pool.execute(
        "UPDATE world_change SET decided_at = decided_at - interval '8 days' WHERE seq = 1;"
        "UPDATE world_change SET queued_at = queued_at - interval '8 days' WHERE state = 'queued'"
    )

    assert await queue.purge(bench.pool, older_than_s=purging.KEPT_S) == 1
    assert await bench.pool.fetchval("SELECT array_agg(seq ORDER BY seq) FROM world_change") == [2, 3]
    assert purging.schedules()[0].kind in purging.handlers(bench.pool)
    assert purging.KEPT_S >= 600, "a key is good for ten minutes at least"


async def test_calls_with_the_same_keys_in_another_order_do_not_wait_for_each_other_for_ever(bench: Bench) -> None:
    for n in range(6):
        asked = [proposal("mara", "hurt", {"by": 1}, key=f"{n}-{k}") for k in range(BATCH_MAX)]
        answers = await asyncio.gather(
            *(bench.submit(*each, open_changes_max=10_000) for each in (asked, asked[::-1], asked, asked[::-1]))
        )
        assert sum(not each.duplicate for answer in answers for each in answer) == BATCH_MAX


async def test_a_change_that_is_asked_for_again_is_the_same_though_its_cause_is_forgotten(bench: Bench) -> None:
    (cause,) = await bench.submit(proposal("mara", "hurt", {"by": 1}))
    asked = proposal("mara", "hurt", {"by": 2}, causation=cause.change_id)
    (first,) = await bench.submit(asked)
    await queue.cancel(bench.pool, cause.change_id, "service:game")
    assert await queue.purge(bench.pool, older_than_s=0) == 1

    (again,) = await bench.submit(asked)
    assert (again.change_id, again.duplicate) == (first.change_id, True)
    with pytest.raises(BadInput, match="causation"):
        await bench.submit(proposal("mara", "hurt", {"by": 2}, causation=cause.change_id, key="another"))
