"""AutoMTLS: no other user can call the plugin, only its host; mirrors go-plugin's mtls.go, server.go and client.go.

Host and plugin each make a certificate, and each trusts the other's alone. The host's has a P-521 key, which grpcio's
own TLS (BoringSSL) cannot verify; so TLS ends in front of grpc, in a process of its own: see terminator.py.
"""

import base64
import contextlib
import os
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

from goplugin.listener import Address, Plain, listening_socket

if TYPE_CHECKING:
    import grpc


class TLSFiles(NamedTuple):
    """A certificate of the plugin's own instead of AutoMTLS (go-plugin's TLSProvider): paths of PEM files.

    client_ca: callers must have a certificate of its, and so must the host's listeners that the broker dials.
    """

    certificate: str
    key: str
    client_ca: str


class Contexts(NamedTuple):
    """TLS for what calls us (server) and for what we dial (client).

    peer: the only certificate, DER, that the dialled host may have; None where client_ca decides.
    server_cert: ours, for the handshake line; empty where the host knows it.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    peer: bytes | None
    server_cert: str


def auto_mtls_contexts(client_cert: str, folder: str) -> Contexts:
    """Contexts with a fresh certificate of ours, for the host whose certificate, PEM, is client_cert.

    folder: one that only our user can enter; the key lies there while OpenSSL loads it. ValueError if client_cert is
    no certificate.
    """
    try:
        peer = ssl.PEM_cert_to_DER_cert(client_cert.strip())
        ssl.create_default_context(cadata=peer)
    except (ValueError, ssl.SSLError) as error:
        raise ValueError(f"PLUGIN_CLIENT_CERT is not a certificate in PEM: {error}") from error
    certificate, key = make_certificate()
    path = os.path.join(folder, "key")
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode=0o600), "wb") as file:
            file.write(key + certificate)
        server, client = _contexts(path, path, cadata=peer)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    client.check_hostname = True
    der = ssl.PEM_cert_to_DER_cert(certificate.decode())
    return Contexts(server, client, peer, base64.b64encode(der).decode().rstrip("="))


def file_contexts(files: TLSFiles) -> Contexts:
    """Contexts of the plugin's own certificate. ValueError if a file is not what it should be."""
    try:
        server, client = _contexts(files.certificate, files.key, cafile=files.client_ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"{files}: {error}") from error
    return Contexts(server, client, None, "")


def _contexts(certificate: str, key: str, **trusted: Any) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(**trusted)
    server.num_tickets = 0  # nobody comes back without showing the certificate again
    return server, client


def make_certificate() -> tuple[bytes, bytes]:
    """A self-signed certificate for localhost, as the host wants it, and its key, both PEM."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=30))
        .not_valid_after(now + datetime.timedelta(days=30 * 365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        # The host trusts it as a root. No extended key usage: over the broker we are a client.
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


class UnverifiedTLS(Plain):
    """grpcio's own TLS, where there is no fork or no Unix socket for the terminator: callers are not verified.

    A Transport (see listener.py). The broker cannot dial: grpcio would have to verify the host's P-521 certificate.
    """

    def __init__(self) -> None:
        import grpc

        from goplugin import log

        log.get_logger("goplugin.automtls").warning(
            "TLS by grpcio alone: callers are not verified, for the TLS terminator needs fork and Unix sockets"
        )
        certificate, key = make_certificate()
        self._credentials = grpc.ssl_server_credentials([(key, certificate)])
        der = ssl.PEM_cert_to_DER_cert(certificate.decode())
        self.server_cert = base64.b64encode(der).decode().rstrip("=")

    def listen(self, server: "grpc.Server") -> Address:
        """As Plain does, but encrypted."""
        while True:
            look, address = listening_socket()
            look.close()
            address.remove()
            try:
                server.add_secure_port(address.target(), self._credentials)
            except RuntimeError:
                continue  # somebody else took it since the look
            return address

    def dial(self, address: Address, options: Any) -> "grpc.Channel":
        """Never works: OSError."""
        raise OSError("grpcio's TLS cannot verify the host's certificate, and there is no TLS terminator here")
