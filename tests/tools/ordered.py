"""Owns the README's table of the packages that the project was ordered to stand on: how each is declared, where it is used."""

from __future__ import annotations

from dataclasses import dataclass

from tests.tools.pages import table


@dataclass(frozen=True, slots=True)
class Package:
    """One ordered package.

    Attributes:
        name: As pyproject.toml declares it.
        module: What an import of it says.
        declared: `dependency`, `group NAME` or `extra NAME`.
        what: What it does for us, or will do.
        used_in: Files that import it, or call it by `program`.
        program: What is called instead of an import.
        issue: The issue that brings its use, where it has none yet.
    """

    name: str
    module: str
    declared: str
    what: str
    used_in: tuple[str, ...] = ()
    program: str | None = None
    issue: int | None = None

    def where(self) -> str:
        """The README's words for where it is used."""
        here = ", ".join(f"[`{file}`]({file})" for file in self.used_in)
        coming = f"issue {self.issue}" if self.issue else ""
        return "; then ".join(filter(None, (here, coming)))


PACKAGES = (
    Package("mcp", "mcp", "dependency", "our server side", ("mcp_servers/hub/protocol.py", "mcp_servers/hub/front.py")),
    Package(
        "fastmcp",
        "fastmcp",
        "dependency",
        "our client side: the tiers' calls of tools, tests, the baseline of the benchmarks",
        ("tiers/hubclient.py", "tests/bench/served.py"),
    ),
    Package(
        "opensearch-py",
        "opensearchpy",
        "dependency",
        "lore search where a studio has OpenSearch",
        ("body_broker/lore/opensearch/client.py",),
    ),
    Package("asyncpg", "asyncpg", "dependency", "PostgreSQL", ("body_broker/storage/postgres.py",)),
    Package("redis", "redis", "dependency", "Redis, Valkey, Dragonfly", ("body_broker/storage/redis.py",)),
    Package(
        "semgrep",
        "semgrep",
        "group scanners",
        "code scans; an external program, never imported",
        ("mcp_servers/hub/scanners.py", "mcp_servers/cybersecurity/semgrep.py"),
        program="semgrep",
    ),
    Package(
        "boto3",
        "boto3",
        "dependency",
        "AWS: read-only queries, expert models on SageMaker, results in S3",
        ("mcp_servers/admin/aws.py", "tiers/bronze/sagemaker/client.py", "body_broker/storage/objects/s3.py"),
    ),
    Package(
        "vllm",
        "vllm",
        "extra vllm",
        "silver's engine, on the machine that has the GPU; a program, never imported",
        ("tiers/profiles.py", "tiers/wire/dialects.py"),
        program="vllm",
    ),
    Package("slack-sdk", "slack_sdk", "dependency", "approvals in Slack", ("approvals/slack/client.py",)),
    Package("pytest", "pytest", "group dev", "the tests", ("tests/conftest.py",)),
)


def packages_table() -> str:
    """The README's part `packages`."""
    rows = ((f"`{p.name}`", p.declared, p.what, p.where()) for p in PACKAGES)
    return table(("Package", "Declared as", "For", "Used in"), rows)
