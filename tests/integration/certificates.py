"""A certificate authority of a test's own, by openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


def make_certificates(directory: Path) -> Path:
    """Make ca.pem, server.pem (for 127.0.0.1) and client.pem, each with its .key."""
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    authority = ("-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test CA")
    openssl(directory, "req", "-x509", *new, *authority)
    for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "")):
        request = ("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        more = ("-addext", extension) if extension else ()
        openssl(directory, *request, "-subj", f"/CN={name}", *more)
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        certificate = ("-in", f"{name}.csr", "-copy_extensions", "copy", "-out", f"{name}.pem")
        openssl(directory, "x509", "-req", *signed, *certificate)
    return directory


def openssl(directory: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run openssl in a directory; returns its stdout."""
    result = subprocess.run(
        ["openssl", *arguments], cwd=directory, input=stdin, check=True, capture_output=True
    )
    return result.stdout


def server_context(certificates: Path, client: bool = False) -> ssl.SSLContext:
    """The TLS settings of a server; with `client` it wants to see a client certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    if client:
        context.load_verify_locations(certificates / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context
