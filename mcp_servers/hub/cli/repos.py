"""The command `repos`: which repositories may be scanned through the hub."""

from __future__ import annotations

from pathlib import Path

import click

from body_broker.errors import BadInput
from body_broker.settings import Settings
from mcp_servers.cybersecurity import store
from mcp_servers.cybersecurity.paths import Repository
from mcp_servers.hub.cli.context import data_dir_option, operator, record, run, settings_of
from mcp_servers.hub.runtime import open_runtime


@click.group()
def repos() -> None:
    """Repositories that agents and people may have scanned."""


@repos.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", default=None, help="What callers say; the folder's own name by default.")
@click.option(
    "--skip", "skips", multiple=True, metavar="FOLDER", help="Leave out folders of this name: node_modules, .venv."
)
@data_dir_option
def add(path: Path, name: str | None, skips: tuple[str, ...], data_dir: Path | None) -> None:
    """Let the folder PATH be scanned, on the machine whose hub or worker scans."""
    repository = Repository((name or path.resolve().name), _root(path), tuple(sorted(set(map(_folder, skips)))))
    new = run(_add(settings_of(data_dir), repository))
    click.echo(f"{repository.name} is {repository.root}{'' if new else ' (was there already)'}.")


async def _add(settings: Settings, repository: Repository) -> bool:
    async with open_runtime(settings, name="cli") as runtime:
        await record(
            runtime,
            "repos add",
            {"name": repository.name, "root": str(repository.root), "skips": list(repository.skips)},
        )
        return await store.add_repository(runtime.stores.pool, repository, by=operator())


@repos.command(name="list")
@data_dir_option
def list_(data_dir: Path | None) -> None:
    """Show the registered repositories and their latest scans."""
    for line in run(_list(settings_of(data_dir))):
        click.echo(line)


async def _list(settings: Settings) -> list[str]:
    async with open_runtime(settings, name="cli") as runtime:
        found = await store.registered(runtime.stores.pool)
    if not found:
        return ["No repository is registered: `body-broker repos add PATH` adds one."]
    return [
        f"{r.repository.name:24}  {r.verdict or 'never scanned':14}  {r.at or '':25}  {r.repository.root}"
        + (f"  (without {', '.join(r.repository.skips)})" if r.repository.skips else "")
        for r in found
    ]


@repos.command()
@click.argument("name")
@data_dir_option
def remove(name: str, data_dir: Path | None) -> None:
    """Forget the repository NAME, its scans and their findings."""
    click.echo(f"{name} is gone, and {run(_remove(settings_of(data_dir), name))} scans with it.")


async def _remove(settings: Settings, name: str) -> int:
    async with open_runtime(settings, name="cli") as runtime:
        await record(runtime, "repos remove", {"name": name})
        return await store.remove_repository(runtime.stores.pool, name)


def _root(path: Path) -> Path:
    root = path.resolve()
    if not root.is_dir():
        raise BadInput(f"{path} is no folder.", next_step="Name the folder that holds the repository.")
    if root == Path(root.anchor):
        raise BadInput("The whole machine is no repository.", next_step="Name the folder that holds the repository.")
    return root


def _folder(name: str) -> str:
    if "/" in name or name in {"", ".", ".."}:
        raise click.BadParameter(f"{name!r} is no folder's name; paths are not taken.", param_hint="--skip")
    return name
