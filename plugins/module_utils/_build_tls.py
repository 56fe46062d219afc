# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: a version of HAProxy and a TLS library in, why they do not go together out. Private to the collection.

The facts are of HAProxy's INSTALL and CHANGELOG, and of its sources compiled with the libraries' headers.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_features import (
    BRANCHES,
    Branch,
    Version,
    knows,
    show,
)

# 2.4 and 2.5 have the switch and an unfinished QUIC.
QUIC_USABLE: Branch = (2, 6)
# QUIC by OpenSSL's own interface, without the compatibility layer; HAProxy refuses OpenSSL before 3.5.1.
QUIC_NATIVE: Branch = (3, 2)
QUIC_NATIVE_OPENSSL = (3, 5, 1)
# Releases of HAProxy that do not compile with it all the same.
QUIC_NATIVE_BROKEN = ((3, 2, 2),)
# The layer takes the secrets from OpenSSL's key log.
QUIC_COMPAT_OPENSSL = (1, 1, 1)
ECH_OPENSSL = (4, 0, 0)

# Branches from … on -> the OpenSSL versions (from, below) that they compile with.
_OPENSSL: tuple[tuple[Branch, tuple[int, ...], tuple[int, ...]], ...] = (
    ((2, 2), (0, 9, 8), (3, 0, 0)),
    ((2, 4), (0, 9, 8), (4, 0, 0)),
    ((2, 5), (1, 0, 0), (4, 0, 0)),
    ((3, 1), (1, 0, 2), (4, 0, 0)),
    ((3, 4), (1, 0, 2), (5, 0, 0)),
)
# The release of 2.4 from which on it compiles with OpenSSL 3.
_OPENSSL_3_IN_2_4 = 14
_LIBRARY = "haproxy_build_tls_library"
_FEATURES = "haproxy_build_features"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A TLS library: the branches that take it, those that can do QUIC with it, and its oldest usable versions by branch."""

    title: str
    since: Branch | None
    quic: Branch | None
    feature: str | None = None
    oldest: tuple[tuple[Branch, tuple[int, ...]], ...] = ()
    oldest_quic: tuple[int, ...] = ()

    def oldest_for(self, branch: Branch) -> tuple[int, ...]:
        found = [version for since, version in self.oldest if since <= branch]
        return found[-1] if found else ()


KINDS = {
    "openssl": Kind("OpenSSL", BRANCHES[0], None),
    "quictls": Kind("quictls", BRANCHES[0], (2, 6)),
    "libressl": Kind("LibreSSL", BRANCHES[0], (2, 7), oldest_quic=(3, 6, 0)),
    "wolfssl": Kind("wolfSSL", (2, 7), (2, 7), "USE_OPENSSL_WOLFSSL", (((3, 0), (5, 6, 6)),)),
    "aws-lc": Kind(
        "AWS-LC",
        (2, 9),
        (2, 9),
        "USE_OPENSSL_AWSLC",
        (((2, 9), (1, 13, 0)), ((3, 1), (1, 22, 0))),
    ),
    # It has neither releases nor a stable interface, and HAProxy gave it up.
    "boringssl": Kind("BoringSSL", None, None),
}
VARIANTS = tuple(kind.feature for kind in KINDS.values() if kind.feature is not None)
# Below a library's include directory, what tells its name and version; those that are there, one after the other.
HEADERS = (
    "wolfssl/version.h",
    "openssl/opensslv.h",
    "openssl/base.h",
    "openssl/crypto.h",
)


@dataclasses.dataclass(frozen=True)
class Tls:
    """The TLS library: the system's OpenSSL without a path. `version` is empty where it is unknown."""

    name: str = "openssl"
    version: str = ""
    path: str = ""
    lib: str = "lib"

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def numbers(self) -> tuple[int, ...] | None:
        return parse_library_version(self.version)

    def __str__(self) -> str:
        where = f"in {self.path}" if self.path else "of the system (libssl-dev)"
        return f"{self.kind.title} {self.version}".rstrip() + f" {where}"


def parse_library_version(text: str) -> tuple[int, ...] | None:
    """The three numbers of `3.0.17-1~deb12u2`, `1.1.1w` or `1.66.1`."""
    match = re.match(r"(?:[0-9]+:)?([0-9]+)\.([0-9]+)(?:\.([0-9]+))?", text.strip())
    return None if match is None else (int(match[1]), int(match[2]), int(match[3] or 0))


def parse_headers(text: str) -> dict[str, str] | None:
    """The name and version of a TLS library, from the text of its HEADERS.

    All of them but wolfSSL say that they are some OpenSSL as well, so that one comes last.
    """
    number = r'\s+"(?:[A-Za-z]+ )?([0-9]+\.[0-9]+(?:\.[0-9]+)?[a-z]*)'
    for name, macro in (
        ("wolfssl", "LIBWOLFSSL_VERSION_STRING"),
        ("libressl", "LIBRESSL_VERSION_TEXT"),
        ("aws-lc", "AWSLC_VERSION_NUMBER_STRING"),
    ):
        match = re.search(rf"#\s*define\s+{macro}{number}", text)
        if match is not None:
            return {"name": name, "version": match[1]}
    for name, macro in (("aws-lc", "OPENSSL_IS_AWSLC"), ("boringssl", "OPENSSL_IS_BORINGSSL")):
        if re.search(rf"#\s*define\s+{macro}\b", text):
            return {"name": name, "version": ""}
    match = re.search(rf"#\s*define\s+OPENSSL_VERSION_TEXT{number}", text)
    if match is None:
        return None
    quic = re.search(
        r"#\s*define\s+OPENSSL_VERSION_(TEXT|BUILD_METADATA)\s+\"[^\"\n]*quic", text, re.IGNORECASE
    )
    return {"name": "quictls" if quic else "openssl", "version": match[1]}


def openssl_range(version: Version) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The OpenSSL versions that HAProxy compiles with: from, and below."""
    if version.branch == (2, 4) and (version.release or 0) < _OPENSSL_3_IN_2_4:
        return _OPENSSL[0][1:]
    return [row for row in _OPENSSL if row[0] <= version.branch][-1][1:]


def refuse_tls(version: Version, tls: Tls, on: t.Collection[str], *, own: bool) -> list[str]:
    """Why TLS cannot be built in. `on`: the features; `own`: whether make's arguments say where the library is."""
    asked = [name for name in VARIANTS if name in on]
    if "USE_OPENSSL" not in on and not asked:
        unused = f"{_LIBRARY}: {tls} is of no use while USE_OPENSSL is off; drop one of the two"
        return [unused] if tls.path else []
    if own and not tls.path:
        # Nobody can say what it is.
        return []
    mixed = [
        f"{_FEATURES}: {name} does not go with {tls}; name the library that it is for in {_LIBRARY}"
        for name in asked
        if name != tls.kind.feature
    ]
    return mixed or _refuse_library(version, tls, on)


def _refuse_library(version: Version, tls: Tls, on: t.Collection[str]) -> list[str]:
    kind, numbers, where = tls.kind, tls.numbers, _LIBRARY if tls.path else _FEATURES
    if kind.since is None:
        return [
            f"{where}: HAProxy no longer supports {tls}; AWS-LC is the nearest that it does support"
        ]
    if version.branch < kind.since:
        return [
            f"{where}: HAProxy {version} does not know {kind.title}, {show(kind.since)} and newer do; "
            "build one of these, or take OpenSSL"
        ]
    if numbers is None:
        return []
    said = []
    oldest = kind.oldest_for(version.branch)
    if tls.name in ("openssl", "quictls"):
        oldest, below = openssl_range(version)
        if numbers >= below:
            said.append(_too_new(version, tls, below, where))
    if numbers < oldest:
        said.append(
            f"{where}: {tls} is too old for HAProxy {version}, which needs {show(oldest)} or newer; give a newer one in {_LIBRARY}"
        )
    if "USE_ECH" in on and not tls.path and numbers < ECH_OPENSSL:
        said.append(
            f"{_FEATURES}: USE_ECH needs OpenSSL {show(ECH_OPENSSL[:2])} or newer, and here is {tls}; "
            f"give one in {_LIBRARY}, or leave USE_ECH out"
        )
    return said


def _too_new(version: Version, tls: Tls, below: tuple[int, ...], where: str) -> str:
    numbers = tls.numbers or ()
    newer = [each for each in BRANCHES if numbers < openssl_range(Version("", each, 99))[1]]
    remedy = f"build HAProxy {show(newer[0])} or newer, " if newer else ""
    return (
        f"{where}: HAProxy {version.text} compiles with OpenSSL before {show(below)}, not with {tls}; "
        f"{remedy}give an older OpenSSL of your own in {_LIBRARY}, or set USE_OPENSSL: false"
    )


def refuse_quic(version: Version, tls: Tls, on: t.Collection[str], *, own: bool) -> list[str]:
    """Why QUIC cannot be built in; the arguments are those of refuse_tls."""
    compat = "USE_QUIC_OPENSSL_COMPAT" in on
    if "USE_QUIC" not in on:
        alone = f"{_FEATURES}: USE_QUIC_OPENSSL_COMPAT does nothing without USE_QUIC; add it"
        return [alone] if compat else []
    if not knows(version.branch, "USE_QUIC"):
        return []
    if version.branch < QUIC_USABLE:
        return [
            f"{_FEATURES}: USE_QUIC: HAProxy {version} has no more than the beginnings of QUIC; "
            f"build {show(QUIC_USABLE)} or newer, or leave it out"
        ]
    if "USE_OPENSSL" not in on and not any(name in on for name in VARIANTS):
        return [f"{_FEATURES}: USE_QUIC needs TLS; switch USE_OPENSSL on, or leave USE_QUIC out"]
    if own and not tls.path:
        return []
    if tls.name == "openssl":
        return _refuse_quic_openssl(version, tls, compat)
    return _refuse_quic_library(version, tls, compat)


def _refuse_quic_library(version: Version, tls: Tls, compat: bool) -> list[str]:
    kind, numbers = tls.kind, tls.numbers
    if kind.since is None or kind.quic is None or version.branch < kind.since:
        return []
    if compat:
        return [
            f"{_FEATURES}: USE_QUIC_OPENSSL_COMPAT is for OpenSSL only, and {kind.title} does QUIC by itself; leave it out"
        ]
    if version.branch < kind.quic:
        return [
            f"{_FEATURES}: USE_QUIC: HAProxy {version} cannot do QUIC with {kind.title}, {show(kind.quic)} and newer can; "
            f"build one of these, or give quictls in {_LIBRARY}"
        ]
    if numbers is not None and numbers < kind.oldest_quic:
        return [
            f"{_FEATURES}: USE_QUIC needs {kind.title} {show(kind.oldest_quic)} or newer, and here is {tls}; give a newer one in {_LIBRARY}"
        ]
    return []


def _refuse_quic_openssl(version: Version, tls: Tls, compat: bool) -> list[str]:
    numbers = tls.numbers
    library = f"give a library with QUIC (quictls{', AWS-LC' if version.branch >= (2, 9) else ''}) in {_LIBRARY}"
    if compat:
        if numbers is None or numbers >= QUIC_COMPAT_OPENSSL:
            return []
        return [
            f"{_FEATURES}: USE_QUIC_OPENSSL_COMPAT needs OpenSSL {show(QUIC_COMPAT_OPENSSL)} or newer, and here is {tls}; {library}"
        ]
    native = show(QUIC_NATIVE_OPENSSL)
    layer = (
        "add USE_QUIC_OPENSSL_COMPAT: true (QUIC without 0-RTT, and limited-quic in HAProxy's global section), "
        if knows(version.branch, "USE_QUIC_OPENSSL_COMPAT")
        else ""
    )
    if version.branch < QUIC_NATIVE:
        return [
            f"{_FEATURES}: USE_QUIC: HAProxy {version} cannot do QUIC with OpenSSL's own interface; {layer}{library}, "
            f"or build HAProxy {show(QUIC_NATIVE)} or newer with OpenSSL {native} or newer"
        ]
    if numbers is not None and numbers < QUIC_NATIVE_OPENSSL:
        return [
            f"{_FEATURES}: USE_QUIC needs OpenSSL {native} or newer, and here is {tls}; {layer}or {library}"
        ]
    if (*version.branch, version.release) in QUIC_NATIVE_BROKEN:
        return [
            f"{_FEATURES}: USE_QUIC: HAProxy {version.text} does not compile with OpenSSL's interface to QUIC; "
            f"build another release of {version}, or {library}"
        ]
    return []
