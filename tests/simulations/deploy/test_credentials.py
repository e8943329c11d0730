from __future__ import annotations

import socket
import ssl
import stat
from threading import Thread

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from dccl_flower.simulations.deploy.credentials import make_certificates, make_node_key


@pytest.fixture
def files(tmp_path):
    return make_certificates(tmp_path / "keys")


def shake_hands(files, authority, host):
    """Open a TLS connection on loopback to whoever shows the certificate."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(files.own, files.key)
    theirs = ssl.create_default_context(cafile=authority)

    def serve(listening):
        connection, _ = listening.accept()
        try:
            with ours.wrap_socket(connection, server_side=True) as secure:
                secure.recv(1)
        except OSError:  # the other side did not believe it
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Thread(target=serve, args=[listening])
        server.start()
        try:
            with (
                socket.create_connection(listening.getsockname(), timeout=20) as connection,
                theirs.wrap_socket(connection, server_hostname=host) as secure,
            ):
                secure.send(b"x")
        finally:
            server.join(20)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_who_trusts_the_authority_believes_the_superlink_on_loopback(files, host):
    shake_hands(files, files.authority, host)


def test_another_host_or_another_authority_is_not_believed(files, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="match"):
        shake_hands(files, files.authority, "example.org")
    other = make_certificates(tmp_path / "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(files, other.authority, "127.0.0.1")


def test_a_node_s_public_key_is_that_of_its_private_one(tmp_path):
    private, public = make_node_key(tmp_path / "keys", "node-0")
    key = load_ssh_private_key(private.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    assert key.public_key() == load_ssh_public_key(public.read_bytes())
    other, _ = make_node_key(tmp_path / "keys", "node-1")
    assert other.read_bytes() != private.read_bytes()


def test_private_halves_are_for_their_owner_alone(files, tmp_path):
    private, _ = make_node_key(tmp_path / "keys", "node-0")
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in (private, files.key)] == [0o600, 0o600]
    assert b"PRIVATE" not in files.own.read_bytes() + files.authority.read_bytes()
