# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import dataclasses
import types
import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils._certificate import (
    KINDS,
    Certificate,
    CertificateJob,
    Content,
    Crl,
    Entry,
    Held,
    Listing,
    parse_content,
    parse_entries,
    parse_listing,
    read_pem,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    PAYLOAD_LIMIT,
    encode,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    Error,
    InputError,
    NotFoundError,
    ParseError,
)

CERT, CA, CRL = KINDS["certificate"], KINDS["ca_file"], KINDS["crl_file"]

# Made with openssl: CN=a.test of CN=ca1, CN=ca2, and two CRLs of ca1.
LEAF = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARygAwIBAgIUIph8JbyRMdwBBNCp8H6b06Z3CbcwCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDY2ExMB4XDTI2MTEyMzEzNDA1NloXDTM2MTEyMDEzNDA1Nlow
ETEPMA0GA1UEAwwGYS50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMvVZ
i4Yh2h7jPppKFoLnO/qLpNvjA2DQi89kenvAfJt+GFGhZkiUvo6EuV6kK4st9/z7
rCYDcTxBtmjiPx0tm6NVMFMwEQYDVR0RBAowCIIGYS50ZXN0MB0GA1UdDgQWBBTi
2JVEPdzMgkrkBESZb5SblNz0UzAfBgNVHSMEGDAWgBQqUBMlcFCC1vX/0KOCSLWD
K2xMDTAKBggqhkjOPQQDAgNHADBEAiABaM2MhScqLJoxM9iuF8PBhE+Vx4gSHP06
2dG50gvK0QIgSdp91Kz3ruT4oj8yZN4S27FnOjRBgMyYTFwRoztnV0I=
-----END CERTIFICATE-----
"""
AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBgDCCASegAwIBAgIUVEbM8Pl7Ra+ZzhMzg3pBaby8PLAwCgYIKoZIzj0EAwIw
DjEMMAoGA1UEAwwDY2EyMB4XDTI2MTEyMzEzNDA1NloXDTM2MTEyMDEzNDA1Nlow
DjEMMAoGA1UEAwwDY2EyMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAElcj0vX04
dG0LbU90Y0WlCJlpAvPtQB2Ey8gZ3WDgmes1HNodKJjUJZvpiXMqjCjn0ta48hjD
+R9AC218BznZ9aNjMGEwHQYDVR0OBBYEFD6MNDmInWqfkY15RA4gm3QNt83sMB8G
A1UdIwQYMBaAFD6MNDmInWqfkY15RA4gm3QNt83sMA8GA1UdEwEB/wQFMAMBAf8w
DgYDVR0PAQH/BAQDAgEGMAoGCCqGSM49BAMCA0cAMEQCIFMfcXkIjpugHcuXHjWn
pn5YsTQIXYu+itQrIKVAsw7VAiBqQKZUqQ6Si/REJaWCUdFexbkvofmmPf6yPKnU
+cHsRQ==
-----END CERTIFICATE-----
"""
EMPTY_CRL = """\
-----BEGIN X509 CRL-----
MIGlME0CAQEwCgYIKoZIzj0EAwIwDjEMMAoGA1UEAwwDY2ExFw0yNjExMjMxMzQw
NTZaFw0yNzA5MTkxMzQwNTZaoA4wDDAKBgNVHRQEAwIBATAKBggqhkjOPQQDAgNI
ADBFAiB7efAC2hU0qkk2Vt/M+BWGYdFH0YIjdA5vinkAb6DNTgIhALHVBj7/YdZg
lLBkWCreSH5WP4qPfYcCBjzQwVddpxg8
-----END X509 CRL-----
"""
ONE_CRL = """\
-----BEGIN X509 CRL-----
MIHOMHYCAQEwCgYIKoZIzj0EAwIwDjEMMAoGA1UEAwwDY2ExFw0yNjExMjMxMzQw
NTZaFw0yNzA5MTkxMzQwNTZaMCcwJQIUIph8JbyRMdwBBNCp8H6b06Z3CbkXDTI2
MTEyMzEzNDA1NlqgDjAMMAoGA1UdFAQDAgECMAoGCCqGSM49BAMCA0gAMEUCIDVv
Wv3Q463zVuuM5lr8kdaaj0Bigqf5hRIrgwSjHWH0AiEAj5r/ZL9dFPHSOf9UoEcX
g7gUW1F+YjWcjWKpMdSi1oo=
-----END X509 CRL-----
"""

# Nobody but HAProxy looks into a key.
SECRET = base64.b64encode(bytes(range(120))).decode()
KEY = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"
FINGERPRINT = "574D244D9FDD63362B32EE2B5570E7F006221F39"
AUTHORITY_PRINT = "57F7937210DC60B1D16D38BAC0E779B6C1512943"


# --- PEM ------------------------------------------------------------------------------------


def test_certificate_is_known_by_its_fingerprint() -> None:
    pem = read_pem(f"{LEAF}{KEY}{AUTHORITY}", CERT, "content")
    assert [one.as_dict() for one in pem.content.certificates] == [
        {"fingerprint": FINGERPRINT, "not_after": "2036-11-20T13:40:56Z"},
        {"fingerprint": AUTHORITY_PRINT, "not_after": "2036-11-20T13:40:56Z"},
    ]
    assert [block[0] for block in pem.blocks] == [
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----",
    ]
    assert "".join(pem.secrets) == SECRET
    assert all(len(line) <= 64 for block in pem.blocks for line in block)
    assert SECRET[:20] not in repr(pem)


def test_what_is_around_the_blocks_is_left_out() -> None:
    tidy = read_pem(LEAF + KEY, CERT, "content")
    untidy = f"Bag Attributes\r\n\r\n{LEAF}\n\n  {KEY}".replace("\n", "\r\n") + "bye"
    curve = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    assert read_pem(curve + untidy, CERT, "content") == tidy


def test_crls_are_known_by_what_they_say() -> None:
    pem = read_pem(EMPTY_CRL + ONE_CRL, CRL, "content")
    empty, one = pem.content.crls
    assert empty == Crl("2026-11-23T13:40:56Z", "2027-09-19T13:40:56Z", frozenset())
    assert one.serials == {0x22987C25BC9131DC0104D0A9F07E9BD3A67709B9}


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("", CERT, "has no PEM block 'BEGIN CERTIFICATE'"),
        (KEY, CERT, "has no PEM block 'BEGIN CERTIFICATE'"),
        (LEAF, CERT, "has no private keys"),
        (LEAF + KEY + KEY, CERT, "has 2 private keys"),
        (LEAF + KEY, CA, "block 2 (PRIVATE KEY) does not belong into a CA file"),
        (LEAF, CRL, "block 1 (CERTIFICATE) does not belong into a CRL file"),
        (EMPTY_CRL, CA, "does not belong into a CA file"),
        ("", CRL, "BEGIN X509 CRL"),
        (LEAF + KEY.replace("PRIVATE", "ENCRYPTED PRIVATE"), CERT, "is encrypted"),
        (
            LEAF + KEY.replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
            CERT,
            "is encrypted",
        ),
        (LEAF + KEY.replace("PRIVATE", "OPENSSH PRIVATE"), CERT, "does not belong"),
        (LEAF + KEY.replace("-----END", "----END"), CERT, "no beginning or no end"),
        (LEAF.replace("-----BEGIN", "BEGIN") + KEY, CERT, "no beginning or no end"),
        (LEAF.replace("M", "!", 1) + KEY, CERT, "is damaged"),
        (LEAF.replace("MII", "MIA", 1) + KEY, CERT, "is damaged"),
        (EMPTY_CRL.replace("X509 CRL", "CERTIFICATE") + KEY, CERT, "is damaged"),
        (LEAF + KEY.replace(SECRET, SECRET[:-3]), CERT, "is damaged"),
    ],
)
def test_pem_that_haproxy_would_not_take(text: str, kind: t.Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_pem(text, kind, "content")
    assert words in str(caught.value)
    assert str(caught.value).startswith("content: ")
    assert SECRET[:20] not in str(caught.value)


@given(st.text(), st.sampled_from([CERT, CA, CRL]))
def test_any_text_as_pem(text: str, kind: t.Any) -> None:
    with pytest.raises(InputError):
        read_pem(text, kind, "content")


@given(
    st.binary(max_size=300) | st.binary(max_size=40).map(lambda more: b"\x30\x82\x01\x10" + more),
    st.sampled_from([("CERTIFICATE", CA), ("X509 CRL", CRL)]),
)
def test_any_bytes_as_der(der: bytes, what: tuple[str, t.Any]) -> None:
    label, kind = what
    code = base64.b64encode(der).decode()
    with pytest.raises(InputError):
        read_pem(f"-----BEGIN {label}-----\n{code}\n-----END {label}-----", kind, "content")


@given(st.sampled_from([(LEAF, CA), (ONE_CRL, CRL)]), st.integers(0), st.integers(0, 255))
def test_one_byte_is_wrong(which: tuple[str, t.Any], where: int, value: int) -> None:
    text, kind = which
    head, *body, tail = text.strip().split("\n")
    der = bytearray(base64.b64decode("".join(body)))
    der[where % len(der)] = value
    spoiled = "\n".join([head, base64.b64encode(der).decode(), tail])
    problem = "is damaged"
    try:
        assert read_pem(spoiled, kind, "content").blocks
    except InputError as exc:
        problem = str(exc)
    assert "is damaged" in problem


# --- replies --------------------------------------------------------------------------------

SHOWN = f"""\
Filename: /c/a.pem
Crt filename: /c/a.pem
Option: jwt off
Status: Used
Serial: 22987C25BC9131DC0104D0A9F07E9BD3A67709B7
notBefore: Nov 23 13:40:56 2026 GMT
notAfter: Nov  3 03:40:56 2036 GMT
Subject Alternative Name: DNS:a.test
Algorithm: EC256
SHA1 FingerPrint: {FINGERPRINT}
Subject: /CN=a.test
Issuer: /CN=ca1
Chain Subject: /CN=ca1
Chain Issuer: /CN=ca1
OCSP Response Key:\x20

"""


def test_listing() -> None:
    assert parse_listing("# filename\n/c/a.pem\n*odd\n\n", CERT) == Listing(("/c/a.pem", "*odd"))
    text = "# transaction\n*/c/a b\n# filename\n/c/a b\n/c/b - 3 certificate(s)\n\n"
    assert parse_listing(text, CERT) == Listing(("/c/a b", "/c/b - 3 certificate(s)"), "/c/a b")
    text = "# transaction\n*/ca - 2 certificate(s)\n# filename\n/ca - 1 certificate(s)\n\n"
    assert parse_listing(text, CA) == Listing(("/ca",), "/ca")
    # HAProxy has nothing to list.
    for nothing in ("", "\n", "\n\n"):
        assert parse_listing(nothing, CERT) == parse_listing(nothing, CA) == Listing(())
    for wrong in (" ", "x", "/c/a.pem\n", "# transaction\n*x\n"):
        with pytest.raises(ParseError):
            parse_listing(wrong, CERT)


def test_content() -> None:
    status, content = parse_content(SHOWN, CERT)
    assert status == "Used"
    assert content.certificates[0].as_dict() == {
        "fingerprint": FINGERPRINT,
        "not_after": "2036-11-03T03:40:56Z",
    }
    assert len(content.certificates) == 2
    assert parse_content("\n", CA) == ("Empty", Content())
    assert parse_content("Filename: x\nStatus: Empty\n\n", CERT) == ("Empty", Content())
    with pytest.raises(ParseError):
        parse_content("Can't display the certificate: Not found!\n", CERT)


def test_content_of_a_ca_file_with_repeated_first_lines() -> None:
    text = f"""\
Filename: /ca
Status: Unused
\x20
Certificate #1:
notAfter: Nov 20 13:40:56 2036 GMT
SHA1 FingerPrint: {FINGERPRINT}
Filename: /ca
Status: Unused
\x20
Certificate #2:
notAfter: some day
SHA1 FingerPrint: {AUTHORITY_PRINT}

"""
    status, content = parse_content(text, CA)
    assert status == "Unused"
    assert [one.fingerprint for one in content.certificates] == [FINGERPRINT, AUTHORITY_PRINT]
    assert [one.not_after for one in content.certificates] == ["2036-11-20T13:40:56Z", None]


def crl_text(serials: list[int], cut: str = "") -> str:
    lines = [
        f"    Serial Number: {one:08X}\n        Revocation Date: Nov 23 13:40:56 2026 GMT\n"
        for one in serials
    ]
    return (
        "Filename: /crl\nStatus: Used\n \nCertificate Revocation List #1:\nVersion 2\n"
        "Issuer: /CN=ca1\nLast Update: Nov 23 13:40:56 2026 GMT\n"
        f"Next Update: NONE\nRevoked Certificates:\n{''.join(lines)}{cut}\n"
    )


def test_content_of_a_crl_file() -> None:
    _status, content = parse_content(crl_text([1, 255]), CRL)
    assert content.crls == (Crl("2026-11-23T13:40:56Z", None, frozenset({1, 255})),)
    given = Crl("2026-11-23T13:40:56Z", None, frozenset({1, 255, 3}))
    assert not given.shown_as(content.crls[0])


def test_content_of_a_crl_that_is_cut_off() -> None:
    """The number at the end is not all of it."""
    _status, content = parse_content(crl_text([*range(300)], "    Serial Number: 00F"), CRL)
    (shown,) = content.crls
    assert shown.serials == set(range(300))
    assert not shown.whole
    when = "2026-11-23T13:40:56Z"
    assert Crl(when, None, frozenset(range(400))).shown_as(shown)
    assert not Crl(when, None, frozenset(range(299))).shown_as(shown)
    assert not Crl(when, when, frozenset(range(400))).shown_as(shown)


def test_entries() -> None:
    text = (
        "# /l\n/c/a:1 [alpn h2\0 verify none] A.test !b.a.test\n/c/a:2\n/c/ab:3 x\n"
        "/c/a:3 []\n/c/a:b:4 x\n/c/a:5 *.x\n\n"
    )
    assert parse_entries(text, "/c/a") == (
        Entry(1, (("alpn", "h2"), ("verify", "none")), frozenset({"a.test", "!b.a.test"})),
        Entry(2, (), frozenset()),
        Entry(3, (), frozenset()),
        Entry(5, (), frozenset({"*.x"})),
    )
    assert parse_entries("# /l\n\n", "/c/a") == ()
    with pytest.raises(ParseError):
        parse_entries("nothing\n", "/c/a")


LINES = """\
# filename
# transaction
*x
Status: Used
Serial Number: F
Last Update: Foo
notAfter: Foo 99 99:99:99 9999 GMT
SHA1 FingerPrint: x
Chain Subject: x
Certificate Revocation List #1:
x:1 [a
x:1 [alpn] y
x:99999999999
x:²
# x\0
"""
WORDS = st.lists(
    st.sampled_from(LINES.splitlines()) | st.text(max_size=20),
    max_size=12,
).map("\n".join)


@given(st.text() | WORDS, st.sampled_from([CERT, CA, CRL]))
def test_parsers_raise_nothing_but_parse_error(text: str, kind: t.Any) -> None:
    for parse in (
        lambda: parse_listing(text, kind),
        lambda: parse_content(text, kind),
        lambda: parse_entries(text, "x"),
    ):
        try:
            parse()
        except ParseError:
            continue


# --- planning -------------------------------------------------------------------------------

PARAMS: dict[str, t.Any] = {
    "name": "/c/a.pem",
    "kind": "certificate",
    "content": None,
    "path": None,
    "state": "present",
    "crt_list": None,
    "crt_list_options": None,
    "sni": None,
    "force": False,
}


def wanted(text: str | None = None, **params: t.Any) -> CertificateJob:
    return CertificateJob.from_params({**PARAMS, "content": text, **params}, text)


def client(version: tuple[int, int] = (3, 2)) -> t.Any:
    """Only what a plan may ask for."""
    return types.SimpleNamespace(where="/s", socket="/s", version=version)


def commands(job: CertificateJob, held: Held, version: tuple[int, int] = (3, 2)) -> list[str]:
    return [step.shown for step in job.plan(client(version), held).steps]


def holding(*certificates: Certificate, **more: t.Any) -> Held:
    listing = Listing(("/c/a.pem",))
    return dataclasses.replace(Held(listing, True, "Used", Content(certificates)), **more)


def test_present() -> None:
    job = wanted(LEAF + KEY)
    old, same = Certificate(AUTHORITY_PRINT, None), Certificate(FINGERPRINT, None)
    replace = ["set ssl cert /c/a.pem <<(15 lines)", "commit ssl cert /c/a.pem"]
    assert commands(job, Held(Listing(()), False)) == ["new ssl cert /c/a.pem", *replace]
    assert commands(job, holding(old)) == replace
    assert commands(job, holding(same)) == []
    # A longer chain may be HAProxy's doing; a shorter one is not.
    assert commands(job, holding(same, old)) == []
    assert commands(wanted(LEAF + KEY + AUTHORITY), holding(same)) != []
    assert commands(wanted(LEAF + KEY, force=True), holding(same)) == replace
    assert not any(
        step.readable for step in wanted(LEAF + KEY, force=True).plan(client(), holding(same)).steps
    )
    assert all(
        step.readable for step in wanted(LEAF + KEY, force=True).plan(client(), holding(old)).steps
    )


def test_pending_is_refused_only_where_something_is_to_be_sent() -> None:
    pending = Listing(("/c/a.pem",), "/c/b.pem")
    old, same = Certificate(AUTHORITY_PRINT, None), Certificate(FINGERPRINT, None)
    with pytest.raises(Error, match="neither committed nor aborted"):
        commands(wanted(LEAF + KEY), holding(old, listing=pending))
    assert commands(wanted(LEAF + KEY), holding(same, listing=pending)) == []


def test_only_the_refusal_of_the_exact_reply() -> None:
    """HAProxy 2.6 says `updated`, and for another file, when it has spoiled that one."""
    new, change, commit = wanted(LEAF + KEY).plan(client(), Held(Listing(()), False)).steps
    assert new.accepts("New empty certificate store '/c/a.pem'!\n\n")
    assert change.accepts("Transaction created for certificate /c/a.pem!\n\n")
    assert not change.accepts("Transaction updated for certificate /c/a.pem!\n\n")
    assert not change.accepts("Transaction created for certificate /c/axpem!\n\n")
    assert commit.accepts("Committing /c/a.pem....\nwarning\nSuccess!\n\n")
    assert not commit.accepts("Committing /c/a.pem\nunable to load\nFailed!\n\n")


def test_pieces() -> None:
    job = wanted(LEAF + AUTHORITY * 40, kind="ca_file", name="/ca")
    held = Held(Listing(()), False)
    assert [step.command.split()[0] for step in job.plan(client(), held).steps] == [
        "new",
        "set",
        "add",
        "commit",
    ]
    for step in job.plan(client(), held).steps:
        assert len(encode(step.wire)) <= PAYLOAD_LIMIT
    with pytest.raises(InputError, match=r"2\.7 and later take it in pieces"):
        commands(job, held, (2, 6))
    with pytest.raises(InputError, match="content: has 2"):
        commands(wanted(LEAF + KEY + AUTHORITY * 40), held)


def test_absent() -> None:
    entry = Entry(3, (), frozenset({"x"}))
    listed = {"/l": (entry, Entry(4, (), frozenset()))}
    assert commands(wanted(state="absent"), Held(Listing(()), False)) == []
    assert commands(wanted(state="absent"), holding(status="Unused")) == ["del ssl cert /c/a.pem"]
    with pytest.raises(Error, match="in use by a bind or server line"):
        commands(wanted(state="absent"), holding())
    with pytest.raises(Error, match="still in /l"):
        commands(wanted(state="absent"), holding(lists=listed))
    with pytest.raises(Error, match="still in /l"):
        commands(wanted(state="absent", crt_list="/l", sni=["x"]), holding(lists=listed))
    with pytest.raises(Error, match="still in /m"):
        commands(wanted(state="absent", crt_list="/l"), holding(lists={**listed, "/m": (entry,)}))
    assert commands(wanted(state="absent", crt_list="/l"), holding(lists=listed)) == [
        "del ssl crt-list /l /c/a.pem:3",
        "del ssl crt-list /l /c/a.pem:4",
        "del ssl cert /c/a.pem",
    ]
    assert commands(wanted(state="unlisted", crt_list="/l", sni=["X"]), holding(lists=listed)) == [
        "del ssl crt-list /l /c/a.pem:3"
    ]


def test_unknown_certificate() -> None:
    with pytest.raises(NotFoundError, match=r"there is /c/b\.pem"):
        commands(wanted(crt_list="/l"), Held(Listing(("/c/b.pem",)), False, lists={"/l": ()}))


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"name": ""}, "name: is empty"),
        ({"name": "a\nb"}, "name: is empty or has a line break"),
        ({"name": "a\0b"}, "name: is empty or has a line break or a NUL"),
        ({"name": "*a"}, "name '*a'"),
        ({"name": "a:1", "kind": "ca_file"}, "follows a colon"),
        ({"name": "a:1", "state": "unlisted", "content": None, "crt_list": "/l"}, "a colon"),
        ({"name": "a b", "crt_list": "/l", "sni": ["x"]}, "white space or a bracket"),
        ({"name": "#a", "crt_list": "/l", "crt_list_options": "alpn h2"}, "begins with '#'"),
        ({"content": None}, "state=present: needs content or path"),
        ({"path": ["/x"]}, "content and path: give one of them"),
        ({"state": "absent"}, "do not go with state=absent"),
        ({"state": "unlisted", "crt_list": "/l"}, "do not go with state=unlisted"),
        ({"state": "absent", "content": None, "force": True}, "do not go with state=absent"),
        ({"content": None, "crt_list": "/l", "force": True}, "force: needs content or path"),
        ({"state": "unlisted", "content": None}, "state=unlisted: needs crt_list"),
        ({"sni": ["x"]}, "need crt_list"),
        ({"crt_list_options": "alpn h2"}, "need crt_list"),
        ({"crt_list": "/l", "kind": "ca_file"}, "crt_list: goes with kind=certificate"),
        ({"crt_list": "a\rb"}, "crt_list: is empty or has a line break"),
        ({"crt_list": "/l", "crt_list_options": "ocsp-update on"}, "'ocsp-update' is not among"),
        ({"crt_list": "/l", "crt_list_options": "ca-verify-file x"}, "'ca-verify-file' is not"),
        ({"crt_list": "/l", "crt_list_options": "alpn"}, "'alpn' needs a value"),
        ({"crt_list": "/l", "crt_list_options": "alpn h2 alpn h2"}, "given twice"),
        ({"crt_list": "/l", "crt_list_options": "alpn h2]"}, "bracket"),
        ({"crt_list": "/l", "crt_list_options": "[alpn h2]"}, "is not among"),
        ({"crt_list": "/l", "sni": ["a b"]}, "sni: 'a b'"),
        ({"crt_list": "/l", "sni": ["#a"]}, "sni: '#a'"),
        ({"crt_list": "/l", "sni": ["[a]"]}, "sni: '[a]'"),
        ({"crt_list": "/l", "sni": ["a\nb"]}, "sni: 'a\\nb'"),
        ({"crt_list": "/l", "sni": [""]}, "sni: ''"),
    ],
)
def test_bad_input(params: dict[str, t.Any], words: str) -> None:
    full = {**PARAMS, "content": LEAF + KEY, **params}
    with pytest.raises(InputError) as caught:
        CertificateJob.from_params(full, full["content"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


PRINTS = st.lists(
    st.sampled_from([FINGERPRINT, AUTHORITY_PRINT, "00"]).map(lambda one: Certificate(one, None)),
    max_size=3,
).map(tuple)
CRLS = st.lists(
    st.builds(
        Crl,
        st.just("2026-11-23T13:40:56Z"),
        st.sampled_from(["2027-09-19T13:40:56Z", None]),
        st.frozensets(st.integers(0, 3)),
        st.booleans(),
    ),
    max_size=3,
).map(tuple)
ENTRIES = st.lists(
    st.builds(
        Entry,
        st.integers(0, 9),
        st.sampled_from([(), (("alpn", "h2"),), (("alpn", "h2"), ("verify", "none"))]),
        st.frozensets(st.sampled_from(["a", "!b", "*.c"])),
    ),
    max_size=3,
).map(tuple)


@given(st.data())
def test_nothing_is_left_to_do_behind_a_plan(data: st.DataObject) -> None:
    draw = data.draw
    kind = draw(st.sampled_from(["certificate", "ca_file", "crl_file"]))
    texts = {
        "certificate": [LEAF + KEY, LEAF + AUTHORITY + KEY, AUTHORITY + KEY],
        "ca_file": [LEAF, LEAF + AUTHORITY],
        "crl_file": [EMPTY_CRL, ONE_CRL, EMPTY_CRL + ONE_CRL, EMPTY_CRL * 2],
    }[kind]
    state = draw(st.sampled_from(["present", "absent", "unlisted"]))
    params: dict[str, t.Any] = {"kind": kind, "state": state}
    if kind == "certificate" and (state == "unlisted" or draw(st.booleans())):
        params["crt_list"] = "/l"
        params["crt_list_options"] = draw(
            st.sampled_from([None, "", "alpn h2", "verify none alpn h2"])
        )
        params["sni"] = draw(st.sampled_from([None, [], ["A"], ["a", "!B"]]))
    text = None
    if state == "present" and ("crt_list" not in params or draw(st.booleans())):
        text = draw(st.sampled_from(texts))
    if state == "unlisted" and kind != "certificate":
        return
    job = wanted(text, **params)
    held = Held(
        Listing(("/c/a.pem",)),
        draw(st.booleans()),
        draw(st.sampled_from(["Used", "Unused", "Empty"])),
        Content(draw(PRINTS), draw(CRLS)),
        {"/l": draw(ENTRIES)} if "crt_list" in params else {},
    )
    try:
        change = job.plan(client(), held)
    except Error:
        return
    for step in change.steps:
        assert encode(step.wire)
        assert SECRET[:12] not in step.shown
    assert bool(change.steps) is (change.before != change.after)
    after = job._after(held)
    if after.exists and after.status == "Empty":
        after = dataclasses.replace(after, status="Used")
    again = job.plan(client(), after)
    assert again.steps == ()
    assert again.before == again.after == change.after


@given(st.text(), st.text(), st.text(), st.text())
def test_hostile_words_stay_one_command(name: str, crt_list: str, options: str, sni: str) -> None:
    try:
        job = wanted(LEAF + KEY, name=name, crt_list=crt_list, crt_list_options=options, sni=[sni])
        steps = job.plan(client(), Held(Listing(()), False, lists={job.crt_list or "": ()})).steps
    except InputError:
        return
    for step in steps:
        line, _newline, payload = encode(step.wire).partition(b"\n")
        assert b"\r" not in line
        if step.payload is None:
            assert payload == b""
        else:
            assert payload.count(b"\n") == len(step.payload) + 1
