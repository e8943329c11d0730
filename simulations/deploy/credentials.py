"""Certificates and keys for a federation, made on the spot; they hold for a day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP384R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dccl_flower.files import make_private
from dccl_flower.simulations.superlink import LOCALHOST, Certificates

DAY = timedelta(days=1)


def make_certificates(folder: Path) -> Certificates:
    """Make an authority and a certificate of it for the SuperLink on loopback.

    The authority's key is forgotten at once: nobody can sign a second certificate with it.
    """
    make_private(folder)
    authority, own = generate_private_key(SECP384R1()), generate_private_key(SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Authority of one demonstration")])
    theirs = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SuperLink of one demonstration")])
    root = _certificate(name, name, authority)
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    root = root.add_extension(_usage(signs=True), critical=True)
    shown = _certificate(theirs, name, own)
    shown = shown.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    shown = shown.add_extension(_usage(signs=False), critical=True)
    for_servers = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    shown = shown.add_extension(for_servers, critical=False)
    places = [x509.IPAddress(ip_address(LOCALHOST)), x509.DNSName("localhost")]
    shown = shown.add_extension(x509.SubjectAlternativeName(places), critical=False)
    files = Certificates(folder / "ca.crt", folder / "superlink.crt", folder / "superlink.key")
    for path, builder in ((files.authority, root), (files.own, shown)):
        path.write_bytes(builder.sign(authority, SHA384()).public_bytes(Encoding.PEM))
    _write_private(files.key, own, PrivateFormat.PKCS8)
    return files


def make_node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a SuperNode's key; return the files of its private and its public half."""
    make_private(folder)
    key = generate_private_key(SECP384R1())
    private, public = folder / name, folder / f"{name}.pub"
    _write_private(private, key, PrivateFormat.OpenSSH)
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return private, public


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    # Clocks may differ a little.
    return builder.not_valid_before(now - DAY / 24).not_valid_after(now + DAY)


def _usage(signs: bool) -> x509.KeyUsage:
    """Return what a key may do: sign certificates, or open connections."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _write_private(path: Path, key: EllipticCurvePrivateKey, form: PrivateFormat) -> None:
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, form, NoEncryption()))
