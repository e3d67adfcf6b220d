"""What an attacker of other servers found in their code is not in ours: shells, evaluated text, browsers, arguments that name places."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, cast

from mcp_servers.hub.rooms import ROOMS
from tests.components import PROJECT

_OURS = ("body_broker", "policies", "approvals", "tiers", "mcp_servers")
_FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile", "subprocess.getoutput",
    "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "create_subprocess_shell", "pickle.loads", "pickle.load",
    "marshal.loads", "yaml.load", "webbrowser.open", "webbrowser.open_new", "webbrowser.open_new_tab", "click.launch",
}  # fmt: skip
# An operator's own words at their own terminal, which no caller and no peer reaches.
_KNOWN = {("mcp_servers/hub/cli/engine_check.py", "asyncio.create_subprocess_shell")}

_PLACE = re.compile(
    r"ur[il]s?|links?|hrefs?|paths?|files?|filenames?|folders?|dirs?|director(y|ies)|hosts?|endpoints?|commands?|cmd|shell|args|argv|env|code|script|callback|webhook"
)
# Each with what holds it; one that is new fails until somebody has looked.
_PLACES = {
    ("audit_with_ai", "path"): "where a given finding was seen: words for the model (cybersecurity/test_auditing.py)",
    ("scan_codebase", "repo_path"): "a registered name or a path in a registered root (cybersecurity/test_paths.py)",
    ("list_findings", "path_prefix"): "text that rows of the database are compared with",
}


def _called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _by_a_shell(call: ast.Call) -> bool:
    return any(
        keyword.arg == "shell" and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
        for keyword in call.keywords
    )


def test_nothing_of_ours_opens_a_browser_runs_a_shell_or_evaluates_text() -> None:
    found: set[tuple[str, str]] = set()
    for package in _OURS:
        for file in (PROJECT / package).rglob("*.py"):
            for name, call in _called(ast.parse(file.read_text("utf-8"))):
                if name in _FORBIDDEN or _by_a_shell(call):
                    found.add((str(file.relative_to(PROJECT)), name))

    assert found == _KNOWN


def _fields(schema: Any, definitions: dict[str, Any], depth: int = 0) -> Iterator[str]:
    if isinstance(schema, list):
        for each in cast("list[Any]", schema):
            yield from _fields(each, definitions, depth)
    if not isinstance(schema, dict) or depth > 6:
        return
    found = cast("dict[str, Any]", schema)
    if "$ref" in found:
        yield from _fields(definitions[str(found["$ref"]).rpartition("/")[2]], definitions, depth + 1)
    for name, of in found.get("properties", {}).items():
        yield name
        yield from _fields(of, definitions, depth + 1)
    for key in ("items", "anyOf", "oneOf", "allOf", "additionalProperties"):
        yield from _fields(found.get(key), definitions, depth)


def test_each_argument_that_could_name_a_place_is_known() -> None:
    """No tool fetches a URL, opens a file or runs a line that its caller names: each argument called like one is reviewed here."""
    found: set[tuple[str, str]] = set()
    tools = [tool for room in ROOMS for tool in room.tools]
    for tool in tools:
        schema = tool.arguments.model_json_schema()
        for name in _fields(schema, schema.get("$defs", {})):
            if any(_PLACE.fullmatch(part) for part in name.lower().split("_")):
                found.add((tool.name, name))

    assert len(tools) > 50
    assert found == set(_PLACES)
