# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: a host's own apt lines in, the source lines of a suite out; and what apt prints, understood. Private to the collection.

The two forms of apt's lists are those of sources.list(5). Only the options that decide whether and how
a Release file is believed are carried over: a source line has no architecture and no language.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error

# Option of a one-line entry -> field of a deb822 stanza.
_KEPT_OPTIONS = {
    "allow-downgrade-to-insecure": "Allow-Downgrade-To-Insecure",
    "allow-insecure": "Allow-Insecure",
    "allow-weak": "Allow-Weak",
    "by-hash": "By-Hash",
    "check-date": "Check-Date",
    "check-valid-until": "Check-Valid-Until",
    "date-max-future": "Date-Max-Future",
    "inrelease-path": "InRelease-Path",
    "signed-by": "Signed-By",
    "trusted": "Trusted",
    "valid-until-max": "Valid-Until-Max",
    "valid-until-min": "Valid-Until-Min",
}
# What belongs to a release beside the release itself; "/updates" is the security suite up to Debian 10.
_POCKETS = ("", "-updates", "-security", "/updates")
# Names that move from release to release: a host may follow one instead of its code name.
_MOVING_NAMES = ("stable", "oldstable", "oldoldstable", "testing", "unstable", "sid")
# Suites that have no pockets: their updates go to the suite itself.
_WITHOUT_POCKETS = ("sid", "unstable", "experimental", "rc-buggy")
# The archive's own part of a Debian or Ubuntu mirror, and where haproxy is; a third party's
# component ("stable", "pgdg") rarely has this name, and rarely has sources.
_COMPONENT = "main"
_ONE_LINE = re.compile(
    r"^(?P<type>deb|deb-src)\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s*(?P<components>.*)$"
)
_URI_LINE = re.compile(
    r"^'(?P<uri>[^']+)' (?P<name>\S+) (?P<size>\d+) (?P<kind>[A-Za-z0-9]+):(?P<checksum>[0-9a-fA-F]+)$"
)
_DSC_NAME = re.compile(r"^(?P<package>[^_]+)_(?P<version>[^_]+)\.dsc$")


class SourceError(Error):
    """The distribution's source package cannot be had on this host."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry of the host's lists; a deb822 stanza may name several URIs and suites."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class SourceLine:
    """One place that apt is to read source packages from."""

    uri: str
    suite: str
    options: tuple[tuple[str, str], ...] = ()

    def render(self) -> str:
        fields = [
            ("Types", "deb-src"),
            ("URIs", self.uri),
            ("Suites", self.suite),
            ("Components", _COMPONENT),
        ]
        return "".join(f"{name}: {value}\n" for name, value in (*fields, *self.options))


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One file of a source package, as the signed index describes it."""

    name: str
    uri: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class SourcePackage:
    """The source package that apt chose."""

    version: str
    dsc: SourceFile
    files: tuple[SourceFile, ...]


def parse_one_line(text: str) -> list[Entry]:
    """Read the form of `/etc/apt/sources.list`. What is not an entry, or is a CD-ROM, is left out."""
    entries = []
    for raw in text.splitlines():
        match = _ONE_LINE.match(raw.partition("#")[0].strip())
        if match is None or match["uri"].startswith("cdrom:"):
            continue
        options = []
        for word in (match["options"] or "").split():
            name, equals, value = word.partition("=")
            field = _KEPT_OPTIONS.get(name.lower())
            if equals and field:
                options.append((field, value.replace(",", " ")))
        entries.append(
            Entry(
                (match["uri"],),
                (match["suite"],),
                tuple(match["components"].split()),
                tuple(options),
            )
        )
    return entries


def parse_deb822(text: str) -> list[Entry]:
    """Read the form of a `.sources` file. A stanza that is switched off, or has no URI or suite, is left out."""
    kept = {field.lower(): field for field in _KEPT_OPTIONS.values()}
    entries = []
    for stanza in _stanzas(text):
        uris = tuple(uri for uri in stanza.get("uris", "").split() if not uri.startswith("cdrom:"))
        suites = tuple(stanza.get("suites", "").split())
        enabled = stanza.get("enabled", "yes").strip().lower() not in (
            "no",
            "false",
            "0",
            "off",
            "without",
            "disable",
        )
        if (
            enabled
            and uris
            and suites
            and {"deb", "deb-src"} & set(stanza.get("types", "").split())
        ):
            options = tuple((kept[name], value) for name, value in stanza.items() if name in kept)
            entries.append(
                Entry(uris, suites, tuple(stanza.get("components", "").split()), options)
            )
    return entries


def _stanzas(text: str) -> t.Iterator[dict[str, str]]:
    stanza: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if stanza:
                yield stanza
            stanza, name = {}, ""
        elif line[0] in " \t":
            # A key written into Signed-By goes over several lines: kept as it is.
            if name:
                stanza[name] += f"\n{line}"
        else:
            name, _colon, value = line.partition(":")
            name = name.strip().lower()
            stanza[name] = value.strip()


def source_lines(
    entries: t.Iterable[Entry], codename: str, suite: str | None = None
) -> list[SourceLine]:
    """The source lines of a suite, from the same mirrors and under the same keys as the host's own lines.

    Where the host already has lines of the suite, these; otherwise the lines of the host's own release with the
    suite's name put in place of the release's. Without a suite, the host's own release.
    """
    usable = [entry for entry in entries if _COMPONENT in entry.components]
    named = {name for entry in usable for name in entry.suites}
    wanted = suite or codename
    if wanted in named:
        return _lines(usable, wanted, wanted)
    own = next((name for name in (codename, *_MOVING_NAMES) if name in named), None)
    if own is None:
        return []
    return _lines(usable, own, suite or own)


def _lines(entries: list[Entry], own: str, wanted: str) -> list[SourceLine]:
    plain = wanted in _WITHOUT_POCKETS or (own != wanted and "-" in wanted)
    pockets = {
        f"{own}{pocket}": f"{wanted}{pocket}" for pocket in (_POCKETS[:1] if plain else _POCKETS)
    }
    lines = [
        SourceLine(uri, pockets[name], entry.options)
        for entry in entries
        for name in entry.suites
        if name in pockets
        for uri in entry.uris
    ]
    # "deb" and "deb-src" lines of one place are one source line.
    return list({(line.uri.rstrip("/"), line.suite): line for line in reversed(lines)}.values())[
        ::-1
    ]


def render_sources(lines: t.Iterable[SourceLine]) -> str:
    """The text of a `.sources` file."""
    return "\n".join(line.render() for line in lines)


def os_codename(os_release: str) -> str:
    """The release's code name, from the text of os-release(5); empty where it has none."""
    match = re.search(r"^VERSION_CODENAME=[\"']?([a-z0-9-]+)", os_release, re.MULTILINE)
    return match[1] if match else ""


def offered_versions(madison: str, package: str) -> list[str]:
    """The versions that `apt-cache madison` lists as sources, in its order, each once."""
    rows = ([cell.strip() for cell in line.split("|")] for line in madison.splitlines())
    versions = [
        row[1]
        for row in rows
        if len(row) == 3 and row[0] == package and row[2].endswith(" Sources")
    ]
    return list(dict.fromkeys(versions))


def parse_print_uris(text: str, package: str) -> SourcePackage:
    """What `apt-get source --print-uris` names, with SHA-256 checksums asked for."""
    files = []
    for line in text.splitlines():
        match = _URI_LINE.match(line.strip())
        if match is None:
            continue
        if match["kind"].upper() != "SHA256":
            raise SourceError(
                f"apt names no SHA-256 checksum of {match['name']}, only {match['kind']}"
            )
        files.append(
            SourceFile(match["name"], match["uri"], int(match["size"]), match["checksum"].lower())
        )
    descriptions = [file for file in files if file.name.endswith(".dsc")]
    if len(descriptions) != 1:
        raise SourceError(
            f"apt names {len(descriptions)} .dsc files of the source package {package}, not one"
        )
    name = _DSC_NAME.match(descriptions[0].name)
    if name is None or name["package"] != package:
        raise SourceError(
            f"apt names {descriptions[0].name}, which is not a .dsc file of the source package {package}"
        )
    return SourcePackage(name["version"], descriptions[0], tuple(files))


def apt_complaints(output: str) -> list[str]:
    """The errors and warnings among apt's lines, without their letter, each once."""
    found = re.findall(r"^[EW]:\s*(.+)$", output, re.MULTILINE)
    return list(dict.fromkeys(line.strip() for line in found))
