"""Owns the repositories that tests scan: made on the spot, with faults and secrets whose every place is known."""

from __future__ import annotations

from pathlib import Path

from mcp_servers.cybersecurity.scanning import Scanning
from mcp_servers.hub import scanners
from tests.components import gitleaks

ENGINE = scanners.find_semgrep(Path("/nowhere"))  # here, for looking blocks
RULES = """
rules:
  - id: studio.summon
    languages: [python]
    severity: ERROR
    message: The rite calls $X.
    metadata: {cwe: "CWE-78: OS Command Injection", title: A loud summons is heard by all, fix: Whisper.}
    pattern: rites.summon($X, ..., loud=True, ...)
  - id: studio.bind
    languages: [python]
    severity: WARNING
    message: Souls are bound here.
    pattern: rites.bind(...)
"""
# Put together here, so that no scanner finds them in this file. Not one was ever issued.
AWS_KEY = "AKIA" + "Q3EGRDZX7NPLWK2V"
GITHUB_TOKEN = "ghp_" + "J7k2QmX9vRt4LwB8nZc3YsH6pDf1GaUe5Oi0"
PASSWORD = "correct-horse" + "-7-battery"
SECRETS = (AWS_KEY, GITHUB_TOKEN, PASSWORD)

# Faults that only the studio's rules above know: what our own pack finds is tested with the pack.
SUMMON = "import rites\n\n\ndef run(name):\n    rites.summon('ls ' + name, loud=True)\n"
BIND = "def calculate(text):\n    return rites.bind(text)\n"


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    """The folder, with these files in it."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    root.mkdir(parents=True, exist_ok=True)
    return root


def faulty(root: Path) -> Path:
    """A small repository: two faults, three secrets."""
    keys = f'key = "{AWS_KEY}"\ntoken = "{GITHUB_TOKEN}"\npassword = "{PASSWORD}"\n'
    return write(root, {"app/run.py": SUMMON, "app/calc.py": BIND, "config.py": keys, "README.md": "# A game\n"})


def rules_in(folder: Path) -> Path:
    """A folder with our two rules."""
    return write(folder, {"test.yaml": RULES})


def scanning(tmp_path: Path, *, timeout_s: float = 60, engine: bool = True, leaks: bool = False) -> Scanning:
    """What scans, with the real scanners."""
    link = tmp_path / "osemgrep"
    if engine and ENGINE and not link.exists():
        link.symlink_to(ENGINE)
    return Scanning(
        staging_dir=tmp_path / "staging",
        engine=link if engine and ENGINE else None,
        gitleaks=gitleaks() if leaks else tmp_path / "no gitleaks here",
        rules_dir=rules_in(tmp_path / "rules"),
        timeout_s=timeout_s,
    )
