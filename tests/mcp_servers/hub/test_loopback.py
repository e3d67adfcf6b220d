"""The pages of hubs over stdio: one loopback listener a data dir, nothing else on it, its port kept from hub to hub."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from body_broker.errors import SettingsError
from body_broker.settings import Settings
from mcp_servers.hub.loopback import Berth, pages_open
from mcp_servers.hub.pages import make_site, routes
from mcp_servers.hub.protocol import Protocol
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.serve import Address, listening
from tests.mcp_servers.hub.conftest import Hub
from tests.mcp_servers.hub.test_clients import stdio_client
from tests.waiting import wait_until

SettingsFor = Callable[..., Settings]


@asynccontextmanager
async def hub_without_port(settings: Settings) -> AsyncGenerator[Runtime]:
    """A runtime with the pages that a hub over stdio has."""
    async with open_runtime(settings) as runtime:
        protocol = Protocol(runtime.gate, runtime.listings, runtime.limits, runtime.bus)
        probes = routes(protocol, runtime.stores.pool, runtime.stores.redis, runtime.auditor)
        async with pages_open(runtime, make_site(runtime), probes):
            yield runtime


def url_of(runtime: Runtime) -> str:
    url = runtime.approvals.pages_url()
    assert url is not None
    return url


async def answers(url: str) -> bool:
    async with httpx2.AsyncClient(timeout=60) as http:
        try:
            return (await http.get(f"{url}/healthz")).status_code == 200
        except httpx2.TransportError:
            return False


async def test_nothing_but_pages_and_probes_is_served_there(settings_for: SettingsFor) -> None:
    async with hub_without_port(settings_for()) as runtime, httpx2.AsyncClient(timeout=60) as http:
        base = url_of(runtime)
        assert base.startswith("http://localhost:")
        assert (await http.get(f"{base}/readyz")).json() == {"ready": True, "down": []}
        assert (await http.get(f"{base}/login")).status_code == 200
        for path in ("/mcp", "/metrics", "/", "/.well-known/oauth-protected-resource"):
            assert (await http.post(f"{base}{path}", json={})).status_code == 404, path
            assert (await http.get(f"{base}{path}")).status_code == 404, path
        for host in ("evil.example", "localhost.evil.example"):
            assert (await http.get(f"{base}/login", headers={"host": host})).status_code == 421
        assert (await http.get(f"{base}/login", headers={"origin": "https://evil.example"})).status_code == 403


async def test_the_address_in_numbers_leads_to_localhost_and_keeps_the_path(settings_for: SettingsFor) -> None:
    async with hub_without_port(settings_for()) as runtime, httpx2.AsyncClient(timeout=60) as http:
        base = url_of(runtime)
        for numbers in ("127.0.0.1", "[::1]"):
            port = base.rpartition(":")[2]
            answer = await http.get(f"{base}/login?next=/approvals", headers={"host": f"{numbers}:{port}"})
            assert (answer.status_code, answer.headers["location"]) == (307, f"{base}/login?next=/approvals")


async def test_two_hubs_share_one_listener_and_the_other_takes_over_at_the_same_port(
    settings_for: SettingsFor,
) -> None:
    settings = settings_for()
    async with AsyncExitStack() as second:
        async with hub_without_port(settings) as first:
            url = url_of(first)
            other = await second.enter_async_context(hub_without_port(settings))
            assert url_of(other) == url
        assert await wait_until(lambda: answers(url), "the second hub takes over")
        assert url_of(other) == url
    async with hub_without_port(settings) as later:
        assert url_of(later) == url, "the port is kept in the data dir"


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_a_port_that_a_stranger_took_is_given_up_for_another(
    settings_for: SettingsFor, family: socket.AddressFamily, host: str
) -> None:
    settings = settings_for()
    async with hub_without_port(settings) as runtime:
        url = url_of(runtime)
    with socket.socket(family) as stranger:
        stranger.bind((host, int(url.rpartition(":")[2])))
        stranger.listen()
        async with hub_without_port(settings) as runtime:
            assert url_of(runtime) != url
            assert await answers(url_of(runtime))


def test_one_process_alone_has_the_place(settings_for: SettingsFor) -> None:
    first, second = Berth(settings_for()), Berth(settings_for())
    bound = first.take()
    assert bound is not None
    assert second.take() is None
    port = bound[0].getsockname()[1]
    assert second.url() == first.url() == f"http://localhost:{port}"
    _close(bound)
    first.leave()
    assert second.url() is None, "no living hub has the place: the kept port may be a stranger's by now"
    again = second.take()
    assert again is not None
    assert again[0].getsockname()[1] == port
    _close(again)
    second.leave()


@pytest.mark.parametrize("kept", ["", "0", "99999999", "-1", "http", "8080; rm"])
def test_a_damaged_port_file_is_a_port_not_kept(settings_for: SettingsFor, kept: str) -> None:
    settings = settings_for(database_url=None)
    berth = Berth(settings)
    (settings.data_dir / "pages.port").write_text(kept)
    assert berth.url() is None
    bound = berth.take()
    assert bound is not None
    assert berth.url() == f"http://localhost:{bound[0].getsockname()[1]}"
    _close(bound)
    berth.leave()


def _close(bound: list[socket.socket]) -> None:
    for each in bound:
        each.close()


def test_both_addresses_of_localhost_are_taken(settings_for: SettingsFor) -> None:
    """Browsers go to [::1] first: a stranger there would get the people and their cookies."""
    berth = Berth(settings_for())
    bound = berth.take()
    assert bound is not None
    port = bound[0].getsockname()[1]
    assert [each.getsockname()[:2] for each in bound] == [("127.0.0.1", port), ("::1", port)]
    for each in bound:
        each.listen()
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "::")):
        with socket.socket(family) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with pytest.raises(OSError, match="in use"):
                stranger.bind((host, port))
    _close(bound)
    berth.leave()


async def test_a_hub_over_http_answers_at_both_and_starts_at_no_port_of_which_a_stranger_has_one(
    hub: Hub,
) -> None:
    async with httpx2.AsyncClient(timeout=60) as http:
        port = hub.base.rpartition(":")[2]
        assert (await http.get(f"http://[::1]:{port}/healthz")).status_code == 200
    with socket.socket(socket.AF_INET6) as stranger:
        stranger.bind(("::1", 0))
        stranger.listen()
        port = stranger.getsockname()[1]
        with pytest.raises(SettingsError, match="must be free at both"):
            async with listening(hub.runtime, Address("127.0.0.1", port)):
                pass


async def test_where_a_public_url_is_set_nothing_is_opened(settings_for: SettingsFor) -> None:
    settings = settings_for(public_url="https://hub.studio.example")
    async with hub_without_port(settings) as runtime:
        assert runtime.approvals.desk.approve_at("apr_x") == "https://hub.studio.example/approve/apr_x"
    assert Berth(settings).url() is None


async def test_a_hub_over_http_links_to_its_own_port_on_localhost(hub: Hub) -> None:
    expected = hub.base.replace("127.0.0.1", "localhost") + "/approve/apr_x"
    assert hub.runtime.approvals.desk.approve_at("apr_x") == expected


async def test_a_data_dir_that_cannot_be_written_leaves_a_hub_without_pages_and_nothing_worse(
    settings_for: SettingsFor, tmp_path: Path
) -> None:
    blocked = tmp_path / "a file, no folder"
    blocked.write_text("")
    async with hub_without_port(settings_for(data_dir=blocked)) as runtime:
        assert runtime.approvals.pages_url() is None


async def test_a_hub_over_stdio_serves_its_pages_as_long_as_it_lives(tmp_path: Path) -> None:
    async with stdio_client(tmp_path, "--as", "person:anna") as client:
        await client.list_tools()
        port = (tmp_path / "pages.port").read_text().strip()
        base = f"http://localhost:{port}"
        async with httpx2.AsyncClient(timeout=60) as http:
            assert (await http.get(f"{base}/approvals")).headers["location"] == "/login?next=/approvals"
            shown = await http.get(f"{base}/login")
        assert 'name="code"' in shown.text, "on its own stores a name and a code are enough"
    assert not await answers(base)
