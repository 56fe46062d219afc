# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of maps and ACLs: what HAProxy shows, and how to change it. Private to the collection.

Maps and ACLs are the same to HAProxy: lists of texts, which in a map have values. An ACL's entries
have the value "" here.
"""

from __future__ import annotations

import collections
import collections.abc as c
import contextlib
import dataclasses
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    LINE_LIMIT,
    PAYLOAD_LIMIT,
    Step,
    near,
    word,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    InputError,
    NotFoundError,
    ParseError,
    SocketError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import Change, Job

MAP = "map"
ACL = "acl"

# Bytes of a key and its value: 3.4.7 leaves longer ones out of what it shows.
ENTRY_LIMIT = 14 * 1024
# So many entries appear in a diff.
SHOWN = 500

# Longer than any version number that HAProxy counts to.
_LONGEST_VERSION = 2**32
_BLANKS = (" ", "\t")
_LISTED = re.compile(
    r"(-?[0-9]{1,10}) \((.*?)\) (?=pattern loaded from file '|acl '|map ')(.*)", re.S
)
_USED_AS_MAP = re.compile(r"(?: used|,) by map at file '")
_NEXT_VERSION = re.compile(r" next_ver=([0-9]{1,10}) entry_cnt=")
_ENTRY = re.compile(r"(0x[0-9a-f]{1,16}) (.*)", re.S)
_ID = re.compile(r"#([0-9]{1,9})")
_COMMIT = re.compile(r"commit (?:map|acl) @([0-9]+) ")
_SHAPES = {
    MAP: "must be a dictionary of keys and values, or a list of dictionaries with key and value; "
    "for state absent also a list of keys",
    ACL: "must be a list of patterns",
}
_NEW_VERSION = r"New version created: ([0-9]{1,10})"

Pair = tuple[str, str]


# --- what HAProxy shows ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Listed:
    """A map or an ACL as `show map` and `show acl` list it."""

    id: int
    # Empty for patterns that are written in the configuration itself.
    name: str
    # Whether its entries have values: it is a map, or an ACL that shares a map's file.
    valued: bool
    # The number of the latest version prepared; None before HAProxy 2.4, which has no versions.
    version: int | None


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry; `ref` is the address by which HAProxy tells duplicates apart."""

    ref: str
    key: str
    value: str


@dataclasses.dataclass(frozen=True)
class Seen:
    """One map or ACL with its entries, in HAProxy's order."""

    listed: Listed
    entries: tuple[Entry, ...]

    @property
    def pairs(self) -> list[Pair]:
        return [(entry.key, entry.value) for entry in self.entries]


def listing(kind: str, text: str) -> list[Listed]:
    """`show map` or `show acl`."""
    command = f"show {kind}"
    lines = text.split("\n")
    if not lines[0].startswith("# id "):
        raise ParseError(command, "no header", line=lines[0])
    found = []
    for line in lines[1:]:
        if not line.strip():
            continue
        match = _LISTED.fullmatch(line)
        if match is None:
            raise ParseError(command, "not an id, a name and a description", line=line)
        rest = match.group(3)
        version = _NEXT_VERSION.search(rest)
        found.append(
            Listed(
                int(match.group(1)),
                match.group(2),
                _USED_AS_MAP.search(rest) is not None,
                None if version is None else int(version.group(1)),
            )
        )
    return found


def contents(kind: str, text: str) -> tuple[Entry, ...]:
    """`show map NAME` or `show acl NAME`: a line an entry.

    Keys cannot contain blanks, or nobody could tell where they end. Whatever has got a line break
    into a value, what follows it still belongs to the same entry.
    """
    rows: list[list[str]] = []
    lines = text.split("\n") if text.strip("\n") else []
    if lines and not lines[-1]:
        del lines[-1]
    for line in lines:
        match = _ENTRY.fullmatch(line)
        if match is not None:
            rows.append([match.group(1), match.group(2)])
        elif rows:
            rows[-1][1] += "\n" + line
        else:
            raise ParseError(f"show {kind} …", "not an address and an entry", line=line)
    found = []
    for ref, rest in rows:
        key, value = (rest, "") if kind == ACL else rest.partition(" ")[::2]
        found.append(Entry(ref, key, value))
    return tuple(found)


def find(listed: c.Iterable[Listed], name: str) -> Listed | None:
    """The one with this name or #id. HAProxy 3.0 lists `opt@FILE` as `FILE`."""
    number = _ID.fullmatch(name)
    plain = re.sub(r"\A(?:opt|file)@", "", name)
    for wanted in (name, plain):
        for one in listed:
            if (number and one.id == int(number.group(1))) or (one.name and one.name == wanted):
                return one
    return None


def identifier(listed: Listed, name: str) -> str:
    """How commands name it: what begins with # or @ would be read as an id or a version."""
    if _ID.fullmatch(name) or listed.name[:1] in ("", "#", "@") or "\ufffd" in listed.name:
        return f"#{listed.id}"
    return word(listed.name)


# --- what the task wants --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Desired:
    """The entries that shall be there, or not; `ordered` if their order matters too."""

    kind: str
    name: str
    state: str
    pairs: tuple[Pair, ...]
    ordered: bool = False
    returned: str = "none"

    @classmethod
    def from_params(cls, kind: str, params: c.Mapping[str, t.Any]) -> Desired:
        name, state = params[kind], params["state"]
        _carriable(name, kind)
        given, ordered = _given(kind, state, params["entries"])
        pairs: dict[str, str] = {}
        for key, value in given:
            _check_entry(kind, key, None if kind == ACL or state == "absent" else value)
            if pairs.setdefault(key, value) != value:
                raise InputError(f"entries: {key!r} is given twice, with different values")
            if state != "absent":
                _check_length(kind, name, key, value)
        return cls(kind, name, state, tuple(pairs.items()), ordered, params["return"])


def _given(kind: str, state: str, raw: t.Any) -> tuple[list[Pair], bool]:
    """The entries as they were written, and whether their order matters."""
    if isinstance(raw, (str, int)):
        raw = [raw]
    ordered = kind == MAP and state == "exact" and isinstance(raw, list)
    if kind == MAP and isinstance(raw, dict):
        raw = [{"key": key, "value": value} for key, value in raw.items()]
    if not isinstance(raw, list):
        raise InputError(f"entries: {_SHAPES[kind]}")
    found = []
    for one in raw:
        if kind == ACL or (state == "absent" and not isinstance(one, dict)):
            found.append((_text(one, "pattern" if kind == ACL else "key"), ""))
        elif not isinstance(one, dict) or not {"key"} <= set(one) <= {"key", "value"}:
            raise InputError(f"entries: {_SHAPES[kind]}")
        elif state == "absent":
            found.append((_text(one["key"], "key"), ""))
        else:
            key = _text(one["key"], "key")
            if "value" not in one:
                raise InputError(f"entries: {key!r} has no value")
            found.append((key, _text(one["value"], f"value of {key!r}")))
    return found, ordered


def _text(value: t.Any, what: str) -> str:
    # YAML reads `on`, `1.10` and `~` as something else than what was written.
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"entries: the {what} is {value!r}, which is not text: put it in quotes")
    return str(value)


def _check_entry(kind: str, key: str, value: str | None) -> None:
    _carriable(key, "entries: the pattern" if kind == ACL else "entries: the key")
    if kind == MAP and any(blank in key for blank in _BLANKS):
        raise InputError(
            f"entries: the key {key!r} contains a blank, but in a map a key ends at the first one"
        )
    if value is not None:
        _carriable(value, f"entries: the value of {key!r}")


def _carriable(text: str, what: str) -> None:
    problem = None
    if not text:
        problem = "is empty"
    elif re.search(r"[\n\r\0]", text):
        problem = "contains a line break or a NUL"
    elif re.search(r"[\ud800-\udfff]", text):
        problem = "is not valid text"
    if problem:
        raise InputError(f"{what} {text[:60]!r} {problem}, which HAProxy's commands cannot carry")


def _check_length(kind: str, name: str, key: str, value: str) -> None:
    size = len(f"{key} {value}".encode())
    if kind == MAP and value[0] not in _BLANKS:
        if size > ENTRY_LIMIT:
            raise InputError(
                f"entries: {key[:60]!r} and its value have {size} bytes; HAProxy can hold and show "
                f"at most {ENTRY_LIMIT}"
            )
    elif not _fits(f"add {kind} @{_LONGEST_VERSION} {word(name)} {_words(key, value)}"):
        why = " with a value that begins with a blank" if kind == MAP else ""
        raise InputError(
            f"entries: {key[:60]!r}{why} has {size} bytes, which do not fit into a command's line "
            f"of {LINE_LIMIT} bytes"
        )


def _words(key: str, value: str) -> str:
    return f"{word(key)} {word(value)}" if value else word(key)


def _fits(command: str) -> bool:
    return len(command.encode()) < LINE_LIMIT


# --- the plan -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EntryChange(Change):
    """A change, and what is needed to describe it afterwards."""

    # The keys that it is about.
    keys: frozenset[str] = frozenset()
    counts: dict[str, int] = dataclasses.field(default_factory=dict)


def plan_entries(seen: Seen, desired: Desired) -> EntryChange:
    """The commands that make it so, and what will be there afterwards."""
    steps, after = _steps(seen, desired)
    before = seen.pairs
    keys, counts = _differing(before, after), _counts(before, after)
    return EntryChange(
        steps=tuple(steps),
        before=_view(desired, before, keys),
        after=_view(desired, after, keys),
        result=_result(seen, desired, after, keys, counts),
        keys=keys,
        counts=counts,
    )


def described(change: EntryChange, again: EntryChange, seen: Seen, desired: Desired) -> EntryChange:
    """The plan made after a change, telling what the change has led to."""
    return EntryChange(
        steps=again.steps,
        before=_view(desired, seen.pairs, change.keys),
        after=again.after,
        result=_result(seen, desired, seen.pairs, change.keys, change.counts),
        keys=again.keys,
        counts=again.counts,
    )


def _steps(seen: Seen, desired: Desired) -> tuple[list[Step], list[Pair]]:
    exact = desired.state == "exact"
    if exact and _is(seen.pairs, desired):
        return [], seen.pairs
    if exact and seen.listed.version is not None:
        return transaction(seen.listed, desired), list(desired.pairs)
    kept, added = _choose(seen, desired)
    return _edit(seen, desired, kept, added), [(e.key, value) for e, value in kept] + added


def _is(pairs: list[Pair], desired: Desired) -> bool:
    wanted = list(desired.pairs)
    return pairs == wanted if desired.ordered else sorted(pairs) == sorted(wanted)


def _choose(seen: Seen, desired: Desired) -> tuple[list[tuple[Entry, str]], list[Pair]]:
    """Which entries stay, with their new values, and which have to be appended behind them."""
    wanted = dict(desired.pairs)
    to = f"{desired.kind} {identifier(seen.listed, desired.name)}"
    kept: list[tuple[Entry, str]] = []
    if desired.state == "absent":
        return [(e, e.value) for e in seen.entries if e.key not in wanted], []

    def can_become(entry: Entry, value: str) -> bool:
        return entry.value == value or _fits(_set(to, entry, value))

    if desired.state == "exact" and desired.ordered:
        todo = collections.deque(desired.pairs)
        for entry in seen.entries:
            if todo and entry.key == todo[0][0] and can_become(entry, todo[0][1]):
                kept.append((entry, todo.popleft()[1]))
        return kept, list(todo)
    there: set[str] = set()
    for entry in seen.entries:
        value = wanted.get(entry.key)
        if value is None:
            if desired.state == "present":
                kept.append((entry, entry.value))
        elif entry.key not in there and can_become(entry, value):
            kept.append((entry, value))
            there.add(entry.key)
        elif desired.kind == ACL and desired.state == "present":
            # A pattern that is there twice matches what it matches.
            kept.append((entry, ""))
    return kept, [pair for pair in desired.pairs if pair[0] not in there]


def _edit(
    seen: Seen, desired: Desired, kept: list[tuple[Entry, str]], added: list[Pair]
) -> list[Step]:
    """One command an entry. What goes, goes last, so that nothing is missing meanwhile."""
    to = f"{desired.kind} {identifier(seen.listed, desired.name)}"
    steps = []
    for key, value in added:
        command = f"add {to} {_words(key, value)}"
        if _fits(command):
            steps.append(Step(key, command))
        else:
            steps.append(Step(key, f"add {to}", payload=(f"{key} {value}",)))
    for entry, value in kept:
        if entry.value != value:
            steps.append(Step(entry.key, _set(to, entry, value)))
    staying = {entry.ref for entry, _value in kept}
    count = collections.Counter(entry.key for entry in seen.entries)
    count.update(key for key, _value in added)
    for entry in seen.entries:
        if entry.ref not in staying:
            command = f"del {to} {word(entry.key)}" if _plain(entry.key) else ""
            # Of duplicates, HAProxy removes all up to 3.2, and one since; this way it is one. And
            # a blank may belong to a key that only others can have given.
            unsure = count[entry.key] > 1 or (desired.state == "exact" and " " in entry.value)
            if not command or unsure or not _fits(command):
                command = f"del {to} #{entry.ref}"
            steps.append(Step(entry.key, command))
    return steps


def _set(to: str, entry: Entry, value: str) -> str:
    # By its key, so that all duplicates get the value at once.
    target = word(entry.key) if _plain(entry.key) else f"#{entry.ref}"
    return f"set {to} {target} {word(value)}"


def _plain(key: str) -> bool:
    """Whether a command can name this key: `#0x…` is read as an address."""
    return bool(key) and key[0] != "#" and not re.search("[\n\r\0\ufffd]", key)


def transaction(listed: Listed, desired: Desired) -> list[Step]:
    """The whole content as a new version, which replaces the old one with the last command."""
    kind, target, name = desired.kind, identifier(listed, desired.name), desired.name
    # HAProxy counts up with each `prepare`.
    version = (listed.version or 0) + 1
    add = f"add {kind} @{version} {target}"
    steps = [Step(name, f"prepare {kind} {target}", accepted=_NEW_VERSION)]
    lines: list[str] = []
    room = space = PAYLOAD_LIMIT - len(add.encode()) - len(" <<\n\n")

    def flush() -> None:
        if lines:
            steps.append(Step(name, add, payload=tuple(lines)))
            lines.clear()

    for key, value in desired.pairs:
        # An ACL's `add` has no payload, and a payload's values lose the blanks they begin with.
        if kind == ACL or value[0] in _BLANKS:
            flush()
            steps.append(Step(name, f"{add} {_words(key, value)}"))
            room = space
            continue
        line = f"{key} {value}"
        size = len(line.encode()) + 1
        if size > room:
            flush()
            room = space
        lines.append(line)
        room -= size
    flush()
    return [*steps, Step(name, f"commit {kind} @{version} {target}")]


def renumbered(steps: c.Sequence[Step], version: int) -> list[Step]:
    """The steps of a transaction behind its first, with the version that HAProxy has given it."""
    match = _COMMIT.match(steps[-1].command)
    old = match.group(1) if match else ""
    return [
        step._replace(command=step.command.replace(f" @{old} ", f" @{version} ", 1))
        for step in steps[1:]
    ]


# --- descriptions ---------------------------------------------------------------------------


def _by_key(pairs: c.Iterable[Pair]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found


def _differing(before: list[Pair], after: list[Pair]) -> frozenset[str]:
    """The keys whose entries differ; if only the order does, those that are somewhere else."""
    old, new = _by_key(before), _by_key(after)
    keys = frozenset(key for key in {**old, **new} if old.get(key) != new.get(key))
    if keys or before == after:
        return keys
    return frozenset(one[0] for one, other in zip(before, after) if one != other)


def _counts(before: list[Pair], after: list[Pair]) -> dict[str, int]:
    old, new = _by_key(before), _by_key(after)
    added = removed = updated = 0
    for key in {**old, **new}:
        had, has = old.get(key, []), new.get(key, [])
        same = sum((collections.Counter(had) & collections.Counter(has)).values())
        added += max(len(has) - len(had), 0)
        removed += max(len(had) - len(has), 0)
        updated += min(len(had), len(has)) - same
    return {"added": added, "updated": updated, "removed": removed}


def _view(desired: Desired, pairs: list[Pair], keys: frozenset[str]) -> dict[str, t.Any]:
    """For a diff: the entries with these keys, not more than a person can read."""
    lines = [f"{key} {value}" if value else key for key, value in pairs if key in keys]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"… and {len(lines) - SHOWN} more"]
    return {desired.name: lines}


def _result(
    seen: Seen, desired: Desired, pairs: list[Pair], keys: frozenset[str], counts: dict[str, int]
) -> dict[str, list[dict[str, t.Any]]]:
    kind, name = desired.kind, seen.listed.name or f"#{seen.listed.id}"
    rows: list[dict[str, t.Any]] = []
    if desired.returned != "none":
        chosen = [pair for pair in pairs if desired.returned == "all" or pair[0] in keys]
        if kind == ACL:
            rows = [{"acl": name, "pattern": key} for key, _value in chosen]
        else:
            rows = [{"map": name, "key": key, "value": value} for key, value in chosen]
    summary = {kind: name, "id": seen.listed.id, "count": len(pairs), **counts}
    return {f"{kind}s": [summary], "entries": rows}


# --- at a HAProxy ---------------------------------------------------------------------------


class EntriesJob(Job[Seen, EntryChange]):
    """Entries of one map or ACL."""

    # Up to 3.2 any level may do it. Since then the first read is refused below admin.
    level = "user"

    def __init__(self, desired: Desired, sockets: int = 1) -> None:
        self.desired = desired
        self.sockets = sockets

    @classmethod
    def from_params(cls, kind: str, params: c.Mapping[str, t.Any]) -> EntriesJob:
        return cls(Desired.from_params(kind, params), len(params["socket"] or [""]))

    def look(self, client: Client) -> Seen:
        kind, name = self.desired.kind, self.desired.name
        text = client.read(f"show {kind}")
        if text.strip() == "Permission denied":
            client.require_level("admin")
        listed = listing(kind, text)
        found = find(listed, name)
        if found is None:
            if name.startswith(("virt@", "opt@")):
                client.require_version((3, 0), f"{name.partition('@')[0]}@")
            raise NotFoundError(
                f"HAProxy at {client.where} has no {kind} {name!r}; "
                + near(name, [one.name or f"#{one.id}" for one in listed]),
                socket=client.socket,
            )
        if kind == ACL and found.valued:
            raise InputError(
                f"acl {name!r}: HAProxy at {client.where} uses it as a map too, so its entries "
                "have values: use the module haproxy_map",
                socket=client.socket,
            )
        return Seen(found, contents(kind, client.read(f"show {kind} {identifier(found, name)}")))

    def plan(self, client: Client, state: Seen) -> EntryChange:
        return plan_entries(state, self.desired)

    def left_over(
        self, client: Client, change: EntryChange, now: Seen
    ) -> tuple[EntryChange, list[Step]]:
        again = self.plan(client, now)
        return described(change, again, now, self.desired), list(again.steps)

    def carry_out(self, client: Client, change: EntryChange) -> None:
        if _COMMIT.match(change.steps[-1].command) is None:
            self._edit(client, change)
        else:
            self._replace(client, change)

    def _edit(self, client: Client, change: Change) -> None:
        if self.sockets > 1:
            # Another socket may lead to the same HAProxy, where the same is done by now, and to
            # add it again would double it.
            change = self.plan(client, self.look(client))
        going = [step for step in change.steps if step.command.startswith("del ")]
        try:
            # Apart from what goes, which must not when what shall replace it is refused.
            client.apply(change.steps[: len(change.steps) - len(going)])
        except (CommandError, SocketError) as exc:
            exc.details.setdefault("not_sent", []).extend(step.shown for step in going)
            raise
        client.apply(going)

    def _replace(self, client: Client, change: Change) -> None:
        before = len(client.applied)
        reply = client.apply(change.steps[:1])[0]
        # Accepted, so it ends with the number.
        version = int(reply.split()[-1])
        *adds, commit = renumbered(change.steps, version)
        what = f"{self.desired.kind} {self.desired.name}"
        # None of it is in use before the commit.
        nothing: dict[str, t.Any] = {"applied": [], "unknown": []}
        try:
            # Apart from the commit, which would be on its way when one of them is refused.
            client.apply(adds)
        except (CommandError, SocketError) as exc:
            if isinstance(exc, CommandError):
                self._drop(client, commit)
            del client.applied[before:]
            raise type(exc)(
                f"{exc}; the new content was not put into use, and the {what} is as it was",
                **{**exc.details, **nothing},
            ) from None
        try:
            client.apply([commit])
        except CommandError as exc:
            self._drop(client, commit)
            del client.applied[before:]
            raise CommandError(
                f"{exc}; somebody else has replaced the {what} meanwhile, and the new content was "
                "lost by that: run the task again",
                **{**exc.details, **nothing},
            ) from None

    def _drop(self, client: Client, commit: Step) -> None:
        """Forget the new version. HAProxy 3.4.7 keeps it in its memory until the next commit."""
        with contextlib.suppress(Error):
            client.apply([Step(commit.key, commit.command.replace("commit", "clear", 1))])
