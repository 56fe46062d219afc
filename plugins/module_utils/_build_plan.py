# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what is asked for in, the arguments of make and the packages out, or why it cannot be. Private to the collection."""

from __future__ import annotations

import dataclasses
import re
import typing as t
from collections.abc import Mapping, Sequence

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _build_features as facts
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _build_tls as tls_facts
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

# What the sentences call the values.
_NAMES = {
    "features": "haproxy_build_features",
    "target": "haproxy_build_target",
    "tls_library": "haproxy_build_tls_library",
    "cflags": "haproxy_build_cflags",
    "make_arguments": "haproxy_build_make_arguments",
    "packages": "haproxy_build_packages",
}
_ASKED: dict[str, t.Any] = {
    "version": "",
    "features": {},
    "target": "linux-glibc",
    "tls_library": None,
    "openssl": None,
    "cflags": "",
    "make_arguments": [],
    "distribution": "",
    "distribution_major_version": "",
    "packages": [],
}
_TLS_KEYS = ("path", "name", "version", "headers", "lib")
_FEATURE = re.compile(r"USE_[A-Z0-9][A-Z0-9_]*")
_ARGUMENT = re.compile(r"([A-Za-z0-9_]+)=(.*)", re.DOTALL)
# make and the shell of its recipes would take these for themselves; a comma ends an option to the linker.
_PATH = re.compile(r"/[A-Za-z0-9_./+@%~:-]*")
_FLAGS = re.compile(r"[A-Za-z0-9_./+@%~:=,\s-]*")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to build HAProxy with. `make` and `packages` are of use only where `refusals` is empty.

    `unlisted`: those of `on` that the version has built in without listing them in `haproxy -vv`.
    """

    make: list[str]
    packages: list[str]
    on: list[str]
    unlisted: list[str]
    refusals: list[str]


class _Planner:
    """One plan in the making."""

    def __init__(self, asked: Mapping[str, t.Any], version: facts.Version) -> None:
        self.asked = asked
        self.version = version
        self.branch = version.branch
        self.refusals: list[str] = []
        self.features: dict[str, bool] = {}
        self.given: dict[str, bool] = {}
        self.arguments: list[str] = []
        self.tls = tls_facts.Tls()

    def refuse(self, what: str, problem: str) -> None:
        self.refusals.append(f"{_NAMES.get(what, what)}: {problem}")

    def plan(self) -> Plan:
        self.read_arguments()
        self.read_features()
        self.read_target()
        self.read_tls()
        self.choose_features()
        self.check_features()
        on = sorted(name for name, value in self.features.items() if value)
        own = self.argument("SSL_INC", "SSL_LIB") is not None
        for refuse in (tls_facts.refuse_tls, tls_facts.refuse_quic):
            self.refusals += refuse(self.version, self.tls, on, own=own)
        packages = self.find_packages()
        make = self.write_arguments()
        unlisted = [name for name in on if facts.is_unlisted(self.branch, name)]
        return Plan(make, packages, on, unlisted, self.refusals)

    # What is asked for.

    def read_arguments(self) -> None:
        """USE_ among make's arguments is a feature like another, and wins over the same among the features."""
        for argument in _strings(self.asked["make_arguments"], "make_arguments"):
            match = _ARGUMENT.fullmatch(argument)
            if match is None or not argument.isprintable():
                self.refuse("make_arguments", f"{argument!r} is not NAME=value on one line")
            elif match[1] == "TARGET":
                self.refuse(
                    "make_arguments", f"{argument} belongs in {_NAMES['target']}; move it there"
                )
            elif _FEATURE.fullmatch(match[1]) and match[2] in ("", "0", "1"):
                self.given[match[1]] = match[2] == "1"
            else:
                self.arguments.append(argument)

    def read_features(self) -> None:
        asked = self.asked["features"]
        if not isinstance(asked, Mapping):
            raise InputError(
                f"{_NAMES['features']} is {asked!r}: give a dictionary, USE_NAME: true"
            )
        for name, value in asked.items():
            if not isinstance(value, bool):
                self.refuse("features", f"{name} is {value!r}; give true or false")
            else:
                self.given.setdefault(str(name), value)

    def read_target(self) -> None:
        target = self.asked["target"]
        if target not in facts.TARGETS:
            self.refuse("target", f"{target!r} is none of {', '.join(facts.TARGETS)}")

    def read_tls(self) -> None:
        asked = self.asked["tls_library"]
        if not asked:
            self.tls = tls_facts.Tls("openssl", str(self.asked["openssl"] or ""))
            return
        if not isinstance(asked, Mapping) or set(asked) - set(_TLS_KEYS):
            raise InputError(
                f"{_NAMES['tls_library']} is {asked!r}: give a dictionary of {', '.join(_TLS_KEYS)}"
            )
        path = str(asked.get("path") or "").rstrip("/")
        lib = str(asked.get("lib") or "lib").strip("/")
        if not _PATH.fullmatch(f"{path}/{lib}") or not path:
            self.refuse(
                "tls_library",
                f"the path {path + '/' + lib!r} is not absolute, or has a character that make or the linker takes for its own",
            )
            path = "/"
        found = tls_facts.parse_headers(str(asked.get("headers") or "")) or {}
        name = str(asked.get("name") or found.get("name") or "").lower()
        if name not in tls_facts.KINDS:
            known = ", ".join(sorted(tls_facts.KINDS))
            what = f"{name!r} is none of {known}" if name else "no TLS library can be told from it"
            self.refuse(
                "tls_library",
                f"{what}; the headers are to be in {path}/include, or give its name ({known})",
            )
            name = "openssl"
        self.tls = tls_facts.Tls(
            name, str(asked.get("version") or found.get("version") or ""), path, lib
        )

    def choose_features(self) -> None:
        self.features = facts.full_features(self.given)
        feature = self.tls.kind.feature
        if (
            feature is not None
            and self.features["USE_OPENSSL"]
            and facts.knows(self.branch, feature)
        ):
            self.features.setdefault(feature, True)

    def is_on(self, *names: str) -> bool:
        return any(self.features.get(name) for name in names)

    def argument(self, *names: str) -> str | None:
        """The first of make's arguments with one of these names."""
        return next((a for a in self.arguments if a.partition("=")[0] in names), None)

    # What is wrong with it.

    def check_features(self) -> None:
        for name in sorted(self.features):
            self.check_feature(name)
        for name in facts.REQUIRED:
            if self.features.get(name) is False:
                self.refuse(
                    "features", f"{name} is off; without it there is no transparent proxying"
                )
        if self.is_on("USE_ZLIB") and self.is_on("USE_SLZ"):
            self.refuse("features", "USE_SLZ and USE_ZLIB exclude each other; switch one on")
        if self.is_on(*facts.PCRE) and self.is_on(*facts.PCRE2):
            both = [name for name in (*facts.PCRE, *facts.PCRE2) if self.is_on(name)]
            self.refuse(
                "features", f"{' and '.join(both)} mix PCRE and PCRE2; HAProxy takes one of them"
            )
        if (
            self.is_on("USE_SLZ")
            and self.branch < facts.SLZ_BUNDLED
            and self.argument("SLZ_INC", "SLZ_LIB", "ADDLIB") is None
        ):
            self.refuse(
                "features",
                f"USE_SLZ needs libslz, which HAProxy {self.version} does not bring along and Debian does not have; "
                f"take USE_ZLIB, HAProxy {facts.show(facts.SLZ_BUNDLED)} or newer, or give SLZ_INC and SLZ_LIB "
                f"in {_NAMES['make_arguments']}",
            )

    def check_feature(self, name: str) -> None:
        if name not in facts.FEATURES and self.branch <= facts.NEWEST:
            meant = facts.similar(name)
            self.refuse(
                "features",
                f"no HAProxy from {facts.show(facts.OLDEST)} to {facts.show(facts.NEWEST)} knows {name}"
                + (f"; did you mean {meant}?" if meant else "; see its Makefile for the names"),
            )
        elif not _FEATURE.fullmatch(name):
            self.refuse("features", f"{name!r} is no name of a feature; they begin with USE_")
        elif not self.features[name]:
            # What is not there needs no switching off.
            if not facts.knows(self.branch, name) or (
                name == "USE_SYSTEMD" and self.branch >= facts.SYSTEMD_BUILT_IN
            ):
                del self.features[name]
        elif name in facts.FOREIGN:
            self.refuse("features", f"{name} is not for Linux; leave it out")
        elif not facts.knows(self.branch, name):
            self.refuse(
                "features",
                f"HAProxy {self.version} does not know {name}, which is in {facts.say_who_knows(name)}; "
                "leave it out or build another version",
            )

    # What to build it with.

    def find_packages(self) -> list[str]:
        """The Debian packages of the features, and those asked for."""
        distribution = str(self.asked["distribution"])
        major = _number(self.asked["distribution_major_version"])
        old = {"Debian": 11, "Ubuntu": 20}.get(distribution, 0)
        found = []
        if self.is_on("USE_LUA") and self.argument("LUA_INC", "LUA_LIB", "LUA_LIB_NAME") is None:
            older = self.branch < facts.LUA_5_4 or (major is not None and major <= old)
            found.append("liblua5.3-dev" if older else "liblua5.4-dev")
        if (
            self.is_on("USE_OPENSSL")
            and not self.tls.path
            and self.argument("SSL_INC", "SSL_LIB") is None
        ):
            found.append("libssl-dev")
        if self.is_on(*facts.PCRE) and self.argument("PCREDIR", "PCRE_INC", "PCRE_LIB") is None:
            found.append("libpcre3-dev")
            if distribution == "Debian" and (major is None or major >= 13):
                self.refuse(
                    "features",
                    "USE_PCRE: Debian has no PCRE from 13 on; take USE_PCRE2, or give PCREDIR in "
                    f"{_NAMES['make_arguments']}",
                )
        if self.is_on(*facts.PCRE2) and self.argument("PCRE2_INC", "PCRE2_LIB") is None:
            found.append("libpcre2-dev")
        if self.is_on("USE_SYSTEMD") and self.branch < facts.SYSTEMD_WITHOUT_LIBRARY:
            found.append("libsystemd-dev")
        if self.is_on("USE_ZLIB") and self.argument("ZLIB_INC", "ZLIB_LIB") is None:
            found.append("zlib1g-dev")
        if self.is_on("USE_OT") and self.argument("OT_INC", "OT_LIB") is None:
            found += ["libopentracing-c-wrapper-dev", "pkg-config"]
            if distribution == "Debian" and major is not None and major <= 11:
                self.refuse(
                    "features",
                    "USE_OT: Debian has libopentracing-c-wrapper-dev from 12 on; leave it out, or give OT_INC and OT_LIB "
                    f"in {_NAMES['make_arguments']}",
                )
        return list(dict.fromkeys(sorted(found) + _strings(self.asked["packages"], "packages")))

    def write_arguments(self) -> list[str]:
        make = [f"TARGET={self.asked['target']}"]
        arguments = list(self.arguments)
        for name, value in sorted(self.features.items()):
            if name == "USE_SYSTEMD" and self.branch >= facts.SYSTEMD_BUILT_IN:
                continue
            if name == "USE_PROMEX" and self.branch < facts.PROMEX_FEATURE:
                if value:
                    make.append(_merge("EXTRA_OBJS", facts.PROMEX_OBJECT, arguments))
                continue
            make.append(f"{name}={'1' if value else ''}")
        if self.tls.path and self.tls.path != "/":
            library = f"{self.tls.path}/{self.tls.lib}"
            make += [f"SSL_INC={self.tls.path}/include", f"SSL_LIB={library}"]
            # Not by LDFLAGS, which has a default before 3.0 that an argument would replace.
            make.append(_merge("ADDLIB", f"-Wl,-rpath,{library}", arguments))
        cflags = self.asked["cflags"]
        if not isinstance(cflags, str) or not _FLAGS.fullmatch(cflags):
            self.refuse(
                "cflags",
                f"{cflags!r} has a character that make or its shell takes for its own; give options, separated by spaces",
            )
        elif cflags.strip():
            added = self.branch >= facts.CFLAGS_ADDED
            name = "CFLAGS" if added else "DEBUG_CFLAGS"
            if self.argument(name, "CFLAGS") is not None:
                self.refuse(
                    "cflags",
                    f"{self.argument(name, 'CFLAGS')} in {_NAMES['make_arguments']} would undo it; use one of the two",
                )
            make.append(f"{name}={'' if added else '-g '}{' '.join(cflags.split())}")
        return make + arguments


def make_plan(asked: Mapping[str, t.Any]) -> Plan:
    """The plan for what is asked for: `version` and, unless they are as in _ASKED, the other keys."""
    unknown = sorted(set(asked) - set(_ASKED))
    if unknown:
        raise InputError(f"{', '.join(map(str, unknown))}: give no more than {', '.join(_ASKED)}")
    asked = {**_ASKED, **{key: value for key, value in asked.items() if value is not None}}
    version = facts.parse_version(str(asked["version"]))
    if version is None:
        raise InputError(f"version is {asked['version']!r}: give HAProxy's, for example 3.0.11")
    if version.branch < facts.OLDEST:
        sentence = f"HAProxy {version.text} is too old to be built here; take {facts.show(facts.OLDEST)} or newer"
        return Plan([], [], [], [], [sentence])
    return _Planner(asked, version).plan()


def _merge(name: str, value: str, arguments: list[str]) -> str:
    """Our value and that of the argument of the same name, which is taken out."""
    mine = [argument for argument in arguments if argument.startswith(f"{name}=")]
    for argument in mine:
        arguments.remove(argument)
    # As make has it, the last one counts.
    theirs = mine[-1].partition("=")[2].strip() if mine else ""
    return f"{name}={value} {theirs}".rstrip()


def _strings(value: t.Any, what: str) -> list[str]:
    if (
        isinstance(value, (str, bytes))
        or not isinstance(value, Sequence)
        or not all(isinstance(each, str) for each in value)
    ):
        raise InputError(f"{_NAMES[what]} is {value!r}: give a list of strings")
    return [str(each) for each in value]


def _number(value: t.Any) -> int | None:
    match = re.match(r"[0-9]+", str(value))
    return int(match[0]) if match else None
