"""Where a hub may listen, and TLS as a client sees it."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from body_broker.errors import SettingsError
from body_broker.settings import load_settings
from mcp_servers.hub.serve import Address, check_bind
from tests.mcp_servers.hub.conftest import OpenHub


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True),
        (":0", "127.0.0.1", 0, True),
        ("[::1]:80", "::1", 80, True),
        ("localhost:1", "localhost", 1, True),
        ("0.0.0.0:1", "0.0.0.0", 1, False),  # noqa: S104 - parsed, not bound
        ("hub.example.com:443", "hub.example.com", 443, False),
    ],
)
def test_an_address_is_read_and_known_for_loopback(text: str, host: str, port: int, *, loopback: bool) -> None:
    address = Address.parse(text)
    assert (address.host, address.port, address.is_loopback) == (host, port, loopback)


@pytest.mark.parametrize("text", ["", "8080", "host:", "host:x", "host:99999", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        Address.parse(text)


def test_beyond_loopback_a_hub_needs_tls_or_a_proxy_and_the_names_it_answers_to() -> None:
    everywhere = Address("0.0.0.0", 443)  # noqa: S104 - checked, not bound
    with pytest.raises(SettingsError, match="in the clear"):
        check_bind(everywhere, load_settings({}, allowed_hosts=("hub.example",)))
    with pytest.raises(SettingsError, match="no host name is allowed"):
        check_bind(everywhere, load_settings({}, behind_proxy=True))
    with pytest.raises(SettingsError, match="go together"):
        check_bind(Address("127.0.0.1", 0), load_settings({}, tls_key=Path("key.pem")))
    check_bind(everywhere, load_settings({}, behind_proxy=True, public_url="https://hub.example"))
    check_bind(everywhere, load_settings({}, behind_proxy=True, allowed_hosts=("hub.example",)))


async def test_a_hub_with_a_certificate_speaks_tls_and_nothing_else(open_hub: OpenHub, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    async with open_hub(tls_certificate=certificate, tls_key=key) as hub:
        assert hub.url.startswith("https://127.0.0.1:")
        port = hub.base.rpartition(":")[2]
        trusted = ssl.create_default_context(cafile=str(certificate))
        async with httpx2.AsyncClient(verify=trusted) as http:
            assert (await http.get(f"https://localhost:{port}/healthz")).status_code == 200
        async with httpx2.AsyncClient() as http:
            with pytest.raises(httpx2.TransportError):
                await http.get(f"http://localhost:{port}/healthz")


def self_signed(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(pem))
    plain = serialization.NoEncryption()
    files[1].write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return files
