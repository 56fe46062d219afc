# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what a host has of HAProxy's releases in, the steps of a switch and what to remove out. Private to the collection.

A switch is three names (the links `previous` and `current`, the file `rolled-back`), each changed at once, so that a run may
end between any two of them. Forward from A to B: previous=A, current=B, no marker. Back from B to A: marker=B, current=A,
previous=B. In this order each state in between tells what was begun.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error, InputError

PREVIOUS = "previous"
CURRENT = "current"
MARKER = "rolled-back"
# What a release directory holds at its top.
LAYOUT = ("build.log", "release.json", "sbin", "share")
# What the root holds that is this collection's.
OWN = ("current", "previous", "releases", "rolled-back", "staging", "taken-over.json")
BINARY = "sbin/haproxy"
RECORD = "release.json"

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~:_-]*-[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LISTED = re.compile(r"^Feature list *: *(.+)$", re.MULTILINE)
_VERSION = re.compile(r"^HA-?Proxy version ([0-9]+)\.([0-9]+)", re.MULTILINE)


class ReleaseError(Error):
    """A release that cannot be installed, switched to, or kept running."""


@dataclasses.dataclass(frozen=True)
class Release:
    """An installed release. `record` is empty where release.json cannot be read."""

    id: str
    record: dict[str, t.Any]
    problem: str | None = None

    @property
    def usable(self) -> bool:
        return self.problem is None

    @property
    def built(self) -> str:
        return str(self.record.get("built") or "")


@dataclasses.dataclass(frozen=True)
class Names:
    """The IDs that `previous`, `current` and `rolled-back` name."""

    current: str | None = None
    previous: str | None = None
    marker: str | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """One name to change: a link or the marker, and the ID that it names, or None to remove it."""

    name: str
    id: str | None


@dataclasses.dataclass(frozen=True)
class Switch:
    """The release in use afterwards, the steps to it in their order, and what to say if there is nothing to do."""

    release: str | None
    steps: tuple[Step, ...] = ()
    said: str | None = None


@dataclasses.dataclass(frozen=True)
class Process:
    """A process; the kernel adds ` (deleted)` to the `exe` of one whose file is gone."""

    pid: int
    exe: str


@dataclasses.dataclass(frozen=True)
class Service:
    """The service as systemd and /proc have it. `workers`: the oldest first."""

    state: str
    unit: str
    master: Process | None = None
    workers: tuple[Process, ...] = ()
    status: str = ""
    # The unit's file has changed since systemd read it, or since the process started.
    unread: bool = False
    outdated: bool = False

    @property
    def executables(self) -> tuple[str, ...]:
        return tuple(p.exe for p in (self.master, *self.workers) if p is not None)


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def parse_record(text: str | bytes) -> dict[str, t.Any]:
    """The record in a release.json."""
    try:
        record = json.loads(text)
    except ValueError as exc:
        raise ReleaseError(f"{RECORD} cannot be read: {exc}") from exc
    if not isinstance(record, dict):
        raise ReleaseError(f"{RECORD} cannot be read: it is not an object")
    return record


def verify_record(record: dict[str, t.Any], where: str) -> str:
    """The ID of an archive's record, once all of it that names the release is seen to fit together."""
    again = "build it again, or take the archive from the cache again"
    identifier, version, fingerprint, checksum = (
        record.get(key) for key in ("id", "version", "fingerprint", "binary_sha256")
    )
    for key, value in (("fingerprint", fingerprint), ("binary_sha256", checksum)):
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise ReleaseError(f"{where}: {RECORD} has no SHA-256 checksum as {key}; {again}")
    if not isinstance(identifier, str) or not is_id(identifier):
        raise ReleaseError(
            f"{where}: {RECORD} has no ID of a release, VERSION-FINGERPRINT; {again}"
        )
    if identifier != f"{version}-{str(fingerprint)[:12]}":
        raise ReleaseError(
            f"{where}: {RECORD} has the ID {identifier}, which its version {version} and fingerprint do not make; {again}"
        )
    return identifier


def member_name(name: str, where: str) -> str:
    """The path in the release of an archive's member, empty for the release itself."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise ReleaseError(f"{where} leads out of the release with {name!r}; nothing was unpacked")
    if parts and parts[0] not in LAYOUT:
        raise ReleaseError(
            f"{where} holds {name!r}, which is none of a release's {', '.join(LAYOUT)}; nothing was unpacked"
        )
    return "/".join(parts)


def missing_features(
    report: str, features: t.Iterable[str], unlisted: t.Collection[str]
) -> list[str]:
    """Those features, without USE_, that `haproxy -vv` does not show as on."""
    match = _LISTED.search(report)
    listed = match[1].split() if match else []
    names = {word[1:] for word in listed if word[0] in "+-"}
    missing = []
    for feature in features:
        name = feature[4:] if feature.startswith("USE_") else feature
        # An unlisted feature that is there but off is missing as well.
        assumed = name not in names and (feature in unlisted or f"USE_{name}" in unlisted)
        if f"+{name}" not in listed and not assumed:
            missing.append(name)
    return missing


def master_option(report: str) -> str:
    """The option for a master process: `-Ws` where the binary can talk to systemd, which 3.1 always can."""
    match, version = _LISTED.search(report), _VERSION.search(report)
    listed = match[1].split() if match else []
    always = version is not None and (int(version[1]), int(version[2])) >= (3, 1)
    return "-Ws" if "+SYSTEMD" in listed or (always and "-SYSTEMD" not in listed) else "-W"


def plan_switch(names: Names, wanted: str | None) -> Switch:
    """The steps to a release; `previous` is a rollback. From a state that an ended run left too."""
    if wanted == PREVIOUS:
        return _plan_back(names)
    if wanted is None:
        return Switch(names.current)
    steps = []
    if names.current != wanted:
        # A rollback that was begun and not made; after the switch its marker would tell of one that was.
        begun = names.marker is not None and names.marker == names.current
        if begun:
            steps.append(Step(MARKER, None))
        if names.current is not None and names.previous != names.current:
            steps.append(Step(PREVIOUS, names.current))
        steps.append(Step(CURRENT, wanted))
        if names.marker is not None and not begun:
            steps.append(Step(MARKER, None))
    elif names.marker is not None and not _is_back(names):
        steps.append(Step(MARKER, None))
    return Switch(wanted, tuple(steps))


def _is_back(names: Names) -> bool:
    """Whether the current release is what a rollback went to, its last step done or not."""
    return (
        names.current is not None
        and names.marker is not None
        and names.marker != names.current
        and names.previous in (names.marker, names.current)
    )


def _plan_back(names: Names) -> Switch:
    if _is_back(names):
        # The last step, if it is missing.
        steps = () if names.previous == names.marker else (Step(PREVIOUS, names.marker),)
        said = f"{names.marker} was rolled back already, {names.current} is in use; switch to a release by its ID to go forward"
        return Switch(names.current, steps, said)
    if names.current is None or names.previous in (None, names.current):
        raise ReleaseError(
            f"there is no release before {names.current or 'the first'} to go back to; switch to a release by its ID"
        )
    steps = () if names.marker == names.current else (Step(MARKER, names.current),)
    return Switch(
        names.previous, (*steps, Step(CURRENT, names.previous), Step(PREVIOUS, names.current))
    )


def after(names: Names, steps: t.Iterable[Step]) -> Names:
    """What is named once the steps are done."""
    fields = {CURRENT: "current", PREVIOUS: "previous", MARKER: "marker"}
    for step in steps:
        names = dataclasses.replace(names, **{fields[step.name]: step.id})
    return names


def steps_back(names: Names, steps: t.Iterable[Step]) -> tuple[Step, ...]:
    """What takes the steps back, so that an end in between is again a state that tells what was begun."""
    fields = {CURRENT: "current", PREVIOUS: "previous", MARKER: "marker"}
    return tuple(Step(step.name, getattr(names, fields[step.name])) for step in reversed([*steps]))


def plan_action(service: Service | None, binary: str, root: str, *, configured: bool) -> str:
    """What makes the service run the binary: none, start, reload or restart.

    A reload executes the master again from the path that it was started from, so it follows the link. What another unit
    started has another path, and a changed unit takes effect by a restart only.
    """
    if service is None or not configured:
        return "none"
    if service.master is None:
        return "start"
    if service.unread or service.outdated or not service.master.exe.startswith(f"{root}/releases/"):
        return "restart"
    return "none" if runs(service, binary) else "reload"


def runs(service: Service, binary: str, ignored: t.Collection[int] = ()) -> bool:
    """Whether the master and its youngest worker execute the binary.

    A master that failed to reload executes the new one while the workers stay; an older worker may only be finishing
    its connections.
    """
    workers = service.workers
    return (
        service.master is not None
        and service.master.exe == binary
        and bool(workers)
        and workers[-1].exe == binary
        and workers[-1].pid not in ignored
    )


def reload_failed(service: Service) -> bool:
    """Whether the master says so (from 2.5 on)."""
    return "failed" in service.status.lower()


def release_of(executable: str, root: str) -> str | None:
    """The ID of the release that an executable is of."""
    match = re.match(re.escape(f"{root}/releases/") + r"([^/]+)/", executable)
    return match[1] if match else None


def choose_pruned(
    releases: t.Iterable[Release], keep: int, protected: t.Collection[str]
) -> list[str]:
    """The IDs to remove so that `keep` stay, the one built first first. What has no record is nobody's to remove."""
    if keep < 1:
        return []
    found = sorted((r for r in releases if r.record), key=lambda r: (r.built, r.id))
    surplus = max(len(found) - keep, 0)
    return [release.id for release in found if release.id not in protected][:surplus]


def check_options(release: str | None, keep: int, timeout: int) -> None:
    if release is not None and release != PREVIOUS and not is_id(release):
        raise InputError(
            f"release is {release!r}: give the ID of a release, VERSION-FINGERPRINT as haproxy_build_info lists it, or 'previous'"
        )
    if keep < 0:
        raise InputError(f"keep is {keep}: give how many releases stay, from 1, or 0 for all")
    if timeout < 1:
        raise InputError(f"timeout is {timeout}: give seconds, from 1")


def command_conflict(command: str) -> str:
    return (
        f"{command} is there and was not made by this role; "
        f"move it away (an earlier 'make install' leaves one), then run again"
    )


def root_conflict(root: str, others: t.Iterable[str]) -> str:
    return f"{root} is there and was not made by this role (it holds {', '.join(others)}); move {root} away, then run again"


def parse_show(text: str) -> dict[str, str]:
    """What `systemctl show` prints."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def parse_policy(text: str) -> dict[str, dict[str, str | None]]:
    """What `apt-cache policy` prints, in the C locale: package -> installed and candidate version."""
    found: dict[str, dict[str, str | None]] = {}
    package = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            package = line.rstrip(":")
            found[package] = {"installed": None, "candidate": None}
        match = re.match(r"\s+(Installed|Candidate): (\S+)", line)
        if match and package:
            found[package][match[1].lower()] = None if match[2] == "(none)" else match[2]
    return found
