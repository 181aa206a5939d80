"""Certificates as go-plugin's host makes them, and callers that use one."""

import datetime
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
DAY = datetime.timedelta(days=1)


def make_certificate(
    folder: Path, name: str, *, curve: ec.EllipticCurve | None = None, days: tuple[int, int] = (-1, 1)
) -> Path:
    """A certificate as go-plugin's host makes it, and its key, in one PEM file. days: the limits of its validity."""
    key = ec.generate_private_key(curve or ec.SECP521R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + days[0] * DAY)
        .not_valid_after(now + days[1] * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def certificate_in(path: Path) -> str:
    """The certificate without its key."""
    return path.read_text().partition("-----BEGIN PRIVATE KEY")[0]


def client_context(path: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if path:
        context.load_cert_chain(path)
    return context


def served(port: int, context: ssl.SSLContext) -> bool:
    """Whether the plugin answers HTTP/2 at the port."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as plain:
        try:
            with context.wrap_socket(plain) as connection:
                connection.sendall(HTTP2)
                return bool(connection.recv(1))
        except OSError:
            return False
