"""Owns what scanners are shown of a file: its name in the copy, and its text in one form that all of them count lines alike in."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from pathlib import PurePosixPath

# A scanner reads these as orders of what not to look at, and git runs what a `.git` says; under another name they are files
# and folders like any other.
_ORDERS = frozenset(
    {".git", ".gitignore", ".semgrepignore", ".gitleaksignore", ".gitleaks.toml", "gitleaks.toml", ".secrets.baseline"}
)
_NAME_BYTES = 200
_SHEBANG = b"#!"
# The longer mark first: one begins with the other.
_WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNSEEN = bytes(sorted({*range(32), 127} - set(b"\t\n\r\f\b\x1b")))
_BINARY_SHARE = 20
"""What is no code by its name, and of which every twentieth byte is a control character, is no text."""
_CODE = frozenset(
    [
        ".py",
        ".pyw",
        ".pyi",
        ".pyx",
        ".js",
        ".mjs",
        ".cjs",
        ".jsx",
        ".ts",
        ".mts",
        ".cts",
        ".tsx",
        ".vue",
        ".svelte",
        ".go",
        ".rs",
        ".c",
        ".h",
        ".cc",
        ".cpp",
        ".cxx",
        ".hh",
        ".hpp",
        ".cs",
        ".fs",
        ".vb",
        ".java",
        ".kt",
        ".kts",
        ".scala",
        ".groovy",
        ".clj",
        ".swift",
        ".m",
        ".mm",
        ".rb",
        ".php",
        ".pl",
        ".pm",
        ".lua",
        ".gd",
        ".sh",
        ".bash",
        ".zsh",
        ".ps1",
        ".bat",
        ".cmd",
        ".sql",
        ".dart",
        ".ex",
        ".exs",
        ".erl",
        ".hs",
        ".ml",
        ".r",
        ".jl",
        ".nim",
        ".zig",
        ".d",
        ".pas",
        ".asm",
        ".s",
        ".sol",
        ".tf",
        ".ipynb",
        ".shader",
        ".hlsl",
        ".glsl",
        ".usf",
        ".uc",
    ]
)
_CODE_NAMES = frozenset({"makefile", "dockerfile", "jenkinsfile", "rakefile", "gemfile", "sconstruct", "vagrantfile"})
_PYTHON = frozenset({".py", ".pyw", ".pyi"})
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_EDITORS = re.compile(r"-(?:unix|dos|mac)$")
_PLAIN_CODINGS = frozenset({"utf-8", "utf-8-sig", "ascii", "iso8859-1"})


def shown_name(name: str) -> str:
    """A file's name as people may be shown it: what cannot be printed is escaped."""
    if name.isprintable():
        return name
    raw = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in raw)


def staged_name(name: str) -> str:
    """A file's name in the copy: one that every scanner can print, and takes no orders from. Its ending stays."""
    plain = shown_name(name).replace("\\", "_")
    if plain != name:
        # Two odd names must not become one.
        plain = f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}-{_end_of(plain)}"
    return f"{plain}.staged" if name.lower() in _ORDERS else plain


def numbered_name(name: str, number: int) -> str:
    """A name in the copy for what would else lie over another; its ending stays, for scanners go by it."""
    return f"{number}~{_end_of(name)}"


def staged_text(name: str, content: bytes) -> bytes | None:
    """A file's text as every scanner reads it the same: no wide encoding, no NUL, one kind of line end; None if it is no text."""
    wide = next((coding for mark, coding in _WIDE if content.startswith(mark)), None)
    if wide is not None:
        content = content.decode(wide, "replace").encode()
    elif b"\0" in content and not looks_like_code(name, content) and _is_binary(content):
        return None
    return content.replace(b"\0", b" ").replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def looks_like_code(name: str, content: bytes) -> bool:
    """Whether somebody may run or build it, by its name or its first line."""
    lower = name.lower()
    return content.startswith(_SHEBANG) or lower in _CODE_NAMES or PurePosixPath(lower).suffix in _CODE


def has_odd_coding(name: str, text: bytes) -> bool:
    """Whether Python reads other code here than scanners see: it declares an encoding that is not UTF-8, ASCII or Latin-1."""
    script = text.startswith(_SHEBANG) and b"python" in text[:200]
    if not script and PurePosixPath(name.lower()).suffix not in _PYTHON:
        return False
    found = next(
        filter(None, map(_CODING.match, text[:10_000].removeprefix(codecs.BOM_UTF8).split(b"\n", 2)[:2])), None
    )
    if found is None:
        return False
    try:
        declared = _EDITORS.sub("", found[1].decode("ascii", "replace").lower())
        return codecs.lookup(declared).name not in _PLAIN_CODINGS
    except LookupError:
        return True


def _end_of(name: str) -> str:
    return name.encode("utf-8", "surrogateescape")[-_NAME_BYTES:].decode("utf-8", "ignore")


def _is_binary(content: bytes) -> bool:
    unseen = len(content) - len(content.translate(None, _UNSEEN))
    return unseen * _BINARY_SHARE > len(content)
