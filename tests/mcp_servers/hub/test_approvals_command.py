"""The command `approvals` as people meet it, and as an agent with a shell does: each way round the second factor is refused."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from body_broker.audit.trail import tail
from body_broker.errors import Denied
from body_broker.storage import embedded
from mcp_servers.cybersecurity.paths import Repository
from mcp_servers.cybersecurity.store import add_repository
from mcp_servers.hub.worker import working
from tests.components import scratch_dir
from tests.mcp_servers.hub.conftest import Hub, OpenHub, error_of
from tests.mcp_servers.hub.deciding import Enrolment, environment_of, next_code
from tests.mcp_servers.hub.terminal import at_terminal
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.mcp_servers.hub.test_mfa_command import enrol
from tests.waiting import wait_until, wait_until_sync

pytestmark = pytest.mark.anyio
DOCUMENT = {"documents": [{"title": "The well", "text": "The well in Saint Orrin's yard hums at noon."}]}
BOSS, ANNA, SAM, MALLORY = "person:boss", "person:anna", "person:sam", "person:mallory"


@dataclass
class Studio:
    """A hub with a worker, people who are enrolled, and commands on the same stores."""

    hub: Hub
    people: Enrolment
    environment: dict[str, str]

    async def command(self, *words: str, **env: str) -> tuple[int, str, str]:
        return await run(HUB, "approvals", *words, **self.environment, **env)

    async def refused(self, *words: str, **env: str) -> str:
        """What a command says that is refused."""
        code, out, err = await self.command(*words, **env)
        assert code == 1, (out, err)
        return err

    @asynccontextmanager
    async def asked(
        self, token: str, tool: str = "ingest_documents", arguments: dict[str, Any] | None = None
    ) -> AsyncGenerator[tuple[str, asyncio.Task[Any]]]:
        """A client's call that waits for people: the approval's id, and what the client gets in the end."""
        pool = self.hub.runtime.stores.pool
        before = await pool.fetchval("SELECT count(*) FROM approval")
        async with self.hub.client_with(token) as client:
            calling = asyncio.create_task(client.call_tool(tool, DOCUMENT if arguments is None else arguments))

            async def opened() -> bool:
                if calling.done():
                    raise AssertionError(calling.result())
                return await pool.fetchval("SELECT count(*) FROM approval") > before

            await wait_until(opened, "people are asked")
            try:
                yield await pool.fetchval("SELECT id FROM approval ORDER BY ordinal DESC LIMIT 1"), calling
            finally:
                calling.cancel()
                await asyncio.wait([calling])

    async def standing(self, approval: str) -> str:
        return (await self.hub.runtime.approvals.desk.get(approval)).standing

    async def bronze_for(self, person: str, *roles: str) -> str:
        """A token of bronze in a conversation that this person asked for."""
        runtime = self.hub.runtime
        asker = await runtime.identities.authenticate(await self.hub.token(person, *roles))
        return await runtime.tokens.mint(asker, "tier:bronze", "cnv_12345678", 300)


def without_minutes(listed: str) -> str:
    """A list, however long each still waits: a minute may have passed since another list."""
    return re.sub(r"waits \d+ min more", "waits", listed)


@pytest.fixture
async def studio(
    open_hub: OpenHub, redis: object, database_url: str, redis_url: str, tmp_path: Path
) -> AsyncIterator[Studio]:
    _ = redis  # flushed before the test
    environment = environment_of(database_url, redis_url, tmp_path)
    async with (
        open_hub(approvers=environment["BODY_BROKER_APPROVERS"], approval_wait_s=280) as hub,
        working(hub.runtime),
    ):
        yield Studio(hub, Enrolment(hub.runtime), environment)


async def test_a_person_s_own_second_factor_lets_their_own_call_run(studio: Studio) -> None:
    await studio.people.enrol(BOSS)
    anna, _ = await studio.people.enrol(ANNA)
    async with studio.asked(await studio.hub.token(ANNA, "designer")) as (approval, calling):
        code, out, err = await studio.command("approve", approval, "--as", ANNA, "--code-stdin", typed=next_code(anna))
        result = await calling

    assert (code, err) == (0, "")
    assert "Saint Orrin's yard hums at noon" in out, "what is decided is shown whole"
    assert f"\nApproved.\nApproved by {ANNA} at " in out
    assert "Done at " in out
    assert not result.is_error
    assert result.structured_content["documents"][0]["status"] == "accepted"


async def test_an_agent_s_call_waits_is_listed_shown_approved_and_runs(studio: Studio) -> None:
    boss, _ = await studio.people.enrol(BOSS)
    arguments = DOCUMENT | {"reason": "the quest needs it"}
    async with studio.asked(await studio.hub.token("tier:bronze"), arguments=arguments) as (approval, calling):
        _, listed, _ = await studio.command("list")
        _, for_boss, _ = await studio.command("list", "--as", BOSS)
        _, for_anna, _ = await studio.command("list", "--as", ANNA)
        _, shown, _ = await studio.command("show", approval)
        code, out, err = await studio.command("approve", approval, "--as", BOSS, "--code-stdin", typed=next_code(boss))
        result = await calling

    assert listed.startswith(f"{approval}  pending\n")
    assert "asked by tier:bronze" in listed
    assert f"may say yes: The boss ({BOSS})" in listed
    assert "0 of 1 from sre or admin" in listed
    assert without_minutes(for_boss) == without_minutes(listed)
    assert for_anna == f"Nothing waits that {ANNA} could say yes to.\n"
    assert "Its reason, in the caller's own words:\n  | the quest needs it\n" in shown
    fingerprint = (await studio.hub.runtime.approvals.desk.get(approval)).fingerprint
    assert fingerprint in shown
    assert fingerprint in listed
    assert (code, err) == (0, "")
    assert "Done at " in out
    assert not result.is_error
    _, nothing, _ = await studio.command("list")
    _, everything, _ = await studio.command("list", "--all")
    assert nothing == "Nothing waits for anybody.\n"
    assert f"{approval}  done" in everything


async def test_a_no_reaches_the_agent_with_its_reason(studio: Studio) -> None:
    boss, _ = await studio.people.enrol(BOSS)
    async with studio.asked(await studio.hub.token("tier:bronze")) as (approval, calling):
        code, out, _ = await studio.command(
            "deny",
            approval,
            "--as",
            "boss",
            "--code-stdin",
            "--reason",
            "The well is dry in canon.",
            typed=next_code(boss),
        )
        error = error_of(await calling)

    assert code == 0
    assert out.endswith("Denied: it will not run, and whoever asked is told why.\n")
    assert (error["code"], error["reason"]) == ("approval_denied", "The well is dry in canon.")


async def test_a_code_is_typed_at_the_terminal_and_not_shown(studio: Studio) -> None:
    boss, _ = await studio.people.enrol(BOSS)
    async with studio.asked(await studio.hub.token("tier:bronze")) as (approval, calling):
        async with at_terminal("approvals", "approve", approval, "--as", BOSS, **studio.environment) as terminal:
            await terminal.sees(f"Code for {BOSS}: ")
            code = next_code(boss)
            terminal.types(code)
            assert await terminal.ends() == 0, terminal.said
        assert not (await calling).is_error
    assert code not in terminal.said


async def test_an_agent_with_a_shell_and_no_code_is_refused(studio: Studio) -> None:
    await studio.people.enrol(BOSS)
    async with studio.asked(await studio.hub.token("tier:bronze")) as (approval, _):
        assert (await studio.refused("approve", approval, "--as", BOSS)).startswith(
            "The second factor is needed here, and no code was given.\n"
        )
        assert (await studio.refused("approve", approval, "--as", BOSS, "--code-stdin", typed="")).startswith(
            "A code has 6 digits."
        )
        told = await studio.refused("approve", approval, "--as", BOSS, "--code-stdin")
        assert told.startswith("Standard input is empty, and --code-stdin reads the code there.\n")
        code, _, told = await studio.command("approve", approval, "--as", BOSS, "--code", "123456")
        assert (code, "No such option" in told) == (2, True), "every account of the machine could read it"
        assert await studio.standing(approval) == "pending"


async def test_an_agent_that_guesses_a_code_is_refused_and_soon_not_heard_at_all(studio: Studio) -> None:
    boss, _ = await studio.people.enrol(BOSS)
    right = {next_code(boss, later) for later in range(-1, 5)}
    guesses = [code for number in range(20) if (code := f"{number:06}") not in right][:5]
    async with studio.asked(await studio.hub.token("tier:bronze")) as (approval, _):
        told = await studio.refused("approve", approval, "--as", BOSS, "--code-stdin", typed=guesses[0])
        assert told.startswith("That code is wrong.\n")
        for guess in guesses[1:]:  # at another hub, which counts them together
            with pytest.raises(Denied, match="wrong"):
                await studio.hub.runtime.approvals.factors.check_totp(BOSS, guess)
        late = await studio.refused("approve", approval, "--as", BOSS, "--code-stdin", typed=next_code(boss))
        assert late.startswith("Too many wrong codes for person:boss: no code of theirs is looked at for ")
        assert await studio.standing(approval) == "pending"


async def test_a_code_that_was_used_for_one_call_does_not_count_for_another(studio: Studio) -> None:
    boss, _ = await studio.people.enrol(BOSS)
    code = next_code(boss)
    async with studio.asked(await studio.hub.token("tier:bronze")) as (approval, calling):
        assert (await studio.command("approve", approval, "--as", BOSS, "--code-stdin", typed=code))[0] == 0
        await calling
    other = {"documents": [{"title": "The pit", "text": "Another."}]}
    async with studio.asked(await studio.hub.token("tier:bronze"), arguments=other) as (approval, _):
        told = await studio.refused("approve", approval, "--as", BOSS, "--code-stdin", typed=code)
        assert told.startswith("That code was used already; each counts once.\n")
        assert await studio.standing(approval) == "pending"


async def test_who_asked_does_not_decide_what_an_agent_does_for_them(studio: Studio) -> None:
    await studio.people.enrol(BOSS)
    anna, _ = await studio.people.enrol(ANNA)
    async with studio.asked(await studio.bronze_for(ANNA, "designer")) as (approval, _):
        told = await studio.refused("approve", approval, "--as", ANNA, "--code-stdin", typed=next_code(anna))
        assert told.startswith("This was asked for on your behalf, and nobody decides their own request.\n")
        assert await studio.standing(approval) == "pending"


async def test_a_person_who_is_not_enrolled_is_refused(studio: Studio) -> None:
    await studio.people.enrol(BOSS)
    async with studio.asked(await studio.hub.token("tier:bronze")) as (approval, _):
        told = await studio.refused("approve", approval, "--as", SAM, "--code-stdin", typed="123456")
        assert told.startswith("person:sam has no second factor, and nothing is decided here without one.\n")
    [entry] = await tail(studio.hub.runtime.stores.pool, action="approvals approve")
    assert (entry.record.kind, entry.record.verdict, entry.record.details["as"]) == ("refusal", "deny", SAM)
    assert str(entry.record.requester).startswith("operator:")


async def test_an_agent_that_enrols_a_factor_and_makes_itself_an_approver_gains_nothing(studio: Studio) -> None:
    await studio.people.enrol(BOSS)
    edit = '[people.mallory]\ngroups = ["sre", "security", "admin"]\n'
    await asyncio.to_thread(Path(studio.environment["BODY_BROKER_APPROVERS"]).write_text, edit, "utf-8")
    factor, secret, said = await enrol(MALLORY, **studio.environment)
    assert "It does not count yet." in said
    async with studio.asked(await studio.hub.token("tier:bronze")) as (approval, _):
        told = await studio.refused("approve", approval, "--as", MALLORY, "--code-stdin", typed=next_code(secret, 1))
        assert told.startswith(
            "The second factor of person:mallory does not count yet: nobody enrolled has confirmed it.\n"
        )
        code, _, confirmed = await run(
            *(HUB, "mfa", "confirm", factor, "--as", MALLORY, "--code-stdin"),
            typed=next_code(secret, 1),
            **studio.environment,
        )
        assert (code, confirmed) == (1, told)
        assert await studio.standing(approval) == "pending"


async def test_a_rule_without_the_local_channel_is_not_decided_in_a_terminal(studio: Studio) -> None:
    await studio.people.enrol(BOSS)
    sam, _ = await studio.people.enrol(SAM)
    scan, root = {"repo_path": "demo"}, Path(studio.environment["BODY_BROKER_APPROVERS"]).parent
    pool = studio.hub.runtime.stores.pool
    await add_repository(pool, Repository("demo", root, ()), by="operator:tester")
    async with studio.asked(await studio.hub.token("tier:bronze"), "scan_codebase", scan) as (approval, _):
        told = await studio.refused("approve", approval, "--as", SAM, "--code-stdin", typed=next_code(sam))
        assert told.startswith(
            "The rule scans-by-tiers-need-approval does not take a decision by local, only by mfa or slack.\n"
        )
        assert "Open the approval page." in told
        assert await studio.standing(approval) == "pending"


async def test_an_approver_of_another_group_is_refused(studio: Studio) -> None:
    await studio.people.enrol(BOSS)
    anna, _ = await studio.people.enrol(ANNA)
    async with studio.asked(await studio.hub.token("tier:bronze")) as (approval, _):
        told = await studio.refused("approve", approval, "--as", ANNA, "--code-stdin", typed=next_code(anna))
        assert told.startswith("This needs somebody of admin, sre, and you are in none of these groups.\n")


async def test_what_was_cut_off_is_settled_by_an_approver_with_their_factor(
    open_hub: OpenHub, redis: object, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    _ = redis
    environment = environment_of(database_url, redis_url, tmp_path)
    async with open_hub(
        approvers=environment["BODY_BROKER_APPROVERS"], approval_wait_s=0.1
    ) as hub:  # nobody works here
        studio = Studio(hub, Enrolment(hub.runtime), environment)
        boss, _ = await studio.people.enrol(BOSS)
        async with studio.asked(await hub.token("tier:bronze")) as (approval, _):
            pass
        assert (await studio.command("approve", approval, "--as", BOSS, "--code-stdin", typed=next_code(boss)))[0] == 0
        assert await studio.standing(approval) == "approved"
        # As a worker that was killed inside an effect leaves it.
        await hub.runtime.stores.pool.execute(
            "UPDATE work SET state = 'unknown', open_effect = 'call', finished_at = NULL WHERE id = $1", approval
        )
        words = ("resolve", approval, "--as", BOSS, "--verdict", "succeeded", "--note", "It is there.")
        assert (await studio.refused(*words)).startswith("The second factor is needed here")
        _, listed, _ = await studio.command("list")
        assert f"{approval}  unknown" in listed
        await hub.runtime.stores.pool.execute("UPDATE factor SET last_step = 0")  # as if it were a minute later

        code, out, err = await studio.command(*words, "--code-stdin", typed=next_code(boss, 1))

        assert (code, err) == (0, "")
        assert f"Approved by The boss ({BOSS})" in out
        assert await studio.standing(approval) == "done"
        assert (await studio.refused(*words)).startswith("Nothing is to be settled: it is done.")


@pytest.fixture
def fresh() -> Iterator[Path]:
    """A data dir whose stores stay up between the commands of a test."""
    folder = Path(tempfile.mkdtemp(prefix="body-broker-cli-", dir=scratch_dir()))
    embedded.start(folder)
    yield folder
    embedded.release(folder)
    wait_until_sync(lambda: embedded.status(folder).keeper_pid is None, "the keeper ends")
    shutil.rmtree(folder)


async def test_a_solo_developer_works_with_no_hub_up_and_no_slack(fresh: Path) -> None:
    env = {"BODY_BROKER_DATA_DIR": str(fresh), "BODY_BROKER_EMBEDDINGS": "off", "BODY_BROKER_APPROVAL_WAIT_S": "0.1"}
    await run(HUB, "token", "issue", "--person", "dev", "--role", "designer", **env)
    _, secret, _ = await enrol("dev", **env)
    asked = ("call", "ingest_documents", json.dumps(DOCUMENT), "--as", "person:dev", "--json")
    code, out, _ = await run(HUB, *asked, **env)
    assert code == 1
    pending = json.loads(out)
    assert pending["status"] == "pending"

    code, out, err = await run(
        *(HUB, "approvals", "approve", pending["approval"], "--as", "dev", "--code-stdin"),
        typed=next_code(secret, 1),
        **env,
    )

    assert (code, err) == (0, "")
    assert "Done at " in out, "no hub is up, so the command itself carries it out"
    code, out, _ = await run(HUB, *asked, **env)
    assert code == 0
    assert json.loads(out)["documents"][0]["status"] == "accepted"
