"""The wheel: what it holds, what it installs, and that the pins can be read from a lock and written into pyproject.toml."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.components import need
from tests.tools.pin import pins_of, with_pins, without, written_pins
from tests.tools.project import PACKAGES, ROOT, tracked_files, uv

# What is not Python and must be in the wheel, and how it is looked for.
DATA = {
    "body_broker/storage/sql/": ".sql",
    "body_broker/world/starter/": ".json",
    "mcp_servers/cybersecurity/rules/": ".yaml",
    "mcp_servers/hub/demo_repository/": ".txt",
    "policies/": ".cedar",
    "policies/hub": ".cedarschema",
}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("uv")
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_five_packages_and_nothing_else(wheel: Path) -> None:
    expected = {str(f.relative_to(ROOT)) for f in tracked_files() if f.relative_to(ROOT).parts[0] in PACKAGES}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}

    assert {name for name in held if ".dist-info/" not in name} == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)
    for start, end in DATA.items():
        assert [name for name in held if name.startswith(start) and name.endswith(end)], (
            f"no {start}*{end} in the wheel"
        )


def test_an_installed_wheel_owns_its_five_names_and_its_command(wheel: Path, tmp_path: Path) -> None:
    # Held by a distribution of another name, `policies` or `tiers` would be somebody else's code.
    uv("venv", "--quiet", "--python", sys.executable, tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    uv("pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel, cwd=tmp_path)
    ask = (
        "import importlib.metadata as m, json;"
        "print(json.dumps([m.packages_distributions(), [e.value for e in m.entry_points(name='body-broker')]]))"
    )

    said = subprocess.run([python, "-c", ask], cwd=tmp_path, capture_output=True, check=True, text=True, timeout=60)

    owners, commands = json.loads(said.stdout)
    assert {name: owners.get(name) for name in PACKAGES} == {name: ["body-broker"] for name in PACKAGES}
    assert commands == ["mcp_servers.hub.cli:main"]
    assert (tmp_path / "venv" / "bin" / "body-broker").is_file()


LOCK = {
    "package": [
        {"name": "body-broker", "version": "1", "source": {"editable": "."}},
        {"name": "click", "version": "8.5.1", "source": {"registry": "there"}},
        {
            "name": "numpy",
            "version": "2.3.5",
            "source": {"registry": "there"},
            "resolution-markers": ["python_full_version < '3.12' and sys_platform == 'linux'"],
        },
        {
            "name": "numpy",
            "version": "2.4.6",
            "source": {"registry": "there"},
            "resolution-markers": [
                "python_full_version >= '3.12' and sys_platform == 'linux'",
                "python_full_version >= '3.12' and sys_platform == 'darwin'",
            ],
        },
    ]
}
PINS = [
    "click==8.5.1",
    "numpy==2.3.5 ; python_full_version < '3.12'",
    "numpy==2.4.6 ; python_full_version >= '3.12'",
]


def test_a_lock_gives_one_pin_a_package_and_one_a_fork() -> None:
    assert pins_of(LOCK) == PINS


def test_forks_that_the_python_version_does_not_tell_apart_keep_their_whole_markers() -> None:
    forks = [
        {**p, "resolution-markers": [f"sys_platform == '{s}'"]} for p, s in zip(LOCK["package"][2:], "ab", strict=True)
    ]

    assert pins_of({"package": forks}) == ["numpy==2.3.5 ; sys_platform == 'a'", "numpy==2.4.6 ; sys_platform == 'b'"]


def test_pins_are_written_replaced_and_taken_away_without_touching_the_rest() -> None:
    text = '[project]\nname = "x"\n\n[tool.uv]\npython-downloads = "never"\n'

    once = with_pins(text, PINS)

    assert written_pins(once) == PINS
    assert written_pins(with_pins(once, PINS[:1])) == PINS[:1]
    assert with_pins(once, []) == text


def test_an_upgrade_lets_go_of_the_named_pins_or_of_all() -> None:
    assert without(PINS, None) == PINS
    assert without(PINS, ["numpy"]) == PINS[:1]
    assert without(PINS, []) == []
