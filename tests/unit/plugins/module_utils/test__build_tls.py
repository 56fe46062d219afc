# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_features import (
    BRANCHES,
    Version,
    parse_version,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_tls import (
    Tls,
    openssl_range,
    parse_headers,
    parse_library_version,
    refuse_quic,
    refuse_tls,
)

HEADERS = {
    ("openssl", "3.0.19"): (
        '/* Could be: #define OPENSSL_VERSION_BUILD_METADATA "+fips" */\n# define OPENSSL_VERSION_BUILD_METADATA ""\n'
        '# define OPENSSL_VERSION_STR "3.0.19"\n# define OPENSSL_VERSION_TEXT "OpenSSL 3.0.19 27 Jan 2026"\n'
    ),
    ("openssl", "1.1.1w"): '# define OPENSSL_VERSION_TEXT    "OpenSSL 1.1.1w  11 Sep 2023"\n',
    ("openssl", "1.0.2k"): (
        '# ifdef OPENSSL_FIPS\n#  define OPENSSL_VERSION_TEXT    "OpenSSL 1.0.2k-fips  26 Jan 2017"\n# else\n'
        '#  define OPENSSL_VERSION_TEXT    "OpenSSL 1.0.2k  26 Jan 2017"\n# endif\n'
    ),
    ("quictls", "3.1.7"): (
        '# define OPENSSL_VERSION_BUILD_METADATA "+quic"\n# define OPENSSL_VERSION_TEXT "OpenSSL 3.1.7+quic 3 Sep 2024"\n'
    ),
    ("quictls", "1.1.1w"): '# define OPENSSL_VERSION_TEXT "OpenSSL 1.1.1w+quic  11 Sep 2023"\n',
    ("libressl", "4.3.2"): (
        '#define LIBRESSL_VERSION_NUMBER 0x4030200fL\n#define LIBRESSL_VERSION_TEXT\t"LibreSSL 4.3.2"\n'
        "#define OPENSSL_VERSION_NUMBER\t0x20000000L\n#define OPENSSL_VERSION_TEXT\tLIBRESSL_VERSION_TEXT\n"
    ),
    ("aws-lc", "1.69.0"): (
        '#define OPENSSL_IS_AWSLC\n#define AWSLC_API_VERSION 35\n#define AWSLC_VERSION_NUMBER_STRING "1.69.0"\n'
        '#define OPENSSL_VERSION_TEXT "OpenSSL 1.1.1 (compatible; AWS-LC " AWSLC_VERSION_NUMBER_STRING ")"\n'
    ),
    ("aws-lc", ""): "#define OPENSSL_IS_AWSLC\n#define OPENSSL_IS_BORINGSSL\n",
    ("boringssl", ""): "#define OPENSSL_IS_BORINGSSL\n#define OPENSSL_VERSION_NUMBER 0x1010107f\n",
    ("wolfssl", "5.7.2"): (
        '#define LIBWOLFSSL_VERSION_STRING "5.7.2"\n#define LIBWOLFSSL_VERSION_HEX 0x05007002\n'
    ),
}


def tls_problems(version: str, tls: Tls, *features: str, own: bool = False) -> list[str]:
    parsed = parse_version(version)
    assert parsed is not None
    return refuse_tls(parsed, tls, ["USE_OPENSSL", *features], own=own)


def quic_problems(version: str, tls: Tls, *features: str, own: bool = False) -> list[str]:
    parsed = parse_version(version)
    assert parsed is not None
    return refuse_quic(parsed, tls, ["USE_OPENSSL", "USE_QUIC", *features], own=own)


@pytest.mark.parametrize(("name", "version"), sorted(HEADERS))
def test_a_library_is_told_by_its_headers(name: str, version: str) -> None:
    """OpenSSL 3.0: Debian 12's opensslv.h; AWS-LC: base.h of 1.69.0 and the older form of OPENSSL_VERSION_TEXT."""
    assert parse_headers(HEADERS[(name, version)]) == {"name": name, "version": version}


@pytest.mark.parametrize(
    "text", ["", "int main(void);", '#define OPENSSL_VERSION_TEXT "GnuTLS"', "\0\n#define"]
)
def test_what_is_no_library_is_none(text: str) -> None:
    assert parse_headers(text) is None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3.0.17-1~deb12u2", (3, 0, 17)),
        ("1.1.1w-0+deb11u1", (1, 1, 1)),
        ("1:3.5", (3, 5, 0)),
        ("", None),
        ("unknown", None),
    ],
)
def test_a_librarys_version_is_read(text: str, numbers: tuple[int, ...] | None) -> None:
    assert parse_library_version(text) == numbers


@pytest.mark.parametrize(
    ("version", "openssl", "fits"),
    [
        ("2.2.9", "1.1.1w", True),
        ("2.2.9", "3.0.20", False),
        ("2.3.21", "3.0.20", False),
        ("2.4.9", "3.0.20", False),
        ("2.4.22", "3.0.20", True),
        ("2.4.22", "1.0.2u", True),
        ("2.6.12", "3.0.20", True),
        ("2.6.12", "0.9.8", False),
        ("3.0.11", "1.0.2", True),
        ("3.0.11", "3.5.9", True),
        ("3.3.1", "4.0.0", False),
        ("3.4.7", "4.0.0", True),
        ("3.4.7", "1.0.1", False),
    ],
)
def test_openssl_has_to_fit(version: str, openssl: str, fits: bool) -> None:
    """2.2.9's ssl_sock.c does not compile with OpenSSL 3.0.19's headers, that of 2.6.12 and 3.0.11 does (tried).

    2.4: HAProxy's issue 1276; 0.9.8: INSTALL of 2.2.9 and 2.6.12; 4.0: CHANGELOG of 3.4-dev.
    """
    assert (tls_problems(version, Tls("openssl", openssl)) == []) is fits


def test_an_openssl_that_does_not_fit_is_refused_with_the_way_out() -> None:
    assert tls_problems("2.2.9-2+deb11u6", Tls("openssl", "3.0.20-1~deb12u2")) == [
        "haproxy_build_features: HAProxy 2.2.9-2+deb11u6 compiles with OpenSSL before 3.0.0, not with OpenSSL 3.0.20-1~deb12u2 "
        "of the system (libssl-dev); build HAProxy 2.4 or newer, give an older OpenSSL of your own in haproxy_build_tls_library, "
        "or set USE_OPENSSL: false"
    ]


def test_an_unknown_openssl_is_not_refused() -> None:
    for branch in BRANCHES:
        version = Version("", branch, 99)
        assert refuse_tls(version, Tls(), ["USE_OPENSSL"], own=False) == []
        first, below = openssl_range(version)
        assert first < (1, 1, 1) < below


@pytest.mark.parametrize(
    ("name", "since"), [("wolfssl", (2, 7)), ("aws-lc", (2, 9)), ("quictls", (2, 2))]
)
def test_a_library_has_a_first_branch(name: str, since: tuple[int, int]) -> None:
    """wolfSSL: CHANGELOG of 2.7-dev10; AWS-LC: of 2.9-dev5."""
    tls = Tls(name, "", "/opt/tls")
    features = [f for f in (tls.kind.feature, "USE_OPENSSL") if f]
    for branch in BRANCHES:
        problems = refuse_tls(Version("", branch, 99), tls, features, own=False)
        assert (problems == []) is (branch >= since), (branch, problems)


@pytest.mark.parametrize(
    ("version", "name", "old", "fits"),
    [
        ("3.0.11", "aws-lc", "1.12.0", "1.13.0"),
        ("3.1.0", "aws-lc", "1.21.0", "1.22.0"),
        ("3.0.11", "wolfssl", "5.6.4", "5.6.6"),
    ],
)
def test_a_library_has_an_oldest_version(version: str, name: str, old: str, fits: str) -> None:
    """INSTALL of 3.0.11; AWS-LC for 3.1: CHANGELOG of 3.1-dev1."""
    feature = Tls(name).kind.feature or ""
    assert tls_problems(version, Tls(name, fits, "/opt/tls"), feature) == []
    (problem,) = tls_problems(version, Tls(name, old, "/opt/tls"), feature)
    assert f"{old} in /opt/tls is too old" in problem


def test_boringssl_is_refused() -> None:
    assert "no longer supports BoringSSL" in tls_problems("3.2.1", Tls("boringssl", "", "/b"))[0]


def test_a_variant_needs_its_library() -> None:
    for problems in (
        tls_problems("3.2.1", Tls("openssl", "3.5.9"), "USE_OPENSSL_AWSLC"),
        tls_problems("3.2.1", Tls("quictls", "3.3.0", "/q"), "USE_OPENSSL_WOLFSSL"),
    ):
        assert len(problems) == 1
        assert "does not go with" in problems[0]
    # SSL_INC is given: nobody can say what is there.
    assert tls_problems("2.2.9", Tls("openssl", "3.0.20"), own=True) == []


def test_a_library_without_tls_is_refused() -> None:
    version = parse_version("3.2.1")
    assert version is not None
    assert "is of no use" in refuse_tls(version, Tls("quictls", "", "/q"), [], own=False)[0]
    assert refuse_tls(version, Tls("openssl", "9.9.9"), [], own=False) == []


def test_ech_needs_an_openssl_that_has_it() -> None:
    assert (
        "USE_ECH needs OpenSSL 4.0" in tls_problems("3.4.7", Tls("openssl", "3.6.5"), "USE_ECH")[0]
    )
    assert tls_problems("3.4.7", Tls("openssl", "4.0.2"), "USE_ECH") == []
    assert tls_problems("3.4.7", Tls("openssl", "3.6.0", "/ech"), "USE_ECH") == []


@pytest.mark.parametrize(
    ("version", "tls", "compat", "said"),
    [
        ("2.4.22", Tls("quictls", "1.1.1w", "/q"), False, "no more than the beginnings of QUIC"),
        ("2.6.12", Tls("openssl", "3.0.20"), False, "cannot do QUIC with OpenSSL's own interface"),
        ("2.6.12", Tls("quictls", "3.1.7", "/q"), False, None),
        ("2.6.12", Tls("libressl", "3.8.2", "/l"), False, "2.7 and newer can"),
        ("2.7.9", Tls("libressl", "3.5.0", "/l"), False, "needs LibreSSL 3.6.0 or newer"),
        ("2.7.9", Tls("libressl", "3.8.2", "/l"), False, None),
        ("2.8.10", Tls("openssl", "3.0.20"), False, "add USE_QUIC_OPENSSL_COMPAT: true"),
        ("2.8.10", Tls("openssl", "3.0.20"), True, None),
        (
            "3.0.11",
            Tls("openssl", "3.5.9"),
            False,
            "or build HAProxy 3.2 or newer with OpenSSL 3.5.1",
        ),
        ("3.0.11", Tls("openssl", "1.1.0l"), True, "needs OpenSSL 1.1.1 or newer"),
        ("3.0.11", Tls("aws-lc", "1.30.0", "/a"), True, "is for OpenSSL only"),
        ("3.0.11", Tls("aws-lc", "1.30.0", "/a"), False, None),
        ("3.2.26", Tls("openssl", "3.5.9"), False, None),
        ("3.2.26", Tls("openssl", "3.5.0"), False, "needs OpenSSL 3.5.1 or newer"),
        ("3.2.26", Tls("openssl", ""), False, None),
        ("3.2.2", Tls("openssl", "3.5.9"), False, "does not compile with OpenSSL's interface"),
        ("3.2.26", Tls("openssl", "3.0.20"), True, None),
    ],
)
def test_quic_needs_its_library(version: str, tls: Tls, compat: bool, said: str | None) -> None:
    """INSTALL of 2.6.12 and 3.0.11; LibreSSL: CHANGELOG of 2.7-dev; OpenSSL 3.5: of 3.2-dev17 and 3.3-dev3; 3.2.2: HAProxy's issue 3027.

    Debian's own 3.0.11 has the layer, and 3.2.26 has QUIC without it (`haproxy -vv`).
    """
    features = ["USE_QUIC_OPENSSL_COMPAT"] if compat else []
    if tls.kind.feature:
        features.append(tls.kind.feature)
    problems = quic_problems(version, tls, *features)
    if said is None:
        assert problems == []
    else:
        assert len(problems) == 1
        assert said in problems[0]


def test_quic_needs_tls_and_the_layer_quic() -> None:
    version = parse_version("3.2.26")
    assert version is not None
    assert "needs TLS" in refuse_quic(version, Tls(), ["USE_QUIC"], own=False)[0]
    alone = refuse_quic(version, Tls(), ["USE_QUIC_OPENSSL_COMPAT", "USE_OPENSSL"], own=False)
    assert "does nothing without USE_QUIC" in alone[0]
    assert quic_problems("2.6.12", Tls("openssl", "3.0.20"), own=True) == []
