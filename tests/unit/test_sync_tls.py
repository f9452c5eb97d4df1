"""The certificate that sync is served with. If this fails, no proxy reaches the operator, or one reaches somebody else."""

import ssl
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psycopg
import pytest
from cryptography import x509
from cryptography.x509 import verification

from stepdown.sync.cakept import STATE, InLedger, OnVolume
from stepdown.sync.certs import Issued, new_ca, server_certificate
from stepdown.sync.rotation import DAY_S, LIFE_S, RENEW_S, SERVER_LIFE_S, SERVER_RENEW_S, SETTLED_S
from stepdown.sync.tls import GIVEN, Authority, GivenTls, Tls, TlsError, service_names
from tests.postgres import Server

NOW_S = 1_795_000_000.0
NAMES = service_names("stepdown-system", "10.0.0.7", "stepdown-0")
SERVICE = "stepdown.stepdown-system.svc"


def served(tls: Tls) -> x509.Certificate:
    """What a client is shown in a handshake now."""
    client_in, server_in = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    client = context.wrap_bio(client_in, server_in)
    server = tls.context.wrap_bio(server_in, client_in, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    found = client.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found)


def vouches(bundle: str, certificate: x509.Certificate, name: str, now_s: float) -> bool:
    """Whether a client that trusts this bundle takes the certificate for that server, at that time."""
    authorities = x509.load_pem_x509_certificates(bundle.encode())
    builder = verification.PolicyBuilder().store(verification.Store(authorities)).time(datetime.fromtimestamp(now_s, UTC))
    try:
        builder.build_server_verifier(x509.DNSName(name)).verify(certificate, [])
    except verification.VerificationError:
        return False
    return True


def test_the_own_ca_vouches_for_the_service_and_its_key_is_the_owners_alone(tmp_path: Path) -> None:
    """Who can read the key can be the operator to every proxy, and gets every token."""
    authority = Authority(OnVolume(tmp_path / "ca"), NAMES, NOW_S)
    for name in ("stepdown", "stepdown.stepdown-system", SERVICE, f"{SERVICE}.cluster.local", "stepdown-0"):
        assert vouches(authority.bundle, served(authority), name, NOW_S), name
    assert not vouches(authority.bundle, served(authority), "stepdown.elsewhere.svc", NOW_S)
    addresses = served(authority).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(each) for each in addresses.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700
    assert [(each.name, stat.S_IMODE(each.stat().st_mode)) for each in (tmp_path / "ca").iterdir()] == [(STATE, 0o600)]


def test_a_restart_keeps_the_ca(tmp_path: Path) -> None:
    """Every restart of the operator would cut off all proxies until their ConfigMaps arrive."""
    before = Authority(OnVolume(tmp_path), NAMES, NOW_S)
    after = Authority(OnVolume(tmp_path), NAMES, NOW_S + DAY_S)
    assert after.bundle == before.bundle
    assert vouches(before.bundle, served(after), SERVICE, NOW_S + DAY_S)


def test_the_servers_certificate_is_renewed_while_it_serves(tmp_path: Path) -> None:
    """Thirty days after the last restart, sync would end."""
    authority = Authority(OnVolume(tmp_path), NAMES, NOW_S)
    first = served(authority)
    authority.tend(NOW_S + SERVER_LIFE_S - SERVER_RENEW_S - 1)
    assert served(authority) == first
    authority.tend(NOW_S + SERVER_LIFE_S - SERVER_RENEW_S)
    second = served(authority)
    assert second.not_valid_after_utc.timestamp() == NOW_S + SERVER_LIFE_S - SERVER_RENEW_S + SERVER_LIFE_S
    assert vouches(authority.bundle, second, SERVICE, NOW_S + SERVER_LIFE_S)


def test_a_new_ca_is_published_before_it_signs_and_survives_restarts_in_between(tmp_path: Path) -> None:
    """On the day of the change every proxy would take the operator for an attacker."""
    old = Authority(OnVolume(tmp_path), NAMES, NOW_S).bundle
    now_s = NOW_S + LIFE_S - RENEW_S
    authority = Authority(OnVolume(tmp_path), NAMES, now_s)
    both = authority.bundle
    assert both.startswith(old) and both.count("BEGIN CERTIFICATE") == 2
    new = both.removeprefix(old)
    authority.published(old, now_s + 1)
    assert vouches(old, served(authority), SERVICE, now_s), "who has not heard of the new one must be served by the old one"
    authority.published(both, now_s + 2)
    authority = Authority(OnVolume(tmp_path), NAMES, now_s + 3)
    authority.tend(now_s + 1 + SETTLED_S)
    assert vouches(old, served(authority), SERVICE, now_s + SETTLED_S)
    authority.tend(now_s + 2 + SETTLED_S)
    after_s = now_s + 2 + SETTLED_S
    assert vouches(new, served(authority), SERVICE, after_s) and not vouches(old, served(authority), SERVICE, after_s)
    assert authority.bundle == both
    assert Authority(OnVolume(tmp_path), NAMES, NOW_S + LIFE_S + DAY_S).bundle == new, "the old one has ended"


def test_a_lost_volume_means_a_new_ca_and_not_an_operator_that_will_not_start(tmp_path: Path) -> None:
    """The ledger may come back from a backup, the CA need not: proxies trust what their ConfigMap says."""
    old = Authority(OnVolume(tmp_path), NAMES, NOW_S).bundle
    (tmp_path / STATE).unlink()
    fresh = Authority(OnVolume(tmp_path), NAMES, NOW_S)
    assert fresh.bundle != old
    assert vouches(fresh.bundle, served(fresh), SERVICE, NOW_S) and not vouches(old, served(fresh), SERVICE, NOW_S)


@pytest.mark.parametrize("damage", ["cut", "rubbish", "another's key", "no certificate"])
def test_a_damaged_ca_is_followed_by_a_new_one(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """A torn file after a power loss would keep the operator down until somebody deletes it."""
    old = Authority(OnVolume(tmp_path), NAMES, NOW_S).bundle
    path = tmp_path / STATE
    content = msgspec.json.decode(path.read_bytes())
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "rubbish":
        path.write_bytes(b"\xff\x00")
    else:
        entry = content["authorities"][0]
        entry["key" if damage == "another's key" else "certificate"] = (
            new_ca(NOW_S, LIFE_S).key if damage == "another's key" else "-----BEGIN CERTIFICATE-----\n"
        )
        path.write_bytes(msgspec.json.encode(content))
    fresh = Authority(OnVolume(tmp_path), NAMES, NOW_S)
    assert fresh.bundle != old
    assert vouches(fresh.bundle, served(fresh), SERVICE, NOW_S)
    assert "is not used, a new one is made" in caplog.text


def test_a_ca_that_cannot_be_kept_is_not_used(tmp_path: Path) -> None:
    """Proxies would be told to trust a CA that is gone with the process."""
    authority = Authority(OnVolume(tmp_path), NAMES, NOW_S)
    before = authority.bundle
    (tmp_path / f".{STATE}" / "full").mkdir(parents=True)
    with pytest.raises(TlsError, match="cannot be kept"):
        authority.tend(NOW_S + LIFE_S - RENEW_S)
    assert authority.bundle == before
    with pytest.raises(TlsError, match="cannot be made"):
        Authority(OnVolume(tmp_path / STATE / "ca"), NAMES, NOW_S)


# Shared ---------------------------------------------------------------------------------------------------------------


def test_replicas_of_one_ledger_have_one_ca(tmp_path: Path, postgres: Server) -> None:
    """Proxies know the CA of whoever led before: with another they would not speak to the next leader for a minute."""
    url = postgres.database()

    def replica(name: str) -> tuple[InLedger, Authority]:
        kept = InLedger(url, tmp_path / name)
        return kept, Authority(kept, NAMES, NOW_S)

    with ThreadPoolExecutor(3) as pool:
        started = list(pool.map(replica, "abc"))
    bundles = {authority.bundle for _, authority in started}
    assert len(bundles) == 1
    assert all(vouches(bundles.copy().pop(), served(authority), SERVICE, NOW_S) for _, authority in started)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "no key lies on a disk"


def test_a_rotation_by_one_replica_is_followed_by_the_others(tmp_path: Path, postgres: Server) -> None:
    """The one that led and rotated is gone a day later: the next must sign with what the proxies were told."""
    url = postgres.database()
    kept, follower = InLedger(url, tmp_path / "b"), None
    follower = Authority(kept, NAMES, NOW_S)
    old = follower.bundle
    now_s = NOW_S + LIFE_S - RENEW_S
    leader = Authority(InLedger(url, tmp_path / "a"), NAMES, now_s)
    leader.published(leader.bundle, now_s)
    follower.tend(now_s + 1)
    assert follower.bundle == leader.bundle != old, "made by one, taken by the other, though it was not told"
    kept.look()
    follower.tend(now_s + SETTLED_S)
    assert vouches(leader.bundle.removeprefix(old), served(follower), SERVICE, now_s + SETTLED_S)


def test_a_ca_that_the_database_lost_is_put_back(tmp_path: Path, postgres: Server) -> None:
    """A database that was restored from before, or made anew beside a running operator."""
    url = postgres.database()
    kept = InLedger(url, tmp_path)
    authority = Authority(kept, NAMES, NOW_S)
    before = authority.bundle
    for spoilt in (None, "rubbish"):
        with psycopg.connect(url, autocommit=True) as session:
            session.execute("DELETE FROM meta WHERE name = 'sync_ca'")
            if spoilt is not None:
                session.execute("INSERT INTO meta VALUES ('sync_ca', 'rubbish')")
        kept.look()
        authority.tend(NOW_S + 1)
        assert authority.bundle == before
        assert Authority(InLedger(url, tmp_path / "other"), NAMES, NOW_S + 2).bundle == before


def test_a_database_that_is_away_leaves_the_certificate_in_use(tmp_path: Path, postgres: Server) -> None:
    """It is looked at every half minute, and most of its outages are shorter."""
    kept = InLedger(postgres.database(), tmp_path)
    authority = Authority(kept, NAMES, NOW_S)
    before = served(authority)
    postgres.stop()
    try:
        with pytest.raises(TlsError, match="the sync CA cannot be read: the ledger"):
            kept.look()
        authority.tend(NOW_S + DAY_S)
        assert served(authority) == before
    finally:
        postgres.start()


# Given ----------------------------------------------------------------------------------------------------------------


def give(path: Path, ca: Issued, names: tuple[str, ...] = (SERVICE,)) -> Issued:
    issued = server_certificate(ca, names, NOW_S, SERVER_LIFE_S)
    for name, text in zip(GIVEN, (issued.certificate, issued.key, ca.certificate), strict=True):
        (path / f".{name}").write_text(text)
        (path / f".{name}").replace(path / name)
    return issued


def test_a_given_certificate_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """cert-manager renews a Secret every few weeks: sync would end with the old one."""
    first, second = new_ca(NOW_S, LIFE_S), new_ca(NOW_S + 1, LIFE_S)
    give(tmp_path, first)
    tls = GivenTls(tmp_path)
    assert tls.bundle == first.certificate
    assert vouches(first.certificate, served(tls), SERVICE, NOW_S)
    tls.tend(NOW_S)
    give(tmp_path, second)
    tls.tend(NOW_S)
    assert tls.bundle == second.certificate
    assert vouches(second.certificate, served(tls), SERVICE, NOW_S)


@pytest.mark.parametrize("damage", ["another's key", "half", "gone"])
def test_a_given_certificate_that_does_not_fit_leaves_the_old_one_in_use(tmp_path: Path, damage: str) -> None:
    """A Secret edited by hand, or seen while the kubelet swaps it, would end sync for all."""
    ca = new_ca(NOW_S, LIFE_S)
    give(tmp_path, ca)
    tls = GivenTls(tmp_path)
    before = served(tls)
    if damage == "gone":
        (tmp_path / "tls.crt").unlink()
    else:
        text = (tmp_path / "tls.key").read_text()
        (tmp_path / "tls.key").write_text(text[: len(text) // 2] if damage == "half" else new_ca(NOW_S, LIFE_S).key)
    for _ in range(2):
        with pytest.raises(TlsError, match=r"cannot be used: .* It needs tls\.crt, tls\.key and ca\.crt"):
            tls.tend(NOW_S)
        assert served(tls) == before
    give(tmp_path, ca)
    tls.tend(NOW_S)
    assert served(tls) != before


def test_a_directory_without_a_certificate_is_refused_in_words(tmp_path: Path) -> None:
    """The operator must say what the Secret lacks."""
    with pytest.raises(TlsError, match=r"tls\.crt"):
        GivenTls(tmp_path)
