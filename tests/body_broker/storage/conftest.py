"""Owns who uses embedded stores in these tests, and that nothing of them is left."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.body_broker.storage.users import ORDINARY_UID, Account, Use, User, become_ordinary, leave_nothing
from tests.components import scratch_dir


@pytest.fixture
def account(request: pytest.FixtureRequest) -> Iterator[Account]:
    """Who we are; `as_root_and_as_ordinary` asks for both, of which only root can be the two."""
    root = os.geteuid() == 0
    wanted: str = getattr(request, "param", "root" if root else "ordinary")
    if wanted == "root" and not root:
        pytest.skip("only root can be root")
    home = Path(tempfile.mkdtemp(prefix="body-broker-home-", dir=scratch_dir()))
    if wanted == "ordinary" and root:
        os.chown(home, ORDINARY_UID, ORDINARY_UID)
        found = Account(ORDINARY_UID, home, become_ordinary())
    else:
        found = Account(os.geteuid(), home)
    yield found
    leave_nothing(home)


@pytest.fixture
def data_dir(account: Account) -> Path:
    """A data directory that does not exist yet, with a space in its path."""
    return account.home / "Application Support" / "body-broker"


@pytest.fixture
def use(account: Account, data_dir: Path) -> Iterator[Use]:
    """Start a process of the account that uses the data directory's stores."""
    users: list[User] = []

    def start(place: Path | None = None, **wanted: bool) -> User:
        users.append(User(account, place or data_dir, **wanted))
        return users[-1]

    yield start
    for user in users:
        user.end(signal.SIGKILL)


@pytest.fixture
def own_dir() -> Iterator[Path]:
    """A data directory for stores that the test's own process uses."""
    home = Path(tempfile.mkdtemp(prefix="body-broker-home-", dir=scratch_dir()))
    yield home / "data"
    leave_nothing(home)
