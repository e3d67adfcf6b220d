"""Owns what the command writes into upstreams.toml: a section added at its end, a section taken out; everything else stays as it was written."""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from collections.abc import Collection
from pathlib import Path

from body_broker.errors import Conflict, NotFound
from mcp_servers.upstreams.model import Upstream
from mcp_servers.upstreams.reading import FILE, read_upstreams

_HEAD = "# Servers of others that are joined to this hub: docs/upstreams.md of Body Broker has the form.\n"
_TABLE = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_-]+|\"[^\"]*\"|'[^']*')\s*[.\]]")


def add_section(file: Path, upstream: Upstream, *, taken: Collection[str] = ()) -> None:
    """Join a server; blocking.

    Args:
        file: An upstreams.toml, made where there is none.
        upstream: What is joined.
        taken: As for `read_upstreams`.

    Raises:
        Conflict: One of that name is joined.
        SettingsError: The file does not fit, or would not with this.
    """
    text = file.read_text("utf-8") if file.exists() else _HEAD
    if file.exists() and any(each.name == upstream.name for each in read_upstreams(file, taken=taken)):
        raise Conflict(
            f"{upstream.name} is joined already.", next_step=f"Change its section in {FILE}, or take another name."
        )
    _write(file, f"{text.rstrip()}\n\n{section_of(upstream)}", taken)


def remove_section(file: Path, name: str, *, taken: Collection[str] = ()) -> None:
    """Take a server and everything that is said of it out of the file; blocking.

    Raises:
        NotFound: None of that name is joined.
        Conflict: It stands there in a form that only a person can take out.
        SettingsError: The rest does not fit.
    """
    text = file.read_text("utf-8") if file.exists() else ""
    tables = tomllib.loads(text)
    if name not in tables:
        raise NotFound(f"No server of the name {name} is joined.", next_step="`body-broker upstream list` shows them.")
    del tables[name]
    kept: list[str] = []
    keeps = True
    for line in text.splitlines(keepends=True):
        if found := _TABLE.match(line):
            keeps = found[1].strip("\"'") != name
        if keeps:
            kept.append(line)
    rest = "".join(kept)
    try:
        same = tomllib.loads(rest) == tables
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        raise Conflict(f"{name} stands in {FILE} in a form of its own.", next_step=f"Take it out of {FILE} by hand.")
    _write(file, rest, taken)


def section_of(upstream: Upstream) -> str:
    """A section in TOML, without what is said of its operations."""
    lines = [f"[{upstream.name}]"]
    if upstream.url is not None:
        lines += [f"url = {_quoted(upstream.url)}"] + ([f'auth = "{upstream.auth}"'] if upstream.auth != "none" else [])
    else:
        lines.append(f"command = [{', '.join(map(_quoted, upstream.command))}]")
    if upstream.env:
        pairs = ", ".join(f"{name} = {_quoted(value)}" for name, value in sorted(upstream.env.items()))
        lines.append(f"env = {{ {pairs} }}")
    if upstream.secret_env:
        lines.append(f"secret_env = [{', '.join(map(_quoted, upstream.secret_env))}]")
    if upstream.folder is not None:
        lines.append(f"folder = {_quoted(upstream.folder)}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    inert = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in inert) + '"'


def _write(file: Path, text: str, taken: Collection[str]) -> None:
    """Put the text there whole, once it is known to fit; until then what was there stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    new = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        read_upstreams(new, taken=taken)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
