"""Owns compose.yaml's services as processes of this machine: the same commands, environments, users, mounts and health checks.

What Docker would give each is made with namespaces: one network for all with their names in it, a read-only root where
compose.yaml says so, nothing but the named volumes and tmpfs to write to. The images of others are stood in for by the same
servers from elsewhere; ours is built by the Dockerfile's own commands.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from body_broker.storage.embedded.binaries import postgres_programs, valkey_program
from tests.components import data_dir
from tests.deploy.files import Service, context, dockerfile, env_of
from tests.tools.project import ROOT, uv, uv_command
from tests.waiting import wait_until_sync

SHARED = data_dir().parent
BOX = Path(__file__).with_name("box.py")
BASE_PYTHON = Path(sys.executable).resolve()
HUB_UID, POSTGRES_UID, VALKEY_UID = 10001, 999, 998
OURS = ("hub", "worker", "engine")
_UIDS = {**dict.fromkeys(OURS, HUB_UID), "postgres": POSTGRES_UID, "valkey": VALKEY_UID}
_USERS = f"""root:x:0:0::/root:/bin/sh
postgres:x:{POSTGRES_UID}:{POSTGRES_UID}::/var/lib/postgresql:/bin/sh
valkey:x:{VALKEY_UID}:{VALKEY_UID}::/data:/bin/sh
body-broker:x:{HUB_UID}:{HUB_UID}::/data:/usr/sbin/nologin
"""
_PGDATA = "/var/lib/postgresql/18/docker"
_OPENSEARCH_DATA = "/usr/share/opensearch/data"
_HEALTHY_S = 1_200.0
"""Ten times and more what each service needs on a busy machine: OpenSearch alone takes 30 s on two cores that have other work."""
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VALKEY_CLI = f"""#!{BASE_PYTHON}
# The wheel brings no valkey-cli: PING with the password of REDISCLI_AUTH, as that program does it.
import os, socket
wire = socket.create_connection(("127.0.0.1", 6379), 4)
password = os.environ["REDISCLI_AUTH"]
wire.sendall(f"AUTH {{password}}\\r\\nPING\\r\\n".encode())
said = b""
while said.count(b"\\n") < 2:
    said += wire.recv(100) or b"\\n"
print(said.decode())
"""


@dataclass
class Boxes:
    """Where processes run: a folder for their mounts, the image's files, one network."""

    home: Path
    network: subprocess.Popen[str] | None = None
    running: list[subprocess.Popen[str]] = field(default_factory=list[subprocess.Popen[str]])

    def start(self, argv: Sequence[str], *, env: Mapping[str, str], output: Any, **spec: Any) -> subprocess.Popen[str]:
        """A process in a box of its own; `output` takes both of its streams."""
        scratch = tempfile.mkdtemp(prefix="box-", dir=self.home)
        given = {
            "scratch": scratch,
            "argv": list(argv),
            "env": dict(env),
            "keeps": [str(ROOT), str(SHARED)],
            "reads": [str(path) for path in (sys.executable, BASE_PYTHON, ROOT / "x", SHARED / "x")],
            "files": {
                "/etc/hosts": "127.0.0.1 localhost hub worker engine postgres valkey opensearch s3\n",
                "/etc/passwd": _USERS,  # as the images have them
            },
            "folders": [],
            "binds": [],
            "tmpfs": [],
            "read_only": False,
            "uid": None,
            "workdir": "/",
        } | spec
        enter = ["nsenter", f"--net=/proc/{self.network.pid}/ns/net"] if self.network else []
        process = subprocess.Popen(
            [*enter, "unshare", "--mount", "--propagation", "private", BASE_PYTHON, "-I", BOX],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdin
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.close()
        self.running.append(process)
        return process

    def run(self, argv: Sequence[str], *, env: Mapping[str, str], **spec: Any) -> str:
        """What a process that ended well said."""
        process = self.start(argv, env=env, output=subprocess.PIPE, **spec)
        assert process.stdout
        said = process.stdout.read()
        process.stdout.close()
        assert process.wait() == 0, said
        return said

    def end(self) -> None:
        """Kill what still runs."""
        for process in self.running:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        if self.network and self.network.stdin:
            self.network.stdin.close()
            self.network.wait()


@dataclass(frozen=True)
class Image:
    """What the Dockerfile's build stage made: the virtual environment of /opt/venv, and the wheel."""

    venv: Path
    dist: Path
    programs: Path


def build(home: Path) -> Image:
    """Run the Dockerfile's build stage, its own commands in its own folders, on this machine's Python."""
    image = Image(home / "venv", home / "dist", home / "programs")
    source = home / "src"
    for folder in (image.venv, image.dist, image.programs, source):
        folder.mkdir()
    (image.programs / "python").symlink_to(BASE_PYTHON)
    _script(image.programs / "uv", f'#!/bin/sh\nexec {" ".join(uv_command() or [])} "$@"\n')
    cache = uv("cache", "dir").strip()
    boxes = Boxes(home)
    copied = {step.text for step in dockerfile() if step.keyword == "COPY" and step.stage == 0}
    for file in context():
        target = source / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    assert any("pyproject.toml" in text for text in copied)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("BODY_BROKER_", "VIRTUAL_ENV"))}  # noqa: TID251  # a child's
    try:
        for step in dockerfile():
            if step.keyword == "RUN" and step.stage == 0:
                boxes.run(
                    ["sh", "-c", step.text],
                    # By its own path: a link to it in another folder finds another Python's library.
                    env=env
                    | env_of(0)
                    | {"PATH": _SYSTEM_PATH, "HOME": str(Path.home()), "UV_PYTHON": str(BASE_PYTHON)},
                    workdir="/src",
                    binds=[
                        [str(source), "/src"],
                        [str(image.venv), "/opt/venv"],
                        [str(image.dist), "/dist"],
                        [str(image.programs), "/usr/local/bin"],
                        [cache, cache],
                    ],
                )
    finally:
        boxes.end()
    return image


class Stack:
    """The services of compose.yaml, up or down."""

    def __init__(self, home: Path, image: Image, services: Mapping[str, Service]) -> None:
        self.home, self.image, self.services = home, image, services
        self.up: dict[str, subprocess.Popen[str]] = {}
        waiting = "ip link set lo up && echo up && exec cat"
        network = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", waiting], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert network.stdout
        assert network.stdout.readline() == "up\n"
        network.stdout.close()
        self.boxes = Boxes(home, network)

    def prepare(self) -> None:
        """What is done once: the programs that stand in for images, and the cluster."""
        image = self.image
        _script(image.programs / "valkey-cli", _VALKEY_CLI)
        for program in (valkey_program(), SHARED / "s3" / "versitygw"):
            (image.programs / program.name).unlink(missing_ok=True)
            (image.programs / program.name).symlink_to(program)
        self._prepare_opensearch()
        self._prepare_postgres()

    def start(self, *names: str) -> None:
        """Start services at once, and wait until each one's own health check says that it is well."""
        for name in names:
            with (self.home / f"{name}.log").open("a") as log:
                self.up[name] = self.boxes.start(self._command(name), output=log, **self._spec(name))
        if "postgres" in names:
            self._create_database()
        for name in names:
            wait_until_sync(lambda name=name: self._is_well(name), f"{name} is healthy", _HEALTHY_S)

    def log(self, name: str) -> str:
        """The last of what the service said."""
        return (self.home / f"{name}.log").read_text(errors="replace")[-4000:]

    def healthy(self, name: str) -> tuple[bool, str]:
        """What the service's health check says now."""
        kind, *words = self.services[name]["healthcheck"]["test"]
        argv = words if kind == "CMD" else ["sh", "-c", words[0]]
        check = self.boxes.start(argv, output=subprocess.PIPE, **self._spec(name))
        assert check.stdout
        said = check.stdout.read()
        check.stdout.close()
        return check.wait() == 0, said

    def run(self, name: str, *words: str, binds: Sequence[tuple[Path, str]] = ()) -> str:
        """`docker compose run --rm NAME WORDS`: what it said."""
        spec = self._spec(name)
        spec["binds"] += [[str(source), target] for source, target in binds]
        return self.boxes.run(["body-broker", *words], **spec)

    def outside(self, *words: str) -> Any:  # JSON
        """What tests/deploy/client.py said, run in the stack's network with the tests' own environment."""
        client = Path(__file__).with_name("client.py")
        said = self.boxes.run(
            [sys.executable, str(client), *words],
            env={"PATH": _SYSTEM_PATH},
        )
        return json.loads(said.splitlines()[-1])

    def indices(self) -> list[str]:
        """The indices of OpenSearch that hold documents, apart from its own."""
        asking = ["curl", "-fsS", "http://opensearch:9200/_cat/indices?h=index,docs.count"]
        rows = [line.split() for line in self.boxes.run(asking, env={"PATH": _SYSTEM_PATH}).splitlines()]
        return [index for index, count in rows if not index.startswith(".") and int(count)]

    def volume(self, name: str) -> Path:
        """Where a named volume lies."""
        return self.home / "volumes" / name

    def _is_well(self, name: str) -> bool:
        assert self.up[name].poll() is None, f"{name} ended: {self.log(name)}"
        return self.healthy(name)[0]

    def _command(self, name: str) -> list[str]:
        command: list[str] = self.services[name].get("command", [])
        if name in OURS:
            return ["body-broker", *command]
        if name == "opensearch":
            return self._opensearch()
        if name == "s3":
            return ["versitygw", *command]
        return [*command, "-D", _PGDATA] if name == "postgres" else command

    def _opensearch(self) -> list[str]:
        """The node alone, not its script beside the tests' data: that ends a node which does not answer within a minute."""
        heap = self.services["opensearch"]["environment"]["OPENSEARCH_JAVA_OPTS"].split()
        quick = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]  # less than half the time until it answers
        jars = str(SHARED / "opensearch" / "lib" / "*")
        runner = ["org.codelibs.opensearch.runner.OpenSearchRunner", "-numOfNode", "1", "-clusterName", "test"]
        # It numbers its nodes from 1 and adds that to the port.
        places = ["-basePath", _OPENSEARCH_DATA, "-confPath", f"{_OPENSEARCH_DATA}/config", "-baseHttpPort", "9199"]
        plugin = ["-useLogger", "-pluginTypes", "org.opensearch.knn.plugin.KNNPlugin"]
        return ["java", *heap, *quick, "-cp", jars, *runner, *places, *plugin]

    def _spec(self, name: str) -> dict[str, Any]:  # what box.py takes
        service = self.services[name]
        ours = name in OURS
        env: dict[str, str] = env_of(1) if ours else {"PATH": f"{postgres_programs()}:{_SYSTEM_PATH}"}
        env |= {key: value for key, value in service["environment"].items() if value is not None}
        binds = [[str(self.image.venv), "/opt/venv"], [str(self.image.programs), "/usr/local/bin"]]
        uid = _UIDS.get(name)
        for volume in service.get("volumes", []):
            source, target = volume.split(":")
            binds.append([str(self._folder(source, uid)), target])
        return {
            "env": env,
            "folders": [["/data", uid], ["/results", uid]] if ours else [],  # which the Dockerfile makes
            "binds": binds,
            "tmpfs": [entry.split(":")[0] for entry in service.get("tmpfs", [])],
            "read_only": service.get("read_only", False),
            "uid": uid,
            "workdir": "/data" if ours else "/",
        }

    def _folder(self, name: str, uid: int | None) -> Path:
        """A named volume; made, it belongs to the image's user, as Docker makes it from the image's folder."""
        folder = self.volume(name)
        if not folder.exists():
            folder.mkdir(parents=True, mode=0o700)
            if uid is not None:
                os.chown(folder, uid, uid)
        return folder

    def _prepare_opensearch(self) -> None:
        """What the image's own configuration says."""
        folder = self._folder("opensearch-data", None) / "config"
        folder.mkdir()
        (folder / "opensearch.yml").write_text(
            "discovery.type: single-node\nnetwork.host: 127.0.0.1\nhttp.port: 9200\ntransport.port: 9300\n"
            "cluster.routing.allocation.disk.threshold_enabled: false\n"
        )

    def _prepare_postgres(self) -> None:
        """What the image's entry point does when the volume is empty."""
        env = self.services["postgres"]["environment"]
        spec = self._spec("postgres")
        name, password = env["POSTGRES_USER"], env["POSTGRES_PASSWORD"]
        words = f"initdb -D {_PGDATA} --username={name} --pwfile=/tmp/password {env['POSTGRES_INITDB_ARGS']}"
        script = f"mkdir -p {_PGDATA} && printf %s {password} > /tmp/password && {words}"
        self.boxes.run(["sh", "-c", script], **spec)

    def _create_database(self) -> None:
        env = self.services["postgres"]["environment"]
        spec = self._spec("postgres")
        spec["env"] |= {"PGPASSWORD": env["POSTGRES_PASSWORD"], "PGUSER": env["POSTGRES_USER"], "PGHOST": "127.0.0.1"}
        wait_until_sync(lambda: self._answers(spec), "postgres answers", _HEALTHY_S)
        self.boxes.run(["createdb", "--maintenance-db=postgres", env["POSTGRES_DB"]], **spec)

    def _answers(self, spec: dict[str, Any]) -> bool:
        return self.boxes.start(["pg_isready", "-q", "-d", "postgres"], output=subprocess.DEVNULL, **spec).wait() == 0


def _script(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(0o755)
