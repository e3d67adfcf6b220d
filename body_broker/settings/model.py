"""Owns the hub's settings as one frozen model, loaded once by the hub and passed down; nothing else reads the environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

PREFIX = "BODY_BROKER_"
# These belong to the tests, and to the client side of stdio; the hub's settings know nothing of them.
NOT_SETTINGS = ("BODY_BROKER_TEST_", "BODY_BROKER_REQUIRE", "BODY_BROKER_TOKEN")

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*")
Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """Every setting, with its unit in its name; docs/settings.md is generated from this class."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    data_dir: Path = Field(
        Path("~/.local/share/body-broker"), description="Embedded stores, keys and the audit anchor live here."
    )
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL 15 or newer with pgvector 0.7 or newer; without it an embedded one is started."
    )
    redis_url: SecretStr | None = Field(
        None, description="Redis, Valkey or Dragonfly; without it an embedded Valkey is started."
    )
    secret_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Root of the audit MAC, cursor seals and key encryption. Without it a file in data_dir; required with database_url.",
    )
    embeddings: str = Field(
        "local",
        pattern=r"^(local|off|https?://\S+)$",
        description="What makes vectors: `local` (MiniLM on this machine, where its weights are installed), `off`, or the base URL of an OpenAI-compatible API, such as http://127.0.0.1:8000/v1.",
    )
    embeddings_model: str | None = Field(None, description="The model that the API is asked for; required with a URL.")
    embeddings_api_key: SecretStr | None = Field(
        None, description="The API's key; sent to the URL of `embeddings` and nowhere else."
    )
    embeddings_timeout_s: Seconds = Field(10, description="How long one request to the API may take.")
    opensearch_url: SecretStr | None = Field(
        None,
        description="OpenSearch 2.13 or newer, which holds a copy of the lore to search; `https://user:password@host` where it asks for one.",
    )
    opensearch_service: Literal["plain", "managed", "serverless"] = Field(
        "plain",
        description="`managed` and `serverless` are Amazon's: requests are signed (SigV4) with the credentials that boto3 finds.",
    )
    opensearch_region: str | None = Field(None, description="The AWS region of a managed or serverless OpenSearch.")
    opensearch_engine: Literal["faiss", "lucene"] = Field(
        "faiss", description="The k-NN engine its index is made with; serverless has faiss alone."
    )
    opensearch_prefix: str = Field(
        "lore", pattern=r"^[a-z][a-z0-9-]{0,40}$", description="How the names of its indices begin."
    )
    opensearch_timeout_s: Seconds = Field(
        2, description="How long a search may wait for OpenSearch before PostgreSQL answers in its place."
    )
    engine: Literal["own", "external", "off"] = Field(
        "own",
        description="Who arbitrates changes of the world: ours, another engine that speaks docs/engine-protocol.md, or nobody.",
    )
    engine_tick_hz: int = Field(30, ge=1, le=1000, description="Ticks a second of our own engine.")
    engine_lease_s: Seconds = Field(
        3, description="How long an engine may be silent before another takes its place under a new epoch."
    )
    world_open_changes_max: int = Field(
        256, ge=1, le=100_000, description="Changes of the world that one requester may have waiting."
    )
    gitleaks: Path | None = Field(
        None, description="The program gitleaks; without it the one on PATH, and where there is none scans say so."
    )
    scan_rules_dir: Path | None = Field(None, description="A studio's own semgrep rules, used beside ours.")
    scan_wait_s: Seconds = Field(20, description="How long a call waits for its scan before it answers with a job.")
    scan_timeout_s: Seconds = Field(600, description="How long one scanner may run.")
    aws_roles: Path | None = Field(
        None,
        description="TOML file that says which IAM role each principal's AWS queries assume; docs/aws.md has the steps.",
    )
    aws_region: str | None = Field(None, description="The AWS region that is asked where a call names none.")
    aws_endpoint_url: str | None = Field(
        None, description="Another endpoint for every AWS service, such as a private one's."
    )
    approvers: Path | None = Field(
        None,
        description="TOML file of the people who may approve: groups, Slack ids, OIDC subjects; without it approvers.toml in data_dir, where there is one. docs/approvals.md has the form.",
    )
    upstreams: Path | None = Field(
        None,
        description="TOML file of the MCP servers of others that are joined; without it upstreams.toml in data_dir, where there is one. docs/upstreams.md has the form.",
    )
    approval_wait_s: Seconds = Field(
        30, description="How long a call waits for people before it answers `pending`; clients with tasks never wait."
    )
    approvals_open_max: int = Field(
        20,
        ge=1,
        le=10_000,
        description="Requests that one requester may have pending; one that was refused or taken back counts until its time is up.",
    )
    slack_bot_token: SecretStr | None = Field(
        None, description="Slack's bot token (xoxb-...); with it approvals are asked for in Slack."
    )
    slack_app_token: SecretStr | None = Field(
        None,
        description="Slack's app-level token (xapp-...): clicks come over Socket Mode, and no port needs to be open.",
    )
    slack_signing_secret: SecretStr | None = Field(
        None, description="Slack's signing secret: clicks come over HTTPS to /slack/interactions instead."
    )
    slack_channel: str | None = Field(
        None,
        pattern=r"^[CG][A-Z0-9]{5,20}$",
        description="The id of the channel where people are asked, such as C0123456789.",
    )
    slack_api_url: str = Field(
        "https://slack.com/api/", pattern=r"^https?://\S+/$", description="Where Slack's Web API is; ends with a slash."
    )
    oidc_issuer: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="An OpenID Connect issuer whose tokens people may use, and log in with.",
    )
    oidc_jwks_url: str | None = Field(
        None, pattern=r"^https?://\S+$", description="Where its keys are; without it what its discovery document says."
    )
    oidc_audience: str | None = Field(
        None, description="The `aud` its tokens must carry; without it the public URL's /mcp."
    )
    oidc_person_claim: str = Field(
        "sub", description="The claim that names a person; approvers.toml may map its values to people."
    )
    oidc_roles_claim: str = Field("roles", description="The claim that lists a person's roles.")
    oidc_scopes: str = Field(
        "openid",
        pattern=r"^[!#-\[\]-~]+( [!#-\[\]-~]+)*$",
        description="What clients and the pages ask the issuer for, separated by spaces.",
    )
    oidc_client_id: str | None = Field(None, description="The client that the hub's pages log people in as.")
    oidc_client_secret: SecretStr | None = Field(None, description="That client's secret, where it has one.")
    models: Path | None = Field(
        None,
        description="A studio's own models.toml, laid over ours: engines, prices, caps, roles. docs/tiers.md has the form.",
    )
    gold_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Where TensorRT-LLM's server (trtllm-serve) is, without /v1: the real-time tier.",
    )
    gold_api_key: SecretStr | None = Field(None, description="Its API key, sent to `gold_url` and nowhere else.")
    silver_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Where vLLM is, without /v1, or another OpenAI-compatible API with BODY_BROKER_SILVER_DIALECT: the tier of dialogue.",
    )
    silver_dialect: Literal["vllm", "trtllm", "openai", "azure", "anthropic"] | None = Field(
        None,
        description="What `silver_url` speaks, without it `vllm`; `openai` for what takes nothing but OpenAI's own fields.",
    )
    silver_api_key: SecretStr | None = Field(None, description="Its API key, sent to `silver_url` and nowhere else.")
    silver_model: str | None = Field(
        None, description="What `silver_url` calls its model; without it the only one that it serves."
    )
    openai_api_key: SecretStr | None = Field(None, description="OpenAI's API key; with it the cloud tier has OpenAI.")
    openai_url: str = Field(
        "https://api.openai.com", pattern=r"^https?://\S+$", description="Where OpenAI's API is, without /v1."
    )
    azure_openai_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="An Azure OpenAI resource, such as https://NAME.openai.azure.com.",
    )
    azure_openai_api_key: SecretStr | None = Field(None, description="Its API key.")
    anthropic_api_key: SecretStr | None = Field(
        None, description="Anthropic's API key; with it the cloud tier has Anthropic."
    )
    anthropic_url: str = Field(
        "https://api.anthropic.com", pattern=r"^https?://\S+$", description="Where Anthropic's API is, without /v1."
    )
    bronze_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Where the experts' model is, without /v1: vLLM, or another API with BODY_BROKER_BRONZE_DIALECT. docs/bronze.md has more.",
    )
    bronze_dialect: Literal["vllm", "trtllm", "openai", "azure", "anthropic"] | None = Field(
        None, description="What `bronze_url` speaks, without it `vllm`."
    )
    bronze_api_key: SecretStr | None = Field(None, description="Its API key, sent to `bronze_url` and nowhere else.")
    bronze_model: str | None = Field(
        None, description="What `bronze_url` calls its model; without it the only one that it serves."
    )
    bronze_concurrency: int = Field(4, ge=1, le=1000, description="Expert jobs that run at once, over all workers.")
    bronze_open_max: int = Field(20, ge=1, le=100_000, description="Expert jobs that one asker may have open.")
    sagemaker_endpoint: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9](-*[A-Za-z0-9]){0,62}$",
        description="The name of a SageMaker asynchronous endpoint, asked before `bronze_url`. docs/sagemaker.md has the steps.",
    )
    sagemaker_output: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9.-]{3,63}(/\S*)?$",
        description="Where that endpoint writes: the S3OutputPath of its configuration, such as s3://studio-experts/outputs.",
    )
    sagemaker_failures: str | None = Field(
        None, pattern=r"^s3://[a-z0-9.-]{3,63}(/\S*)?$", description="Its S3FailurePath."
    )
    sagemaker_input: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9.-]{3,63}(/\S*)?$",
        description="Where questions are put that are too long to be sent inline (128,000 bytes).",
    )
    sagemaker_queue_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="An SQS queue that its SNS topics are delivered to: answers are seen at once; without it they are looked for.",
    )
    sagemaker_ttl_s: int = Field(3_600, ge=60, le=21_600, description="How long a question may wait at the endpoint.")
    sagemaker_timeout_s: int = Field(900, ge=1, le=3_600, description="How long the endpoint may work on one.")
    sagemaker_poll_s: Seconds = Field(5, description="How often its answer is looked for.")
    results: str | None = Field(
        None,
        description="Where results of jobs are kept: a directory, or s3://bucket/prefix; without it `results` in data_dir.",
    )
    results_endpoint_url: str | None = Field(
        None, pattern=r"^https?://\S+$", description="Another S3 than Amazon's for `results`."
    )
    results_kept_days: int = Field(90, ge=1, le=3_650, description="How long results of jobs are kept.")
    otlp_url: str | None = Field(
        None,
        pattern=r"^https?://\S+$",
        description="Where traces and metrics go: an OpenTelemetry collector's OTLP over HTTP, such as http://127.0.0.1:4318.",
    )
    database_connections_max: int = Field(10, ge=4, le=200, description="Connections to PostgreSQL a process may open.")
    redis_connections_max: int = Field(32, ge=2, le=1000, description="Connections to Redis a process may open.")

    public_url: str | None = Field(
        None,
        description="The URL people and agents reach this hub by, such as https://hub.studio.example: scheme, host and port alone.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (), description="Host names accepted beside loopback and public_url; `name` or `name:port`."
    )
    behind_proxy: bool = Field(
        default=False, description="A proxy in front terminates TLS; permits a non-loopback bind."
    )
    tls_certificate: Path | None = Field(None, description="PEM file of the certificate chain.")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key.")
    request_bytes_max: int = Field(4 * 1024 * 1024, ge=1024, description="Size of one HTTP request body.")
    drain_s: Seconds = Field(20, description="How long calls may finish after SIGTERM.")

    tools: Literal["core", "all"] = Field("core", description="Which tools are listed: the core profile or all.")
    policies_dir: Path | None = Field(None, description="A studio's own Cedar files, added to ours.")
    rate_per_s: float = Field(
        200, gt=0, le=1_000_000, description="Calls per second a principal may make, over all hubs."
    )
    concurrency_max: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Calls a principal may have open at once, over all hubs; tiers that work for them have as many again.",
    )
    call_timeout_s: Seconds = Field(60, description="How long one call may take.")

    token_audience: str = Field("body-broker", min_length=1, description="The `aud` every token must carry.")
    token_issuer: str = Field("body-broker", min_length=1, description="The `iss` of tokens this hub issues.")
    token_ttl_max_s: int = Field(30 * 24 * 3600, ge=60, description="The longest life a token may be issued with.")

    audit_anchor: Path | None = Field(
        None, description="File that receives the audit's anchor; default audit-anchor.jsonl in data_dir."
    )
    audit_anchor_every_s: Seconds = Field(300, description="How often a serving hub writes the anchor.")

    worker_concurrency: int = Field(4, ge=1, le=256, description="Pieces of durable work one worker runs at once.")
    worker_lease_s: Seconds = Field(30, description="How long a worker may be silent before its work is taken over.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("warning", description="What is logged to stderr.")
    log_format: Literal["json", "console"] = Field(
        "console", description="One JSON object a line, or lines for people."
    )

    @field_validator(
        "embeddings",
        "aws_endpoint_url",
        "slack_api_url",
        "oidc_issuer",
        "oidc_jwks_url",
        "gold_url",
        "silver_url",
        "openai_url",
        "azure_openai_url",
        "anthropic_url",
        "bronze_url",
        "sagemaker_queue_url",
        "results",
        "results_endpoint_url",
        "otlp_url",
    )
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        # An address is shown, in answers and logs: what is secret has settings of its own.
        if url is not None and "://" in url and "@" in url.partition("://")[2].partition("/")[0]:
            raise ValueError("no user and no password in it: keys have settings of their own")
        return url

    @field_validator("public_url")
    @classmethod
    def _origin(cls, url: str | None) -> str | None:
        return None if url is None else _origin_of(url)

    @field_validator(
        "data_dir",
        "policies_dir",
        "audit_anchor",
        "tls_certificate",
        "tls_key",
        "gitleaks",
        "scan_rules_dir",
        "aws_roles",
        "approvers",
        "upstreams",
        "models",
    )
    @classmethod
    def _home(cls, path: Path | None) -> Path | None:
        # Absolute: programs that are started with it stand in other folders.
        return path.expanduser().absolute() if path else path

    @property
    def embedded(self) -> bool:
        """Whether this hub keeps its own PostgreSQL; what depends on being on one machine asks this."""
        return self.database_url is None


def _origin_of(url: str) -> str:
    """The URL as browsers write an origin: no path, no default port, lower case.

    Raises:
        ValueError: It is no http or https URL, or says more than where.
    """
    parts = urlsplit(url.strip())
    host, port = (parts.hostname or ""), parts.port
    if parts.scheme not in _PORTS or not _HOST.fullmatch(host):
        raise ValueError("write it as https://hub.studio.example")
    if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("it is scheme, host and port alone, without a path")
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}" + ("" if port in {None, _PORTS[parts.scheme]} else f":{port}")
