# The hub and its worker. Built from the tree as it is: `docker build -t body-broker .`
# Every package has the version that [tool.uv] constraint-dependencies in pyproject.toml names; nothing is compiled.

FROM python:3.13.16-slim-bookworm AS build
COPY --from=ghcr.io/astral-sh/uv:0.13.9 /uv /usr/local/bin/uv
ENV UV_PROJECT_ENVIRONMENT=/opt/venv \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1 \
    UV_PYTHON_DOWNLOADS=never
WORKDIR /src
# What it needs, without itself: this layer is made anew only when pyproject.toml changes.
COPY pyproject.toml README.md LICENSE ./
RUN uv sync --no-default-groups --group embeddings --no-install-project
# Itself, as the wheel that is published.
COPY body_broker ./body_broker
COPY policies ./policies
COPY approvals ./approvals
COPY tiers ./tiers
COPY mcp_servers ./mcp_servers
RUN uv build --wheel --out-dir /dist \
    && uv pip install --python /opt/venv/bin/python --no-deps /dist/*.whl

FROM python:3.13.16-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin body-broker \
    && install --directory --mode=0700 --owner=10001 --group=10001 /data /results
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    BODY_BROKER_DATA_DIR=/data
USER 10001:10001
WORKDIR /data
EXPOSE 8080
# The hub drains on it; so does the worker, which hands its work back.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=6s --start-period=60s --retries=3 \
    CMD ["python", "-m", "mcp_servers.hub.health", "http://127.0.0.1:8080/readyz"]
ENTRYPOINT ["body-broker"]
CMD ["serve", "--http", "0.0.0.0:8080"]
