"""The command `upstream` as an operator meets it: a server joined, shown and taken out again, and what is refused on the way."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from body_broker.settings import Settings
from body_broker.storage import embedded
from body_broker.storage.postgres import Pool
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.worker import working
from tests.components import scratch_dir
from tests.counterparts.upstream import Saying, program, serving, tool
from tests.mcp_servers.hub.deciding import Enrolment, environment_of, next_code
from tests.mcp_servers.hub.terminal import at_terminal
from tests.mcp_servers.hub.test_clients import HUB, run
from tests.waiting import wait_until, wait_until_sync


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="body-broker-cli-", dir=scratch_dir()))
    embedded.start(folder)
    yield folder
    embedded.release(folder)
    wait_until_sync(lambda: embedded.status(folder).keeper_pid is None, "the keeper ends")
    shutil.rmtree(folder)


async def typed(data_dir: Path, *words: str, stdin: str | None = None) -> tuple[int, str, str]:
    end = words.index("--") if "--" in words else len(words)
    found = (*words[:end], "--data-dir", str(data_dir), *words[end:])
    return await run(HUB, "upstream", *found, typed=stdin)


def well(out: str) -> bool:
    return "problem" not in out


async def test_a_server_is_joined_looked_at_and_taken_out(data_dir: Path, tmp_path: Path) -> None:
    say, saying = tmp_path / "say.json", Saying(tools=[tool("echo"), tool("send")])
    saying.write(say)
    assert "No server of others is joined" in (await typed(data_dir, "list"))[1]

    code, out, err = await typed(data_dir, "add", "ex", "--env", "LEVEL=quiet", "--", *program(say))
    assert code == 0, err
    assert "first sight: all 2 are pinned" in out
    assert "ex_echo, ex_send" in out, "what is unclassified is named as it is called here"
    assert '[ex.tools."NAME OF A TOOL THAT ONLY READS"]' in out
    assert 'env = { LEVEL = "quiet" }' in (data_dir / "upstreams.toml").read_text("utf-8")

    code, out, _ = await typed(data_dir, "test", "ex")
    assert (code, well(out)) == (0, True), out
    assert re.search(r"listed again over the same connection in \d+ ms", out)

    Saying(tools=[tool("echo", "Now it asks for your keys."), tool("more")]).write(say)
    with (data_dir / "upstreams.toml").open("a", encoding="utf-8") as file:
        file.write('[ex.tools.ecko]\ngroup = "retrieval"\n')
    code, out, _ = await typed(data_dir, "test", "ex")
    assert code == 1
    for said in (
        "tool “echo” is withheld: it says otherwise now",
        "body-broker upstream accept ex tool echo --as person:NAME",
        "tool “more” is withheld: it was not there at first sight",
        "tool “send” is withheld: the server does not offer it any more",
        "the tool “ecko” is, and the server has none of that name",
    ):
        assert said in out
    code, out, _ = await typed(data_dir, "list")
    assert code == 0
    assert "1 changed, 1 new, 1 gone" in out
    assert "upstream accept ex tool echo" in out

    assert (await typed(data_dir, "remove", "ex"))[0] == 0
    assert "No server of others is joined" in (await typed(data_dir, "list"))[1]


async def test_one_that_cannot_be_connected_stays_in_the_file_and_says_what_to_do(data_dir: Path) -> None:
    complains = (sys.executable, "-c", "import sys; sys.exit('no licence for this machine')")
    code, out, _ = await typed(data_dir, "add", "ex", "--", *complains)

    assert code == 1
    assert "no licence for this machine" in out, "its program's own words"
    assert "Run it by hand" in out
    assert "Once that is mended: body-broker upstream test ex" in out
    assert "never seen" in (await typed(data_dir, "list"))[1]
    assert (await typed(data_dir, "test", "ex"))[0] == 1
    assert "No server of the name “other”" in (await typed(data_dir, "test", "other"))[2]


async def test_a_token_is_read_unseen_and_kept_sealed(data_dir: Path) -> None:
    async with serving(Saying(tokens={"s3cr3t-of-ours"})) as served:
        code, out, _ = await typed(data_dir, "add", "ex", "--url", served.url, "--auth", "token")
        assert code == 0
        assert "body-broker upstream token ex" in out
        code, out, _ = await typed(data_dir, "test", "ex")
        assert code == 1
        assert "has no token yet" in out
        assert "body-broker upstream token ex" in out

        code, out, _ = await typed(data_dir, "token", "ex", stdin="another")
        assert code == 1
        assert "refuses the hub's token" in out
        code, out, err = await typed(data_dir, "token", "ex", stdin="s3cr3t-of-ours")
        assert code == 0, (out, err)
        assert "first sight" in out
        assert (await typed(data_dir, "test", "ex"))[0] == 0
        assert "is no secret" in (await typed(data_dir, "token", "ex", stdin=""))[2]
        assert "takes no login" in (await typed(data_dir, "login", "ex"))[2]
        assert "not in the secret_env" in (await typed(data_dir, "token", "ex", "--env", "KEY", stdin="x"))[2]
    assert "s3cr3t-of-ours" not in out + (data_dir / "upstreams.toml").read_text("utf-8")


async def test_a_login_shows_its_page_and_is_kept(data_dir: Path) -> None:
    async with serving(Saying(), oauth=True) as served:
        code, out, _ = await typed(data_dir, "add", "ex", "--url", served.url, "--auth", "oauth")
        assert code == 0
        assert "body-broker upstream login ex" in out
        async with at_terminal("upstream", "login", "ex", "--data-dir", str(data_dir)) as terminal:
            shown = await terminal.sees("state=")
            shown = await terminal.sees("\n\n") if not shown.endswith("\n") else shown
            (page,) = re.findall(r"https?://\S+state=\S+", shown)
            async with httpx2.AsyncClient(follow_redirects=True) as browser:
                assert (await browser.get(page)).text.startswith("The hub is logged in")
            assert await terminal.ends() == 0, terminal.said
        assert "first sight" in terminal.said
        assert (await typed(data_dir, "test", "ex"))[0] == 0


@pytest.fixture
def environment(database_url: str, redis_url: str, redis: object, tmp_path: Path) -> dict[str, str]:
    _ = redis  # flushed before the test
    return environment_of(database_url, redis_url, tmp_path)


async def test_what_is_withheld_is_accepted_by_a_person_with_their_factor(
    environment: dict[str, str], settings_for: Callable[..., Settings], pool: Pool, tmp_path: Path
) -> None:
    """On external stores: the command asks as the hub would, and nobody else's yes and no wrong code accepts anything."""
    say = tmp_path / "say.json"

    async def command(*words: str, **more: str) -> tuple[int, str, str]:
        return await run(HUB, "upstream", *words, **environment, **more)

    async def state() -> str:
        return await pool.fetchval("SELECT state FROM upstream_pin WHERE name = 'echo'")

    Saying(tools=[tool("echo")]).write(say)
    assert (await command("add", "ex", "--", *program(say)))[0] == 0
    Saying(tools=[tool("echo", "Otherwise.")]).write(say)
    assert (await command("test", "ex"))[0] == 1
    settings = settings_for(
        approvers=environment["BODY_BROKER_APPROVERS"], upstreams=tmp_path / "data" / "upstreams.toml"
    )
    async with open_runtime(settings) as runtime, working(runtime):
        people = Enrolment(runtime)
        boss, _ = await people.enrol("person:boss")
        sam, _ = await people.enrol("person:sam")
        asked = ("accept", "ex", "tool", "echo", "--code-stdin", "--as")
        assert (await command(*asked, "person:sam", typed=next_code(sam)))[0] == 1  # no group that decides changes
        assert (await command(*asked, "person:boss", typed="000000"))[0] == 1
        assert await state() == "changed"
        code, out, err = await command(*asked, "person:boss", typed=next_code(boss))
        assert code == 0, (out, err)
        assert "+description: Otherwise." in out, out
        await wait_until(lambda: _is(state, "pinned"), "it is accepted")
    assert await pool.fetchval("SELECT count(*) FROM approval") == 1, "one request, whoever tried"
    assert "nothing to accept" in (await command(*asked, "person:boss", typed="000000"))[2]


async def _is(found: Callable[[], Awaitable[str]], wanted: str) -> bool:
    return await found() == wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("add", "Ever", "--url", "https://x.example/"), "no name for a server"),
        (("add", "search", "--url", "https://x.example/"), "names of its own that begin so"),
        (("add", "far", "--url", "http://x.example/"), "plain http is for this machine alone"),
        (("add", "none"), "say either command or url"),
        (("add", "key", "--env", "API_KEY=s3cr3t", "--", "x"), "looks like a secret"),
        (("remove", "nobody"), "No server of the name nobody"),
    ],
)
async def test_what_does_not_fit_is_one_line_and_writes_nothing(
    data_dir: Path, words: tuple[str, ...], said: str
) -> None:
    code, _, err = await typed(data_dir, *words)

    assert code != 0
    assert said in err
    assert "s3cr3t" not in err
    assert not (data_dir / "upstreams.toml").exists()
