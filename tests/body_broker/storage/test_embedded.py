"""The embedded stores start anywhere, for anybody, once; keep their data; and are reached by nobody else."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from body_broker.errors import StoreStartError
from body_broker.storage import embedded
from body_broker.storage.embedded.binaries import valkey_program
from body_broker.storage.embedded.layout import Layout
from tests.body_broker.storage.users import Account, Use, as_root_and_as_ordinary, end, redis, sql, wait_gone
from tests.components import PROJECT
from tests.waiting import wait_until_sync


@as_root_and_as_ordinary
def test_both_servers_answer_in_a_closed_home_with_a_space_in_the_path(
    use: Use, data_dir: Path, account: Account
) -> None:
    urls = use().urls()

    assert sql(urls, "SELECT current_setting('server_version_num')::integer / 10000") == 18
    sql(urls, "CREATE EXTENSION vector")
    assert sql(urls, "SELECT '[1,2]'::vector <-> '[1,2]'::vector") == 0
    assert redis(urls, "PING") is True
    pids = embedded.status(data_dir)
    for pid in (pids.keeper_pid, pids.postgres_pid, pids.valkey_pid):
        assert pid
        assert sys.platform != "linux" or Path(f"/proc/{pid}").stat().st_uid == account.uid
    assert data_dir.stat().st_uid == account.uid


def test_nobody_else_reaches_the_servers(use: Use, data_dir: Path) -> None:
    urls = use().urls()

    assert sql(urls, "SHOW listen_addresses") == ""
    assert redis(urls, "CONFIG", "GET", "port") == {b"port": b"0"}
    for directory in (data_dir, data_dir / "stores", data_dir / "stores" / "run"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for file in (data_dir / "stores").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0


def test_valkey_forgets_only_what_may_expire_and_writes_all_down(use: Use) -> None:
    urls = use().urls()

    said = redis(urls, "CONFIG", "GET", "appendonly", "appendfsync", "save", "maxmemory", "maxmemory-policy")

    assert said == {
        b"appendonly": b"yes",
        b"appendfsync": b"everysec",
        b"save": b"",
        b"maxmemory": str(256 * 1024 * 1024).encode(),
        b"maxmemory-policy": b"volatile-lru",
    }


def test_data_survives_the_last_user(use: Use, data_dir: Path) -> None:
    first = use()
    urls = first.urls()
    sql(urls, "CREATE TABLE kept AS SELECT 42 AS n")
    redis(urls, "SET", "kept", "42")
    before = embedded.status(data_dir)
    first.end()
    wait_gone(before)

    again = use().urls()

    assert again == urls
    assert sql(again, "SELECT n FROM kept") == 42
    assert redis(again, "GET", "kept") == b"42"
    assert embedded.status(data_dir).keeper_pid != before.keeper_pid


@as_root_and_as_ordinary
def test_six_starters_at_once_get_one_keeper(use: Use, data_dir: Path) -> None:
    starters = [use() for _ in range(6)]

    keepers = {starter.said()["keeper"] for starter in starters}

    assert keepers == {embedded.status(data_dir).keeper_pid}
    assert sql(Layout(data_dir).urls, "SELECT 1") == 1


@pytest.mark.parametrize("odd", ["x" * 120, 'commas, and "quotes"'], ids=["long", "commas"])
def test_sockets_lie_elsewhere_where_the_path_is_no_address(own_dir: Path, odd: str) -> None:
    place = own_dir / odd
    urls = embedded.start(place)

    sockets = Layout(place).sockets
    assert not sockets.is_relative_to(place)
    assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    assert sql(urls, "SELECT 1") == 1
    assert redis(urls, "PING") is True

    end(place)
    sockets.rmdir()


def test_a_directory_for_sockets_that_others_can_enter_is_refused(own_dir: Path) -> None:
    place = own_dir / ("x" * 120)
    sockets = Layout(place).sockets
    for prepare in (lambda: sockets.mkdir(mode=0o777), lambda: sockets.symlink_to(own_dir)):
        prepare()
        if not sockets.is_symlink():
            sockets.chmod(0o777)
        with pytest.raises(StoreStartError, match="open to other users"):
            embedded.start(place)
        sockets.unlink() if sockets.is_symlink() else sockets.rmdir()
    assert embedded.status(place) == embedded.EmbeddedStatus()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory somebody else's")
def test_a_directory_for_sockets_that_somebody_else_made_is_refused(own_dir: Path) -> None:
    sockets = Layout(own_dir / ("x" * 120)).sockets
    sockets.mkdir(mode=0o700)
    os.chown(sockets, 65534, 65534)

    with pytest.raises(StoreStartError, match="belong to another user"):
        embedded.start(own_dir / ("x" * 120))

    sockets.rmdir()


def test_a_process_lets_go_as_often_as_it_started(own_dir: Path) -> None:
    urls = embedded.start(own_dir)
    assert embedded.start(own_dir) == urls
    embedded.release(own_dir)
    assert sql(urls, "SELECT 1") == 1
    end(own_dir)
    with pytest.raises(ValueError, match="not held"):
        embedded.release(own_dir)


def test_only_the_server_that_is_wanted_is_kept(own_dir: Path) -> None:
    urls = embedded.start(own_dir, postgres=False)

    found = embedded.status(own_dir)
    assert found.postgres_pid is None
    assert found.valkey_pid
    assert redis(urls, "PING") is True
    assert not (own_dir / "stores" / "postgres").exists()
    with pytest.raises(StoreStartError, match="one of them elsewhere"):
        embedded.start(own_dir)

    end(own_dir)


def test_a_start_that_takes_too_long_says_so_and_holds_nothing(own_dir: Path) -> None:
    with pytest.raises(StoreStartError, match="not ready in time"):
        embedded.start(own_dir, timeout_s=0.001)

    # Nobody holds them, so the keeper that was begun ends, and the next start has the place to itself.
    wait_until_sync(lambda: embedded.status(own_dir).keeper_pid is None, "the keeper ends")
    assert sql(embedded.start(own_dir), "SELECT 1") == 1
    end(own_dir)


def test_a_cluster_of_another_version_is_refused_by_name(own_dir: Path) -> None:
    cluster = own_dir / "stores" / "postgres"
    cluster.mkdir(parents=True, mode=0o700)
    (cluster / "PG_VERSION").write_text("17\n")

    with pytest.raises(StoreStartError, match=r"cluster of PostgreSQL 17; this program brings 18"):
        embedded.start(own_dir)


def test_a_server_that_cannot_start_is_reported_with_its_log(own_dir: Path) -> None:
    embedded.start(own_dir)
    end(own_dir)
    (own_dir / "stores" / "postgres" / "global" / "pg_control").unlink()

    with pytest.raises(StoreStartError, match="postgres ended while starting") as caught:
        embedded.start(own_dir)

    assert "postgres.log" in caught.value.next_step
    assert str(own_dir) not in f"{caught.value.message}{caught.value.next_step}"


def test_a_log_that_has_grown_is_put_aside_at_the_start(own_dir: Path) -> None:
    embedded.start(own_dir)
    end(own_dir)
    for name in ("keeper", "postgres", "valkey"):
        (own_dir / "stores" / f"{name}.log").write_bytes(b"x" * (1024 * 1024 + 1))

    embedded.start(own_dir)

    for name in ("keeper", "postgres", "valkey"):
        assert (own_dir / "stores" / f"{name}.log").stat().st_size < 1024 * 1024
        assert (own_dir / "stores" / f"{name}.log.1").stat().st_size > 1024 * 1024
    end(own_dir)


@pytest.mark.parametrize(
    ("wanted", "setting"),
    [("postgres", "BODY_BROKER_DATABASE_URL"), ("valkey", "BODY_BROKER_REDIS_URL")],
)
def test_a_platform_without_a_wheel_is_told_which_setting_replaces_it(own_dir: Path, wanted: str, setting: str) -> None:
    said = _without_wheels(own_dir, wanted, path="")

    assert setting in said


def test_a_redis_server_on_the_path_stands_in_for_the_wheel(own_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "redis-server").symlink_to(valkey_program())

    said = _without_wheels(own_dir, "valkey", path=str(tmp_path))

    assert "valkey_pid=" in said
    assert "valkey_pid=None" not in said


def test_a_server_that_never_answers_is_given_up_with_whoever_waited_for_it(own_dir: Path, tmp_path: Path) -> None:
    stuck = tmp_path / "redis-server"
    stuck.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    stuck.chmod(0o755)

    said = _without_wheels(own_dir, "valkey", path=str(tmp_path), timeout_s=1)

    assert "the servers do not answer" in said
    wait_until_sync(lambda: embedded.status(own_dir).valkey_pid is None, "the stuck server is ended")
    wait_until_sync(lambda: embedded.status(own_dir).keeper_pid is None, "and its keeper ends")


def test_the_status_of_a_place_never_used_is_empty(tmp_path: Path) -> None:
    assert embedded.status(tmp_path / "nothing") == embedded.EmbeddedStatus()
    assert list(tmp_path.iterdir()) == []


def test_a_recycled_pid_is_not_taken_for_a_server(own_dir: Path) -> None:
    layout = Layout(own_dir)
    layout.create()
    layout.status.write_text(f'{{"keeper": [{os.getpid()}, "1"], "postgres": [{os.getpid()}, "1"]}}')

    found = embedded.status(own_dir)

    assert (found.keeper_pid, found.postgres_pid) == (None, None)


def _without_wheels(place: Path, wanted: str, path: str, timeout_s: float = 30) -> str:
    """What a process says that sees the standard library and this project, and none of the installed packages."""
    program = """
import sys
sys.path.append(sys.argv[1])
from pathlib import Path
from body_broker.errors import StoreStartError
from body_broker.storage import embedded
try:
    embedded.start(Path(sys.argv[2]), float(sys.argv[4]), postgres=sys.argv[3] == "postgres", valkey=sys.argv[3] == "valkey")
    print(embedded.status(Path(sys.argv[2])))
except StoreStartError as error:
    print(error.message, error.next_step)
"""
    command = [sys.executable, "-S", "-c", program, PROJECT, place, wanted, str(timeout_s)]
    return subprocess.run(command, env={"PATH": path}, stdout=subprocess.PIPE, text=True, check=True).stdout
