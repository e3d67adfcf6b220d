"""Owns how somebody proves themselves in a terminal: who they say they are, and a code of theirs, typed unseen."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
from collections.abc import Callable
from typing import Any, TypeVar

import click

from approvals.factors import Factors, Proof
from body_broker.audit.record import Record
from body_broker.errors import BadInput, BodyBrokerError, Denied, Detail
from mcp_servers.hub.cli.context import operator
from mcp_servers.hub.principals import check_principal
from mcp_servers.hub.runtime import Runtime

F = TypeVar("F", bound=Callable[..., Any])
_CODE_BYTES_MAX = 1024


def person_option(command: F) -> F:
    """Who decides: only a second factor makes it true."""
    return click.option("--as", "person", required=True, metavar="person:NAME", help="Who you are.")(command)


def code_option(command: F) -> F:
    """A code for those without a terminal. Never an argument: every account of the machine reads those of a running command."""
    return click.option(
        "--code-stdin",
        "code",
        is_flag=True,
        callback=_read_line,
        help="Read the code of your authenticator app from standard input, one line; else it is asked for.",
    )(command)


def _read_line(_context: click.Context, _option: click.Parameter, wanted: bool) -> str | None:  # noqa: FBT001 - click's form
    if not wanted:
        return None
    line = sys.stdin.readline(_CODE_BYTES_MAX) if sys.stdin else ""
    if not line:
        raise BadInput(
            "Standard input is empty, and --code-stdin reads the code there.",
            next_step="Write one line with the code to it.",
        )
    return line.strip()


def at_terminal() -> bool:
    """Whether somebody can be asked here."""
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def check_person(text: str) -> str:
    """The person named, `anna` or `person:anna`.

    Raises:
        BadInput: It is no person.
    """
    found = check_principal(text if ":" in text else f"person:{text}")
    if not found.startswith("person:"):
        raise BadInput(f"{found} is no person, and only people have second factors.", next_step="Write person:NAME.")
    return found


async def prove(factors: Factors, person: str, code: str | None) -> Proof:
    """A proof by this person's code, which is asked for where none is given.

    Raises:
        Denied: They have no factor that counts, or none that a terminal can use, or the code does not count.
        BadInput: No code is given, and there is no terminal to ask at.
        RateLimited: Too many wrong codes.
    """
    mine = await factors.of(person)
    counting = {each.kind for each in mine if each.standing == "counts"}
    if not counting and (waiting := [each.id for each in mine if each.standing == "waiting"]):
        raise Denied(
            f"The second factor of {person} does not count yet: nobody enrolled has confirmed it.",
            next_step=f"An approver who is enrolled runs `body-broker mfa confirm {waiting[-1]} --as person:NAME`.",
        )
    if not counting:
        raise Denied(
            f"{person} has no second factor, and nothing is decided here without one.",
            next_step=f"Enrol one: body-broker mfa enroll --as {person}.",
        )
    if "totp" not in counting:
        raise Denied(
            f"{person} has a passkey and no authenticator app, and a terminal cannot ask a passkey.",
            next_step="Decide on the hub's page, or enrol an app too: body-broker mfa enroll.",
        )
    if code is None and not at_terminal():
        raise BadInput(
            "The second factor is needed here, and no code was given.",
            next_step="Run it in a terminal, or pass --code-stdin and write the code to its standard input.",
        )
    return await factors.check_totp(person, code if code is not None else await read_unseen(f"Code for {person}: "))


async def proved(runtime: Runtime, person: str, code: str | None, action: str) -> Proof:
    """As `prove`; a refusal is on the audit, under the account that tried.

    Raises:
        BodyBrokerError: As `prove`.
    """
    try:
        return await prove(runtime.approvals.factors, person, code)
    except BodyBrokerError as error:
        details: dict[str, Detail] = {"as": person, "code": error.code, "why": error.message}
        record = Record(kind="refusal", action=action, requester=operator(), verdict="deny", details=details)
        await runtime.auditor.durable(runtime.auditor.add(record))
        raise


async def read_unseen(prompt: str) -> str:
    """What is typed at the terminal, which does not show it; Ctrl-C ends the command and leaves the terminal as it was."""
    loop, file = asyncio.get_running_loop(), sys.stdin.fileno()
    typed: asyncio.Future[str] = loop.create_future()

    def read() -> None:
        line = os.read(file, _CODE_BYTES_MAX)  # a terminal gives a whole line at once
        if not typed.done():
            typed.set_result(line.decode("utf-8", "replace").strip())

    before = termios.tcgetattr(file)
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    termios.tcsetattr(file, termios.TCSADRAIN, silent)  # before the prompt: who reads it may type at once
    click.echo(prompt, nl=False, err=True)
    loop.add_reader(file, read)
    try:
        return await typed
    finally:
        loop.remove_reader(file)
        termios.tcsetattr(file, termios.TCSADRAIN, before)
        click.echo(err=True)
