"""Secrets in every setting that is one, and in what fails: no answer, page, log line, span, metric or audit record has them, in any spelling."""

from __future__ import annotations

import base64
import json
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import httpx2
import pytest
from mcp import MCPError

from body_broker.errors import BodyBrokerError
from body_broker.settings import Settings, load_settings
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.runtime import open_runtime
from tests.mcp_servers.hub.conftest import Hub, OpenHub, open_hub, patient_engines, patient_models, settings_for
from tests.mcp_servers.hub.test_traces import Traced, traced

__all__ = ["open_hub", "patient_engines", "patient_models", "settings_for", "traced"]  # fixtures

_SECRETS = sorted(name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation))
_AWAY = "http://127.0.0.1:9"


def planted(name: str) -> str:
    """The secret of a setting: one that no other text has, with characters that a URL must spell otherwise."""
    return f"Pl4nted-{name.replace('_', '-')}-q7/Zw+x9=K-0123456789"


def spellings(secret: str) -> Iterator[str]:
    """As it is, as a URL has it, as JSON has it, and in base64 at each of the three places where it may begin."""
    yield from (secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1], secret.encode().hex())
    for lead in range(3):
        coded = base64.b64encode(b"x" * lead + secret.encode())
        # What stands beside it changes the first and the last signs.
        yield coded[4 if lead else 0 : -4].decode()
        yield base64.urlsafe_b64encode(b"x" * lead + secret.encode())[4 if lead else 0 : -4].decode()


def leaks(text: str, secrets: Mapping[str, str]) -> set[str]:
    return {name for name, secret in secrets.items() if any(each in text for each in spellings(secret))}


def _settings() -> dict[str, Any]:
    """Every setting that is a secret and does not say where the stores are, each beside what uses it, at an address where nobody is."""
    keys = {name: planted(name) for name in _SECRETS if not name.endswith("_url")}
    keys |= {
        "slack_bot_token": f"xoxb-{planted('slack_bot_token')}",
        "slack_app_token": f"xapp-{planted('slack_app_token')}",
    }
    password = quote(planted("opensearch_url"), safe="")
    return keys | {
        "opensearch_url": f"http://admin:{password}@127.0.0.1:9",
        "silver_url": _AWAY, "silver_model": "m", "gold_url": _AWAY, "bronze_url": _AWAY, "bronze_model": "m",
        "openai_url": _AWAY, "anthropic_url": _AWAY, "azure_openai_url": _AWAY, "slack_api_url": f"{_AWAY}/api/",
        "slack_channel": "C0123456789", "oidc_issuer": _AWAY, "oidc_client_id": "hub", "oidc_audience": "hub",
        "embeddings": f"{_AWAY}/v1", "embeddings_model": "m",
    }  # fmt: skip


def test_a_leak_would_be_seen_in_each_spelling() -> None:
    secret = {"x": planted("x")}
    raw = secret["x"]
    for said in (
        raw, quote(raw, safe=""), json.dumps({"a": raw}), raw.encode().hex(), base64.b64encode(f"user:{raw}".encode()).decode(),
        base64.b64encode(f"u:{raw}@h".encode()).decode(), base64.urlsafe_b64encode(f"us:{raw}".encode()).decode(),
    ):  # fmt: skip
        assert leaks(f"before {said} after", secret) == {"x"}, said
    assert leaks("Pl4nted-x", secret) == set()


async def _told(hub: Hub) -> str:
    """All that clients are told: every tool with nothing, with words and with a setting's name; pages; who nobody knows."""
    said: list[str] = []
    async with hub.client("person:anna", "engineer", "admin", "designer", "sre", "security") as client:
        tools = (await client.list_tools()).tools
        said.append(str(tools))
        words = {
            "text": "hello",
            "prompt": "hello",
            "topic": "the keep",
            "query": "the keep",
            "player": "p",
            "npc_id": "npc_x",
        }
        for tool in tools:
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
    redis: object,
    traced: Traced,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    _ = redis  # flushed before the test
    caplog.set_level("DEBUG")
    settings = _settings()
    secrets = {name: planted(name) for name in _SECRETS}
    async with open_hub(rooms=ROOMS, **settings) as hub:
        told = await _told(hub)
        metrics = hub.runtime.gate.metrics.text()
        shown = f"{hub.runtime!r} {Settings.model_validate(settings)!r}"
    async with open_hub() as later:  # the other's records are committed
        rows = await later.runtime.stores.pool.fetch("SELECT body FROM audit_record")
    out, err = capfd.readouterr()

    assert len(rows) > 50
    assert "unavailable" in told
    assert leaks(told, secrets) == set()
    assert leaks(out + err + caplog.text, secrets) == set()
    assert traced.get_finished_spans()
    assert leaks(traced.words(), secrets) == set()
    assert leaks(metrics, secrets) == set()
    assert leaks("\n".join(str(row["body"]) for row in rows), secrets) == set()
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
    caplog.set_level("DEBUG")
    secret = {name: planted(name)}
    settings = settings_for(**{name: url.format(quote(planted(name), safe=""))})

    with pytest.raises(BodyBrokerError) as refused:
        async with open_runtime(settings):
            pass

    said = f"{refused.value.message} {refused.value.next_step}"
    out, err = capfd.readouterr()
    assert leaks(said + out + err + caplog.text + repr(settings), secret) == set()


@pytest.mark.parametrize("name", _SECRETS)
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
