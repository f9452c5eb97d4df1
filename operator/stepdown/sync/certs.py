"""Makes certificates: a CA of the operator's own, and what it signs for the sync server. `sync.tls` calls this.

Elliptic keys (P-256), since every peer reads them and one is made in a millisecond. A certificate is good an hour before it is
made: clocks of two nodes differ.
"""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_SKEW = timedelta(hours=1)


class Issued(NamedTuple):
    """A private key and its certificate, both PEM."""

    key: str
    certificate: str


def new_ca(now_s: float, life_s: float) -> Issued:
    """A CA that signs servers' certificates and nothing else. Its name tells one from another."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"stepdown sync CA {int(now_s)}")])
    certificate = (
        _builder(name, name, public, now_s, life_s)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _issued(key, certificate)


def server_certificate(ca: Issued, names: Sequence[str], now_s: float, life_s: float) -> Issued:
    """For a server of these DNS names and addresses; not for longer than its CA."""
    ca_key = serialization.load_pem_private_key(ca.key.encode(), password=None)
    ca_certificate = x509.load_pem_x509_certificate(ca.certificate.encode())
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    life_s = min(life_s, ca_certificate.not_valid_after_utc.timestamp() - now_s)
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stepdown sync")])
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = (
        _builder(subject, ca_certificate.subject, public, now_s, life_s)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_name(each) for each in names]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(authority, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _issued(key, certificate)


def ends_s(certificate: str) -> float:
    """When it ends, Unix seconds. Raises ValueError for what is no certificate."""
    return x509.load_pem_x509_certificate(certificate.encode()).not_valid_after_utc.timestamp()


def matches(issued: Issued) -> bool:
    """Whether the key is the certificate's. Raises ValueError for what is no key or no certificate."""
    key = serialization.load_pem_private_key(issued.key.encode(), password=None)
    certificate = x509.load_pem_x509_certificate(issued.certificate.encode())
    return isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now_s: float, life_s: float
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(now_s, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(seconds=life_s))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _issued(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Issued:
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return Issued(private, certificate.public_bytes(serialization.Encoding.PEM).decode())
