# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_features import (
    BASE,
    BRANCHES,
    FEATURES,
    TARGETS,
    show,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_plan import Plan, make_plan
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

VERSIONS = ["2.2.9", "2.4.22", "2.6.12", "2.8.10", "3.0.11", "3.1.5", "3.2.26", "3.3.1", "3.4.7"]


def plan(version: str, **asked: t.Any) -> Plan:
    debian = {"distribution": "Debian", "distribution_major_version": "12"}
    return make_plan({"version": version, **debian, **asked})


def refusal(version: str, **asked: t.Any) -> str:
    refusals = plan(version, **asked).refusals
    assert len(refusals) == 1, refusals
    return refusals[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_base_can_be_built_of_every_branch(version: str) -> None:
    made = plan(version, openssl="1.1.1w")
    assert made.refusals == []
    assert made.on == sorted(BASE)
    assert made.make[0] == "TARGET=linux-glibc"
    assert {"USE_TPROXY=1", "USE_LINUX_TPROXY=1", "USE_LUA=1"} <= set(made.make)
    assert {"libpcre2-dev", "libssl-dev", "zlib1g-dev"} <= set(made.packages)


def test_the_whole_of_a_plan() -> None:
    assert plan("3.0.11-1+deb13u1", openssl="3.0.20", packages=["ccache"]) == Plan(
        make=[
            "TARGET=linux-glibc",
            "USE_LINUX_TPROXY=1",
            "USE_LUA=1",
            "USE_OPENSSL=1",
            "USE_PCRE2=1",
            "USE_PCRE2_JIT=1",
            "USE_PROMEX=1",
            "USE_SYSTEMD=1",
            "USE_TPROXY=1",
            "USE_ZLIB=1",
        ],
        packages=["liblua5.4-dev", "libpcre2-dev", "libssl-dev", "zlib1g-dev", "ccache"],
        on=sorted(BASE),
        unlisted=[],
        refusals=[],
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_prometheus_exporter_is_an_object_until_2_3(version: str) -> None:
    """README of contrib/prometheus-exporter in 2.2.9; USE_PROMEX: CHANGELOG of 2.4-dev15."""
    made = plan(version)
    old = version.startswith("2.2")
    assert ("USE_PROMEX=1" in made.make) is not old
    assert ("EXTRA_OBJS=contrib/prometheus-exporter/service-prometheus.o" in made.make) is old
    assert ("USE_PROMEX" in made.unlisted) is old
    off = plan(version, features={"USE_PROMEX": False})
    assert not [a for a in off.make if "prometheus" in a or a == "USE_PROMEX=1"]
    assert "USE_PROMEX" not in off.on + off.unlisted


def test_objects_are_joined() -> None:
    made = plan("2.2.9", make_arguments=["EXTRA_OBJS=mine.o", "CPU=native"])
    objects = [a for a in made.make if a.startswith("EXTRA_OBJS=")]
    assert objects == ["EXTRA_OBJS=contrib/prometheus-exporter/service-prometheus.o mine.o"]
    assert made.make[-1] == "CPU=native"


@pytest.mark.parametrize("version", VERSIONS)
def test_systemd_is_a_choice_until_3_0(version: str) -> None:
    """The library until 2.9, none from 3.0 on: CHANGELOG of 3.0-dev7; no choice from 3.1 on: of 3.1-dev14."""
    made = plan(version)
    branch = tuple(map(int, version.split(".")[:2]))
    assert "USE_SYSTEMD" in made.on
    assert ("USE_SYSTEMD=1" in made.make) is (branch < (3, 1))
    assert ("USE_SYSTEMD" in made.unlisted) is (branch >= (3, 1))
    assert ("libsystemd-dev" in made.packages) is (branch < (3, 0))
    off = plan(version, features={"USE_SYSTEMD": False})
    assert "USE_SYSTEMD" not in off.on
    assert ("USE_SYSTEMD=" in off.make) is (branch < (3, 1))
    assert off.refusals == []


@pytest.mark.parametrize(
    ("version", "argument"),
    [
        ("2.2.9", "DEBUG_CFLAGS=-g -O3 -march=x86-64-v2"),
        ("2.6.12", "DEBUG_CFLAGS=-g -O3 -march=x86-64-v2"),
        ("2.9.1", "DEBUG_CFLAGS=-g -O3 -march=x86-64-v2"),
        ("3.0.11", "CFLAGS=-O3 -march=x86-64-v2"),
        ("3.4.7", "CFLAGS=-O3 -march=x86-64-v2"),
    ],
)
def test_the_compilers_options_leave_haproxys_own(version: str, argument: str) -> None:
    """`make -n` of 2.2.9 and 2.6.12 loses -fwrapv by CFLAGS and keeps it by DEBUG_CFLAGS; that of 3.0.11 keeps it by CFLAGS and drops DEBUG_CFLAGS."""
    made = plan(version, cflags=" -O3   -march=x86-64-v2 ")
    assert argument in made.make
    assert made.refusals == []


def test_the_compilers_options_are_checked() -> None:
    for bad in ("-DX=$(id)", "-O2; id", "-DX='a'", "`id`", '-DX="a"'):
        assert refusal("3.0.11", cflags=bad).startswith("haproxy_build_cflags: ")
    twice = refusal("2.6.12", cflags="-O3", make_arguments=["CFLAGS=-O2"])
    assert "CFLAGS=-O2 in haproxy_build_make_arguments would undo it" in twice


@pytest.mark.parametrize(
    ("version", "distribution", "major", "package"),
    [
        ("2.6.12", "Debian", "12", "liblua5.3-dev"),
        ("3.0.11", "Debian", "11", "liblua5.3-dev"),
        ("3.0.11", "Debian", "12", "liblua5.4-dev"),
        ("3.0.11", "Debian", "testing", "liblua5.4-dev"),
        ("3.0.11", "Ubuntu", "24", "liblua5.4-dev"),
        ("3.0.11", "Ubuntu", "20", "liblua5.3-dev"),
    ],
)
def test_lua_is_of_a_version_that_is_found(
    version: str, distribution: str, major: str, package: str
) -> None:
    """5.4 is looked for from 2.7-dev2 on (CHANGELOG); liblua5.3-dev is in Debian 11, 12, 13 and sid (their indexes)."""
    made = plan(version, distribution=distribution, distribution_major_version=major)
    assert [p for p in made.packages if "lua" in p] == [package]
    own = plan(version, make_arguments=["LUA_LIB_NAME=lua5.4"])
    assert not [p for p in own.packages if "lua" in p]


def test_compression_is_by_one_of_two() -> None:
    """`Cannot build with both`: compression-t.h of 2.2.9; libslz within HAProxy: CHANGELOG of 2.4-dev17."""
    slz = plan("3.0.11", features={"USE_SLZ": True})
    assert slz.refusals == []
    assert "USE_SLZ=1" in slz.make
    assert not [a for a in slz.make if a.startswith("USE_ZLIB")]
    assert "zlib1g-dev" not in slz.packages
    both = refusal("3.0.11", features={"USE_SLZ": True, "USE_ZLIB": True})
    assert "exclude each other" in both
    assert "does not bring along" in refusal("2.2.9", features={"USE_SLZ": True})
    own = ["SLZ_INC=/opt/slz", "SLZ_LIB=/opt/slz"]
    assert plan("2.2.9", features={"USE_SLZ": True}, make_arguments=own).refusals == []


def test_expressions_are_by_one_of_two() -> None:
    """`cannot compile both PCRE and PCRE2 support`: the Makefiles of 2.2.9, 2.6.12 and 3.0.11; libpcre3-dev: Debian's indexes."""
    old = plan("3.0.11", features={"USE_PCRE": True, "USE_PCRE_JIT": True})
    assert old.refusals == []
    assert "libpcre3-dev" in old.packages
    assert not [a for a in old.make if "PCRE2" in a]
    both = refusal("3.0.11", features={"USE_PCRE": True, "USE_STATIC_PCRE2": True})
    assert "USE_PCRE and USE_STATIC_PCRE2 mix" in both
    gone = refusal("3.0.11", features={"USE_PCRE": True}, distribution_major_version="13")
    assert "no PCRE from 13 on" in gone
    static = plan("3.0.11", features={"USE_STATIC_PCRE2": True})
    assert static.refusals == []
    assert "USE_STATIC_PCRE2=1" in static.make


def test_what_a_version_does_not_know_is_refused_with_those_that_do() -> None:
    assert refusal("2.8.10", features={"USE_KTLS": True}) == (
        "haproxy_build_features: HAProxy 2.8 does not know USE_KTLS, which is in 3.3 and newer; "
        "leave it out or build another version"
    )
    assert plan("3.3.1", features={"USE_KTLS": True}).refusals == []
    # Nothing to switch off.
    off = plan("2.8.10", features={"USE_KTLS": False})
    assert off.refusals == []
    assert not [a for a in off.make if "KTLS" in a]
    assert "did you mean USE_LUA?" in refusal("3.0.11", features={"USE_LAU": False})
    assert "USE_KQUEUE is not for Linux" in refusal("3.0.11", features={"USE_KQUEUE": True})


def test_tproxy_stays() -> None:
    for name in ("USE_TPROXY", "USE_LINUX_TPROXY"):
        assert f"{name} is off" in refusal("3.0.11", features={name: False})
        for value in ("", "0"):
            assert f"{name} is off" in refusal("3.0.11", make_arguments=[f"{name}={value}"])


def test_a_feature_among_the_arguments_is_a_feature_and_wins() -> None:
    made = plan("3.0.11", features={"USE_LUA": True}, make_arguments=["USE_LUA=", "USE_SLZ=1"])
    assert "USE_LUA" not in made.on
    assert [a for a in made.make if "LUA" in a] == ["USE_LUA="]
    assert "USE_SLZ" in made.on
    assert made.refusals == []


def test_arguments_and_values_are_checked() -> None:
    assert "'-j4' is not NAME=value" in refusal("3.0.11", make_arguments=["-j4"])
    assert "not NAME=value on one line" in refusal("3.0.11", make_arguments=["A=b\nc"])
    assert "belongs in haproxy_build_target" in refusal("3.0.11", make_arguments=["TARGET=osx"])
    assert "'maybe'; give true or false" in refusal("3.0.11", features={"USE_LUA": "maybe"})
    assert "'freebsd' is none of linux-glibc" in refusal("3.0.11", target="freebsd")
    for target in TARGETS:
        assert f"TARGET={target}" in plan("2.2.9", target=target).make
    for version in ("", "newest"):
        with pytest.raises(InputError, match=r"for example 3\.0\.11"):
            plan(version)
    assert "too old" in refusal("1.8.30")


@pytest.mark.parametrize(
    "bad", [{"packages": "ccache"}, {"features": []}, {"tls_library": "/opt"}, {"colour": 1}]
)
def test_a_wish_of_another_form_is_refused(bad: dict[str, t.Any]) -> None:
    with pytest.raises(InputError, match="give "):
        plan("3.0.11", **bad)


def test_a_tls_library_is_found_when_linking_and_running() -> None:
    """`make -n` of 2.2.9, 2.6.12 and 3.0.11: -L, -lssl, and ADDLIB at the end; LDFLAGS would replace -g in the first two."""
    library = {"path": "/opt/quictls/", "name": "quictls", "version": "3.1.7"}
    made = plan("3.0.11", tls_library=library, features={"USE_QUIC": True})
    assert made.refusals == []
    assert made.make[-3:] == [
        "SSL_INC=/opt/quictls/include",
        "SSL_LIB=/opt/quictls/lib",
        "ADDLIB=-Wl,-rpath,/opt/quictls/lib",
    ]
    assert "libssl-dev" not in made.packages
    wide = plan(
        "3.0.11", tls_library={**library, "lib": "lib64"}, make_arguments=["ADDLIB=-ljemalloc"]
    )
    assert "ADDLIB=-Wl,-rpath,/opt/quictls/lib64 -ljemalloc" in wide.make
    assert len([a for a in wide.make if a.startswith("ADDLIB")]) == 1


def test_a_tls_library_is_told_by_its_headers() -> None:
    headers = '#define OPENSSL_IS_AWSLC\n#define AWSLC_VERSION_NUMBER_STRING "1.69.0"\n'
    library = {"path": "/opt/aws-lc", "headers": headers}
    made = plan("3.2.26", tls_library=library, features={"USE_QUIC": True})
    assert made.refusals == []
    assert "USE_OPENSSL_AWSLC=1" in made.make
    assert "USE_OPENSSL_AWSLC" in made.on
    too_old = refusal("2.8.10", tls_library=library)
    assert "HAProxy 2.8 does not know AWS-LC, 2.9 and newer do" in too_old
    unknown = refusal("3.2.26", tls_library={"path": "/opt/x", "headers": "?"})
    assert "no TLS library can be told from it; the headers are to be in /opt/x/include" in unknown
    assert "'gnutls' is none of" in refusal("3.2.26", tls_library={"path": "/x", "name": "GnuTLS"})
    off = refusal("3.2.26", tls_library=library, features={"USE_OPENSSL": False})
    assert "is of no use while USE_OPENSSL is off" in off


@pytest.mark.parametrize("path", ["", "opt", "/opt/a b", "/opt/$x", "/opt/a,b", "/opt/'", "/a\nb"])
def test_a_path_that_make_would_misread_is_refused(path: str) -> None:
    made = plan("3.2.26", tls_library={"path": path, "name": "quictls"})
    assert "not absolute, or has a character" in made.refusals[0]


def test_opentracing_brings_its_packages() -> None:
    assert "libopentracing-c-wrapper-dev" in plan("2.6.12", features={"USE_OT": True}).packages
    old = {"features": {"USE_OT": True}, "distribution_major_version": "11"}
    assert "from 12 on" in refusal("2.6.12", **old)


def test_all_reasons_are_given_at_once() -> None:
    made = plan(
        "2.2.9",
        openssl="3.0.20",
        features={"USE_TPROXY": False, "USE_QUIC": True, "USE_SLZ": True, "USE_LAU": True},
    )
    assert len(made.refusals) == 5


def test_a_newer_version_is_built_as_3_4() -> None:
    made = plan("3.5-dev2", features={"USE_MINIDEBUG": True}, openssl="3.6.5")
    assert made.refusals == []
    assert "USE_MINIDEBUG=1" in made.make


@given(
    branch=st.sampled_from([*BRANCHES, (3, 5), (2, 1)]),
    features=st.dictionaries(st.sampled_from([*FEATURES, "USE_NOTHING"]), st.booleans()),
    openssl=st.sampled_from([None, "1.1.1w", "3.0.20", "3.5.9", "4.0.2"]),
    library=st.sampled_from([None, "openssl", "quictls", "libressl", "wolfssl", "aws-lc"]),
    major=st.sampled_from(["11", "12", "13", "n/a"]),
)
def test_any_wish_is_planned_or_refused(
    branch: tuple[int, int],
    features: dict[str, bool],
    openssl: str | None,
    library: str | None,
    major: str,
) -> None:
    tls = {"path": "/opt/tls", "name": library} if library else None
    made = plan(
        f"{show(branch)}.99",
        features=features,
        openssl=openssl,
        tls_library=tls,
        distribution_major_version=major,
    )
    assert len(set(made.refusals)) == len(made.refusals)
    assert all(";" in each and each.isprintable() for each in made.refusals), made.refusals
    if made.refusals:
        return
    names = [argument.partition("=")[0] for argument in made.make]
    assert len(set(names)) == len(names)
    assert set(made.unlisted) <= set(made.on)
    assert {"USE_TPROXY", "USE_LINUX_TPROXY"} <= set(made.on)
    assert all(name in made.on for name, value in features.items() if value)
    assert not any(name in made.on for name, value in features.items() if not value)
    for name in made.on:
        assert f"{name}=1" in made.make or name in made.unlisted
