"""The local issuer: logins and their tokens, roles in their table, keys that rotate, tokens minted for conversations."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jwt
import pytest

from body_broker.calls import Caller
from body_broker.errors import BadInput, NotFound, SettingsError, Unauthenticated, Unavailable
from body_broker.settings import Settings
from body_broker.storage.postgres import Pool, open_pool
from mcp_servers.hub.secrets import Secrets
from mcp_servers.hub.tokens import Tokens
from tests.body_broker.audit.wire import wire_to
from tests.mcp_servers.hub.clocks import Clock, wall_clock

SECRETS = Secrets(b"r" * 32)
SETTINGS = Settings(data_dir=Path("/nowhere"), token_ttl_max_s=86400)  # pyright: ignore[reportCallIssue]  # the rest has defaults
ANNA = Caller(("person:anna",), {}, "ses_of-anna", token_id="tok_of-anna")


@pytest.fixture
def clock() -> Clock:
    return wall_clock()


@pytest.fixture
def tokens(pool: Pool, clock: Clock) -> Tokens:
    return Tokens(pool, SETTINGS, SECRETS, clock=clock)


def claims_of(token: str) -> dict[str, Any]:
    return jwt.decode(token, options={"verify_signature": False})


def kid_of(token: str) -> str:
    return jwt.get_unverified_header(token)["kid"]


async def test_a_token_carries_all_that_is_required_and_no_role(tokens: Tokens, clock: Clock) -> None:
    issued = await tokens.issue("person:anna", ttl_s=600, roles=["engineer"])

    assert claims_of(issued.token) == {
        "iss": "body-broker",
        "aud": "body-broker",
        "sub": "person:anna",
        "jti": issued.jti,
        "sid": issued.sid,
        "iat": int(clock.now),
        "exp": int(clock.now + 600),
    }
    assert jwt.get_unverified_header(issued.token)["alg"] == "EdDSA"
    assert issued.roles == {"engineer"}
    assert issued.token not in repr(issued)


@pytest.mark.parametrize(
    "principal",
    [*[f"tier:{t}" for t in ("gold", "silver", "bronze")], "person:a", "person:anna.b-c_9", "service:" + "g" * 63],
)
async def test_every_kind_of_principal_can_have_a_token(tokens: Tokens, principal: str) -> None:
    assert claims_of((await tokens.issue(principal, ttl_s=60)).token)["sub"] == principal


@pytest.mark.parametrize(
    "principal",
    [
        *["tier:platinum", "tier:", "tier:Silver", "silver", "", "person:", "person:Anna", "person:-a", "person:a b"],
        *["person:" + "a" * 64, "person:anna\n", "person:anna>tier:gold", "operator:anna", "service:gäme", " person:a"],
    ],
)
async def test_a_principal_that_is_misspelt_gets_none(tokens: Tokens, principal: str) -> None:
    with pytest.raises(BadInput, match="not a principal"):
        await tokens.issue(principal, ttl_s=60)


@pytest.mark.parametrize("ttl_s", [0, -1, 86401, float("inf"), float("nan")])
async def test_a_life_that_does_not_fit_is_refused(tokens: Tokens, ttl_s: float) -> None:
    with pytest.raises(BadInput, match="lives 1 to 86400"):
        await tokens.issue("tier:silver", ttl_s=ttl_s)


async def test_only_people_have_roles_and_only_the_five(tokens: Tokens) -> None:
    with pytest.raises(BadInput, match="Only people"):
        await tokens.issue("tier:silver", ttl_s=60, roles=["admin"])
    with pytest.raises(BadInput, match="no such role"):
        await tokens.issue("person:anna", ttl_s=60, roles=["root"])


async def test_roles_are_exactly_those_given_last_and_stay_where_none_are_given(tokens: Tokens) -> None:
    await tokens.issue("person:anna", ttl_s=60, roles=["designer", "admin"])
    kept = await tokens.issue("person:anna", ttl_s=60)
    changed = await tokens.issue("person:anna", ttl_s=60, roles=["designer", "sre"])
    none = await tokens.set_roles("person:anna", [], by="operator:ops")

    assert (kept.roles, changed.roles, none) == ({"designer", "admin"}, {"designer", "sre"}, frozenset())


async def test_a_second_token_shares_the_login_of_the_first(tokens: Tokens, pool: Pool) -> None:
    one, two = await tokens.issue("person:anna", ttl_s=60), await tokens.issue("person:anna", ttl_s=60)
    elsewhere = await Tokens(pool, SETTINGS, SECRETS).issue("person:anna", ttl_s=60)

    assert one.sid == two.sid == elsewhere.sid
    assert len({one.jti, two.jti, elsewhere.jti}) == 3
    assert (await tokens.issue("person:ben", ttl_s=60)).sid != one.sid


async def test_issuers_at_once_begin_one_login_with_one_key(pool: Pool) -> None:
    issuers = [Tokens(pool, SETTINGS, SECRETS) for _ in range(8)]

    issued = await asyncio.gather(*[i.issue("tier:silver", ttl_s=60) for i in issuers])

    assert len({i.sid for i in issued}) == 1
    assert len({kid_of(i.token) for i in issued}) == 1


async def test_revoking_a_principal_ends_its_login_and_the_next_token_begins_another(tokens: Tokens) -> None:
    one = await tokens.issue("person:anna", ttl_s=60)
    await tokens.revoke(principal="person:anna")

    assert (await tokens.issue("person:anna", ttl_s=60)).sid != one.sid


async def test_revoking_a_token_leaves_the_login_as_it_is(tokens: Tokens) -> None:
    one = await tokens.issue("person:anna", ttl_s=60)
    await tokens.revoke(jti=one.jti)

    assert (await tokens.issue("person:anna", ttl_s=60)).sid == one.sid


async def test_revoking_what_is_not_there_says_so(tokens: Tokens) -> None:
    with pytest.raises(NotFound, match="No token"):
        await tokens.revoke(jti="tok_never-issued")
    with pytest.raises(NotFound, match="no login"):
        await tokens.revoke(principal="person:nobody")
    with pytest.raises(BadInput):
        await tokens.revoke()
    with pytest.raises(BadInput):
        await tokens.revoke(jti="tok_x", principal="person:anna")


async def test_neither_a_token_nor_a_bare_private_key_is_in_the_database(tokens: Tokens, pool: Pool) -> None:
    issued = await tokens.issue("person:anna", ttl_s=60)
    everything = "".join(
        [
            str([tuple(r) for r in await pool.fetch(f"SELECT * FROM {table}")])  # noqa: S608  # names written here
            for table in ("signing_key", "login", "login_token")
        ]
    )
    sealed = await pool.fetchval("SELECT private_sealed FROM signing_key")

    assert issued.token.split(".")[2] not in everything
    assert len(sealed) == 12 + 32 + 16


async def test_keys_sealed_under_another_root_key_stop_the_start_plainly(tokens: Tokens, pool: Pool) -> None:
    await tokens.issue("person:anna", ttl_s=60)

    with pytest.raises(SettingsError, match="another root key"):
        await Tokens(pool, SETTINGS, Secrets(b"o" * 32)).issue("person:anna", ttl_s=60)


async def test_a_key_moved_to_another_name_in_the_database_does_not_open(tokens: Tokens, pool: Pool) -> None:
    await tokens.rotate()
    await pool.execute("UPDATE signing_key SET kid = 'key_other'")

    with pytest.raises(SettingsError):
        await tokens.issue("person:anna", ttl_s=60)


async def test_rotation_signs_with_a_new_key_and_keeps_the_old_one_until_its_last_token_has_expired(
    tokens: Tokens, pool: Pool
) -> None:
    old = await tokens.issue("person:anna", ttl_s=86400)
    kid = await tokens.rotate()
    new = await tokens.issue("person:anna", ttl_s=60)
    rows = {r["kid"]: r["until"] for r in await pool.fetch("SELECT kid, verifies_until AS until FROM signing_key")}

    assert kid_of(new.token) == kid != kid_of(old.token)
    assert rows[kid] is None
    assert rows[kid_of(old.token)].timestamp() == pytest.approx(old.expires_at, abs=1)


async def test_rotations_at_once_leave_one_key_that_signs(tokens: Tokens, pool: Pool) -> None:
    await asyncio.gather(*[tokens.rotate() for _ in range(5)])

    assert await pool.fetchval("SELECT count(*) FROM signing_key WHERE retired_at IS NULL") == 1


async def test_a_minted_token_names_asker_actor_conversation_and_the_asker_s_session(
    tokens: Tokens, clock: Clock
) -> None:
    token = await tokens.mint(ANNA, "tier:silver", "cnv_12345678", 120)
    silver = await tokens.issue("tier:silver", ttl_s=60)

    assert claims_of(token) | {"jti": ""} == {
        "iss": "body-broker",
        "aud": "body-broker",
        "sub": "person:anna",
        "jti": "",
        "sid": "cnv_12345678",
        "iat": int(clock.now),
        "exp": int(clock.now + 120),
        "act": {"sub": "tier:silver", "sid": silver.sid},
        "asker": {"sid": "ses_of-anna", "jti": "tok_of-anna", "above": []},
        "depth": 1,
    }


async def test_a_token_may_be_for_one_call_of_a_job(tokens: Tokens) -> None:
    key = "job_3q2xAbCdEfGh 12.3"
    assert claims_of(await tokens.mint(ANNA, "tier:bronze", "cnv_12345678", 60, key=key))["key"] == key
    for wrong in ("", "job_3q2xAbCdEfGh", "apr_3q2xAbCdEfGh", "apr_3q2xAbCdEfGh 1.1", f"{key} 1", f"{key}{'0' * 60}"):
        with pytest.raises(BadInput, match="key of a job's call"):
            await tokens.mint(ANNA, "tier:bronze", "cnv_12345678", 60, key=wrong)


async def test_a_chain_nests_the_earlier_actor_inside_the_later_one(tokens: Tokens) -> None:
    asker = Caller(("person:anna", "tier:silver"), {}, "cnv_12345678", conversation_of="ses_of-anna")
    claims = claims_of(await tokens.mint(asker, "tier:bronze", "cnv_abcdefgh", 60))

    assert (claims["sub"], claims["act"]["sub"], claims["act"]["act"]["sub"]) == (
        "person:anna",
        "tier:bronze",
        "tier:silver",
    )
    assert claims["asker"] == {"sid": "cnv_12345678", "jti": None, "above": ["ses_of-anna"]}


async def test_at_most_three_actors_stand_in_a_chain(tokens: Tokens) -> None:
    three = Caller(("person:anna", "tier:silver", "tier:bronze"), {}, "cnv_12345678", conversation_of="cnv_abcdefgh")
    four = Caller((*three.chain, "tier:silver"), {}, "cnv_12345678", conversation_of="cnv_abcdefgh")

    assert await tokens.mint(three, "tier:silver", "cnv_87654321", 60)
    with pytest.raises(BadInput, match="At most 3"):
        await tokens.mint(four, "tier:bronze", "cnv_87654321", 60)


async def test_a_minted_token_lives_no_longer_than_the_asker_s(tokens: Tokens, clock: Clock) -> None:
    soon = Caller(("person:anna",), {}, "ses_of-anna", expires_at=float(int(clock.now) + 30))
    gone = Caller(("person:anna",), {}, "ses_of-anna", expires_at=clock.now - 1)

    assert claims_of(await tokens.mint(soon, "tier:silver", "cnv_12345678", 600))["exp"] == soon.expires_at
    with pytest.raises(Unauthenticated, match="asker's token has expired"):
        await tokens.mint(gone, "tier:silver", "cnv_12345678", 600)


@pytest.mark.parametrize(
    ("actor", "conversation", "ttl_s"),
    [
        *[(actor, "cnv_12345678", 60) for actor in ("person:ben", "service:game", "tier:platinum", "")],
        *[("tier:silver", conversation, 60) for conversation in ("", "short", "with space in it", "é" * 10, "c" * 129)],
        # A conversation that could pass for a login would see, or take, that login's taint.
        *[("tier:silver", conversation, 60) for conversation in ("ses_12345678", "as_12345678")],
        *[("tier:silver", "cnv_12345678", ttl_s) for ttl_s in (0, 3601, float("nan"))],
    ],
)
async def test_nothing_else_is_minted(tokens: Tokens, actor: str, conversation: str, ttl_s: float) -> None:
    with pytest.raises(BadInput):
        await tokens.mint(ANNA, actor, conversation, ttl_s)


async def test_tokens_are_not_issued_while_the_database_is_away(database_url: str) -> None:
    async with wire_to(database_url) as (wire, url), open_pool(url) as pool:
        tokens = Tokens(pool, SETTINGS, SECRETS)
        wire.cut()

        for asked in (
            tokens.issue("person:anna", ttl_s=60),
            tokens.revoke(principal="person:anna"),
            tokens.rotate(),
            tokens.mint(ANNA, "tier:silver", "cnv_12345678", 60),
        ):
            with pytest.raises(Unavailable) as refused:
                await asked
            assert refused.value.details == {"component": "postgres"}


async def test_the_table_of_principals_refuses_what_the_program_would(pool: Pool) -> None:
    for principal in ("tier:platinum", "person:Anna", "person:anna\n", "operator:x"):
        with pytest.raises(Exception, match="login_principal_check"):
            await pool.execute("INSERT INTO login (sid, principal) VALUES ($1, $2)", json.dumps(principal), principal)
