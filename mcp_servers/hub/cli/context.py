"""Owns what every command shares: --data-dir, settings read from the environment once, logging, the event loop, who runs it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop

from body_broker.audit.operators import record_operator
from body_broker.calls import Receipt
from body_broker.errors import Detail
from body_broker.settings import Settings, load_settings
from body_broker.telemetry import configure_logging
from mcp_servers.hub.runtime import Runtime

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
SETTINGS_FILE = "body-broker.toml"


def data_dir_option(command: F) -> F:
    """The --data-dir that every command takes."""
    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="Where the embedded stores and keys live (default: BODY_BROKER_DATA_DIR or ~/.local/share/body-broker).",
    )(command)


def settings_of(data_dir: Path | None, **overrides: object) -> Settings:
    """The settings of this process; logging is configured by them.

    Raises:
        SettingsError: A name is unknown or a value does not fit.
    """
    file = Path(SETTINGS_FILE)
    environ = os.environ  # noqa: TID251 - the one place where it is read
    settings = load_settings(environ, file if file.is_file() else None, data_dir=data_dir, **overrides)
    configure_logging(settings.log_level, settings.log_format)
    return settings


def search_path() -> str:
    """Where programs are looked for on this machine."""
    return os.environ.get("PATH", os.defpath)  # noqa: TID251 - no setting


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine on uvloop."""
    return uvloop.run(main)


def operator() -> str:
    """Who runs this command, as records name them: `operator:NAME` of the operating system's account."""
    return f"operator:{getpass.getuser()}"


async def record(runtime: Runtime, action: str, details: Mapping[str, Detail] | None = None) -> Receipt:
    """Put an operator's command on the audit, durably, before its effect.

    Raises:
        Unavailable: The audit did not take it; the command must not go on.
    """
    key = runtime.secrets.derive("audit")
    return await record_operator(runtime.stores.pool, key, operator=getpass.getuser(), action=action, details=details)


def principal_of(text: str) -> str:
    """`silver` is `tier:silver`; everything else must say what it is (`person:anna`, `service:game`)."""
    return f"tier:{text}" if text in {"gold", "silver", "bronze"} else text


as_option = click.option(
    "--as", "principal", required=True, metavar="WHO", help="silver, person:NAME or service:NAME; embedded stores only."
)
