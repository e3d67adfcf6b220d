"""Owns the pins: the exact version of every package of the resolved tree, written into [tool.uv] constraint-dependencies.

uv.lock names registry hosts, so git ignores it (docs/adr/0005); the pins carry its versions, and `uv lock` under them can
resolve to nothing else.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.tools.project import ROOT, uv

_BLOCK = re.compile(r"^# Written by `poe pin`.*\nconstraint-dependencies = \[\n(?:  .*\n)*\]\n", re.MULTILINE)
_HEAD = "# Written by `poe pin` from the resolved tree; `poe check` holds them to it.\n"
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def written_pins(text: str) -> list[str]:
    """The pins that a pyproject.toml holds."""
    pins: list[str] = tomllib.loads(text)["tool"]["uv"].get("constraint-dependencies", [])
    return pins


def with_pins(text: str, pins: list[str]) -> str:
    """The text of a pyproject.toml with these pins in place of its own; none leaves no block."""
    block = _HEAD + "constraint-dependencies = [\n" + "".join(f'  "{pin}",\n' for pin in pins) + "]\n" if pins else ""
    if _BLOCK.search(text):
        return _BLOCK.sub(lambda _: block, text)
    return text.replace("\n[tool.uv]\n", f"\n[tool.uv]\n{block}", 1)


def pins_of(lock: dict[str, Any]) -> list[str]:  # uv.lock: any TOML value
    """One `name==version` for each package of a lock, with the Python versions it is for where there is more than one."""
    versions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for package in lock["package"]:
        if "registry" in package["source"]:
            versions[package["name"]].append(package)
    found: list[str] = []
    for name, forks in sorted(versions.items()):
        if len(forks) == 1:
            found.append(f"{name}=={forks[0]['version']}")
        else:
            found += [
                f"{name}=={fork['version']} ; {marker}" for fork, marker in zip(forks, _markers(forks), strict=True)
            ]
    return found


def _markers(forks: list[dict[str, Any]]) -> list[str]:
    """What tells the forks apart: the Python versions alone where that is enough, else the whole markers."""
    whole = [sorted(set(fork["resolution-markers"])) for fork in forks]
    pythons = [
        sorted({" and ".join(p for p in m.split(" and ") if p.startswith("python_full_version")) for m in markers})
        for markers in whole
    ]
    every = [python for fork in pythons for python in fork]
    chosen = pythons if all(every) and len(every) == len(set(every)) else whole
    return [" or ".join(fork).replace('"', "'") for fork in chosen]


def resolve(text: str, *, upgrade: list[str] | None = None) -> dict[str, Any]:  # uv.lock: any TOML value
    """What `uv lock` makes of this pyproject.toml, in a folder of its own; the versions of a uv.lock that is here are kept.

    Args:
        text: The pyproject.toml.
        upgrade: Names that take the newest version again; an empty list is all of them, None is none.
    """
    wanted = [] if upgrade is None else [f"--upgrade-package={name}" for name in upgrade] or ["--upgrade"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pyproject.toml").write_text(text, "utf-8")
        if (ROOT / "uv.lock").exists():
            shutil.copy(ROOT / "uv.lock", folder)
        uv("lock", *wanted, cwd=Path(folder), timeout_s=600)
        return tomllib.loads((Path(folder) / "uv.lock").read_text("utf-8"))


def without(pins: list[str], names: list[str] | None) -> list[str]:
    """The pins that stay while `names` are upgraded: all for None, none for an empty list."""
    if names is None:
        return pins
    return [pin for pin in pins if names and (name := _NAME.match(pin)) and name.group() not in names]


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 when the pins are written, or with --check when they are exactly the tree they resolve to."""
    parser = argparse.ArgumentParser(prog="poe pin", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the pins are not the tree")
    parser.add_argument("--upgrade", nargs="*", metavar="NAME", help="take the newest of these packages, or of all")
    options = parser.parse_args(arguments)
    file = ROOT / "pyproject.toml"
    text = file.read_text("utf-8")
    present = written_pins(text)
    upgrade: list[str] | None = options.upgrade
    pins = pins_of(resolve(with_pins(text, without(present, upgrade)), upgrade=upgrade))
    if options.check:
        for pin in sorted(set(pins) ^ set(present)):
            print(f"{'not pinned' if pin in pins else 'pinned, not in the tree'}: {pin}")
        print(f"{len(present)} pins" + (", exactly the resolved tree" if present == pins else ": run `poe pin`"))
        return int(present != pins)
    file.write_text(with_pins(text, pins), "utf-8")
    print(f"{len(pins)} pins, {len(set(pins) - set(present))} of them new")
    return 0


if __name__ == "__main__":
    sys.exit(main())
