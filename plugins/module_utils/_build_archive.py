# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: options in, which tarball and which checksum out; what a checksum file and a tarball's members say. Private to the collection."""

from __future__ import annotations

import dataclasses
import re
import typing as t
import urllib.parse
from collections.abc import Mapping

from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_source import SourceError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

# What makes a directory HAProxy's source; `make` reads the version from the latter two.
_NEEDED = ("Makefile", "VERSION", "SUBVERS")
# Those whose text is looked at.
READ = ("Makefile", "VERSION")
_RELEASE = re.compile(r"(?P<branch>[0-9]+\.[0-9]+)(?:\.[0-9]+|(?P<devel>-dev[0-9]+))")
_VERSION = re.compile(r"[0-9]+\.[0-9]+[0-9A-Za-z.+~-]*")
_IN_NAME = re.compile(r"(?<![0-9.])[0-9]+\.[0-9]+(?:\.[0-9]+|-dev[0-9]+)(?!\.?[0-9])")
_NAME = re.compile(r"[0-9A-Za-z_+~][0-9A-Za-z._+~@-]{0,199}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_PLAIN_LINE = re.compile(r"(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)")
_TAGGED_LINE = re.compile(r"SHA256 \((?P<name>.+)\) = (?P<sum>[0-9a-fA-F]{64})")


@dataclasses.dataclass(frozen=True)
class Location:
    """A file of the host (`path`) or of a web server (`url`). `shown` has no password; `remedy` is what helps when it is not there."""

    shown: str
    url: str | None = None
    path: str | None = None
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The tarball that the options ask for. `sha256` or `checksums` say what it has to be, except for a file of the host."""

    kind: str
    name: str
    source: Location
    version: str | None = None
    sha256: str | None = None
    checksums: Location | None = None
    # The checksum file is the one beside the release.
    published: bool = False

    @property
    def version_of_name(self) -> str | None:
        """The version as far as it can be told without the tarball."""
        found = _IN_NAME.search(self.name)
        return self.version or (found[0] if found else None)


def make_wanted(params: Mapping[str, t.Any]) -> Wanted:
    """The tarball, from the options of a release or an archive."""
    if params["timeout"] < 1:
        raise InputError(f"timeout is {params['timeout']}: give seconds, from 1")
    return _release(params) if params["source"] == "release" else _archive(params)


def _release(params: Mapping[str, t.Any]) -> Wanted:
    version = (params["version"] or "").strip()
    if not version:
        raise InputError(
            "source is release, and no version is given, for example 3.0.11: the newest is not guessed, since it would change by itself"
        )
    match = _RELEASE.fullmatch(version)
    if match is None:
        raise InputError(
            f"version is {version!r}, which no upstream release has: give all of its numbers, for example 3.0.11 or 3.3-dev5"
        )
    name = f"haproxy-{version}.tar.gz"
    # Where www.haproxy.org has its releases, and those that lead to the next branch.
    mirror = (params["mirror"] or "").rstrip("/")
    known = locate(mirror, "mirror").shown
    place = f"{mirror}/{match['branch']}/src{'/devel' if match['devel'] else ''}/{name}"
    source = locate(place, "mirror", f"check that {known} has version {version}")
    sha256, checksums = _checksum(params["checksum"])
    if sha256 or checksums:
        return Wanted("release", name, source, version, sha256, checksums)
    remedy = f"check that the mirror has version {version}, or give its checksum"
    return Wanted(
        "release", name, source, version, None, locate(f"{place}.sha256", "mirror", remedy), True
    )


def _archive(params: Mapping[str, t.Any]) -> Wanted:
    place = (params["archive"] or "").strip()
    if not place:
        raise InputError("source is archive, and no archive is given: its URL, or its path")
    source = locate(place, "archive", "check archive")
    path = source.path or urllib.parse.unquote(urllib.parse.urlsplit(source.url or "").path)
    name = path.rpartition("/")[2]
    if not _NAME.fullmatch(name) or name.endswith(".part"):
        raise InputError(
            f"archive is {source.shown!r}, which does not end in the name of a file: "
            f"give one that ends in letters, digits and ._+~@-, for example haproxy-3.0.11.tar.gz"
        )
    sha256, checksums = _checksum(params["checksum"])
    if source.url and not sha256 and not checksums:
        raise InputError(
            f"archive is the URL {source.shown}, and no checksum is given: "
            f"give its SHA-256 checksum, or the URL of a checksum file, from a place that you trust"
        )
    return Wanted("archive", name, source, params["version"] or None, sha256, checksums)


def locate(value: str, option: str, remedy: str = "") -> Location:
    """Where a value of an option leads: a path of the host, or a URL."""
    if value.startswith("/") and "\0" not in value:
        return Location(value, path=value, remedy=remedy)
    forms = "give an http:// or https:// URL, or an absolute path of the host"
    try:
        parts = urllib.parse.urlsplit(value)
        host, _port = parts.hostname, parts.port
    except ValueError as exc:
        shown = re.sub(r"//[^/]*@", "//", value)
        raise InputError(f"{option} is {shown!r}, which is not a URL: {forms}") from exc
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    # Also what an unencoded character would make of the request.
    if re.search(r"[^!-~]", value):
        raise InputError(
            f"{option} is {shown!r}, with a character that no URL has: percent-encode it"
        )
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path[1:]:
        return Location(shown, path=urllib.parse.unquote(parts.path), remedy=remedy)
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{option} is {shown!r}: {forms}")
    return Location(shown, url=value, remedy=remedy)


def _checksum(value: str | None) -> tuple[str | None, Location | None]:
    """The option's checksum, or where a file of checksums is."""
    text = (value or "").strip()
    if not text:
        return None, None
    if text.lower().startswith("sha256:"):
        text = text[7:].strip()
    if _SHA256.fullmatch(text):
        return text.lower(), None
    if text.startswith("/") or "://" in text:
        return None, locate(text, "checksum", "check checksum")
    raise InputError(
        f"checksum is {value!r}, which is no SHA-256 checksum: give sha256: and its 64 hexadecimal digits, "
        f"or the URL or absolute path of a file that sha256sum wrote"
    )


def parse_checksums(text: str, name: str, where: str) -> str:
    """The SHA-256 checksum of the file of this name, from what sha256sum writes."""
    if _SHA256.fullmatch(text.strip()):
        return text.strip().lower()
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        match = _PLAIN_LINE.fullmatch(line.strip()) or _TAGGED_LINE.fullmatch(line.strip())
        if match:
            found.setdefault(match["name"].rpartition("/")[2], set()).add(match["sum"].lower())
    sums = found.get(name, set())
    if len(sums) == 1:
        return sums.pop()
    if sums:
        raise SourceError(
            f"{where} has {len(sums)} different checksums of {name}: give the right one as checksum"
        )
    names = ", ".join(sorted(found)[:5])
    said = f"only of {names}" if found else "it is not what sha256sum writes"
    raise SourceError(
        f"{where} has no SHA-256 checksum of {name} ({said}): give the checksum itself, or a file that has it"
    )


class Tree:
    """What a tarball unpacks to, seen member by member; refuses what would not stay in one directory."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._top: str | None = None
        self._files: set[str] = set()
        self._links: set[str] = set()

    def add(self, name: str, kind: str, target: str = "") -> str:
        """A member; `kind` is file, directory, symlink, hardlink or else. Returns its path below the top directory."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            raise self._refusal(f"it would write to {name!r}, outside of its directory")
        if kind not in ("file", "directory", "symlink", "hardlink"):
            raise self._refusal(f"{name!r} is neither a file, a directory nor a link")
        if not parts:
            return ""
        if self._top is None:
            if not _NAME.fullmatch(parts[0]):
                raise self._refusal(f"its directory is called {parts[0]!r}")
            self._top = parts[0]
        if parts[0] != self._top or (len(parts) == 1 and kind != "directory"):
            raise self._refusal(f"it has {name!r} beside its directory {self._top!r}")
        path = "/".join(parts[1:])
        above = parts[1:-1]
        if any("/".join(above[: depth + 1]) in self._links for depth in range(len(above))):
            raise self._refusal(f"it would write {name!r} through a link")
        if kind == "symlink":
            self._check_symlink(name, len(above), target)
        elif kind == "hardlink":
            self._check_hardlink(name, target)
        (self._files.add if kind == "file" else self._files.discard)(path)
        (self._links.add if kind == "symlink" else self._links.discard)(path)
        return path

    def _check_symlink(self, name: str, depth: int, target: str) -> None:
        """Only as many `..` as there are directories above, and first: one behind a name may be behind a link."""
        steps = [part for part in target.split("/") if part not in ("", ".")]
        up = 0
        while up < len(steps) and steps[up] == "..":
            up += 1
        if target.startswith("/") or up > depth or ".." in steps[up:]:
            raise self._refusal(f"the link {name!r} leads out, to {target!r}")

    def _check_hardlink(self, name: str, target: str) -> None:
        parts = [part for part in target.split("/") if part not in ("", ".")]
        if target.startswith("/") or ".." in parts or parts[:1] != [self._top]:
            raise self._refusal(f"the link {name!r} leads out, to {target!r}")

    def _refusal(self, problem: str) -> SourceError:
        return SourceError(
            f"{self._where} is not a tarball of HAProxy's source: {problem}; give another archive or mirror"
        )

    def finish(self, texts: Mapping[str, str]) -> tuple[str, str]:
        """The top directory and the version, once all members are there; `texts` are those of READ."""
        if self._top is None:
            raise self._refusal("it is empty")
        missing = [name for name in _NEEDED if name not in self._files]
        if missing:
            raise self._refusal(f"it has no {' and no '.join(missing)} in {self._top!r}")
        if "haproxy" not in texts["Makefile"].lower():
            raise self._refusal("its Makefile does not make haproxy")
        version = next(iter(texts["VERSION"].split()), "")
        if not _VERSION.fullmatch(version):
            raise self._refusal(f"its VERSION is {version!r}")
        return self._top, version


def check_version(wanted: Wanted, found: str, where: str) -> None:
    if wanted.version and wanted.version != found:
        raise SourceError(
            f"{where} is version {found} by its own VERSION file, not {wanted.version}: change version, or {wanted.source.remedy}"
        )
