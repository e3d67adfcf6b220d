from __future__ import annotations

from typing import Literal

import pytest

from body_broker.lore.opensearch import ledger
from tests.body_broker.lore.contract.conftest import PATIENCE_S, Open, Shelf, text
from tests.body_broker.lore.contract.test_copy_faults import OPERATOR, told, why
from tests.body_broker.lore.contract.test_vectors import NORTH, SOUTH
from tests.counterparts.opensearch_serverless import Door, open_door
from tests.opensearch_node import Node, clear
from tests.waiting import wait_until

pytestmark = pytest.mark.requires("java", "opensearch")
KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "token/of+a=session"
SIGNED: dict[str, object] = {"opensearch_region": "eu-central-1", "built": False}


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a process that may sign."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": TOKEN,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


async def use(shelf: Shelf) -> None:
    """Everything a copy does in its life, with right answers."""
    shelf.queries = {"whither": NORTH}
    await shelf.serve_model()
    await shelf.check()
    ids = await shelf.bring(text("The Quay", "A lantern burns."), text("The Ferry", "The lantern of the ferry."))
    await shelf.give_vectors({"The Quay": [NORTH], "The Ferry": [SOUTH]})
    assert await told(shelf) == (["The Ferry", "The Quay"], [])
    page = await shelf.search("whither", by="meaning", per_document=True)
    assert ([p.title for p in page.passages], page.unavailable) == (["The Quay", "The Ferry"], [])
    await shelf.delete(ids[1])
    assert await told(shelf) == (["The Quay"], [])
    await shelf.tidy()
    await shelf.check()
    assert await told(shelf) == (["The Quay"], [])


@pytest.mark.parametrize("kind", [("aoss", "serverless", "faiss"), ("es", "managed", "lucene")])
@pytest.mark.usefixtures("aws")
async def test_a_copy_lives_on_what_amazons_services_take_and_signs_every_request(
    open_shelf: Open, node: Node, kind: tuple[Literal["aoss", "es"], str, str]
) -> None:
    service, setting, engine = kind
    await clear(node.url)
    async with open_door(Door(node.url, service, (KEY, SECRET), token=TOKEN)) as door:
        shelf = await open_shelf(door.url, **SIGNED, opensearch_service=setting, opensearch_engine=engine)
        await use(shelf)

        assert door.refused == []
        assert door.passed > 20


@pytest.mark.parametrize("wrong", ["secret", "region", "none"])
async def test_wrong_credentials_are_told_and_postgresql_answers(
    open_shelf: Open, node: Node, aws: pytest.MonkeyPatch, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    if wrong == "none":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            aws.delenv(name)
    await clear(node.url)
    secret = "another" if wrong == "secret" else SECRET
    region = "us-east-1" if wrong == "region" else "eu-central-1"
    async with open_door(Door(node.url, "aoss", (KEY, secret), region, TOKEN)) as door:
        given = {**SIGNED, "opensearch_service": "serverless", "opensearch_engine": "faiss"}
        shelf = await open_shelf(door.url, **given)
        await ledger.enqueue_rebuild(shelf.pool, always=True)
        async with shelf.working():
            await shelf.lore.importing.take(
                [text("The Quay", "A lantern.")], index="shared", canon=True, origin=OPERATOR
            )
            said = await wait_until(lambda: why(shelf, ledger.REBUILD), "the job says why", PATIENCE_S)

        assert "credentials" in said
        assert await told(shelf) == (["The Quay"], ["copy"])
        assert SECRET not in caplog.text
        assert door.passed == 0


async def test_a_user_and_a_password_stand_in_the_url_and_nowhere_else(
    open_shelf: Open, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    await clear(node.url)
    async with open_door(Door(node.url, "basic", ("ann", "p:ss/w@rd"))) as door:
        host = door.url.removeprefix("http://")
        shelf = await open_shelf(f"http://ann:p%3Ass%2Fw%40rd@{host}", built=False)
        await use(shelf)
        assert door.refused == []

        stranger = await open_shelf(f"http://ann:guess-0815@{host}", built=False)
        assert await told(stranger) == (["The Quay"], ["copy"])

    assert "p:ss/w@rd" not in caplog.text
    assert "guess-0815" not in caplog.text
