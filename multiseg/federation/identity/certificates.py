"""Keys and certificates: the federation's authority, the server's certificate and the sites' keys."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from multiseg.errors import FederationError, UsageError
from multiseg.files import write_atomically

AUTHORITY_DAYS, SERVER_DAYS, RENEW_DAYS = 3650, 365, 30
AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "multiseg federation")])
"""The name of every authority, former and new."""
_BACK = timedelta(hours=1)
"""Certificates start in the past: a hospital's clock may be behind."""


def write_secret(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read.

    Raises:
        UsageError: the file exists; it stays unchanged.
        ResourceError: the folder cannot be written.
    """
    if os.path.lexists(path):
        raise UsageError(f"{path} exists already, and secrets are never overwritten.")
    write_atomically(path, data, 0o600)


def make_authority(certificate: Path, key: Path) -> None:
    """Make a certificate authority for ten years; UsageError if there is one."""
    secret = ec.generate_private_key(ec.SECP384R1())
    built = _certificate(AUTHORITY, AUTHORITY, secret.public_key(), _end(AUTHORITY_DAYS), _usage(True))
    write_secret(key, _private_bytes(secret, PrivateFormat.PKCS8))
    write_atomically(certificate, built.sign(secret, hashes.SHA384()).public_bytes(Encoding.PEM))


def bridge(certificate: Path, former: tuple[Path, Path]) -> bytes:
    """A new authority's certificate, signed by the former one, so that sites that trust only the former accept it.

    Both have the same name, and a self-issued certificate does not count in the path length (RFC 5280, 4.2.1.9), which
    is 0 for both. It ends with the former authority.

    Args:
        former: files of its certificate and key.

    Raises:
        FederationError: the former authority's key is missing, or does not belong to its certificate.
    """
    issuer, signer = _signer(*former)
    new = _load(certificate)
    public = new.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    signed = _certificate(new.subject, issuer.subject, public, issuer.not_valid_after_utc, _usage(True))
    signed = signed.add_extension(_issued_with(signer), critical=False)
    return signed.sign(signer, hashes.SHA384()).public_bytes(Encoding.PEM)


def make_certificate(
    folder: Path,
    authority: tuple[str, str],
    files: tuple[str, str],
    hosts: Sequence[str],
    days: int = SERVER_DAYS,
    above: bytes = b"",
) -> None:
    """Make a server's certificate, signed by the authority; its key is made if it is missing.

    Args:
        authority, files: names of the certificate and the key in the folder.
        hosts: names and addresses of the server.
        above: certificates to show with it, in PEM.

    Raises:
        FederationError: the authority's key is missing, damaged, or does not belong to it.
        UsageError: a host is invalid.
    """
    issuer, signer = _signer(folder / authority[0], folder / authority[1])
    public = _own_key(folder / files[1]).public_key()
    built = (
        _for_hosts(hosts, issuer.subject, public, days, _usage(False))
        .add_extension(_issued_with(signer), critical=False)
        .sign(signer, hashes.SHA384())
    )
    write_atomically(folder / files[0], built.public_bytes(Encoding.PEM) + above)


def make_own_certificate(certificate: Path, key: Path, hosts: Sequence[str]) -> None:
    """Make a self-signed server certificate for ten years; its key is made if it is missing."""
    secret = _own_key(key)
    built = _for_hosts(hosts, None, secret.public_key(), AUTHORITY_DAYS, _usage(True, signs_itself=True))
    write_atomically(certificate, built.sign(secret, hashes.SHA384()).public_bytes(Encoding.PEM))


def is_own(certificate: Path) -> bool:
    """Whether a certificate is self-signed."""
    loaded = _load(certificate)
    return loaded.subject == loaded.issuer


def still_valid(certificates: bytes) -> bytes:
    """The certificates in a PEM text, which may be empty, that have not ended."""
    loaded = x509.load_pem_x509_certificates(certificates) if certificates.strip() else []
    now = datetime.now(UTC)
    return b"".join(entry.public_bytes(Encoding.PEM) for entry in loaded if entry.not_valid_after_utc > now)


def last_end(certificates: bytes) -> datetime:
    """When the last certificate in a PEM text ends."""
    return max(entry.not_valid_after_utc for entry in x509.load_pem_x509_certificates(certificates))


def fingerprint(certificate: Path) -> str:
    """SHA-256 of a certificate, as openssl writes it."""
    return _load(certificate).fingerprint(hashes.SHA256()).hex(":").upper()


def ends(certificate: Path) -> datetime:
    """When a certificate ends."""
    return _load(certificate).not_valid_after_utc


def _load(certificate: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate.read_bytes())


def days_left(certificate: Path) -> float:
    """Days until a certificate ends."""
    return (ends(certificate) - datetime.now(UTC)) / timedelta(days=1)


def make_site_key() -> tuple[bytes, str]:
    """A site's private key as an OpenSSH file, and its public key in PEM."""
    secret = ec.generate_private_key(ec.SECP384R1())
    return _private_bytes(secret, PrivateFormat.OpenSSH), _public(secret.public_key())


def read_public_key(path: Path) -> str:
    """A site's public key in PEM, from an OpenSSH file (`ssh-keygen -t ecdsa -b 384`); UsageError if it is invalid."""
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} could not be read: {error.strerror}. Give the file that ends in .pub.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is not a public key of OpenSSH: {error}. Give the file that ends in .pub.") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError(f"{path} is not an elliptic curve key. Make one: ssh-keygen -t ecdsa -b 384")
    return _public(key)


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, end: datetime, usage: x509.KeyUsage
) -> x509.CertificateBuilder:
    limits = x509.BasicConstraints(ca=usage.key_cert_sign, path_length=0 if usage.key_cert_sign else None)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BACK)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(limits, critical=True)
        .add_extension(usage, critical=True)
    )


def _for_hosts(
    hosts: Sequence[str], issuer: x509.Name | None, public: ec.EllipticCurvePublicKey, days: int, usage: x509.KeyUsage
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    built = _certificate(subject, issuer or subject, public, _end(days), usage)
    names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
    built = built.add_extension(names, critical=False)
    return built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)


def _end(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _issued_with(signer: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())


def _signer(certificate: Path, key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    issuer, signer = _load(certificate), _read_key(key)
    if issuer.public_key() != signer.public_key():
        raise FederationError(
            f"{key} is not the key of {certificate}, so nobody would trust what it signs. Restore the key that was "
            "made with that certificate: after a change of the authority, the new key."
        )
    return issuer, signer


def _own_key(path: Path) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        write_secret(path, _private_bytes(ec.generate_private_key(ec.SECP256R1()), PrivateFormat.PKCS8))
    return _read_key(path)


def _usage(signs_certificates: bool, signs_itself: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs_itself or not signs_certificates,
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
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise UsageError(f"{host!r} is not a host name or address: {error}.") from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise FederationError(f"{path} is missing or not a key ({error}). Restore it from where it is kept.") from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _private_bytes(key: ec.EllipticCurvePrivateKey, format: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, format, serialization.NoEncryption())


def _public(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
