"""Owns what a person's programs do with the stack: the official MCP client and boto3; run by the tests inside its network."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import boto3  # pyright: ignore[reportMissingTypeStubs]  # it has none
import httpx2
from botocore.config import Config  # pyright: ignore[reportMissingTypeStubs]  # the same
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def search(url: str, token: str, query: str) -> Any:  # JSON of the tool
    headers = {"authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=600) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        answer = await client.call_tool("search_lore", {"query": query, "k": 1})
        return answer.structured_content


def keep(url: str, access_key: str, secret_key: str) -> str:
    """What S3 gives back of an object that was put there."""
    untyped: Any = boto3
    s3: Any = untyped.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(signature_version="s3v4", retries={"total_max_attempts": 2}),
    )
    s3.create_bucket(Bucket="assets")
    s3.put_object(Bucket="assets", Key="a/lantern.txt", Body=b"lantern", Metadata={"made-by": "tests"})
    found = s3.get_object(Bucket="assets", Key="a/lantern.txt")
    return f"{found['Body'].read().decode()} {found['Metadata']['made-by']}"


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    print(json.dumps(asyncio.run(search(*given)) if what == "search" else keep(*given)))
