"""The `body-broker` command: one group whose commands are imported when they are used, so that each starts fast."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata

import click

from body_broker.errors import BodyBrokerError, on_the_wire
from body_broker.telemetry import get_logger

# Command -> module of this package that holds it under the same name (dashes as underscores).
_COMMANDS = {
    "serve": "serving",
    "worker": "serving",
    "engine": "engine",
    "demo": "demo",
    "connect": "connect",
    "token": "tokens",
    "lore": "lore",
    "world": "world",
    "config": "tuning",
    "policy": "policy",
    "audit": "audit",
    "approvals": "approvals",
    "mfa": "mfa",
    "tools": "calling",
    "call": "calling",
    "ask": "asking",
    "route": "routing",
    "engine-profile": "profiles",
    "validate": "validate",
    "status": "status",
    "backup": "backup",
    "restore": "backup",
    "scanners": "scanners",
    "slack": "slack",
    "repos": "repos",
    "scan": "scan",
    "jobs": "jobs",
    "upstream": "upstream",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"mcp_servers.hub.cli.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(metadata.version("body-broker"), prog_name="body-broker")
def body_broker() -> None:
    """Body Broker: one door with identity, policy and audit for the tools of an AI-driven game studio."""


def main() -> None:
    """The console script: errors of ours become one line on stderr and exit code 1."""
    try:
        body_broker(standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BodyBrokerError as error:
        told = on_the_wire(error)
        click.echo(f"{told.message}\n{told.next_step}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - the top of the process
        # A fault of ours: its text may hold anything, so a person gets one line and the log the traceback.
        get_logger(__name__).debug("command_failed", exc_info=True)
        click.echo(
            "The command failed inside.\nRun it again with BODY_BROKER_LOG_LEVEL=debug and report what it says.",
            err=True,
        )
        sys.exit(1)
