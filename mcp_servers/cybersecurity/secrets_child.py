"""Owns the process in which detect-secrets reads a staged copy: one JSON line a finding, never a secret or its hash. Run as a program."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.core.scan import scan_file
from detect_secrets.settings import transient_settings

_ENDING = re.compile(r"\.[A-Za-z0-9]{1,10}")
# A public address is no secret.
_NO_SECRETS = frozenset({"IPPublicDetector"})
# What is no secret by its own form. Not among them: what a repository could hide one by (a comment, a file's name or ending).
_FILTERS = (
    "is_sequential_string",
    "is_potential_uuid",
    "is_likely_id_string",
    "is_templated_secret",
    "is_prefixed_with_dollar_sign",
    "is_indirect_reference",
    "is_not_alphanumeric_string",
)
_BY_NAME = ("detect_secrets.filters.common.is_invalid_file", "detect_secrets.filters.heuristic.is_non_text_file")


def main() -> None:
    """Scan argv[1], with argv[2] to write to."""
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    plugins = sorted(plugin.__name__ for plugin in get_mapping_from_secret_type_to_class().values())
    chosen = {
        "plugins_used": [{"name": name} for name in plugins if name not in _NO_SECRETS],
        "filters_used": [{"path": f"detect_secrets.filters.heuristic.{name}"} for name in _FILTERS],
    }
    scanned = 0
    with transient_settings(chosen) as settings:
        settings.disable_filters(*_BY_NAME)
        for file in _files(source):
            path = str(file.relative_to(source))
            try:
                readable = _as_text(file, work)
                found = sorted({(secret.line_number, secret.type) for secret in scan_file(str(readable))})
            except Exception as error:  # noqa: BLE001 - one file must not cost the others
                _say({"path": path, "error": type(error).__name__})
                continue
            scanned += 1
            for line, kind in found:
                _say({"path": path, "line": line, "type": kind})
    _say({"scanned": scanned})


def _files(source: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(source):
        yield from (Path(folder, name) for name in sorted(names))


def _as_text(file: Path, work: Path) -> Path:
    """The file, or a copy in UTF-8 where it is in something else."""
    content = file.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError:
        # Only a known kind of ending is kept: a name of its own might be longer than the system takes.
        copy = work / f"text{file.suffix if _ENDING.fullmatch(file.suffix) else ''}"
        copy.write_text(content.decode("latin-1"), "utf-8", newline="")
        return copy
    return file


def _say(told: dict[str, str | int]) -> None:
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
