"""The house rules as tests: layers, sizes, names, and what only one place may do. A convention that nothing checks is a wish."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.tools.project import PACKAGES, ROOT, pyproject, tracked_files

FILE_LINES_MAX = 400
TEST_FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# An import inside a function, and why it waits: importer and what is imported.
LAZY: dict[tuple[str, str], str] = {
    ("mcp_servers/upstreams/later.py", "mcp_servers.upstreams.link"): "fastmcp, a second, where one is asked",
    ("mcp_servers/upstreams/schemas.py", "jsonschema"): "slow to import, and needed at the first call of an upstream",
    ("body_broker/tuning/figures.py", "jsonschema"): "slow to import, and needed only where a key's schema is checked",
    ("body_broker/tuning/figures.py", "jsonschema.exceptions"): "as above",
    (
        "body_broker/lore/embedding/local.py",
        "body_broker.lore.embedding.minilm",
    ): "numpy, tokenizers and 90 MB of weights",
    (
        "body_broker/lore/embedding/making.py",
        "body_broker.lore.embedding.endpoint",
    ): "aiohttp, where there is an endpoint",
    (
        "body_broker/lore/opensearch/opening.py",
        "body_broker.lore.opensearch.client",
    ): "opensearchpy, 0.4 s, only where it is used",
    (
        "body_broker/lore/opensearch/client.py",
        "body_broker.lore.opensearch.signing",
    ): "boto3, only for Amazon's services",
    (
        "mcp_servers/hub/engine.py",
        "body_broker.world.engine.relay",
    ): "a tenth of a second, for those with another engine",
    ("mcp_servers/admin/services.py", "mcp_servers.admin"): "boto3, only where AWS is asked",
    (
        "body_broker/storage/objects/opening.py",
        "body_broker.storage.objects.s3",
    ): "boto3, only where results are kept in S3",
    ("approvals/factors/keyring.py", "approvals.factors.passkeys"): "fido2, only where a passkey is used",
    ("mcp_servers/hub/approving.py", "approvals.slack.opening"): "slack_sdk, only where Slack is configured",
    ("mcp_servers/hub/oidc/issuer.py", "mcp_servers.hub.oidc.wire"): "aiohttp, only where there is an OIDC issuer",
    ("mcp_servers/hub/inferring.py", "tiers.opening"): "aiohttp and what else engines need, only where tiers are asked",
    ("tiers/bronze/sagemaker/backend.py", "tiers.bronze.sagemaker.faults"): "botocore, only where an endpoint is asked",
    ("tiers/bronze/sagemaker/client.py", "tiers.bronze.sagemaker.faults"): "as above",
    ("tiers/bronze/sagemaker/client.py", "boto3"): "as above",
    ("tiers/bronze/sagemaker/client.py", "botocore.config"): "as above",
    ("tiers/bronze/sagemaker/client.py", "botocore.exceptions"): "as above",
    ("tiers/bronze/sagemaker/client.py", "botocore.session"): "as above",
    ("mcp_servers/hub/submitting.py", "tiers.accepting"): "jsonschema, only where a schema is given",
    ("mcp_servers/hub/experts.py", "tiers.bronze"): "the same, only where experts' jobs are run",
    ("tiers/hubtools.py", "tiers.hubclient"): "fastmcp, a second or more, only where a tier calls tools",
    ("mcp_servers/hub/tracing.py", "mcp_servers.hub.exporting"): "OpenTelemetry's SDK, only where there is a collector",
}

# The libraries that one room owns, and that room; "" is nobody yet.
OWNERS = {
    "slack_sdk": "approvals/slack",
    "opensearchpy": "body_broker/lore/opensearch",
    "boto3": (
        "body_broker/lore/opensearch",
        "body_broker/storage/objects",
        "mcp_servers/admin",
        "tiers/bronze/sagemaker",
    ),
    "vllm": "",
    "semgrep": "",
    "cedarpy": "policies/",
    "jwt": "mcp_servers/hub/",
    "fido2": "approvals/factors",
    "pyotp": "approvals/factors",
    "segno": "mcp_servers/hub/cli",
    "fastmcp": ("tiers/hubclient.py", "mcp_servers/upstreams/"),
}


def modules(*roots: str) -> list[Path]:
    """Every Python file under these folders of the repository."""
    return [f for f in tracked_files() if f.suffix == ".py" and f.relative_to(ROOT).parts[0] in roots]


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def place(file: Path, node: ast.AST | None = None) -> str:
    name = file.relative_to(ROOT).as_posix()
    return f"{name}:{getattr(node, 'lineno', 1)}" if node else name


def imported(node: ast.AST) -> list[str]:
    """The modules an import statement names, whole."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module:
        return [node.module]
    return []


OURS = modules(*PACKAGES)
EVERY = [*OURS, *modules("tests", "examples")]


def test_every_layer_contract_is_kept() -> None:
    linter = "from importlinter.cli import lint_imports_command as run; run(['--no-cache', '--no-logo'])"

    done = subprocess.run([sys.executable, "-c", linter], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_longer_than_a_reader_holds_in_mind() -> None:
    def limit(file: Path) -> int:
        return FILE_LINES_MAX if file in OURS else TEST_FILE_LINES_MAX

    sizes = {place(f): len(f.read_text("utf-8").splitlines()) for f in EVERY}

    assert {place(f): sizes[place(f)] for f in EVERY if sizes[place(f)] > limit(f)} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    found = {
        place(file, node): length
        for file in EVERY
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    }

    assert found == {}


def test_every_module_opens_with_what_it_owns() -> None:
    # A test file's name and its tests' names say it; everything else opens with one sentence.
    openers = [f for f in EVERY if not f.name.startswith("test_") and f.name != "conftest.py"]

    assert [place(f) for f in openers if not f.read_text("utf-8").startswith('"""')] == []


def test_no_module_is_named_for_being_a_drawer() -> None:
    drawers = re.compile(r"(^|_)(utils?|helpers?|commons?|misc|constants)$")

    assert [
        place(f) for f in EVERY if any(drawers.search(part) for part in f.relative_to(ROOT).with_suffix("").parts)
    ] == []


def test_test_folders_are_no_packages() -> None:
    # tests/policies/__init__.py would shadow the real `policies`.
    assert [place(f) for f in modules("tests") if f.name == "__init__.py"] == []


def test_an_import_waits_inside_a_function_only_for_a_reason_given_here() -> None:
    found = {
        (place(file), name)
        for file in OURS
        for function in ast.walk(tree_of(file))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        for name in imported(node)
    }

    assert found == set(LAZY)


def test_modules_are_chosen_by_name_only_where_commands_are_looked_up() -> None:
    found = {
        place(f)
        for f in OURS
        for n in ast.walk(tree_of(f))
        if isinstance(n, ast.Attribute) and n.attr == "import_module"
    }

    assert found == {"mcp_servers/hub/cli/__init__.py"}


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_a_library_is_imported_only_by_the_room_that_owns_it(library: str) -> None:
    users = {
        place(file)
        for file in OURS
        for node in ast.walk(tree_of(file))
        for name in imported(node)
        if name.split(".")[0] == library
    }

    assert {user for user in users if not OWNERS[library] or not user.startswith(OWNERS[library])} == set()


def test_the_path_that_serves_loads_no_client_of_something_else() -> None:
    # 20 to 60 MB each, and a second or more of imports: only what uses one pays for it.
    heavy = (
        "fastmcp",
        "boto3",
        "botocore",
        "opensearchpy",
        "slack_sdk",
        "vllm",
        "semgrep",
        "numpy",
        "tokenizers",
        "aiohttp",
        "opentelemetry.exporter",  # the SDK itself is loaded by redis-py wherever it is installed
        "hypothesis",
        "pytest",
    )
    ask = "import sys, mcp_servers.hub.cli.serving, mcp_servers.hub.serve; print(*sys.modules)"

    said = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)

    assert sorted(set(said.stdout.split()) & set(heavy)) == []


# Libraries that are imported and come with a declared one, which is pinned with them.
BROUGHT = {
    "starlette": "mcp",
    "mcp_types": "mcp",
    "httpx2": "mcp",
    "anyio": "mcp",
    "cryptography": "pyjwt",
    "botocore": "boto3",
    "jmespath": "boto3",
    "fastmcp": "fastmcp",  # its code is in a distribution of another name
    "referencing": "jsonschema",
}


def test_every_library_that_is_imported_is_declared_or_known_to_come_along() -> None:
    # A group's library is one that may be absent: whoever imports it has looked for it before.
    groups = pyproject()["dependency-groups"]
    lines = [*pyproject()["project"]["dependencies"], *groups["embeddings"], *groups["scanners"]]
    declared = {re.split(r"[^\w.-]", line)[0].lower() for line in lines}
    owners = metadata.packages_distributions()
    imports = {name.split(".")[0] for f in OURS for n in ast.walk(tree_of(f)) for name in imported(n)}
    libraries = imports - set(PACKAGES) - sys.stdlib_module_names

    unknown = {
        name
        for name in libraries - set(BROUGHT)
        if not declared & {d.lower().replace("_", "-") for d in owners.get(name, [])}
    }

    assert unknown == set()
    assert set(BROUGHT) <= libraries, "a library that is no longer imported needs no entry"
    assert set(BROUGHT.values()) <= declared


def test_only_the_hub_reads_the_environment() -> None:
    def reads(node: ast.AST) -> bool:
        if isinstance(node, ast.Attribute):
            return ast.unparse(node) in {"os.environ", "os.environb", "os.getenv"}
        return isinstance(node, ast.ImportFrom) and node.module == "os" and any("env" in a.name for a in node.names)

    readers = {place(file) for file in OURS if any(map(reads, ast.walk(tree_of(file))))}

    assert {r for r in readers if not r.startswith("mcp_servers/hub/")} == set()


def test_only_the_gate_makes_the_mark_that_a_call_carries() -> None:
    makers = {
        place(file)
        for file in OURS
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Issuer"
    }

    assert makers == {"mcp_servers/hub/gate.py"}


def test_nothing_is_left_for_later_in_the_code() -> None:
    # In pieces, so that this file does not hold what it looks for.
    later = re.compile(
        "|".join(f"{a}{b}" for a, b in (("TO", "DO"), ("FIX", "ME"), ("(?<![uX])XX", "X"), ("NotImplemented", "Error")))
    )  # but for how a character is written, as backslash, u and four digits

    assert [place(f) for f in tracked_files() if f.suffix != ".png" and later.search(text_of(f))] == []


def test_no_file_names_a_registry() -> None:
    hosts = [
        ".".join(parts) for parts in (("pypi", "org"), ("files", "pythonhosted", "org"), ("registry", "npmjs", "org"))
    ]

    assert [place(f) for f in tracked_files() if any(host in text_of(f) for host in hosts)] == []


def text_of(file: Path) -> str:
    return file.read_bytes().decode("utf-8", errors="replace")


def test_a_parameter_that_takes_anything_says_what() -> None:
    def silent(file: Path) -> Iterator[str]:
        with file.open("rb") as source:
            commented = {t.start[0] for t in tokenize.tokenize(source.readline) if t.type == tokenize.COMMENT}
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                loose = [a for a in every if a.annotation and "Any" in ast.unparse(a.annotation).split(" | ")]
                # The comment stands in the signature, or on the line before it.
                if loose and not commented & set(range(node.lineno - 1, node.body[0].lineno)):
                    yield place(file, node)

    assert [found for file in OURS for found in silent(file)] == []


# A number bound where PostgreSQL infers an integer is truncated by asyncpg without a word: `$1` beside arithmetic, a
# comparison of size or a LIMIT is cast, there or where the statement names it first.
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE|WITH|WHERE|LIMIT|VALUES)\b")
UNCAST = re.compile(
    r"(?:LIMIT|OFFSET)\s+\$(\d+)(?!\d|::)"
    # Not ->, ->>, <=>, <>, @>; and not the order of texts.
    r'|(?:[+*/%]|(?<!-)-|(?<!COLLATE "C" )(?<![-=<>@])[<>]=?)\s*\$(\d+)(?!\d|::)'
    r"|\$(\d+)(?!\d|::)\s*(?:[+*/%]|-(?!>)|<(?![-=]?>|@)|>)"
)


def uncast(sql: str) -> set[str]:
    if not SQL.search(sql):
        return set()
    risky = {number for groups in UNCAST.findall(sql) for number in groups if number}
    return risky - set(re.findall(r"\$(\d+)::", sql))


def texts(tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    """Every string of a module, those with {values} in them as one."""
    formatted = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in formatted for part in node.values}
    for node in formatted:
        yield node, " ? ".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node, node.value


def test_every_number_bound_into_sql_arithmetic_is_cast() -> None:
    found = {place(file, node): hits for file in OURS for node, text in texts(tree_of(file)) if (hits := uncast(text))}

    assert found == {}


@pytest.mark.parametrize(
    ("sql", "wrong"),
    [
        ("SELECT 1 LIMIT $1", True),
        ("SELECT 1 LIMIT $12::bigint OFFSET $2::bigint", False),
        ("SELECT a * $1 FROM t", True),
        ("UPDATE t SET a = a + $1::float8 WHERE b = $2", False),
        ("SELECT now() + $1 * interval '1 second'", True),
        ("SELECT a WHERE score >= $2", True),
        ("SELECT a WHERE body ->> $1 = 'x' AND $2 -> 'k' IS NULL", False),
        ("SELECT a ORDER BY v <=> $1, w <-> $2", False),
        ("SELECT a WHERE $1 <= b", True),
        ('SELECT a WHERE name COLLATE "C" > $1', False),
        ("SELECT a WHERE b <> $1 AND tags @> $2 AND $3 <@ tags", False),
        ("SELECT a WHERE $1::bigint IS NULL OR b < $1", False),
        ("SELECT a WHERE b = $1 AND c LIKE $2 || '%'", False),
    ],
)
def test_the_cast_rule_tells_numbers_from_json_paths(sql: str, wrong: bool) -> None:  # noqa: FBT001 - a table's column
    assert bool(uncast(sql)) is wrong
