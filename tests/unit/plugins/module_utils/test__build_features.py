# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each branch knows, against lists that were not made from the table."""

from __future__ import annotations

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _build_features as core
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_features import (
    BASE,
    BRANCHES,
    FEATURES,
    full_features,
    is_unlisted,
    knows,
    parse_version,
    say_who_knows,
    similar,
)

# Each list in full, without USE_; where it is from is in the test.
LISTS = {
    (2, 2): (
        "EPOLL KQUEUE NETFILTER PCRE PCRE_JIT PCRE2 PCRE2_JIT POLL PRIVATE_CACHE THREAD PTHREAD_PSHARED BACKTRACE STATIC_PCRE "
        "STATIC_PCRE2 TPROXY LINUX_TPROXY LINUX_SPLICE LIBCRYPT CRYPT_H GETADDRINFO OPENSSL LUA FUTEX ACCEPT4 CLOSEFROM ZLIB "
        "SLZ CPU_AFFINITY TFO NS DL RT DEVICEATLAS 51DEGREES WURFL SYSTEMD OBSOLETE_LINKER PRCTL THREAD_DUMP EVPORTS"
    ),
    (2, 4): (
        "EPOLL KQUEUE NETFILTER PCRE PCRE_JIT PCRE2 PCRE2_JIT POLL PRIVATE_CACHE THREAD PTHREAD_PSHARED BACKTRACE STATIC_PCRE "
        "STATIC_PCRE2 TPROXY LINUX_TPROXY LINUX_SPLICE LIBCRYPT CRYPT_H GETADDRINFO OPENSSL LUA FUTEX ACCEPT4 CLOSEFROM ZLIB "
        "SLZ CPU_AFFINITY TFO NS DL RT DEVICEATLAS 51DEGREES WURFL SYSTEMD OBSOLETE_LINKER PRCTL PROCCTL THREAD_DUMP EVPORTS "
        "OT QUIC PROMEX MEMORY_PROFILING"
    ),
    (2, 5): (
        "EPOLL KQUEUE NETFILTER PCRE PCRE_JIT PCRE2 PCRE2_JIT POLL THREAD BACKTRACE STATIC_PCRE STATIC_PCRE2 TPROXY "
        "LINUX_TPROXY LINUX_SPLICE LIBCRYPT CRYPT_H GETADDRINFO OPENSSL LUA ACCEPT4 CLOSEFROM ZLIB SLZ CPU_AFFINITY TFO NS DL "
        "RT DEVICEATLAS 51DEGREES WURFL SYSTEMD OBSOLETE_LINKER PRCTL PROCCTL THREAD_DUMP EVPORTS OT QUIC PROMEX MEMORY_PROFILING"
    ),
    (2, 6): (
        "EPOLL KQUEUE NETFILTER PCRE PCRE_JIT PCRE2 PCRE2_JIT POLL THREAD BACKTRACE STATIC_PCRE STATIC_PCRE2 TPROXY "
        "LINUX_TPROXY LINUX_SPLICE LIBCRYPT CRYPT_H ENGINE GETADDRINFO OPENSSL LUA ACCEPT4 CLOSEFROM ZLIB SLZ CPU_AFFINITY TFO "
        "NS DL RT DEVICEATLAS 51DEGREES WURFL SYSTEMD OBSOLETE_LINKER PRCTL PROCCTL THREAD_DUMP EVPORTS OT QUIC PROMEX "
        "MEMORY_PROFILING"
    ),
    (2, 7): (
        "51DEGREES ACCEPT4 BACKTRACE CLOSEFROM CPU_AFFINITY CRYPT_H DEVICEATLAS DL ENGINE EPOLL EVPORTS GETADDRINFO KQUEUE "
        "LIBCRYPT LINUX_SPLICE LINUX_TPROXY LUA MEMORY_PROFILING NETFILTER NS OBSOLETE_LINKER OPENSSL OPENSSL_WOLFSSL OT PCRE "
        "PCRE2 PCRE2_JIT PCRE_JIT POLL PRCTL PROCCTL PROMEX PTHREAD_EMULATION QUIC RT SHM_OPEN SLZ STATIC_PCRE STATIC_PCRE2 "
        "SYSTEMD TFO THREAD THREAD_DUMP TPROXY WURFL ZLIB"
    ),
    (3, 0): (
        "EPOLL KQUEUE NETFILTER POLL THREAD PTHREAD_EMULATION BACKTRACE TPROXY LINUX_TPROXY LINUX_CAP LINUX_SPLICE LIBCRYPT "
        "CRYPT_H ENGINE GETADDRINFO OPENSSL OPENSSL_WOLFSSL OPENSSL_AWSLC SSL LUA ACCEPT4 CLOSEFROM ZLIB SLZ CPU_AFFINITY TFO "
        "NS DL RT LIBATOMIC MATH DEVICEATLAS 51DEGREES WURFL SYSTEMD OBSOLETE_LINKER PRCTL PROCCTL THREAD_DUMP EVPORTS OT QUIC "
        "PROMEX MEMORY_PROFILING SHM_OPEN STATIC_PCRE STATIC_PCRE2 PCRE PCRE_JIT PCRE2 PCRE2_JIT QUIC_OPENSSL_COMPAT"
    ),
    (3, 2): (
        "51DEGREES ACCEPT4 BACKTRACE CLOSEFROM CPU_AFFINITY CRYPT_H DEVICEATLAS DL ENGINE EPOLL EVPORTS GETADDRINFO KQUEUE "
        "LIBATOMIC LIBCRYPT LINUX_CAP LINUX_SPLICE LINUX_TPROXY LUA MATH MEMORY_PROFILING NETFILTER NS OBSOLETE_LINKER OPENSSL "
        "OPENSSL_AWSLC OPENSSL_WOLFSSL OT PCRE PCRE2 PCRE2_JIT PCRE_JIT POLL PRCTL PROCCTL PROMEX PTHREAD_EMULATION QUIC "
        "QUIC_OPENSSL_COMPAT RT SLZ SSL STATIC_PCRE STATIC_PCRE2 TFO THREAD THREAD_DUMP TPROXY WURFL ZLIB"
    ),
    (3, 3): (
        "51DEGREES ACCEPT4 BACKTRACE CLOSEFROM CPU_AFFINITY CRYPT_H DEVICEATLAS DL ECH ENGINE EPOLL EVPORTS GETADDRINFO KQUEUE "
        "KTLS LIBATOMIC LIBCRYPT LINUX_CAP LINUX_SPLICE LINUX_TPROXY LUA MATH MEMORY_PROFILING NETFILTER NS OBSOLETE_LINKER "
        "OPENSSL OPENSSL_AWSLC OPENSSL_WOLFSSL OT PCRE PCRE2 PCRE2_JIT PCRE_JIT POLL PRCTL PROCCTL PROMEX PTHREAD_EMULATION "
        "QUIC QUIC_OPENSSL_COMPAT RT SHM_OPEN SLZ SSL STATIC_PCRE STATIC_PCRE2 TFO THREAD THREAD_DUMP TPROXY WURFL ZLIB"
    ),
    (3, 4): (
        "EPOLL KQUEUE NETFILTER POLL THREAD PTHREAD_EMULATION BACKTRACE TPROXY LINUX_TPROXY LINUX_CAP LINUX_SPLICE LIBCRYPT "
        "CRYPT_H ENGINE GETADDRINFO OPENSSL OPENSSL_WOLFSSL OPENSSL_AWSLC ECH TRACE SSL LUA ACCEPT4 CLOSEFROM ZLIB SLZ "
        "CPU_AFFINITY TFO NS DL RT LIBATOMIC MATH DEVICEATLAS 51DEGREES WURFL OBSOLETE_LINKER PRCTL PROCCTL THREAD_DUMP EVPORTS "
        "OT QUIC PROMEX MEMORY_PROFILING SHM_OPEN STATIC_PCRE STATIC_PCRE2 PCRE PCRE_JIT PCRE2 PCRE2_JIT QUIC_OPENSSL_COMPAT KTLS"
    ),
}
LISTS[(2, 3)] = LISTS[(2, 2)]


@pytest.mark.parametrize("branch", sorted(LISTS))
def test_a_branch_knows_what_it_lists_and_no_more(branch: core.Branch) -> None:
    """2.2, 2.6, 3.0, 3.4: use_opts of the Makefile of 2.2.9, 2.6.12, 3.0.11 and 3.4-dev; 3.2: `haproxy -vv` of 3.2.26.

    2.3, 2.4, 2.5, 2.7, 3.3: `haproxy -vv` of 2.3.10, 2.4.17, 2.5.7, 2.7.9 and 3.3, as their users showed it.
    """
    known = {name for name in FEATURES if knows(branch, name) and not is_unlisted(branch, name)}
    assert known == {f"USE_{name}" for name in LISTS[branch].split()}


def test_a_branch_has_what_it_does_not_list() -> None:
    """-Ws without USE_SYSTEMD: CHANGELOG of 3.1-dev14; the object of Prometheus: README of contrib in 2.2.9."""
    assert [b for b in BRANCHES if is_unlisted(b, "USE_SYSTEMD")] == [
        (3, 1),
        (3, 2),
        (3, 3),
        (3, 4),
    ]
    assert [b for b in BRANCHES if is_unlisted(b, "USE_PROMEX")] == [(2, 2), (2, 3)]
    assert not is_unlisted((3, 4), "USE_LUA")


def test_the_branches_between_are_like_their_neighbours() -> None:
    """2.8 (LINUX_CAP and QUIC_OPENSSL_COMPAT in lists of 2.8.3 and 2.8.10), 2.9: AWS-LC from 2.9-dev5; 3.1: no SYSTEMD, still shm_open()."""
    by_branch = {b: {name for name in FEATURES if knows(b, name)} for b in BRANCHES}
    assert by_branch[(2, 9)] - by_branch[(2, 8)] == {"USE_OPENSSL_AWSLC"}
    assert by_branch[(3, 0)] == by_branch[(2, 9)] == by_branch[(3, 1)]
    assert by_branch[(3, 1)] - by_branch[(3, 2)] == {"USE_SHM_OPEN"}


def test_the_base_is_in_every_branch() -> None:
    assert all(knows(branch, name) for branch in BRANCHES for name in BASE)


def test_a_newer_branch_may_know_more() -> None:
    """3.5's Makefile has USE_H2, and no USE_OT any more (3.5-dev)."""
    assert knows((3, 5), "USE_H2")
    assert not knows((3, 5), "USE_OT")
    assert knows((4, 0), "USE_LUA")


@pytest.mark.parametrize(
    ("text", "branch", "release"),
    [
        ("3.0.11", (3, 0), 11),
        ("3.0.11-1+deb13u1", (3, 0), 11),
        ("1:2.2.9-2", (2, 2), 9),
        ("3.4-dev3", (3, 4), None),
        ("2.10.1", (2, 10), 1),
    ],
)
def test_a_version_is_read(text: str, branch: core.Branch, release: int | None) -> None:
    version = parse_version(text)
    assert version is not None
    assert (version.branch, version.release) == (branch, release)


@pytest.mark.parametrize("text", ["", "3", "three", "v3.0", "latest"])
def test_no_version_is_no_version(text: str) -> None:
    assert parse_version(text) is None


def test_who_knows_is_said_in_words() -> None:
    assert say_who_knows("USE_SHM_OPEN") == "2.7 to 3.1, and 3.3 and newer"
    assert say_who_knows("USE_KTLS") == "3.3 and newer"
    assert say_who_knows("USE_OT") == "2.4 to 3.4"


@pytest.mark.parametrize(
    ("typed", "meant"), [("USE_LAU", "USE_LUA"), ("OPENSSL", "USE_OPENSSL"), ("USE_COFFEE", None)]
)
def test_a_slip_is_recognised(typed: str, meant: str | None) -> None:
    assert similar(typed) == meant


def test_the_base_gives_way() -> None:
    assert full_features({}) == BASE
    assert "USE_ZLIB" not in full_features({"USE_SLZ": True})
    assert full_features({"USE_SLZ": True, "USE_ZLIB": True})["USE_ZLIB"] is True
    pcre = full_features({"USE_PCRE_JIT": True})
    assert not {"USE_PCRE2", "USE_PCRE2_JIT"} & set(pcre)
    assert full_features({"USE_PCRE2": False})["USE_PCRE2_JIT"] is False
    assert full_features({"USE_PCRE2": False, "USE_STATIC_PCRE2": True})["USE_PCRE2_JIT"] is True
    assert full_features({"USE_SLZ": False})["USE_ZLIB"] is True
