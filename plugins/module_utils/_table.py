# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: stick tables, from replies to what sets and clears entries. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import ipaddress
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._command import (
    Step,
    near,
    normal_name,
    word,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    InputError,
    NotFoundError,
    ParseError,
    VersionError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._operation import Change, Job
from ansible_collections.clearproxy.haproxy.plugins.module_utils._server_model import Server

SHOW = "show table"
PRESENT = "present"
ABSENT = "absent"
EMPTY = "empty"
OPERATORS = ("eq", "ne", "le", "ge", "lt", "gt")
# Types of tables whose keys the admin socket takes; the other one is binary.
KEY_TYPES = ("ip", "ipv6", "integer", "string")
FILTERS_MAX = 4

_HEADER = re.compile(
    r"# table: (?P<name>[^\s,]+), type: (?P<type>[a-z0-9]+), size:(?P<size>[0-9]{1,20}), "
    r"used:(?P<used>[0-9]{1,20})(?:, .*)?",
    re.ASCII,
)
_ROW = re.compile(
    r"(?P<pointer>0x[0-9a-f]{1,16}): key=(?P<key>(?:[^\\ ]|\\.)*) use=(?P<use>-?[0-9]{1,20}) "
    r"exp=(?P<exp>[0-9]{1,20})(?: (?P<rest>.*))?",
    re.ASCII,
)
# A server's address may be a path with spaces, so a value ends where the next column begins.
_NEXT_COLUMN = re.compile(r" (?=[a-z][a-z0-9_]*(?:\([0-9]+\))?=)", re.ASCII)
_COLUMN = re.compile(
    r"(?P<name>[a-z][a-z0-9_]*)(?:\((?P<period>[0-9]{1,20})\))?=(?P<value>.*)", re.ASCII | re.S
)
_ESCAPED = re.compile(rb"\\(x[0-9A-Fa-f]{2}|.)", re.S)
_CONTROL = {b"t": b"\t", b"n": b"\n", b"r": b"\r", b"e": b"\x1b"}
# What follows `use` and `exp` and is no data.
_NO_DATA = ("shard",)
# The server that an entry pins to, as later HAProxys call it and as 2.2 does.
_SERVER_KEYS = ("server_key", "server_name")


@dataclasses.dataclass(frozen=True)
class Table:
    """One stick table; a `peers` section's own table is called SECTION/NAME."""

    name: str
    type: str
    size: int
    used: int


@dataclasses.dataclass(frozen=True)
class Entry:
    """One entry: `key` as it was given to HAProxy, bytes that are no UTF-8 as surrogates."""

    pointer: str
    key: str
    # Streams that hold the entry; HAProxy does not remove it meanwhile.
    use: int
    # Milliseconds until it is forgotten; 0 in tables whose entries do not expire.
    expires: int
    # None for a server's key that is not set.
    data: dict[str, int | str | None]
    # Milliseconds over which the rates among the data are measured.
    periods: dict[str, int]

    @property
    def shown(self) -> str:
        """The key for people and return values."""
        return self.key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

    @property
    def server_key(self) -> str | None:
        """Name or address of the server that a client is pinned to.

        HAProxy 2.2 only shows it (as server_name) and goes by the server's number.
        """
        found = self.data.get("server_key")
        return found if isinstance(found, str) else None

    @property
    def server_id(self) -> int | None:
        found = self.data.get("server_id")
        return found if isinstance(found, int) and found else None

    def as_dict(self, table: str) -> dict[str, t.Any]:
        """The shape in which every module of the collection returns an entry."""
        return {
            "table": table,
            "key": self.shown,
            "use": self.use,
            "expires": self.expires,
            "data": self.data,
        }


def tables(text: str) -> list[Table]:
    """`show table`: all tables."""
    return [_table(SHOW, line) for line in text.splitlines() if line.strip()]


def contents(text: str) -> tuple[Table | None, list[Entry]]:
    """`show table NAME …`: the table and those of its entries that were asked for.

    HAProxy answers nothing at all about a key that has no entry.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return None, []
    return _table(SHOW, lines[0]), [_entry(line) for line in lines[1:]]


def _table(command: str, line: str) -> Table:
    match = _HEADER.fullmatch(line.strip())
    if match is None:
        raise ParseError(command, "not a table", line=line)
    return Table(match["name"], match["type"], int(match["size"]), int(match["used"]))


def _entry(line: str) -> Entry:
    match = _ROW.fullmatch(line)
    if match is None:
        raise ParseError(SHOW, "not an entry", line=line)
    data: dict[str, int | str | None] = {}
    periods: dict[str, int] = {}
    for column in _NEXT_COLUMN.split(match["rest"] or ""):
        if not column.strip():
            continue
        found = _COLUMN.fullmatch(column)
        if found is None:
            raise ParseError(SHOW, "not a value", line=line)
        name, value = found["name"], found["value"]
        if name in _NO_DATA:
            continue
        if name in _SERVER_KEYS:
            data[name] = None if value == "-" else value
        elif re.fullmatch(r"-?[0-9]{1,20}", value, re.ASCII):
            data[name] = int(value)
        else:
            raise ParseError(SHOW, f"{name} is not a number", line=line)
        if found["period"] is not None:
            periods[name] = int(found["period"])
    return Entry(
        match["pointer"], _key(match["key"]), int(match["use"]), int(match["exp"]), data, periods
    )


def _key(text: str) -> str:
    """A key without the escapes of HAProxy's output."""

    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        if len(code) == 3:
            return bytes([int(code[1:], 16)])
        return _CONTROL.get(code, code)

    found = _ESCAPED.sub(plain, text.encode("utf-8", "surrogatepass"))
    return found.decode("utf-8", "surrogateescape")


# --- types of data, and keys ----------------------------------------------------------------

_U32 = 2**32 - 1
# Most numbers of each type. HAProxy itself takes more and lets it wrap around.
_LIMITS = {
    "server_id": 2**31 - 1,
    "gpt0": _U32,
    "gpt": _U32,
    "gpc0": _U32,
    "gpc1": _U32,
    "gpc": _U32,
    "conn_cnt": _U32,
    "conn_cur": _U32,
    "sess_cnt": _U32,
    "http_req_cnt": _U32,
    "http_err_cnt": _U32,
    "http_fail_cnt": _U32,
    "glitch_cnt": _U32,
    # HAProxy reads no larger number than this.
    "bytes_in_cnt": 2**63 - 1,
    "bytes_out_cnt": 2**63 - 1,
}
_RATES = tuple(
    f"{name}_rate"
    for name in (
        "gpc",
        "gpc0",
        "gpc1",
        "conn",
        "sess",
        "http_req",
        "http_err",
        "http_fail",
        "glitch",
        "bytes_in",
        "bytes_out",
    )
)
_ARRAYS = ("gpt", "gpc", "gpc_rate")
_ARRAY = re.compile(rf"({'|'.join(_ARRAYS)})(?:\[(0|[1-9][0-9]?)\])?")
# What HAProxy itself changes only when the configuration says `set` or pins a client.
_TAGS = ("server_id", "gpt0", "gpt")


@dataclasses.dataclass(frozen=True)
class DataType:
    """A type of data: `name` for commands, `column` in HAProxy's output."""

    name: str
    column: str
    limit: int
    counts: bool


def data_type(text: str, *, rates: bool) -> DataType:
    """A type by HAProxy's name; elements of arrays are TYPE[INDEX], TYPE alone is the first."""
    array = _ARRAY.fullmatch(text)
    base, index = (array[1], int(array[2] or 0)) if array else (text, 0)
    if base in _RATES and not rates:
        raise InputError(
            f"data {text!r}: a rate falls by itself from the moment it is set, so it cannot be "
            "kept at a value; set the counter that belongs to it"
        )
    if (base not in _LIMITS and base not in _RATES) or (base in _ARRAYS and not array):
        known = [*_LIMITS, *(_RATES if rates else ())]
        raise InputError(f"data {text!r}: no such type of number; {near(text, known)}")
    column = base
    if array:
        column = f"gpc{index}_rate" if base == "gpc_rate" else f"{base}{index}"
    # The first element without index is what HAProxy knew before 3.2, too.
    name = f"{base}[{index}]" if index else base
    return DataType(name, column, _LIMITS.get(base, _U32), base not in _TAGS)


def number(value: t.Any, limit: int, what: str) -> int:
    """A number that HAProxy stores as it is."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value, re.ASCII):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise InputError(f"{what} {value!r}: must be a whole number from 0 to {limit}")
    return value


def normal_key(table: Table, text: str) -> str:
    """The key as HAProxy shows it. HAProxy 2.2 and 2.6 take anything and store something else."""
    what = f"key {text!r} of table {table.name!r}"
    if table.type in ("ip", "ipv6"):
        return _address(text, table.type, what)
    if table.type == "integer":
        if not re.fullmatch(r"[0-9]{1,20}", text, re.ASCII) or int(text) > _U32:
            raise InputError(f"{what}: must be a whole number from 0 to {_U32}")
        return str(int(text))
    if table.type != "string":
        raise InputError(
            f"{what}: the table's type is {table.type}; HAProxy takes keys from the admin socket "
            f"for {', '.join(KEY_TYPES)} only; 'where', 'server' and 'state: empty' work"
        )
    return text


def _address(text: str, family: str, what: str) -> str:
    try:
        if "%" in text:
            raise ValueError
        address = ipaddress.ip_address(text)
    except ValueError:
        raise InputError(f"{what}: must be an IP address, without a mask") from None
    mapped = address if address.version == 4 else address.ipv4_mapped
    if family == "ip":
        if mapped is None:
            raise InputError(f"{what}: must be an IPv4 address, as the table's type is ip")
        return str(mapped)
    # IPv4 in this form is taken by all versions; Python before 3.13 would write it in hexadecimal.
    return str(address) if mapped is None else f"::ffff:{mapped}"


def same_key(table: Table, one: str, other: str) -> bool:
    """Whether two ways to write a key mean one entry."""
    if table.type == "ipv6":
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    return one == other


@dataclasses.dataclass(frozen=True)
class Filter:
    """A condition on the data of entries, as HAProxy compares."""

    type: str
    operator: str
    value: int

    @property
    def words(self) -> str:
        return f"data.{word(self.type)} {self.operator} {self.value}"


# --- who is pinned to a server --------------------------------------------------------------


def show(table: str) -> str:
    """The command that reads a table with all its entries."""
    return f"{SHOW} {word(table)}"


def tables_of(known: c.Iterable[Table], backend: str) -> list[Table]:
    """The tables that certainly belong to a backend: HAProxy calls them by its name.

    Other tables that it uses (`stick on … table NAME`) HAProxy does not tell.
    """
    return [table for table in known if table.name == backend]


def server_keys(server: Server) -> set[str]:
    """What an entry may call a server: its name, or with `srvkey addr` its address and port."""
    return {server.name, f"{server.address}:{server.port}"}


def pinned(
    entries: c.Iterable[Entry], server: Server, others: c.Sequence[Server] = ()
) -> list[Entry]:
    """The entries that pin clients to the server; `others` are the other servers of its backend.

    HAProxy follows the server's key first and its id only if no server has that key. Entries
    that peers have taught carry the id that the server has at the other HAProxy.
    """
    own = server_keys(server)

    def pins(entry: Entry) -> bool:
        if entry.server_key in own:
            return True
        if entry.server_id != server.id:
            return False
        # Seldom, so the names of maybe a thousand others are looked at only then.
        return entry.server_key is None or not any(
            entry.server_key in server_keys(other) for other in others
        )

    return [entry for entry in entries if pins(entry)]


def forget_steps(
    table: Table, entries: c.Sequence[Entry], server: Server, others: c.Sequence[Server] = ()
) -> list[Step]:
    """What clears the entries that pin clients to the server, given all entries of the table.

    One command where the server's number says it all, otherwise one for each key. HAProxy leaves
    out what is in use: silently in the first case, with a refusal in the second.
    """
    found = pinned(entries, server, others)
    keys = {entry.key for entry in found}
    numbered = {entry.key for entry in entries if entry.server_id == server.id}
    steps: list[Step] = []
    if numbered and numbered <= keys:
        steps.append(clear_matching(table.name, [Filter("server_id", "eq", server.id)]))
        found = [entry for entry in found if entry.key not in numbered]
    return steps + [clear_entry(table, entry) for entry in found]


def clear_matching(table: str, filters: c.Sequence[Filter]) -> Step:
    """Clear what meets all filters. HAProxy leaves out what is in use, without a word."""
    text = " ".join(item.words for item in filters)
    return Step(("clear", table, text), f"clear table {word(table)} {text}")


def clear_entry(table: Table, entry: Entry) -> Step:
    """Clear one entry, by its key, or by its address in memory (since 3.0) if that is no text."""
    if table.type not in KEY_TYPES:
        raise Error(
            f"table {table.name!r}: HAProxy clears no single entries of type {table.type}, and "
            "those to be cleared have no number of a server for themselves; clear them with "
            f"'where', together with all that have server_id {entry.server_id or 0}"
        )
    if entry.key and entry.shown == entry.key:
        return clear_key(table.name, entry.key)
    return Step(
        ("clear", table.name, entry.key), f"clear table {word(table.name)} ptr {entry.pointer}"
    )


def clear_key(table: str, key: str) -> Step:
    """Clear what HAProxy takes for this key."""
    return Step(("clear", table, key), f"clear table {word(table)} key {word(key)}")


def set_entry(table: str, key: str, values: c.Mapping[str, int]) -> Step:
    """Create or change one entry; `values` by the names of their types."""
    data = "".join(f" data.{word(name)} {value}" for name, value in values.items())
    return Step(("set", table, key), f"set table {word(table)} key {word(key)}{data}")


# --- what a task wants ----------------------------------------------------------------------

# Far below the length of a line, which has to hold all data of an entry too.
_KEY_LIMIT = 2000
_TABLE = re.compile(r"[A-Za-z0-9_.:-]+(/[A-Za-z0-9_.:-]+)?\Z")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One entry of a task: its key as written there, and the numbers to set."""

    key: str
    data: tuple[tuple[DataType, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Desired:
    """What a task wants of one table."""

    table: str
    state: str = PRESENT
    entries: tuple[Wanted, ...] | None = None
    where: tuple[Filter, ...] = ()
    backend: str | None = None
    server: str | None = None
    in_use: str = "fail"

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Desired:
        """Check everything that can be checked without asking HAProxy."""
        table, state = params["table"], params["state"]
        if not _TABLE.match(table):
            raise InputError(
                f"table {table!r}: a table has the name of the section that it is in, or "
                "SECTION/NAME if it is a table of a peers section; see 'show table'"
            )
        _check_options(params)
        where = tuple(_filter(item) for item in params["where"] or ())
        if len(where) > FILTERS_MAX:
            raise InputError(f"where: HAProxy takes no more than {FILTERS_MAX} conditions")
        entries = params["entries"]
        return cls(
            table,
            state,
            None if entries is None else tuple(_wanted(item, state) for item in entries),
            where,
            _name(params["backend"], "backend"),
            _name(params["server"], "server"),
            params["in_use"],
        )

    @property
    def types(self) -> list[str]:
        """The types of data that the table must store, by their names for commands."""
        found = [kind.name for entry in self.entries or () for kind, _value in entry.data]
        found += [item.type for item in self.where]
        if self.server is not None:
            found.append("server_id")
        return list(dict.fromkeys(found))


def _check_options(params: c.Mapping[str, t.Any]) -> None:
    """Which options go together; nothing is ever cleared because an option was forgotten."""
    state = params["state"]
    given = [name for name in ("entries", "where", "server") if params[name] is not None]
    if params["backend"] is not None and "server" not in given:
        raise InputError("backend: goes with server, whose backend it is")
    if "server" in given and params["backend"] is None and "/" in params["table"]:
        raise InputError("backend: needed with server, as the table belongs to a peers section")
    if params["in_use"] != "fail" and state == PRESENT:
        raise InputError("in_use: goes with state=absent and state=empty")
    if state == PRESENT:
        if "where" in given:
            raise InputError("where: goes with state=absent only")
        if "entries" not in given:
            raise InputError("entries: state=present needs them")
    elif state == EMPTY:
        if given:
            raise InputError(
                f"{given[0]}: state=empty clears the whole table; with {given[0]} it is "
                "state=absent"
            )
    elif len(given) != 1:
        raise InputError(
            "state=absent needs exactly one of entries, where and server; state=empty clears the "
            "whole table"
        )
    elif given == ["where"] and not params["where"]:
        raise InputError("where: the list is empty; state=empty clears the whole table")


def _name(text: str | None, what: str) -> str | None:
    return None if text is None else normal_name(text, what)


def _filter(item: c.Mapping[str, t.Any]) -> Filter:
    kind = data_type(item["type"], rates=True)
    value = number(item["value"], kind.limit, f"where: the value of {kind.name}")
    return Filter(kind.name, item["operator"], value)


def _wanted(item: c.Mapping[str, t.Any], state: str) -> Wanted:
    key, data = item["key"], item["data"] or {}
    try:
        length = len(word(key).encode("utf-8"))
    except UnicodeEncodeError:
        raise InputError(f"key {key!r}: is not valid text") from None
    if length > _KEY_LIMIT:
        raise InputError(f"key {key[:40]!r}…: longer than {_KEY_LIMIT} bytes")
    if data and state != PRESENT:
        raise InputError(f"key {key!r}: data goes with state=present only")
    found: dict[str, tuple[DataType, int]] = {}
    for name, value in data.items():
        kind = data_type(str(name), rates=False)
        if kind.name in found:
            raise InputError(f"key {key!r}: data {kind.name} is given twice")
        found[kind.name] = (kind, number(value, kind.limit, f"key {key!r}: data {name}"))
    return Wanted(key, tuple(found.values()))


# --- from what HAProxy has to what has to be sent -------------------------------------------


@dataclasses.dataclass(frozen=True)
class Seen:
    """What HAProxy has of what a task is about."""

    table: Table
    # By key, of the entries that the task names.
    named: dict[str, Entry | None] = dataclasses.field(default_factory=dict)
    # Those that meet the conditions, or for `server` and state=empty all of the table.
    matching: tuple[Entry, ...] = ()
    server: Server | None = None
    others: tuple[Server, ...] = ()


@dataclasses.dataclass(frozen=True)
class TableChange(Change):
    """A change, and which entries it clears and creates."""

    table: Table = Table("", "", 0, 0)
    clears: tuple[Entry, ...] = ()
    # Keys of the steps.
    creates: tuple[tuple[str, str, str], ...] = ()


def plan(desired: Desired, seen: Seen) -> TableChange:
    """What has to be sent. Raises for entries in use, unless the task leaves those alone."""
    if desired.state == PRESENT:
        return _plan_present(desired, seen)
    return _plan_clear(desired, seen)


def _plan_present(desired: Desired, seen: Seen) -> TableChange:
    table = seen.table
    if len(seen.named) > table.size:
        raise InputError(
            f"entries: {len(seen.named)} do not fit into table {table.name!r}, which has a size of "
            f"{table.size}"
        )
    steps: list[Step] = []
    before: dict[str, t.Any] = {}
    after: dict[str, t.Any] = {}
    shown: list[dict[str, t.Any]] = []
    creates: list[tuple[str, str, str]] = []
    clears: list[Entry] = []
    for key, wanted in _by_key(desired, table).items():
        values = dict(wanted.data)
        if seen.server is not None:
            if any(kind.name == "server_id" for kind in values):
                raise InputError(f"key {wanted.key!r}: server_id and server say the same; give one")
            values[data_type("server_id", rates=False)] = seen.server.id
        now = _checked(table, key, seen.named[key])
        if now is None:
            steps.append(set_entry(table.name, key, {k.name: v for k, v in values.items()}))
            creates.append(steps[-1].key)
        else:
            before[key] = {kind.column: now.data.get(kind.column) for kind in values}
            differs = {k.name: v for k, v in values.items() if now.data.get(k.column) != v}
            if "server_id" in differs and now.server_key is not None:
                # HAProxy would go on following the server's key.
                _refuse_used(desired, table, [now] if now.use else [])
                clears.append(now)
                steps.append(clear_entry(table, now))
                differs = {k.name: v for k, v in values.items()}
            if differs:
                steps.append(set_entry(table.name, key, differs))
        after[key] = {kind.column: value for kind, value in values.items()}
        kept = {} if now is None or clears[-1:] == [now] else now.data
        shown.append(
            {
                "table": table.name,
                "key": key,
                "use": 0 if now is None else now.use,
                "expires": None if now is None else now.expires,
                "data": {**kept, **after[key]},
            }
        )
    return TableChange(
        tuple(steps),
        {table.name: before},
        {table.name: after},
        {"entries": shown, "cleared": [entry.as_dict(table.name) for entry in clears]},
        table,
        tuple(clears),
        tuple(creates),
    )


def _plan_clear(desired: Desired, seen: Seen) -> TableChange:
    table = seen.table
    found = _to_clear(desired, seen)
    used = [entry for entry in found if entry.use]
    if desired.in_use == "fail":
        _refuse_used(desired, table, used)
    going = tuple(entry for entry in found if not entry.use)
    steps: list[Step] = []
    if not going:
        pass
    elif desired.entries is not None:
        steps = [clear_entry(table, entry) for entry in going]
    elif desired.where:
        steps = [clear_matching(table.name, desired.where)]
    elif seen.server is not None:
        steps = forget_steps(
            table, [item for item in seen.matching if not item.use], seen.server, seen.others
        )
    else:
        steps = [Step(("clear", table.name), f"clear table {word(table.name)}")]
    return TableChange(
        tuple(steps),
        {table.name: {entry.shown: entry.data for entry in found}},
        {table.name: {entry.shown: entry.data for entry in used}},
        {
            "entries": [entry.as_dict(table.name) for entry in used],
            "cleared": [entry.as_dict(table.name) for entry in going],
        },
        table,
        going,
    )


def _to_clear(desired: Desired, seen: Seen) -> list[Entry]:
    if desired.entries is not None:
        named = _by_key(desired, seen.table)
        found = [_checked(seen.table, key, seen.named[key]) for key in named]
        return [entry for entry in found if entry is not None]
    if seen.server is not None:
        return pinned(seen.matching, seen.server, seen.others)
    return list(seen.matching)


def _by_key(desired: Desired, table: Table) -> dict[str, Wanted]:
    """The named entries by their keys as HAProxy has them; a key named twice is refused."""
    found: dict[str, Wanted] = {}
    for wanted in desired.entries or ():
        key = normal_key(table, wanted.key)
        if key in found:
            raise InputError(
                f"entries: {found[key].key!r} and {wanted.key!r} are the same key of table "
                f"{table.name!r}"
            )
        found[key] = wanted
    return found


def _checked(table: Table, key: str, entry: Entry | None) -> Entry | None:
    """HAProxy cuts string keys off at the table's `len` and then means another entry."""
    if entry is not None and not same_key(table, entry.key, key):
        raise _too_long(table, key, entry)
    return entry


def _too_long(table: Table, key: str, entry: Entry) -> InputError:
    return InputError(
        f"key {key!r}: table {table.name!r} keeps only {entry.shown!r} of it; shorten the key, or "
        "raise 'len' in the table's configuration"
    )


def _refuse_used(desired: Desired, table: Table, used: c.Sequence[Entry]) -> None:
    if used:
        shown = ", ".join(repr(entry.shown) for entry in used[:5]) + (" …" if used[5:] else "")
        hint = "" if desired.state == PRESENT else ", or leave them alone with 'in_use: leave'"
        raise Error(
            f"table {table.name!r}: {len(used)} of the entries to be cleared are in use by streams "
            f"({shown}), and HAProxy does not remove them meanwhile; end the sessions or wait for "
            f"their end{hint}",
            in_use=[entry.as_dict(table.name) for entry in used],
        )


def not_cleared(change: TableChange, now: c.Iterable[Entry]) -> list[Entry]:
    """The entries that a change should have cleared and that are still there.

    What traffic creates anew since then is another entry; it begins with the full time to live.
    """
    old = {(entry.pointer, entry.key): entry for entry in change.clears}
    return [
        entry
        for entry in now
        if (entry.pointer, entry.key) in old
        and (entry.use or entry.expires <= old[entry.pointer, entry.key].expires)
    ]


def only_counted(change: Change, again: Change, desired: Desired) -> bool:
    """Whether what differs after a change are counters that traffic has moved on since.

    One that still has its old value has not been set.
    """
    counters = {
        kind.column for entry in desired.entries or () for kind, _value in entry.data if kind.counts
    }
    table = desired.table
    for key, values in again.after[table].items():
        now = again.before[table].get(key)
        if now is None:
            return False
        old = change.before[table].get(key, {})
        for column, value in values.items():
            if now[column] == value:
                continue
            if column not in counters or now[column] is None or now[column] == old.get(column):
                return False
    return True


# --- the conversation -----------------------------------------------------------------------


class TableJob(Job[Seen, TableChange]):
    """Entries of one stick table at every HAProxy of a task."""

    # What `clear table` needs; up to 3.0 it does nothing below, and says that it did.
    level = "operator"

    def __init__(self, desired: Desired) -> None:
        self.desired = desired

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> TableJob:
        return cls(Desired.from_params(params))

    def look(self, client: Client) -> Seen:
        desired = self.desired
        known = tables(client.read(SHOW))
        table = next((item for item in known if item.name == desired.table), None)
        if table is None:
            raise NotFoundError(
                f"HAProxy at {client.where} has no stick table {desired.table!r}; "
                f"{near(desired.table, [item.name for item in known])}",
                table=desired.table,
                socket=client.socket,
            )
        for name in desired.types:
            _require_type(client, table, name)
        server, others = self._server(client)
        if desired.entries is not None:
            named = {key: _read_entry(client, table, key) for key in _by_key(desired, table)}
            return Seen(table, named, (), server, others)
        text = "".join(f" {item.words}" for item in desired.where)
        entries = contents(client.read(show(table.name) + text))[1]
        return Seen(table, {}, tuple(entries), server, others)

    def plan(self, client: Client, state: Seen) -> TableChange:
        change = plan(self.desired, state)
        if any(" ptr 0x" in step.command for step in change.steps):
            client.require_version((3, 0), "clearing entries whose keys are no text")
        return change

    def carry_out(self, client: Client, change: TableChange) -> None:
        """Entries that HAProxy has created otherwise than asked for are removed again."""
        table, created = change.table, change.creates
        try:
            client.apply(change.steps)
        except CommandError as exc:
            # HAProxy creates the entry before it looks at the data.
            refused = {item["command"] for item in exc.details["refused"]}
            wrong = [step for step in change.steps if step.shown in refused and step.key in created]
            keys = [step.key[2] for step in wrong if _read_entry(client, table, step.key[2])]
            client.apply([clear_key(table.name, key) for key in keys])
            raise
        if table.type != "string":
            return
        found = {key: _read_entry(client, table, key) for _set, _table, key in created}
        cut = [(key, entry) for key, entry in found.items() if entry and entry.key != key]
        if cut:
            client.apply([clear_key(table.name, key) for key, _entry in cut])
            raise _too_long(table, *cut[0])

    def left_over(
        self, client: Client, change: TableChange, now: Seen
    ) -> tuple[TableChange, list[Step]]:
        if self.desired.state == PRESENT:
            again = self.plan(client, now)
            left = [] if only_counted(change, again, self.desired) else list(again.steps)
        else:
            again = plan(dataclasses.replace(self.desired, in_use="leave"), now)
            entries = [*now.matching, *(entry for entry in now.named.values() if entry)]
            still = not_cleared(change, entries)
            if self.desired.in_use == "fail":
                _refuse_used(self.desired, now.table, [entry for entry in still if entry.use])
            left = list(change.steps) if any(not entry.use for entry in still) else []
        again.result["cleared"] = change.result["cleared"]
        return again, left

    def _server(self, client: Client) -> tuple[Server | None, tuple[Server, ...]]:
        """The server of the task, and the others of its backend."""
        name = self.desired.server
        if name is None:
            return None, ()
        backend = self.desired.backend or self.desired.table
        servers = client.servers(backend)
        for server in servers:
            if server.name == name:
                return server, tuple(item for item in servers if item is not server)
        raise NotFoundError(
            f"HAProxy at {client.where} has no server {name!r} in backend {backend!r}; "
            f"{near(name, [server.name for server in servers])}",
            server=name,
            backend=backend,
            socket=client.socket,
        )


def _read_entry(client: Client, table: Table, key: str) -> Entry | None:
    found = contents(client.read(f"{show(table.name)} key {word(key)}"))[1]
    return found[0] if found else None


def _require_type(client: Client, table: Table, name: str) -> None:
    """Ask with a condition that nothing meets: HAProxy tells the stored types in no other way.

    It has to be known before, because a command with a type that is not stored still creates the
    entry.
    """
    reply = client.read(f"{show(table.name)} data.{word(name)} lt -1")
    if reply.startswith("# table: "):
        return
    if "Data type not stored in this table" in reply:
        raise InputError(
            f"table {table.name!r} of HAProxy at {client.where} does not store {name}; add it to "
            "'store' in the table's configuration"
        )
    if "Unknown data type" in reply:
        hint = (
            "; up to 3.0 only the first element of an array can be reached" if "[" in name else ""
        )
        raise VersionError(
            f"HAProxy at {client.where} has version {client.version[0]}.{client.version[1]}, which "
            f"does not know the type of data {name}{hint}",
            socket=client.socket,
        )
    raise ParseError(SHOW, "neither a table nor a refused type", line=reply.split("\n", 1)[0])
