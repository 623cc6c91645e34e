"""Keys and certificates: the federation's own authority, the server's certificate and the sites' keys."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from multiseg.errors import FederationError, ResourceError, UsageError
from multiseg.files import write_atomically

AUTHORITY_DAYS, SERVER_DAYS, RENEW_DAYS = 3650, 365, 30
_BACK = timedelta(hours=1)
"""A certificate begins in the past: a hospital's clock may be behind."""


def write_secret(path: Path, data: bytes) -> None:
    """Write what only its owner may read.

    Raises:
        UsageError: there is something already; it stays as it is.
        ResourceError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} is there already, and a secret is never written over.") from None
    except OSError as error:
        raise ResourceError(f"{path} could not be written: {error.strerror}.") from error
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())


def make_authority(certificate: Path, key: Path) -> None:
    """The federation's own certificate authority, for ten years.

    Raises:
        UsageError: there is one.
    """
    secret = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "multiseg federation")])
    built = (
        _certificate(name, name, secret.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(secret, hashes.SHA384())
    )
    write_secret(key, _private_bytes(secret, PrivateFormat.PKCS8))
    write_atomically(certificate, built.public_bytes(Encoding.PEM))


def make_certificate(
    folder: Path, authority: tuple[str, str], files: tuple[str, str], hosts: Sequence[str], days: int = SERVER_DAYS
) -> None:
    """A server's certificate, signed by the authority; its key is made where there is none, and kept otherwise.

    Args:
        authority, files: names of the certificate and of the key in the folder.
        hosts: names and addresses by which the server is reached.

    Raises:
        FederationError: the authority's key is not there, or damaged.
        UsageError: a host is no name.
    """
    issuer = x509.load_pem_x509_certificate((folder / authority[0]).read_bytes())
    signer = _read_key(folder / authority[1])
    if not (folder / files[1]).exists():
        write_secret(folder / files[1], _private_bytes(ec.generate_private_key(ec.SECP256R1()), PrivateFormat.PKCS8))
    public = _read_key(folder / files[1]).public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    built = (
        _certificate(subject, issuer.subject, public, days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    write_atomically(folder / files[0], built.public_bytes(Encoding.PEM))


def days_left(certificate: Path) -> float:
    """Until a certificate ends."""
    end = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    return (end - datetime.now(UTC)) / timedelta(days=1)


def make_site_key() -> tuple[bytes, str]:
    """A site's private key as an OpenSSH file, and its public key in PEM."""
    secret = ec.generate_private_key(ec.SECP384R1())
    return _private_bytes(secret, PrivateFormat.OpenSSH), _public(secret.public_key())


def read_public_key(path: Path) -> str:
    """A public key in PEM, from the OpenSSH file (`ssh-keygen -t ecdsa -b 384`) that a site sent.

    Raises:
        UsageError: it is missing, or no such key.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}.") from None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is no public key of OpenSSH: {error}. Send the file that ends in .pub.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError(
            f"{path} holds a key of another kind than an elliptic curve's. Make one: ssh-keygen -t ecdsa -b 384"
        )
    return _public(key)


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACK)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise UsageError(f"{host!r} is no name or address of a host: {error}.") from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise FederationError(
            f"{path} is not there or no key ({error}). Bring it back from where it is kept."
        ) from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _private_bytes(key: ec.EllipticCurvePrivateKey, format: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, format, NoEncryption())


def _public(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
