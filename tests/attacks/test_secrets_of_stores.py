"""What the stores hold and refuse: keys and tokens lie nowhere in them as they are, and no refusal of theirs has the credentials in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg
import httpx2
import pytest

from body_broker.errors import BodyBrokerError
from body_broker.settings import Settings
from body_broker.storage.redis import Redis, open_redis
from mcp_servers.hub.cli import main
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import open_runtime
from mcp_servers.hub.signing import SigningKeys
from tests.attacks.planting import SECRETS, engines_at, heard_logs, leaks, logging_again, planted, stored
from tests.attacks.test_secrets import told_to_clients
from tests.counterparts import s3
from tests.mcp_servers.hub.conftest import SECRET, OpenHub, open_hub, patient_engines, patient_models, settings_for
from tests.mcp_servers.hub.test_gate import modern, request
from tests.mcp_servers.hub.test_traces import Traced, traced

__all__ = ["logging_again", "open_hub", "patient_engines", "patient_models", "settings_for", "traced"]  # fixtures

_USER = "planted_user"
_PURPOSES = (
    "audit",
    "backup-fingerprint",
    "conversations",
    "cursors",
    "factors",
    "page-logins",
    "request-states",
    "signing-keys",
)


async def test_keys_and_tokens_are_nowhere_as_they_are(
    open_hub: OpenHub, redis: Redis, traced: Traced, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither in a store nor in what anybody is told: the key that signs, the one before it, what is derived from the root key, tokens."""
    heard_logs(caplog)
    settings = engines_at("http://127.0.0.1:9")
    async with open_hub(rooms=ROOMS, **settings) as hub:
        runtime = hub.runtime
        keys = SigningKeys(runtime.stores.pool, runtime.secrets.derive("signing-keys"))
        token = await hub.token("person:anna", "engineer")
        caller = await runtime.identities.authenticate(token)
        minted = await runtime.tokens.mint(caller, "tier:silver", "cnv_planted", 600)
        secrets: dict[str, str | bytes] = {name: runtime.secrets.derive(name) for name in _PURPOSES}
        secrets |= {name: planted(name) for name in SECRETS if name in settings}
        secrets |= {"root": SECRET, "first": (await keys.ensure()).private.private_bytes_raw()}
        secrets |= {"second": (await keys.rotate()).private.private_bytes_raw()}
        secrets |= {"token": token.rpartition(".")[2], "minted": minted.rpartition(".")[2]}
        told = await told_to_clients(hub, {"whoami", "list_config", "query_aws_resource", "search_lore"})
        async with httpx2.AsyncClient(timeout=60) as http:
            for wrong in (token[:-3] + "AAA", f"{token}x", token.replace(".", "..", 1), "x" + minted, token.swapcase()):
                headers = modern(wrong, "tools/list")
                answer = await http.post(hub.url, json=request("tools/list", {}), headers=headers)
                assert answer.status_code == 401
                told += answer.text + str(answer.headers)
        metrics = runtime.gate.metrics.text()
        lies = await stored(runtime.stores.pool, redis)
    async with open_hub() as later:  # the other's records are committed
        lies += await stored(later.runtime.stores.pool, redis)
    out, err = capfd.readouterr()

    assert "person:anna" in lies
    assert leaks(lies, secrets) == set()
    assert leaks(told + metrics, secrets) == set()
    assert leaks(out + err + caplog.text + traced.words(), secrets) == set()


@contextmanager
def _who_needs_a_password(database_url: str, password: str) -> Generator[str]:
    """The URL of a user of this PostgreSQL whose password is asked for."""

    async def do(*statements: str) -> str:
        connection = await asyncpg.connect(database_url)
        try:
            for statement in statements:
                await connection.execute(statement)
            return await connection.fetchval("SHOW hba_file")
        finally:
            await connection.close()

    made = f"CREATE ROLE {_USER} SUPERUSER LOGIN PASSWORD '{password}'"
    file = Path(asyncio.run(do(made)))
    before = file.read_text("utf-8")
    file.write_text(f"local all {_USER} scram-sha-256\n{before}", "utf-8")
    try:
        asyncio.run(do("SELECT pg_reload_conf()"))
        yield database_url.replace("//postgres@", f"//{_USER}:{{}}@")
    finally:
        file.write_text(before, "utf-8")
        asyncio.run(do("SELECT pg_reload_conf()", f"DROP ROLE {_USER}"))


@contextmanager
def _whom_valkey_knows(redis_url: str, password: str) -> Generator[str]:
    """The URL of a user of this Valkey."""

    async def do(*words: str) -> None:
        async with open_redis(redis_url) as found:
            await found.execute_command("ACL", *words)  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints

    asyncio.run(do("SETUSER", _USER, "on", f">{password}", "~*", "&*", "+@all"))
    try:
        yield redis_url.replace("unix://", f"unix://{_USER}:{{}}@")
    finally:
        asyncio.run(do("DELUSER", _USER))


@pytest.mark.usefixtures("logging_again")
@pytest.mark.parametrize("store", ["database_url", "redis_url"])
@pytest.mark.parametrize("by", ["the runtime", "a command"])
def test_a_store_that_refuses_a_password_does_not_have_it_told(  # noqa: PLR0917 - fixtures
    store: str, by: str, settings_for: Callable[..., Settings], database_url: str, redis_url: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    heard_logs(caplog)
    secret, right = {store: planted(store)}, "right-0123456789"
    knows = (
        _who_needs_a_password(database_url, right) if store == "database_url" else _whom_valkey_knows(redis_url, right)
    )
    with knows as form:
        asyncio.run(_opened(settings_for(**{store: form.format(right)})))  # they are let in with the right one

        wrong = {store: form.format(quote(planted(store), safe=""))}
        said = ""
        if by == "the runtime":
            settings = settings_for(**wrong)
            with pytest.raises(BodyBrokerError) as refused:
                asyncio.run(_opened(settings))
            said = f"{refused.value.message} {refused.value.next_step} {settings!r}"
        else:
            urls = {
                "database_url": database_url,
                "redis_url": redis_url,
                "secret_key": SECRET,
                "data_dir": str(tmp_path),
            }
            for name, value in (urls | wrong | {"log_level": "debug"}).items():
                monkeypatch.setenv(f"BODY_BROKER_{name.upper()}", value)
            monkeypatch.setattr("sys.argv", ["body-broker", "status"])
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == 1
    out, err = capfd.readouterr()
    assert said + err
    assert leaks(said + out + err + caplog.text, secret) == set()


async def _opened(settings: Settings) -> None:
    async with open_runtime(settings):
        pass


@pytest.mark.usefixtures("logging_again")
@pytest.mark.requires("s3")
def test_an_s3_that_refuses_a_key_does_not_have_it_told(  # noqa: PLR0917 - fixtures
    database_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    heard_logs(caplog)
    secrets = {name: planted(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    (tmp_path / "s3").mkdir()
    with s3.running(tmp_path / "s3") as url:
        s3.Bucket(url, "results").make()
        for name, value in secrets.items():
            monkeypatch.setenv(name, value)
        settings = {
            "database_url": database_url, "redis_url": redis_url, "secret_key": SECRET, "data_dir": str(tmp_path), "log_level": "debug",
            "results": "s3://results/of-jobs", "results_endpoint_url": url, "aws_region": s3.REGION, "bronze_url": "http://127.0.0.1:9",
            "bronze_model": "m",
        }  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(f"BODY_BROKER_{name.upper()}", value)
        monkeypatch.setattr("sys.argv", ["body-broker", "validate", "bronze", "--requests", "1"])
        with suppress(SystemExit):
            main()
    out, err = capfd.readouterr()
    assert "results" in out
    assert "failed" in out
    assert leaks(out + err + caplog.text, secrets) == set()
