"""The keeper stops with its last user however that one ended, its servers die with it, and nothing written is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from body_broker.storage import embedded
from body_broker.storage.embedded.layout import POSTGRES_SOCKET, Layout
from body_broker.storage.embedded.processes import EmbeddedStatus
from tests.body_broker.storage.users import Use, as_root_and_as_ordinary, end, redis, sql, wait_gone
from tests.components import PROJECT
from tests.waiting import wait_until_sync


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_servers_go_with_their_last_user_however_it_ends(use: Use, data_dir: Path, how: signal.Signals) -> None:
    first, second = use(), use()
    urls = first.urls()
    second.urls()
    kept = alive(data_dir)

    first.end(how)
    assert sql(urls, "SELECT 1") == 1
    assert alive(data_dir) == kept

    second.end(how)
    wait_gone(kept)
    assert not any((data_dir / "stores" / "run").iterdir())


def test_a_user_that_is_killed_while_it_starts_the_stores_leaves_nothing(use: Use, data_dir: Path) -> None:
    user = use()
    wait_until_sync(lambda: embedded.status(data_dir).keeper_pid, "a keeper begins")
    user.end(signal.SIGKILL)
    wait_until_sync(
        lambda: embedded.status(data_dir) == EmbeddedStatus(serves=frozenset({"postgres", "valkey"})), "it ends"
    )

    assert sql(use().urls(), "SELECT 1") == 1


@as_root_and_as_ordinary
def test_the_servers_die_with_a_killed_keeper_and_the_next_start_has_the_data(use: Use, data_dir: Path) -> None:
    urls = use().urls()
    sql(urls, "CREATE TABLE kept AS SELECT 42 AS n")
    redis(urls, "SET", "kept", "42")
    before = alive(data_dir)

    os.kill(before.keeper_pid or 0, signal.SIGKILL)
    wait_gone(before)
    again = use().urls()

    assert again == urls
    assert sql(again, "SELECT n FROM kept") == 42
    assert redis(again, "GET", "kept") == b"42"
    after = alive(data_dir)
    assert not {after.keeper_pid, after.postgres_pid, after.valkey_pid} & {before.keeper_pid, before.postgres_pid}


def test_a_keeper_that_is_told_to_stop_ends_its_servers_in_order(use: Use, data_dir: Path) -> None:
    use().urls()
    before = alive(data_dir)

    os.kill(before.keeper_pid or 0, signal.SIGTERM)
    wait_gone(EmbeddedStatus(before.keeper_pid))

    after = embedded.status(data_dir)
    assert (after.postgres_pid, after.valkey_pid) == (None, None)  # it is the last to go
    assert "database system is shut down" in (data_dir / "stores" / "postgres.log").read_text()
    assert "ready to exit" in (data_dir / "stores" / "valkey.log").read_text()


@as_root_and_as_ordinary
def test_a_server_that_is_killed_comes_back_with_what_it_had(use: Use, data_dir: Path) -> None:
    urls = use().urls()
    sql(urls, "CREATE TABLE kept AS SELECT 42 AS n")
    redis(urls, "SET", "kept", "42")
    before = alive(data_dir)

    os.kill(before.postgres_pid or 0, signal.SIGKILL)
    os.kill(before.valkey_pid or 0, signal.SIGKILL)
    after = wait_until_sync(lambda: _replaced(data_dir, before), "both servers are replaced")

    assert after
    assert after.keeper_pid == before.keeper_pid
    assert use().urls() == urls  # it waits until both answer
    assert sql(urls, "SELECT n FROM kept") == 42
    assert redis(urls, "GET", "kept") == b"42"


def test_a_server_that_cannot_be_brought_back_ends_the_keeper_aloud(own_dir: Path) -> None:
    embedded.start(own_dir)
    before = alive(own_dir)
    control = own_dir / "stores" / "postgres" / "global" / "pg_control"
    aside = control.rename(own_dir / "pg_control")

    os.kill(before.postgres_pid or 0, signal.SIGKILL)
    wait_gone(EmbeddedStatus(before.keeper_pid, None, before.valkey_pid))

    log = (own_dir / "stores" / "keeper.log").read_text()
    assert "postgres died and is started again (10 of 10 in a minute)" in log
    assert "the keeper gives up" in log
    aside.rename(control)
    assert sql(embedded.start(own_dir), "SELECT 1") == 1
    embedded.release(own_dir)
    end(own_dir)


def test_what_a_crash_of_everything_leaves_is_no_obstacle(own_dir: Path) -> None:
    urls = embedded.start(own_dir)
    sql(urls, "CREATE TABLE kept AS SELECT 42 AS n")
    before = alive(own_dir)
    os.kill(before.keeper_pid or 0, signal.SIGSTOP)  # so that it cannot tidy up
    for pid in (before.postgres_pid, before.valkey_pid, before.keeper_pid):
        os.kill(pid or 0, signal.SIGKILL)
    wait_gone(before)
    # After a restart of the machine the pids in those files are somebody else's: here, ours.
    layout = Layout(own_dir)
    for left in (layout.postgres / "postmaster.pid", layout.sockets / f"{POSTGRES_SOCKET}.lock"):
        lines = left.read_text().splitlines()
        left.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    assert sql(embedded.start(own_dir), "SELECT n FROM kept") == 42

    embedded.release(own_dir)
    end(own_dir)


def test_a_cluster_that_was_only_half_made_is_made_anew(own_dir: Path) -> None:
    half = own_dir / "stores" / "postgres.new"
    half.mkdir(parents=True, mode=0o700)
    (half / "PG_VERSION").write_text("18\n")

    assert sql(embedded.start(own_dir), "SELECT 1") == 1

    assert not half.exists()
    end(own_dir)


def test_orphans_that_outlive_their_keeper_are_ended_before_new_servers_start(own_dir: Path) -> None:
    embedded.start(own_dir)
    before = alive(own_dir)
    # What a system without a parent's death signal leaves behind: servers that did not hear of it.
    for pid in (before.postgres_pid, before.valkey_pid):
        os.kill(pid or 0, signal.SIGSTOP)
    os.kill(before.keeper_pid or 0, signal.SIGKILL)
    wait_until_sync(lambda: embedded.status(own_dir).keeper_pid is None, "the keeper is dead")
    assert embedded.status(own_dir).postgres_pid == before.postgres_pid

    urls = embedded.start(own_dir)

    assert sql(urls, "SELECT 1") == 1
    after = alive(own_dir)
    assert after.postgres_pid != before.postgres_pid
    assert after.valkey_pid != before.valkey_pid
    embedded.release(own_dir)
    end(own_dir)


def test_the_servers_do_not_inherit_the_secrets_of_who_started_them(use: Use, data_dir: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    use().urls()

    found = alive(data_dir)

    for pid in (found.keeper_pid, found.postgres_pid, found.valkey_pid):
        assert b"HOME=" not in Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="makes a namespace as root")
def test_root_where_namespaces_are_refused_is_told_what_to_do(own_dir: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from body_broker.storage import embedded\n"
        "from body_broker.errors import StoreStartError\n"
        "try: embedded.start(Path(sys.argv[1]))\n"
        "except StoreStartError as error: print(error.message, error.next_step)"
    )
    inside = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", inside, "sh", sys.executable, "-c", program, own_dir]

    said = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True).stdout

    assert "PostgreSQL refuses to run as root" in said
    assert "ordinary user" in said


def alive(data_dir: Path) -> EmbeddedStatus:
    """The status of stores of which every process lives."""
    found = embedded.status(data_dir)
    assert found.keeper_pid
    assert found.postgres_pid
    assert found.valkey_pid
    return found


def _replaced(data_dir: Path, before: EmbeddedStatus) -> EmbeddedStatus | None:
    now = embedded.status(data_dir)
    both = now.postgres_pid not in {None, before.postgres_pid} and now.valkey_pid not in {None, before.valkey_pid}
    return now if both else None
