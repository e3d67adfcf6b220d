"""Engines, stores and a cloud that repeat in their errors all that they were told: nothing of it reaches a client, a terminal or a record."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from body_broker.storage.redis import Redis
from mcp_servers.hub.cli import main
from mcp_servers.hub.cli.context import record
from mcp_servers.hub.rooms import ROOMS
from mcp_servers.hub.worker import working
from tests.attacks.planting import SECRETS, Form, echoing, engines_at, heard_logs, leaks, logging_again, planted, stored
from tests.attacks.test_secrets import told_to_clients
from tests.mcp_servers.hub.conftest import SECRET, OpenHub, open_hub, patient_engines, patient_models, settings_for
from tests.mcp_servers.hub.test_traces import Traced, traced
from tests.waiting import wait_until

__all__ = ["logging_again", "open_hub", "patient_engines", "patient_models", "settings_for", "traced"]  # fixtures

_AWS = {name: planted(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
_PLANTED = {name: planted(name) for name in [*SECRETS, "upstream", "otlp"]} | _AWS
_ASKING = {
    "generate", "talk_to_npc", "search_lore", "retrieve_lore", "retrieve_context", "vector_search", "check_consistency", "query_aws_resource",
    "get_aws_identity", "submit_job", "generate_narrative", "propose_change", "delete_document", "get_engine_status", "reindex",
}  # fmt: skip
"""The tools that ask anybody else."""


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Planted credentials of AWS, and the file of its roles."""
    for name, value in _AWS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "aws.toml"
    file.write_text(
        '[roles]\nsre = "arn:aws:iam::123456789012:role/reader"\nadmin = "arn:aws:iam::123456789012:role/reader"\n'
    )
    return file


@pytest.mark.parametrize(("form", "status"), [("json", 401), ("events", 200), ("reason", 500), ("xml", 403)])
async def test_what_an_error_of_somebody_else_repeats_is_told_to_nobody(  # noqa: PLR0917 - fixtures
    form: Form, status: int, open_hub: OpenHub, redis: Redis, aws: Path, traced: Traced, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    heard_logs(caplog)
    lore = tmp_path / "lore"
    await asyncio.to_thread(lore.mkdir)
    await asyncio.to_thread((lore / "keep.md").write_text, "# The keep\n\nA keep by the sea.\n")
    with echoing(form, status) as echo:
        more: dict[str, Any] = {"aws_roles": aws, "aws_region": "us-east-1", "aws_endpoint_url": echo.url}
        async with open_hub(rooms=ROOMS, tools="all", **engines_at(echo.url), **more) as hub:
            async with working(hub.runtime):
                receipt = await record(hub.runtime, "lore import")
                await hub.runtime.services.rag.import_paths((lore,), index="lore", by="operator:ann", receipt=receipt)
                told = await told_to_clients(hub, _ASKING)
                await wait_until(
                    lambda: "embeddings_api_key" in leaks("\n".join(echo.heard), _PLANTED), "vectors were asked for"
                )
            metrics = hub.runtime.gate.metrics.text()
            lies = await stored(hub.runtime.stores.pool, redis)
    out, err = capfd.readouterr()

    heard = leaks("\n".join(echo.heard), _PLANTED)
    sent = {"silver_api_key", "bronze_api_key", "embeddings_api_key", "opensearch_url", "AWS_SESSION_TOKEN"}
    assert heard >= sent, heard
    assert leaks(told, _PLANTED) == set()
    assert {record.name for record in caplog.records if leaks(record.getMessage(), _PLANTED)} == set()
    assert leaks(out + err + caplog.text, _PLANTED) == set()
    assert leaks(traced.words(), _PLANTED) == set()
    assert leaks(metrics, _PLANTED) == set()
    assert leaks(lies, _PLANTED) == set()


_COMMANDS: list[tuple[str, set[str]]] = [
    ("validate all --requests 1", {"silver_api_key", "bronze_api_key", "openai_api_key", "anthropic_api_key", "azure_openai_api_key"}),
    ("slack check --no-card", {"slack_bot_token"}),
    ("lore import LORE", {"otlp"}),
    ("status", set()),
    ("upstream list", set()),
    (f"upstream add other --url https://user:{planted('upstream')}@studio.example/mcp", set()),
    (f"upstream add other --env API_TOKEN={planted('upstream')} -- other-server", set()),
    ("token logins", set()),
    ("token issue person:anna --role nobody", set()),
    ("audit verify", set()),
]  # fmt: skip
"""Each with the secrets that it sends to somebody."""


@pytest.mark.usefixtures("logging_again")
@pytest.mark.parametrize(("words", "told"), _COMMANDS)
@pytest.mark.parametrize(("form", "status"), [("json", 401), ("reason", 500)])
def test_no_command_repeats_it_either(  # noqa: PLR0917 - fixtures
    words: str, told: set[str], form: Form, status: int, database_url: str, redis_url: str, aws: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with echoing(form, status) as echo:
        settings: Mapping[str, Any] = engines_at(echo.url) | {
            "database_url": database_url, "redis_url": redis_url, "secret_key": SECRET, "aws_roles": aws, "aws_region": "us-east-1",
            "aws_endpoint_url": echo.url, "log_level": "debug", "data_dir": tmp_path / "data", "public_url": "http://localhost:9",
            "otlp_url": echo.url,
        }  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(f"BODY_BROKER_{name.upper()}", str(value))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer%20{quote(planted('otlp'), safe='')}")
        lore = tmp_path / "lore"
        lore.mkdir()
        (lore / "keep.md").write_text("# The keep\n\nA keep by the sea.\n")
        monkeypatch.setattr("sys.argv", ["body-broker", *words.replace("LORE", str(lore)).split()])
        with suppress(SystemExit):
            main()
    out, err = capfd.readouterr()

    assert leaks("\n".join(echo.heard), _PLANTED) >= told
    assert leaks(out + err, _PLANTED) == set()
