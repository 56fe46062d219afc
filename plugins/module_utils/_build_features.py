# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what each branch of HAProxy from 2.2 to 3.4 can be built with. Private to the collection.

The facts are of HAProxy's own Makefile, INSTALL and CHANGELOG, and of the feature list that binaries of a branch print
with `haproxy -vv`. A newer branch is taken for one that knows what the newest here does, and perhaps more.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing as t

Branch = tuple[int, int]
Range = tuple[Branch, t.Optional[Branch]]

OLDEST: Branch = (2, 2)
NEWEST: Branch = (3, 4)
BRANCHES: tuple[Branch, ...] = (
    *((2, minor) for minor in range(2, 10)),
    *((3, minor) for minor in range(5)),
)
# All three are in every branch from 2.2 on; each switches TPROXY and LINUX_TPROXY on by itself.
TARGETS = ("linux-glibc", "linux-glibc-legacy", "linux-musl")
REQUIRED = ("USE_LINUX_TPROXY", "USE_TPROXY")
# What the role builds in unless it is told otherwise.
BASE = {
    "USE_LINUX_TPROXY": True,
    "USE_LUA": True,
    "USE_OPENSSL": True,
    "USE_PCRE2": True,
    "USE_PCRE2_JIT": True,
    "USE_PROMEX": True,
    "USE_SYSTEMD": True,
    "USE_TPROXY": True,
    "USE_ZLIB": True,
}
PCRE = ("USE_PCRE", "USE_PCRE_JIT", "USE_STATIC_PCRE")
PCRE2 = ("USE_PCRE2", "USE_PCRE2_JIT", "USE_STATIC_PCRE2")
# Of other systems; their headers are not there on Linux.
FOREIGN = ("USE_CLOSEFROM", "USE_EVPORTS", "USE_KQUEUE", "USE_PROCCTL")

_ALWAYS: tuple[Range, ...] = ((OLDEST, None),)
_IN_ALL = (
    "51DEGREES ACCEPT4 BACKTRACE CLOSEFROM CPU_AFFINITY CRYPT_H DEVICEATLAS DL EPOLL EVPORTS GETADDRINFO KQUEUE LIBCRYPT "
    "LINUX_SPLICE LINUX_TPROXY LUA NETFILTER NS OBSOLETE_LINKER OPENSSL PCRE PCRE2 PCRE2_JIT PCRE_JIT POLL PRCTL RT SLZ "
    "STATIC_PCRE STATIC_PCRE2 TFO THREAD THREAD_DUMP TPROXY WURFL ZLIB"
)
# Feature -> the branches whose Makefile has it in use_opts. Backports count from the branch's first release.
FEATURES: dict[str, tuple[Range, ...]] = {
    **{f"USE_{name}": _ALWAYS for name in _IN_ALL.split()},
    "USE_FUTEX": ((OLDEST, (2, 4)),),
    "USE_PRIVATE_CACHE": ((OLDEST, (2, 4)),),
    "USE_PTHREAD_PSHARED": ((OLDEST, (2, 4)),),
    # Until 2.3 it is an object to add, later a feature; either way it is built in.
    "USE_PROMEX": _ALWAYS,
    # From 3.1 on no choice any more: -Ws is always there.
    "USE_SYSTEMD": _ALWAYS,
    "USE_MEMORY_PROFILING": (((2, 4), None),),
    "USE_OT": (((2, 4), (3, 4)),),
    "USE_PROCCTL": (((2, 4), None),),
    "USE_QUIC": (((2, 4), None),),
    "USE_LIBATOMIC": (((2, 5), None),),
    "USE_ENGINE": (((2, 6), None),),
    "USE_OPENSSL_WOLFSSL": (((2, 7), None),),
    "USE_PTHREAD_EMULATION": (((2, 7), None),),
    # 3.2 had no use for it.
    "USE_SHM_OPEN": (((2, 7), (3, 1)), ((3, 3), None)),
    # These two are of 2.9, and came to 2.8 with one of its first updates.
    "USE_LINUX_CAP": (((2, 8), None),),
    "USE_QUIC_OPENSSL_COMPAT": (((2, 8), None),),
    "USE_MATH": (((2, 8), None),),
    "USE_SSL": (((2, 8), None),),
    "USE_OPENSSL_AWSLC": (((2, 9), None),),
    "USE_ECH": (((3, 3), None),),
    "USE_KTLS": (((3, 3), None),),
    "USE_TRACE": (((3, 4), None),),
}
# Built in, where the branch knows it, without a word in the feature list.
_UNLISTED: dict[str, Range] = {
    "USE_LIBATOMIC": ((2, 5), (2, 7)),
    "USE_PROMEX": (OLDEST, (2, 3)),
    "USE_SYSTEMD": ((3, 1), None),
}
# HAProxy's own copy of libslz, which Debian does not have, is there and on from here.
SLZ_BUNDLED: Branch = (2, 4)
SYSTEMD_BUILT_IN: Branch = (3, 1)
# sd_notify() without the library.
SYSTEMD_WITHOUT_LIBRARY: Branch = (3, 0)
PROMEX_FEATURE: Branch = (2, 4)
PROMEX_OBJECT = "contrib/prometheus-exporter/service-prometheus.o"
# From here CFLAGS is empty and added last. Before, it holds all of the defaults, among them -fwrapv, which HAProxy relies on;
# DEBUG_CFLAGS ("-g") stands in it after the optimisation's level and before those.
CFLAGS_ADDED: Branch = (3, 0)
# The first that finds Lua 5.4 by itself in all its releases.
LUA_5_4: Branch = (2, 7)


@dataclasses.dataclass(frozen=True)
class Version:
    """HAProxy's version: the branch, and the release in it, or None for a development version."""

    text: str
    branch: Branch
    release: int | None

    @property
    def known(self) -> bool:
        return OLDEST <= self.branch <= NEWEST

    def __str__(self) -> str:
        return show(self.branch)


def show(branch: tuple[int, ...]) -> str:
    return ".".join(map(str, branch))


def parse_version(text: str) -> Version | None:
    """Read `3.0.11`, `3.4-dev3` or a Debian package's `1:3.0.11-1+deb13u1`."""
    match = re.match(r"(?:[0-9]+:)?([0-9]+)\.([0-9]+)(?:\.([0-9]+))?(?![0-9])", text.strip())
    if match is None:
        return None
    release = None if match[3] is None else int(match[3])
    return Version(text.strip(), (int(match[1]), int(match[2])), release)


def full_features(given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What is asked for on top of BASE, of which that gives way which what is asked for excludes."""
    base = dict(BASE)
    if given.get("USE_SLZ"):
        del base["USE_ZLIB"]
    if any(given.get(name) for name in PCRE):
        del base["USE_PCRE2"], base["USE_PCRE2_JIT"]
    elif given.get("USE_PCRE2") is False and not given.get("USE_STATIC_PCRE2"):
        base["USE_PCRE2_JIT"] = False
    return dict(sorted({**base, **{str(name): value for name, value in given.items()}}.items()))


def knows(branch: Branch, feature: str) -> bool:
    """Whether the branch has the feature. What is newer than this table may have anything."""
    if branch > NEWEST and feature != "USE_OT":
        return True
    return any(_within(branch, each) for each in FEATURES.get(feature, ()))


def is_unlisted(branch: Branch, feature: str) -> bool:
    """Whether the branch has the feature built in and its feature list says nothing of it."""
    return feature in _UNLISTED and _within(branch, _UNLISTED[feature])


def _within(branch: Branch, each: Range) -> bool:
    first, last = each
    return branch >= first and (last is None or branch <= last)


def say_who_knows(feature: str) -> str:
    """The branches that know a feature: `2.7 to 3.1, and 3.3 and newer`."""
    said = []
    for first, last in FEATURES[feature]:
        if last is None:
            said.append(f"{show(first)} and newer")
        else:
            said.append(f"{show(first)} to {show(last)}")
    return ", and ".join(said)


def similar(feature: str) -> str | None:
    """The feature that was probably meant."""
    name = feature.upper()
    wanted = name if name.startswith("USE_") else f"USE_{name}"
    return next(iter(difflib.get_close_matches(wanted, FEATURES, n=1, cutoff=0.75)), None)
