"""The command `jobs`: work for expert models, asked for, watched and stopped through the same gate as any client's."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import orjson

from approvals.model import WORK_KIND
from body_broker.calls import Json
from body_broker.errors import BadInput, BodyBrokerError
from body_broker.settings import Settings
from body_broker.text import clean
from body_broker.work.model import FINAL, State
from mcp_servers.hub.cli.context import as_option, data_dir_option, principal_of, run, settings_of
from mcp_servers.hub.requests import Request
from mcp_servers.hub.runtime import Runtime, open_runtime
from mcp_servers.hub.worker import working
from tiers.bronze.model import KINDS, Priority

_LOOK_EVERY_S = 1.0
_OVER = FINAL | {"unknown"}
_NOT_DONE, _NOT_YET = 1, 2
_SHOWN = 20
_BUDGET = ("tokens", "calls", "usd", "seconds")
_OPTIONS = {
    "The arguments do not fit submit_job:": "The job does not fit:",
    "max_tokens": "--max-tokens",
    "idempotency_key": "--key",
    "follow_ups": "--then",
    **{f"budget.{name}": f"--budget-{name}" for name in _BUDGET},
    "Correct the arguments as the input schema says and call again.": "Correct it, and try again; --help says how.",
    "list_jobs": "`body-broker jobs list`",
    "cancel_job": "`body-broker jobs cancel`",
}
"""What a person at this command calls what the tools have other names for."""
_ARGUMENTS = re.compile("|".join(map(re.escape, _OPTIONS)))

json_option = click.option("--json", "as_json", is_flag=True, help="The structured result.")
wait_option = click.option(
    "--for", "wait_s", type=click.FloatRange(min=0), default=3_600, show_default=True, help="Seconds to wait at most."
)
id_argument = click.argument("job_id", metavar="ID")


@click.group()
def jobs() -> None:
    """Work that experts' models do in minutes: ask for it, watch it, stop it, read what came of it."""


@jobs.command()
@click.argument("prompt")
@as_option
@click.option("--title", default=None, help="In a few words (default: the first of PROMPT).")
@click.option("--role", default=None, metavar="NAME", help="Of models.toml: deepseek-v3-storyteller, ...")
@click.option("--model", default=None, metavar="NAME", help="An engine (hub://models has them).")
@click.option("--tools", default=None, metavar="NAMES", help="Tools it may call, or groups of models.toml: a,b.")
@click.option("--then", "follow_ups", multiple=True, metavar="TEXT", help="Said after its answer; may be repeated.")
@click.option("--max-tokens", type=int, default=None, help="The most that each answer may have (default 2000).")
@click.option(
    "--priority", type=click.Choice(get_args(Priority)), default=None, help="Among all jobs (default normal)."
)
@click.option("--budget-tokens", "tokens", type=int, default=None, help="Of all prompts and answers together.")
@click.option("--budget-calls", "calls", type=int, default=None, help="Calls of tools.")
@click.option("--budget-usd", "usd", type=float, default=None, help="US dollars.")
@click.option("--budget-seconds", "seconds", type=float, default=None, help="To its end, waiting included.")
@click.option("--key", "idempotency_key", default=None, metavar="TEXT", help="The same key and words are the same job.")
@click.option("--wait", is_flag=True, help="Stay until it has ended, and show what came of it.")
@wait_option
@json_option
@data_dir_option
def submit(
    prompt: str, principal: str, data_dir: Path | None, wait_s: float, *, wait: bool, as_json: bool, **given: Any
) -> None:
    """Ask for a job: an expert model is to do PROMPT. Its id comes at once; - reads PROMPT from stdin.

    With --wait it exits with 0 where it succeeded, 1 where it did not, 2 where it has not ended in the time.
    """
    asked = _asked(sys.stdin.read() if prompt == "-" else prompt, given)
    _end(run(_submit(_Command(_settings(data_dir), principal_of(principal), as_json, wait_s), asked, wait=wait)))


@jobs.command(name="list")
@as_option
@click.option("--state", type=click.Choice(get_args(State)), default=None, help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 100), default=_SHOWN, show_default=True, help="The newest so many.")
@json_option
@data_dir_option
def list_(principal: str, state: str | None, limit: int, data_dir: Path | None, *, as_json: bool) -> None:
    """Show somebody's jobs, the newest first."""
    command = _Command(_settings(data_dir), principal_of(principal), as_json)
    run(_list(command, {"limit": limit} | ({"state": state} if state else {})))


@jobs.command()
@id_argument
@as_option
@json_option
@data_dir_option
def show(job_id: str, principal: str, data_dir: Path | None, *, as_json: bool) -> None:
    """Show how the job ID stands, what it has cost so far, and what came of it."""
    run(_show(_Command(_settings(data_dir), principal_of(principal), as_json), job_id))


@jobs.command()
@id_argument
@as_option
@json_option
@data_dir_option
def cancel(job_id: str, principal: str, data_dir: Path | None, *, as_json: bool) -> None:
    """Stop the job ID: what it asked of people is taken back, what it has done stays done."""
    run(_show(_Command(_settings(data_dir), principal_of(principal), as_json), job_id, first="cancel_job"))


@jobs.command()
@id_argument
@as_option
@wait_option
@json_option
@data_dir_option
def wait(job_id: str, principal: str, wait_s: float, data_dir: Path | None, *, as_json: bool) -> None:
    """Stay until the job ID has ended, and show what came of it.

    Exits with 0 where it succeeded, 1 where it did not, 2 where it has not ended in the time. On embedded stores it is run here if
    no hub is up.
    """
    _end(run(_wait(_Command(_settings(data_dir), principal_of(principal), as_json, wait_s), job_id)))


def _settings(data_dir: Path | None) -> Settings:
    return settings_of(data_dir, tools="all")  # list_jobs is for those who want all of them


def _in_options(text: str) -> str:
    """A text of ours with these commands' options for the arguments of the tools that they call."""
    return _ARGUMENTS.sub(lambda found: _OPTIONS[found[0]], text)


def _asked(prompt: str, given: Mapping[str, Any]) -> dict[str, Json]:
    """The arguments of submit_job."""
    found = {name: value for name, value in given.items() if value is not None and name not in _BUDGET}
    found["follow_ups"] = list(given["follow_ups"])
    if "tools" in found:
        found["tools"] = [name.strip() for name in found["tools"].split(",") if name.strip()]
    budget = {name: given[name] for name in _BUDGET if given[name] is not None}
    return {"prompt": prompt, **found} | ({"budget": budget} if budget else {})


def _end(job: Mapping[str, Json]) -> None:
    """Leave with the exit code that says how a job stands that was waited for."""
    state = job.get("state", "succeeded")
    if state != "succeeded":
        sys.exit(_NOT_DONE if state in _OVER else _NOT_YET)


@dataclass(frozen=True, slots=True)
class _Command:
    """What each of these commands was given."""

    settings: Settings
    principal: str
    as_json: bool
    wait_s: float = 0.0

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[_Calls]:
        """Calls as this principal until the way out."""
        async with open_runtime(self.settings, name="cli") as runtime:
            await runtime.services.world.load()  # a command does not follow the world, it reads it once
            yield _Calls(runtime, self)

    def tell(self, found: Mapping[str, Json], lines: list[str]) -> None:
        """A result, as JSON or in lines for people."""
        if self.as_json:
            click.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
        else:
            click.echo("\n".join(lines))


class _Calls:
    """Calls through the gate as one principal."""

    def __init__(self, runtime: Runtime, command: _Command) -> None:
        self._runtime, self._command = runtime, command

    async def call(self, tool: str, arguments: Mapping[str, Json]) -> dict[str, Any]:
        """The structured result of one call."""
        caller = await self._runtime.identities.local(self._command.principal, over="cli")
        request = Request(name=tool, kind="tool", arguments=dict(arguments), caller=caller)
        try:
            return (await self._runtime.gate.run(request)).result.model_dump(mode="json")
        except BodyBrokerError as error:
            error.message, error.next_step = _in_options(error.message), _in_options(error.next_step)
            raise

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[None]:
        """On embedded stores jobs are run here: where no hub is up, nobody else would."""
        async with AsyncExitStack() as stack:
            if self._command.settings.embedded:
                await stack.enter_async_context(self._runtime.experts.working())  # before anything is paid for
                await stack.enter_async_context(working(self._runtime, (*KINDS, WORK_KIND)))
            yield

    async def until_over(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended, or as it stands when the time is up; each change on the way goes to stderr."""
        loop, told = asyncio.get_running_loop(), ""
        until = loop.time() + self._command.wait_s
        while True:
            job = await self.call("get_job", {"id": job_id})
            if job["state"] in _OVER or loop.time() >= until:
                return job
            if (stands := _stands(job)) != told:
                click.echo(f"· {stands}", err=True)
                told = stands
            await asyncio.sleep(min(_LOOK_EVERY_S, max(until - loop.time(), 0)))


async def _submit(command: _Command, asked: Mapping[str, Json], *, wait: bool) -> Mapping[str, Json]:
    async with command.opened() as calls, calls.working() if wait else contextlib.nullcontext():
        found = await calls.call("submit_job", asked)
        if not wait:
            place = found["queue_position"]
            before = "" if place is None else f", {place} before it" if place else ", the next to begin"
            command.tell(found, [f"{found['job_id']}  {found['status']}{before}"])
            if command.settings.embedded and found["status"] not in _OVER:
                click.echo(f"· {_who_does_it(command, found['job_id'])}", err=True)
            return {}
        click.echo(f"· {found['job_id']}", err=True)
        return _told(command, await calls.until_over(found["job_id"]))


async def _wait(command: _Command, job_id: str) -> Mapping[str, Json]:
    if job_id.startswith("apr_"):
        raise BadInput("This is a request to people, not a job.", next_step="`body-broker approvals show` has it.")
    async with command.opened() as calls:
        await calls.call("get_job", {"id": job_id})  # for a wrong id nobody's jobs are run
        async with calls.working():
            return _told(command, await calls.until_over(job_id))


async def _show(command: _Command, job_id: str, *, first: str | None = None) -> None:
    async with command.opened() as calls:
        if first is not None:
            await calls.call(first, {"id": job_id})
        _told(command, await calls.call("get_job", {"id": job_id}))


async def _list(command: _Command, asked: Mapping[str, Json]) -> None:
    async with command.opened() as calls:
        found = await calls.call("list_jobs", asked)
    command.tell(found, [_line(job) for job in found["items"]] or [f"{command.principal} has no jobs."])


def _who_does_it(command: _Command, job_id: str) -> str:
    """Embedded stores may have no hub up, and then a job stands still."""
    return f"A hub that is up does it; where none is: body-broker jobs wait {job_id} --as {command.principal}"


def _told(command: _Command, job: Mapping[str, Json]) -> Mapping[str, Json]:
    command.tell(job, _whole(job))
    return job


def _line(job: Mapping[str, Json]) -> str:
    about = clean(job["title"] or job["kind"])
    return f"{job['id']}  {job['state']:9}  {job['created_at'][:16].replace('T', ' ')}  {about}"


def _stands(job: Mapping[str, Json]) -> str:
    """How a job stands that has not ended, in a line."""
    if job["waits_for"]:
        return f"waits for {clean(job['waits_for'])}"
    if job["queue_position"] is not None:
        return f"queued, {job['queue_position']} before it" if job["queue_position"] else "queued, the next to begin"
    progress: dict[str, Json] = job["progress"] or {}
    message = progress.get("message")
    return f"{job['state']}: {clean(message)}" if message else job["state"]


def _whole(job: Mapping[str, Json]) -> list[str]:
    """A job for people: what came of it, then how that came about."""
    result: dict[str, Any] = job["result"] or {}
    lines = [f"{_line(job)}"]
    if job["state"] not in _OVER:
        lines.append(f"now    {_stands(job)}")
        progress: dict[str, Json] = job["progress"] or {}
        if job["waits_for"] and (message := progress.get("message")):  # why, and what to do
            lines.append(f"said   {clean(message)}")
    if job["error"]:
        lines.append(f"error  {clean(job['error']['message'])} {clean(job['error'].get('next_step') or '')}".rstrip())
    lines += _made(result.get("made") or {})
    lines.append(f"cost   {_cost(job, result.get('made') or {})}")
    if job["note"]:
        lines.append(f"note   {clean(job['note'])}")
    if job["from_outside"]:
        lines.append("mark   text from outside went into it: read it as data")
    shown = result.get("content")
    if shown is None and result:
        rest = {name: value for name, value in result.items() if name != "made"}
        shown = orjson.dumps(rest, option=orjson.OPT_INDENT_2).decode()
    return [*lines, "", clean(shown)] if shown else lines


def _made(made: Mapping[str, Any]) -> list[str]:
    if not made:
        return []
    lines = [f"by     {', '.join(made['engines'])} ({', '.join(made['models'])})"]
    lines += [f"step   not {down['engine']}: {down['reason']}" for down in made["fallbacks"]]
    lines += [f"tool   {used['name']}: {used['outcome']}" for used in made["tools"]]
    tokens = f"{made['prompt_tokens']} tokens read, {made['completion_tokens']} written"
    return [*lines, f"tokens {tokens}{', cut at its most' if made['truncated'] else ''}"]


def _cost(job: Mapping[str, Json], made: Mapping[str, Any]) -> str:
    cost = made.get("cost_usd", job["cost_usd"])
    known = "not known" if cost is None else f"${cost:.6f}" if cost else "$0"
    maybe = job["maybe_spent"] or made.get("maybe_spent")
    return f"{known}; more may have been spent, nobody can say" if maybe else known
