"""The registry's authority and what it signs."""

from __future__ import annotations

import datetime
import ssl
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.verification import PolicyBuilder, Store

from mirror.errors import InvalidCertificateError
from mirror.nodeconfig import pki
from mirror.nodeconfig.cluster import Node
from mirror.nodeconfig.pki import Authorities, KeyPair
from mirror.nodeconfig.service_secrets import prepare_secrets, renewed

NOW = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
DAY = datetime.timedelta(days=1)
MASTER = Node("master-0", "10.0.0.1")
NAMES = pki.node_names("10.0.0.1")


@cache
def authority() -> KeyPair:
    return pki.create_authority(NOW)


def authorities() -> Authorities:
    return Authorities(authority())


@cache
def leaf() -> KeyPair:
    return pki.issue(authority(), pki.DISTRIBUTION_NAME, NAMES, NOW)


def test_the_authority_is_ecdsa_p256_and_lives_ten_years() -> None:
    certificate = authority().parsed()
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert certificate.not_valid_after_utc - NOW == datetime.timedelta(days=3650)
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert basic.value.ca
    certificate.verify_directly_issued_by(certificate)


@pytest.mark.parametrize("name", ["registry-auth", "registry-distribution"])
def test_a_leaf_is_rsa_2048_and_ends_an_hour_before_the_authority(name: str) -> None:
    certificate = pki.issue(authority(), name, NAMES, NOW).parsed()
    key = certificate.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    assert key.key_size == 2048
    assert authority().parsed().not_valid_after_utc - certificate.not_valid_after_utc == HOUR
    assert certificate.subject.rfc4514_string() == f"CN={name}"


def test_a_master_is_named_by_its_address_and_the_in_cluster_proxy_is_not() -> None:
    always = {"127.0.0.1", "localhost", "registry.d8-system.svc"}
    assert pki.covered_hosts(leaf().parsed()) == {"10.0.0.1", *always}
    assert set(pki.node_names(None)) == always
    assert pki.node_names("127.0.0.1") == pki.node_names(None)
    six = pki.issue(authority(), "registry-auth", pki.node_names("fd00::1"), NOW)
    assert pki.covered_hosts(six.parsed()) == {"fd00::1", *always}


@pytest.mark.parametrize("name", NAMES)
def test_a_strict_verifier_accepts_the_chain_for_every_name(name: str) -> None:
    subject = x509.DNSName(name) if name[0].isalpha() else _address(name)
    store = Store([authority().parsed()])
    verifier = PolicyBuilder().store(store).time(NOW).build_server_verifier(subject)
    assert len(verifier.verify(leaf().parsed(), [])) == 2
    ssl.create_default_context(cadata=authority().certificate)


def _address(text: str) -> x509.IPAddress:
    import ipaddress

    return x509.IPAddress(ipaddress.ip_address(text))


def test_the_token_pair_signs_and_serves_nothing() -> None:
    certificate = pki.issue(authority(), pki.TOKEN_NAME, (), NOW).parsed()
    certificate.verify_directly_issued_by(authority().parsed())
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert pki.covered_hosts(certificate) == frozenset()


def test_a_sound_leaf_is_kept() -> None:
    kept = pki.pair_to_use(leaf(), authorities(), pki.DISTRIBUTION_NAME, NAMES, NOW)
    assert kept is leaf()
    fewer = pki.pair_to_use(leaf(), authorities(), pki.DISTRIBUTION_NAME, NAMES[:2], NOW)
    assert fewer is leaf()


def test_a_leaf_is_replaced_when_a_name_is_missing() -> None:
    more = [*NAMES, "10.0.0.2"]
    fresh = pki.pair_to_use(leaf(), authorities(), pki.DISTRIBUTION_NAME, more, NOW)
    assert fresh != leaf()
    assert set(more) <= pki.covered_hosts(fresh.parsed())


def test_a_leaf_is_replaced_when_the_authority_is_another() -> None:
    other = pki.create_authority(NOW)
    fresh = pki.pair_to_use(leaf(), Authorities(other), pki.DISTRIBUTION_NAME, NAMES, NOW)
    fresh.parsed().verify_directly_issued_by(other.parsed())


def test_a_leaf_is_replaced_when_it_has_ended_or_its_key_is_another() -> None:
    late = leaf().parsed().not_valid_after_utc + HOUR
    assert not pki._sound(leaf(), authorities(), NAMES, late)
    stranger = pki.issue(authority(), "registry-auth", NAMES, NOW)
    mixed = KeyPair(leaf().certificate, stranger.key)
    assert pki.pair_to_use(mixed, authorities(), "registry-auth", NAMES, NOW) != mixed
    damaged = KeyPair("-----BEGIN", leaf().key)
    assert pki.pair_to_use(damaged, authorities(), "registry-auth", NAMES, NOW) != damaged


def test_an_authority_is_kept_until_it_can_sign_no_more() -> None:
    assert pki.authorities_to_use(authorities(), NOW) == authorities()
    end = authority().parsed().not_valid_after_utc
    assert pki.authorities_to_use(authorities(), end - 2 * HOUR).signing is authority()
    assert pki.authorities_to_use(authorities(), end - HOUR).signing != authority()


def test_an_authority_that_is_none_is_refused_and_never_replaced_silently() -> None:
    with pytest.raises(InvalidCertificateError, match="may not sign others"):
        pki.authorities_to_use(Authorities(leaf()), NOW)
    stranger = KeyPair(authority().certificate, pki.create_authority(NOW).key)
    with pytest.raises(InvalidCertificateError, match="does not belong to the certificate"):
        pki.authorities_to_use(Authorities(stranger), NOW)
    with pytest.raises(InvalidCertificateError, match="expected PEM certificates"):
        pki.authorities_to_use(Authorities(KeyPair("nothing", "nothing")), NOW)
    with pytest.raises(InvalidCertificateError, match="unencrypted PEM key"):
        pki.authorities_to_use(Authorities(KeyPair(authority().certificate, "nothing")), NOW)


def test_a_successor_is_trusted_before_it_signs_and_the_old_authority_until_it_ends() -> None:
    end = authority().parsed().not_valid_after_utc
    third = pki.AUTHORITY_LIFE / 3
    early = end - third - DAY
    assert pki.authorities_to_use(authorities(), early) == authorities()
    begun = pki.authorities_to_use(authorities(), end - third)
    assert begun.signing is authority()
    assert begun.successor is not None
    assert begun.trusted == authority().certificate + begun.successor.certificate
    waiting = pki.authorities_to_use(begun, end - third + pki.OVERLAP - DAY)
    assert waiting == begun
    taken = pki.authorities_to_use(waiting, end - third + pki.OVERLAP)
    assert taken == Authorities(begun.successor, None, (authority().certificate,))
    assert pki.authorities_to_use(taken, end - HOUR) == taken
    assert pki.authorities_to_use(taken, end).trusted == begun.successor.certificate


def test_a_leaf_is_renewed_a_third_of_its_life_before_it_ends() -> None:
    end = leaf().parsed().not_valid_after_utc
    later = Authorities(pki.create_authority(NOW + 5 * DAY), None, (authority().certificate,))
    third = (end - NOW) / 3
    arguments = (pki.DISTRIBUTION_NAME, NAMES)
    assert pki.pair_to_use(leaf(), later, *arguments, end - third - DAY) is leaf()
    fresh = pki.pair_to_use(leaf(), later, *arguments, end - third)
    fresh.parsed().verify_directly_issued_by(later.signing.parsed())
    # By the same authority it would end at the same moment, and be due again and again.
    assert pki.pair_to_use(leaf(), authorities(), *arguments, end - third) is leaf()


@pytest.mark.usefixtures("quick_keys")
def test_no_client_ever_meets_a_certificate_that_it_does_not_trust_yet() -> None:
    """Clients that learn all authorities anew once a month, over two lives of an authority."""
    kept, known, tokens, now = None, "", "", NOW
    signers: set[str] = set()
    while now < NOW + 2 * pki.AUTHORITY_LIFE:
        kept = prepare_secrets(kept, [MASTER], now)
        for pair in (kept.nodes[MASTER.name].auth, kept.nodes[MASTER.name].distribution):
            store = Store(pki.parse_certificates(known or kept.trusted, "what clients know"))
            verifier = PolicyBuilder().store(store).time(now)
            verifier.build_server_verifier(_address(MASTER.address)).verify(pair.parsed(), [])
            assert pair.parsed().not_valid_after_utc - now > datetime.timedelta(days=1000)
        assert kept.token.certificate in (tokens or kept.tokens.trusted)
        known, tokens = kept.trusted, kept.tokens.trusted
        now += pki.OVERLAP - DAY
        signers.add(kept.authority.certificate)
    assert len(signers) == 3


@pytest.mark.usefixtures("quick_keys")
def test_nodes_change_to_a_new_authority_on_different_days() -> None:
    nodes = [Node(f"master-{n}", f"10.0.0.{n}") for n in range(5)]
    kept = prepare_secrets(None, nodes, NOW)
    end = kept.authority.parsed().not_valid_after_utc
    changed: dict[str, datetime.datetime] = {}
    signs = trusted = None
    now = end - pki.AUTHORITY_LIFE / 3 - DAY
    while now < end - pki.AUTHORITY_LIFE / 3 + 3 * pki.OVERLAP:
        before, kept = kept, prepare_secrets(kept, nodes, now)
        if kept.successor != before.successor and kept.successor is not None:
            trusted = now
        if kept.authority != before.authority:
            signs = now
        for name, leaves in kept.nodes.items():
            if leaves != before.nodes[name]:
                assert leaves.auth != before.nodes[name].auth
                assert leaves.distribution != before.nodes[name].distribution
                assert name not in changed
                changed[name] = now
        now += DAY
    assert trusted is not None
    assert signs is not None
    assert signs - trusted >= pki.OVERLAP
    assert changed.keys() == kept.nodes.keys()
    assert len(set(changed.values())) > 2
    assert all(signs <= day <= signs + pki.OVERLAP for day in changed.values())
    assert prepare_secrets(kept, nodes, now) == kept


@pytest.mark.usefixtures("quick_keys")
def test_a_leaf_near_its_end_waits_for_no_day_of_its_own() -> None:
    """Whoever has not rendered for years is served at once."""
    held = prepare_secrets(None, [MASTER], NOW)
    now = authority().parsed().not_valid_after_utc - DAY
    begun = prepare_secrets(held, [MASTER], now - 2 * pki.OVERLAP)
    fresh = prepare_secrets(begun, [MASTER], now - pki.OVERLAP)
    assert fresh.authority == begun.successor
    assert fresh.nodes[MASTER.name] != held.nodes[MASTER.name]


@pytest.mark.usefixtures("quick_keys")
def test_a_clock_that_is_behind_replaces_nothing() -> None:
    held = prepare_secrets(None, [MASTER], NOW)
    assert prepare_secrets(held, [MASTER], NOW - pki.CLOCK_SKEW) == held
    with pytest.raises(InvalidCertificateError) as caught:
        prepare_secrets(held, [MASTER], NOW - 2 * DAY)
    assert str(caught.value) == (
        "authority: it begins at 2026-03-01 11:00 UTC, and this machine's clock says "
        "2026-02-27 12:00; set the clock"
    )


@pytest.mark.usefixtures("quick_keys")
def test_what_was_renewed_is_told() -> None:
    held = prepare_secrets(None, [MASTER], NOW)
    assert renewed(None, held) == ()
    assert renewed(held, held) == ()
    more = prepare_secrets(held, [MASTER, Node("master-1", "10.0.0.2")], NOW)
    assert renewed(held, more) == (
        "auth of master-1 (until 2036-02-27)",
        "distribution of master-1 (until 2036-02-27)",
    )
    third = authority().parsed().not_valid_after_utc - pki.AUTHORITY_LIFE / 3
    begun = prepare_secrets(held, [MASTER], third)
    assert renewed(held, begun) == (
        "next authority (until 2042-10-26), trusted from now on; it signs 30 days later",
    )
    later = third + 3 * pki.OVERLAP
    taken = prepare_secrets(begun, [MASTER], later)
    former = "the former one stays trusted"
    assert renewed(begun, taken) == (
        f"authority (until 2042-10-26) signs from now on; {former}",
        "next token pair (until 2042-10-26), known from now on",
        "auth of in-cluster proxy (until 2042-10-26)",
        "distribution of in-cluster proxy (until 2042-10-26)",
        "auth of master-0 (until 2042-10-26)",
        "distribution of master-0 (until 2042-10-26)",
    )
    signs = prepare_secrets(taken, [MASTER], later + pki.OVERLAP)
    assert renewed(taken, signs) == ("token pair (until 2042-10-26)",)
    assert prepare_secrets(signs, [MASTER], later + pki.OVERLAP).token_former
    assert not prepare_secrets(signs, [MASTER], later + 2 * pki.OVERLAP).token_former
    ended = prepare_secrets(taken, [MASTER], authority().parsed().not_valid_after_utc + DAY)
    assert renewed(taken, ended) == (
        "1 former authorities are not trusted any more",
        "token pair (until 2042-10-26)",
    )


def test_leaves_are_for_servers_and_no_more() -> None:
    def of(certificate: x509.Certificate) -> dict[str, object]:
        return {one.oid._name: one.value for one in certificate.extensions}

    server, token = of(leaf().parsed()), of(pki.issue(authority(), "t", (), NOW).parsed())
    assert server.keys() == {
        *("basicConstraints", "subjectKeyIdentifier", "authorityKeyIdentifier", "keyUsage"),
        *("extendedKeyUsage", "subjectAltName"),
    }
    assert token.keys() == server.keys() - {"extendedKeyUsage", "subjectAltName"}
    assert server["extendedKeyUsage"] == x509.ExtendedKeyUsage(
        [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    )
    assert server["keyUsage"] == pki._usage("digital_signature", "key_encipherment")
    assert token["keyUsage"] == pki._usage("digital_signature")


def test_a_key_shows_in_no_repr() -> None:
    assert "PRIVATE" not in repr(leaf())


def test_only_certificates_remain_of_a_pem_text() -> None:
    text = f"# our own\n{authority().certificate}$(reboot)\n{leaf().certificate}"
    assert pki.clean_pem(text, "ca") == authority().certificate + leaf().certificate
    with pytest.raises(InvalidCertificateError, match=r"^the CA: expected PEM"):
        pki.clean_pem("$(reboot)", "the CA")
