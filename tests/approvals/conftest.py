"""Owns what every test of approvals is given: a desk on a real database with a real policy, auditor and people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from approvals.desk import Desk
from approvals.people import People, load_people
from body_broker.audit.auditor import Auditor, open_auditor
from body_broker.storage.postgres import Pool
from policies.catalogue import Catalogue
from policies.engine import Policy
from policies.probes import with_probes
from tests.approvals.scene import APPROVERS, DEFINITIONS, ROOM, Counted

KEY = bytes(range(32))
MakeDesk = Callable[..., Desk]


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    return with_probes(Catalogue.of([ROOM]))


@pytest.fixture(scope="session")
def policy(catalogue: Catalogue) -> Policy:
    return Policy.load(catalogue)


@pytest.fixture
def people(tmp_path: Path) -> People:
    file = tmp_path / "approvers.toml"
    file.write_text(APPROVERS, encoding="utf-8")
    return load_people(file)


@pytest.fixture
async def auditor(pool: Pool) -> AsyncIterator[Auditor]:
    async with open_auditor(pool, KEY) as found:
        yield found


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def make_desk(pool: Pool, auditor: Auditor, policy: Policy, people: People, counted: Counted) -> MakeDesk:
    """Desks that differ in what is given."""

    def make(**given: object) -> Desk:
        usual: dict[str, object] = {
            "pool": pool,
            "auditor": auditor,
            "policy": policy,
            "people": people,
            "definitions": DEFINITIONS,
            "notify": False,
            "open_max": 20,
            "pages": lambda: "http://localhost:8484",
            "counts": counted,
        }
        return Desk(**(usual | given))  # pyright: ignore[reportArgumentType]  # keywords by name

    return make


@pytest.fixture
def desk(make_desk: MakeDesk) -> Desk:
    return make_desk()
