"""Owns secrets that are planted: what each reads like, in which spellings it is looked for, and a server that repeats all that it is told."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import quote, quote_plus

import pytest

from body_broker.settings import Settings
from body_broker.storage.postgres import Pool
from body_broker.storage.redis import Redis
from body_broker.telemetry import configure_logging

SECRETS = sorted(name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation))
"""The settings that are secrets."""
Form = Literal["json", "xml", "events", "reason"]


def planted(name: str) -> str:
    """The secret of a setting: one that no other text has, with characters that a URL must spell otherwise."""
    return f"Pl4nted-{name.replace('_', '-')}-q7/Zw+x9=K-0123456789"


def spellings(secret: str | bytes) -> Iterator[str]:
    """As it is, as a URL has it, as JSON has it, and in base64 at each of the three places where it may begin."""
    if isinstance(secret, str):
        # What is cut short is one too.
        yield from (secret[:28], secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1])
        secret = secret.encode()
    else:
        yield repr(secret)[2:-1]
    yield from (secret.hex(), secret.hex().upper())
    for lead in range(3):
        # What stands beside it changes the first and the last signs.
        cut = slice(4 if lead else 0, -4)
        yield base64.b64encode(b"x" * lead + secret)[cut].decode()
        yield base64.urlsafe_b64encode(b"x" * lead + secret)[cut].decode()


def leaks(text: str, secrets: Mapping[str, str | bytes]) -> set[str]:
    """The names of those that are in the text."""
    return {name for name, secret in secrets.items() if any(each in text for each in spellings(secret))}


def engines_at(url: str) -> dict[str, Any]:
    """Every setting that is a secret and does not say where the stores are, each beside what uses it, all at this address."""
    keys = {name: planted(name) for name in SECRETS if not name.endswith("_url")}
    keys |= {
        "slack_bot_token": f"xoxb-{planted('slack_bot_token')}",
        "slack_app_token": f"xapp-{planted('slack_app_token')}",
    }
    host = url.removeprefix("http://")
    return keys | {
        "opensearch_url": f"http://admin:{quote(planted('opensearch_url'), safe='')}@{host}",
        "silver_url": url, "silver_model": "m", "gold_url": url, "bronze_url": url, "bronze_model": "m",
        "openai_url": url, "anthropic_url": url, "azure_openai_url": url, "slack_api_url": f"{url}/api/",
        "slack_channel": "C0123456789", "oidc_issuer": url, "oidc_client_id": "hub", "oidc_audience": "hub",
        "embeddings": f"{url}/v1", "embeddings_model": "m",
    }  # fmt: skip


@pytest.fixture
def logging_again() -> Generator[None]:
    """What a command changes of this process's logging is as before after the test."""
    handlers = logging.getLogger().handlers[:]
    yield
    configure_logging("warning")
    logging.getLogger().handlers[:] = handlers


async def stored(pool: Pool, redis: Redis) -> str:
    """All that lies in the stores: every row of every table, every key of Valkey as it would be dumped."""
    tables = await pool.fetch("SELECT quote_ident(tablename) AS name FROM pg_tables WHERE schemaname = 'public'")
    said: list[str] = []
    for table in tables:
        rows = await pool.fetch(f"SELECT row_to_json(t)::text AS row FROM {table['name']} t")  # noqa: S608 - PostgreSQL's own names
        said += [row["row"] for row in rows]
    await redis.config_set("rdbcompression", "no")  # pyright: ignore[reportUnknownMemberType]  # redis-py's hints
    keys: list[Any] = await redis.keys("*")  # pyright: ignore[reportUnknownMemberType]  # the same
    for key in keys:
        said += [key.decode("latin-1"), (await redis.dump(key) or b"").decode("latin-1")]
    return "\n".join(said)


def heard_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Hear what BODY_BROKER_LOG_LEVEL=debug writes."""
    caplog.set_level("INFO")
    for name in ("approvals", "body_broker", "mcp_servers", "policies", "tiers"):
        caplog.set_level("DEBUG", logger=name)


@dataclass
class Echo:
    """A server that answers each request with all of that request, as an error does that was written to help.

    Attributes:
        form: What it makes of it.
        status: Of its answers.
        heard: What it was told.
    """

    form: Form = "json"
    status: int = 401
    url: str = ""
    heard: list[str] = field(default_factory=list[str])


@contextmanager
def echoing(form: Form = "json", status: int = 401) -> Generator[Echo]:
    """Such a server on loopback, for as long as it is used."""
    echo = Echo(form, status)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            length = int(self.headers.get("content-length", 0))
            said = "; ".join([self.path, *self.headers.values(), self.rfile.read(length).decode("utf-8", "replace")])
            said += "".join(f" {_opened(value)}" for value in self.headers.values())
            echo.heard.append(said)
            line = " ".join(self.headers.values())[:400]
            kind, body = _body(echo.form, said)
            self.send_response(echo.status, line if echo.form == "reason" else None)
            for name in ("www-authenticate", "x-request-id", "retry-after", "request-id"):
                self.send_header(name, line)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer  # noqa: N815 - as the class wants them

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the class has it
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        echo.url = f"http://127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        serving.start()
        try:
            yield echo
        finally:
            server.shutdown()
            serving.join()


def _opened(header: str) -> str:
    """The user and password of a basic authorization."""
    kind, _, coded = header.partition(" ")
    return base64.b64decode(coded).decode("utf-8", "replace") if kind == "Basic" else ""


def _body(form: Form, said: str) -> tuple[str, bytes]:
    told = {"message": said, "type": said[:300], "code": said[:300], "param": said[:300], "reason": said[:300]}
    error = json.dumps({"error": told, "message": said, "detail": said, "__type": said[:200], "ok": False}).encode()
    match form:
        case "json":
            return "application/json", error
        case "xml":
            words = said.replace("&", "&amp;").replace("<", "&lt;")
            return (
                "text/xml",
                f"<ErrorResponse><Error><Code>{words[:99]}</Code><Message>{words}</Message></Error></ErrorResponse>".encode(),
            )
        case "events":
            return "text/event-stream", b"event: error\ndata: %b\n\ndata: %b\n\n" % (error, error[: len(error) // 2])
        case _:
            return "text/plain", said.encode()
