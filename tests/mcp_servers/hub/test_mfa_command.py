"""The command `mfa` as people meet it: enrolled at a terminal, confirmed by somebody enrolled, and nothing of it in a log."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from approvals.factors.totp import STEP_S, code_at
from approvals.people import load_people
from body_broker.storage import embedded
from tests.approvals.factors.authenticator import Authenticator
from tests.components import scratch_dir
from tests.mcp_servers.hub.conftest import OpenHub
from tests.mcp_servers.hub.deciding import Enrolment, environment_of, next_code
from tests.mcp_servers.hub.terminal import Terminal, at_terminal
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.waiting import wait_until_sync

pytestmark = pytest.mark.anyio
Environment = dict[str, str]


@pytest.fixture
def environment(database_url: str, redis_url: str, tmp_path: Path) -> Environment:
    return environment_of(database_url, redis_url, tmp_path)


async def mfa(*command: str, **env: str) -> tuple[int, str, str]:
    return await run(HUB, "mfa", *command, **env)


async def scan(terminal: Terminal) -> str:
    """The secret, as a phone would take it."""
    said = await terminal.sees("The code it shows now: ")
    found = re.search(r"type this into the app: ([A-Z2-7]{32})", said)
    assert found is not None, said
    return found[1]


def now_code(secret: str) -> str:
    return code_at(secret, time.time())  # noqa: TID251 - the command reads the same clock


async def enrol(person: str, **env: str) -> tuple[str, str, str]:
    """Id, secret, and what was said."""
    async with at_terminal("mfa", "enroll", "--as", person, **env) as terminal:
        secret = await scan(terminal)
        terminal.types(now_code(secret))
        assert await terminal.ends() == 0, terminal.said
    found = re.search(r"Enrolled (fac_[0-9a-f]+)", terminal.said)
    assert found is not None
    return found[1], secret, terminal.said


async def test_the_first_factor_counts_and_the_next_waits_for_it(environment: Environment) -> None:
    first, boss, said = await enrol("person:boss", **environment)
    assert "It is the first of this installation, so it counts now" in said
    assert "█" in said, "a QR code is drawn"

    second, _, said = await enrol("person:anna", **environment)
    assert f"It does not count yet. An approver who is enrolled runs: body-broker mfa confirm {second}" in said

    code = code_at(boss, time.time() + STEP_S)  # noqa: TID251 - as above; the present one enrolled it
    done, out, err = await mfa("confirm", second, "--as", "person:boss", "--code-stdin", typed=code, **environment)
    assert (done, err) == (0, "")
    assert f"{second}: authenticator app (totp) of person:anna, enrolled " in out
    assert out.endswith(f"{second}, authenticator app of person:anna, counts now.\n")
    _, out, _ = await mfa("list", **environment)
    assert re.search(f"{first} +person:boss .* counts, confirmed by person:boss", out)
    assert re.search(f"{second} +person:anna .* counts, confirmed by person:boss", out)


async def test_a_code_that_is_typed_wrong_may_be_typed_again_and_is_never_shown(environment: Environment) -> None:
    async with at_terminal("mfa", "enroll", "--as", "person:boss", **environment) as terminal:
        secret = await scan(terminal)
        code = now_code(secret)
        terminal.said = ""
        terminal.types("nonsense")
        await terminal.sees(
            "A code has 6 digits. Type the one your authenticator app shows now.\nThe code it shows now: "
        )
        terminal.types(code)
        assert await terminal.ends() == 0, terminal.said
    assert "nonsense" not in terminal.said
    assert code not in terminal.said


async def test_ctrl_c_leaves_nothing_enrolled_and_the_terminal_as_it_was(environment: Environment) -> None:
    async with at_terminal("mfa", "enroll", "--as", "person:boss", **environment) as terminal:
        await scan(terminal)
        terminal.interrupts()
        assert await terminal.ends() == 130, terminal.said
    _, out, _ = await mfa("list", **environment)
    assert out.startswith("Nobody is enrolled.")


async def test_a_passkey_is_enrolled_by_a_link_that_works_once(environment: Environment) -> None:
    command = ("mfa", "enroll", "--as", "person:boss", "--passkey")
    async with at_terminal(*command, **environment) as terminal, httpx2.AsyncClient(timeout=60) as browser:
        said = await terminal.sees("Waiting for it")
        found = re.search(r"(http://localhost:\d+)(/enroll/\S+)", said)
        assert found is not None, "no hub is up, so the command serves the page"
        origin, link = found[1], found[0]
        page = (await browser.get(link)).text
        token = re.search(r'data-token="([^"]+)"', page)
        assert token is not None, page
        headers = {"origin": origin}
        options = await browser.post(f"{link}/options", json={"csrf": token[1]}, headers=headers)
        answer = Authenticator(origin=origin).create(options.json())
        sent = {"csrf": token[1], "label": "blue key", "answer": answer}
        enrolled = await browser.post(link, json=sent, headers=headers)
        assert enrolled.status_code == 200, enrolled.text
        assert (await browser.get(link)).status_code == 404
        assert await terminal.ends() == 0, terminal.said
    assert "a passkey of person:boss.\nIt is the first of this installation" in terminal.said
    code, _, err = await mfa("confirm", "fac_x", "--as", "person:boss", "--code-stdin", typed="123456", **environment)
    assert code == 1
    assert err.startswith("person:boss has a passkey and no authenticator app, and a terminal cannot ask a passkey.\n")


async def test_without_a_terminal_no_secret_is_shown(environment: Environment) -> None:
    code, out, err = await mfa("enroll", "--as", "person:boss", **environment)

    assert (code, out) == (1, "")
    assert err.startswith("The secret is shown once, to the person at a terminal, and there is none here.\n")


async def test_who_is_in_no_group_cannot_be_the_first(environment: Environment) -> None:
    async with at_terminal("mfa", "enroll", "--as", "person:mallory", **environment) as terminal:
        assert await terminal.ends() == 1
    assert "person:mallory is in no approver group, and the first factor must be an approver's" in terminal.said


@pytest.mark.parametrize("name", ["tier:silver", "service:game", "person:", "Person:Anna"])
async def test_only_people_have_factors(environment: Environment, name: str) -> None:
    code, _, err = await mfa("enroll", "--as", name, "--passkey", **environment)

    assert code == 1
    assert "person:NAME" in err


async def test_a_factor_ends_on_its_person_s_word_and_says_when_nobody_is_left(
    open_hub: OpenHub, environment: Environment
) -> None:
    async with open_hub(approvers=environment["BODY_BROKER_APPROVERS"]) as hub:
        secret, factor = await Enrolment(hub.runtime).enrol("person:boss")
    code, _, err = await mfa("revoke", factor, **environment)
    assert (code, err.splitlines()[0]) == (
        1,
        "This factor counts, so it ends only on the word of somebody enrolled.",
    )

    code, out, err = await mfa(
        "revoke", factor, "--as", "person:boss", "--code-stdin", typed=next_code(secret), **environment
    )

    assert (code, err) == (0, "")
    assert f"{factor} of person:boss is revoked, and its secret is gone.\nNobody is enrolled now" in out


async def test_a_stranger_s_confirmation_is_refused(open_hub: OpenHub, environment: Environment) -> None:
    async with open_hub(approvers=environment["BODY_BROKER_APPROVERS"]) as hub:
        people = Enrolment(hub.runtime)
        await people.enrol("person:boss")
        secret, mine = await people.enrol("person:mallory", confirmed=False)
    code, _, err = await mfa(
        "confirm", mine, "--as", "person:mallory", "--code-stdin", typed=next_code(secret), **environment
    )

    assert code == 1
    assert err.startswith("The second factor of person:mallory does not count yet: nobody enrolled has confirmed it.\n")


async def test_nothing_secret_is_in_the_log(environment: Environment) -> None:
    _, secret, said = await enrol("person:boss", **environment, BODY_BROKER_LOG_LEVEL="debug")

    assert said.count(secret) == 1, "once, for whoever cannot scan"


@pytest.fixture
def fresh() -> Iterator[Path]:
    """A data dir whose stores stay up between the commands of a test."""
    folder = Path(tempfile.mkdtemp(prefix="body-broker-cli-", dir=scratch_dir()))
    embedded.start(folder)
    yield folder
    embedded.release(folder)
    wait_until_sync(lambda: embedded.status(folder).keeper_pid is None, "the keeper ends")
    shutil.rmtree(folder)


async def test_a_solo_developer_s_first_enrolment_writes_who_approves(fresh: Path) -> None:
    folder = {"BODY_BROKER_DATA_DIR": str(fresh)}
    async with at_terminal("mfa", "enroll", "--as", "dev", "--groups", "sre,Admin", **folder) as terminal:
        assert await terminal.ends() == 1
    assert "groups" in terminal.said
    assert not (fresh / "approvers.toml").exists()

    _, _, said = await enrol("dev", **folder)

    assert f"Wrote {fresh}/approvers.toml: person:dev may approve as sre, security, admin." in said
    people = await asyncio.to_thread(load_people, fresh / "approvers.toml")
    assert people.groups_of("person:dev") == {"sre", "security", "admin"}
