"""Secrets in every setting that is one, and in what fails: no answer, page, log line, span, metric or audit record has them, in any spelling."""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from mcp import MCPError

from body_broker.errors import BodyBrokerError
from body_broker.settings import Settings, load_settings
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import open_runtime
from tests.attacks.planting import SECRETS, engines_at, heard_logs, leaks, planted, stored
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, patient_engines, patient_models, settings_for
from tests.mcp_servers.hub.test_traces import Traced, traced

__all__ = ["open_hub", "patient_engines", "patient_models", "settings_for", "traced"]  # fixtures

_AWAY = "http://127.0.0.1:9"


def test_a_leak_would_be_seen_in_each_spelling() -> None:
    secret = {"x": planted("x")}
    raw = secret["x"]
    for said in (
        raw, quote(raw, safe=""), json.dumps({"a": raw}), raw.encode().hex(), base64.b64encode(f"user:{raw}".encode()).decode(),
        base64.b64encode(f"u:{raw}@h".encode()).decode(), base64.urlsafe_b64encode(f"us:{raw}".encode()).decode(),
    ):  # fmt: skip
        assert leaks(f"before {said} after", secret) == {"x"}, said
    assert leaks("Pl4nted-x", secret) == set()


async def told_to_clients(hub: Hub, tools: Collection[str] | None = None) -> str:
    """All that clients are told: every tool (or these) with nothing, with words and with what it has not; pages; who nobody knows."""
    said: list[str] = []
    async with hub.client("person:anna", "engineer", "admin", "designer", "sre", "security") as client:
        listed = (await client.list_tools()).tools
        said.append(str(listed))
        words = {
            "text": "hello",
            "prompt": "hello",
            "topic": "the keep",
            "query": "the keep",
            "player": "p",
            "npc_id": "npc_x",
        }
        for tool in [each for each in listed if tools is None or each.name in tools]:
            of = {name: value for name, value in words.items() if name in tool.input_schema.get("properties", {})}
            for arguments in ({}, of, {"nobody": "knows"}):
                try:
                    said.append(str(await client.call_tool(tool.name, arguments)))
                except MCPError as error:
                    said.append(f"{error} {error.error}")
    token = await hub.token("person:sre", "sre")
    async with httpx2.AsyncClient(timeout=60) as http:
        for path in (
            "/healthz",
            "/readyz",
            "/metrics",
            "/nowhere",
            "/login",
            "/.well-known/oauth-protected-resource",
        ):
            for headers in ({}, {"authorization": f"Bearer {token}"}, {"authorization": "Bearer wrong"}):
                answer = await http.get(hub.base + path, headers=headers)
                said.append(answer.text + str(dict(answer.headers)))
        for path in ("/v1/chat/completions", "/v1/models"):
            body = {"model": "silver", "messages": [{"role": "user", "content": "hello"}]}
            answer = await http.post(hub.base + path, json=body, headers={"authorization": f"Bearer {token}"})
            said.append(answer.text)
    return "\n".join(said)


@pytest.mark.timeout(240)
async def test_no_secret_of_a_setting_is_told_logged_traced_counted_or_recorded(
    open_hub: OpenHub,
    redis: Redis,
    traced: Traced,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard_logs(caplog)
    settings = engines_at(_AWAY)
    secrets = {name: planted(name) for name in SECRETS}
    async with open_hub(rooms=ROOMS, **settings) as hub:
        told = await told_to_clients(hub)
        metrics = hub.runtime.gate.metrics.text()
        shown = f"{hub.runtime!r} {Settings.model_validate(settings)!r}"
    async with open_hub() as later:  # the other's records are committed
        records = await later.runtime.stores.pool.fetchval("SELECT count(*) FROM audit_record")
        lies = await stored(later.runtime.stores.pool, redis)
    out, err = capfd.readouterr()

    assert records > 50
    assert "unavailable" in told
    assert leaks(told, secrets) == set()
    assert leaks(out + err + caplog.text, secrets) == set()
    assert traced.get_finished_spans()
    assert leaks(traced.words(), secrets) == set()
    assert leaks(metrics, secrets) == set()
    assert leaks(lies, secrets) == set()
    assert leaks(shown, secrets) == set()


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("database_url", "postgresql://hub:{}@127.0.0.1:9/hub"),
        ("database_url", "postgresql://hub:{}@[bad/hub"),
        ("redis_url", "redis://:{}@127.0.0.1:9/0"),
        ("redis_url", "nonsense://:{}@127.0.0.1:9/0"),
    ],
)
async def test_a_store_that_cannot_be_opened_tells_no_password(
    settings_for: Any, name: str, url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    heard_logs(caplog)
    secret = {name: planted(name)}
    settings = settings_for(**{name: url.format(quote(planted(name), safe=""))})

    with pytest.raises(BodyBrokerError) as refused:
        async with open_runtime(settings):
            pass

    said = f"{refused.value.message} {refused.value.next_step}"
    out, err = capfd.readouterr()
    assert leaks(said + out + err + caplog.text + repr(settings), secret) == set()


@pytest.mark.parametrize("name", SECRETS)
def test_a_setting_that_does_not_fit_is_not_repeated(name: str, tmp_path: Path) -> None:
    secret = {name: planted(name)}
    file = tmp_path / "body-broker.toml"
    file.write_text(f"{name} = [{json.dumps(planted(name))}]\n", encoding="utf-8")
    wrong = {"BODY_BROKER_SECRET_KEY": "short"}

    for environ, path in (
        ({}, file),
        (wrong | {f"BODY_BROKER_{name.upper()}": planted(name), "BODY_BROKER_RATE_PER_S": "no"}, None),
    ):
        with pytest.raises(BodyBrokerError) as refused:
            load_settings(environ, path)
        assert leaks("".join(traceback.format_exception(refused.value)), secret) == set()


_ADDRESSES = [
    *sorted(name for name in Settings.model_fields if name.endswith("_url") and name not in SECRETS),
    "embeddings",
    "oidc_issuer",
]


@pytest.mark.parametrize("name", _ADDRESSES)
def test_an_address_with_a_password_in_it_is_refused_and_not_repeated(name: str) -> None:
    """What is no secret by its kind is shown: a password must not get into it."""
    url = f"http://user:{quote(planted(name), safe='')}@127.0.0.1:9/"
    with pytest.raises(BodyBrokerError) as refused:
        load_settings({f"BODY_BROKER_{name.upper()}": url, "BODY_BROKER_EMBEDDINGS_MODEL": "m"}, None)
    assert name in refused.value.message.lower()
    assert leaks("".join(traceback.format_exception(refused.value)), {name: planted(name)}) == set()


async def test_a_leak_into_a_store_would_be_seen(pool: Pool, redis: Redis) -> None:
    secrets = {"row": planted("row"), "key": planted("key"), "value": planted("value")}
    await pool.execute("INSERT INTO config (key, value, version) VALUES ('a.b', to_jsonb($1::text), 1)", secrets["row"])
    await redis.hset(secrets["key"], "field", f"before {secrets['value']} after")
    assert leaks(await stored(pool, redis), secrets) == set(secrets)
