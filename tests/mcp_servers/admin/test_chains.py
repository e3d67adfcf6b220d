"""Pages that are asked for through somebody, where IAM decides on each thing: nobody sees what one of the chain may not describe."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError  # pyright: ignore[reportMissingTypeStubs] - it has none

from body_broker.errors import Denied
from body_broker.storage.redis import Redis
from mcp_servers.admin import asking, catalogue
from mcp_servers.admin.query import Answer, Position, Query
from mcp_servers.admin.services import Services

THERE = ["public-a", "public-b", "secret-c"]
THROUGH = ("person:anna", "tier:bronze")


class Cloud:
    """AWS with three clusters in it: whoever is anna may list them, and describe all but the last. moto knows no such policy."""

    def __init__(self) -> None:
        self.described: list[tuple[str, list[str]]] = []
        self.gone: set[str] = set()
        self.there = THERE

    def region(self, *_asked: object, **_more: object) -> str:
        return "eu-central-1"

    def session(self, grant: Any, _who: object) -> Any:
        return SimpleNamespace(grant=grant, account="123456789012")

    def client(self, session: Any, *_asked: object) -> Any:
        return Client(self, session.grant.principal)

    def describe(self, who: str, names: list[str]) -> list[dict[str, str]]:
        self.described.append((who, names))
        if who == "person:anna" and "secret-c" in names:
            said: Any = {"Error": {"Code": "AccessDeniedException"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(said, "Describe")
        hidden = self.gone if who == "person:anna" else set[str]()
        return [{"name": name, "clusterName": name} for name in names if name not in hidden]


class Client:
    """EKS and ECS, as far as they are asked for clusters."""

    def __init__(self, cloud: Cloud, who: str) -> None:
        self._cloud, self._who = cloud, who

    def list_clusters(self, **asked: Any) -> Any:
        first = int(asked.get("nextToken", 0))
        after = first + asked["maxResults"]
        found = self._cloud.there[first:after]
        return {
            "clusters": found,
            "clusterArns": found,
            "nextToken": str(after) if after < len(self._cloud.there) else None,
        }

    def describe_cluster(self, name: str) -> Any:
        return {"cluster": self._cloud.describe(self._who, [name])[0]}

    def describe_clusters(self, clusters: list[str]) -> Any:
        return {"clusters": self._cloud.describe(self._who, clusters)}


@pytest.fixture
def cloud() -> Cloud:
    return Cloud()


@pytest.fixture
def services(cloud: Cloud, redis: Redis, tmp_path: Path) -> Services:
    file = tmp_path / "roles.toml"
    arn = "arn:aws:iam::123456789012:role"
    file.write_text(f'[principals]\n"person:anna" = "{arn}/anna"\n"tier:bronze" = "{arn}/bronze"\n')
    found = Services.load(file, region=None, endpoint_url=None, redis=redis)
    untyped: Any = found
    untyped._asking = (cloud, asking)
    return found


async def page(
    services: Services, service: str, *, limit: int, identifier: str | None = None, after: Answer | None = None
) -> Answer:
    row = catalogue.row_of(service, "clusters")
    query = Query(row=row, plan=row.plan(identifier, date(2026, 11, 21)), region=None, limit=limit)
    call: Any = SimpleNamespace(
        caller=SimpleNamespace(chain=THROUGH, roles={}), operation=SimpleNamespace(name="query_aws_resource")
    )
    return await services.query(query, call, cursor=after and await services.cursor(query, after))


@pytest.mark.parametrize("service", ["eks", "ecs"])
async def test_a_page_with_one_thing_that_the_asker_may_not_describe_is_refused(
    services: Services, service: str
) -> None:
    with pytest.raises(Denied, match=rf"role of person:anna may not {service}:DescribeCluster"):
        await page(services, service, limit=20)
    with pytest.raises(Denied, match="role of person:anna"):
        await page(services, service, limit=20, identifier="secret-c")


@pytest.mark.parametrize("service", ["eks", "ecs"])
async def test_of_each_page_the_asker_must_describe_that_page_and_nothing_else(
    services: Services, cloud: Cloud, service: str
) -> None:
    first = await page(services, service, limit=2)

    assert [item["id"] for item in first.items] == ["public-a", "public-b"]
    assert {name for who, names in cloud.described if who == "person:anna" for name in names} == {*THERE[:2]}
    with pytest.raises(Denied, match="role of person:anna"):
        await page(services, service, limit=2, after=first)


async def test_what_is_on_another_page_refuses_this_one_to_nobody(services: Services, cloud: Cloud) -> None:
    cloud.there = ["secret-c", "public-a"]
    begun = Answer(items=[], after=Position("1", 0), account="", region="")

    second = await page(services, "eks", limit=1, after=begun)

    assert [item["id"] for item in second.items] == ["public-a"]


async def test_a_page_of_which_the_asker_finds_less_is_refused(services: Services, cloud: Cloud) -> None:
    cloud.gone.add("public-b")

    with pytest.raises(Denied, match="role of person:anna does not find each thing"):
        await page(services, "ecs", limit=2)
