"""What comes from npm is whole or absent, and its absence skips or fails with its reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.components import PROJECT
from tests.npm_modules import modules_in, npm_command

BROKEN = ["sh", "-c", "mkdir node_modules; echo no network >&2; exit 1"]


def test_an_npm_that_cannot_install_skips_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BODY_BROKER_REQUIRE", "")
    with pytest.raises(pytest.skip.Exception, match="npm install failed: no network"):
        modules_in(tmp_path, BROKEN)


@pytest.mark.parametrize("npm", [None, BROKEN, ["true"]], ids=["no npm", "fails", "installs no node"])
def test_an_install_that_was_not_whole_is_never_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, npm: list[str] | None
) -> None:
    monkeypatch.setenv("BODY_BROKER_REQUIRE", "npm")
    for _ in range(2):
        with pytest.raises(pytest.fail.Exception, match="npm is required here"):
            modules_in(tmp_path, npm)


def test_every_package_is_pinned_and_nothing_names_a_host() -> None:
    text = (PROJECT / "tests" / "npm" / "package.json").read_text("utf-8")
    wanted = json.loads(text)
    pins = wanted["dependencies"] | wanted["optionalDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+(-[\w.]+)?", pin) for pin in pins.values())
    assert "://" not in text


def test_this_environment_brings_an_npm() -> None:
    assert npm_command()
