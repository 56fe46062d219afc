# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Turn the role's variables into a complete, validated site description; private to the collection, pure.

C(read_site) never stops at the first problem: it returns what could be read and every problem,
each one sentence that starts with the variable's path.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_appsession import (
    AppsessionError,
    describe,
    translate,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_read import (
    COOKIE_NAME,
    NAME,
    SIZE,
    Reader,
    read_lines,
    read_list,
)

VAR = "haproxy_affinity"
MODES = ("http", "tcp")
COOKIE_MODES = ("insert", "prefix", "rewrite")
LEVELS = ("user", "operator", "admin")

# What a cookie value may hold: RFC 6265's cookie-octet without HAProxy's own delimiters,
# "~" (prefix mode) and "|" (dates of maxidle and maxlife), and without what haproxy.cfg itself
# reads: "#" begins a comment, quotes a string, "$" and braces a variable.
_COOKIE_VALUE = re.compile(r"[A-Za-z0-9!%&()*+./:<=>?@^_`\[\]-]+\Z")
# The same for an attribute of a cookie, which may have blanks: it is written in quotes then.
_COOKIE_ATTR = re.compile(r"[!%&*+.^_`|~0-9A-Za-z-]+(=[^;#\"'\\$]*)?\Z")
_HOSTNAME = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_HEADER_SOURCE = re.compile(r"hdr_ip\([A-Za-z0-9_-]+(,-?[0-9]+)?\)\Z")
_MODE_BITS = re.compile(r"[0-7]{3,4}\Z")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\$?\Z")
_PATH = re.compile(r"/\S+\Z")
_RAW_SWITCH = re.compile(r"(?:use_backend|default_backend)\s+(\S+)")


@dataclass(frozen=True)
class Global:
    """The C(global) section, without what depends on the installed version."""

    log: tuple[str, ...]
    maxconn: int | None
    nbthread: int | None
    chroot: str | None
    user: str
    group: str
    raw: tuple[str, ...]


@dataclass(frozen=True)
class AdminSocket:
    """The stats socket."""

    path: str
    mode: str
    level: str
    user: str | None
    group: str | None
    timeout: str


@dataclass(frozen=True)
class Defaults:
    """The C(defaults) section."""

    mode: str
    log: str
    retries: int
    maxconn: int | None
    timeouts: tuple[tuple[str, str], ...]
    options: tuple[str, ...]
    raw: tuple[str, ...]


@dataclass(frozen=True)
class Bind:
    """One listening address of one family; C(address) is empty for anything else than TCP (C(path) then)."""

    path: str
    address: str
    port: int
    options: str
    other: str = ""

    @property
    def transparent(self) -> bool:
        """Whether connections to addresses that the host does not have are accepted."""
        return "transparent" in self.options.split()

    @property
    def ipv6(self) -> bool:
        return ":" in self.address

    @property
    def line(self) -> str:
        if self.other:
            return _join("bind", self.other, self.options)
        host = f"[{self.address}]" if self.ipv6 else self.address
        return _join("bind", f"{host}:{self.port}", self.options)


@dataclass(frozen=True)
class Rule:
    """C(use_backend BACKEND if CONDITION); no condition: the default backend."""

    path: str
    backend: str
    condition: str


@dataclass(frozen=True)
class Frontend:
    path: str
    name: str
    mode: str
    maxconn: int | None
    binds: tuple[Bind, ...]
    options: tuple[str, ...]
    rules: tuple[Rule, ...]
    raw: tuple[str, ...]


@dataclass(frozen=True)
class Server:
    path: str
    name: str
    address: str | None
    address_ipv6: str | None
    port: int
    cookie: str
    words: str

    @property
    def wanted(self) -> bool:
        """Whether this stands for the address that the client wanted, and is no host of its own."""
        return (self.address or self.address_ipv6) in ("0.0.0.0", "::")


@dataclass(frozen=True)
class Persistence:
    """How clients are kept on their server. C(values) holds the method's own settings."""

    method: str
    values: dict[str, t.Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Backend:
    path: str
    name: str
    mode: str
    balance: str
    hash_type: str | None
    transparent: str
    persistence: Persistence
    http_reuse: str | None
    options: tuple[str, ...]
    default_server: str
    servers: tuple[Server, ...]
    raw: tuple[str, ...]

    @property
    def is_transparent(self) -> bool:
        return self.transparent != "none"

    @property
    def by_family(self) -> bool:
        """The client's own address goes to the server, so client and server must be of one family."""
        return self.transparent in ("clientip", "client")

    @property
    def paired(self) -> bool:
        """One section for each family is needed."""
        return (
            self.by_family
            and any(server.address for server in self.servers)
            and any(server.address_ipv6 for server in self.servers)
        )

    @property
    def ipv6_name(self) -> str:
        return f"{self.name}_ipv6"


@dataclass(frozen=True)
class Site:
    settings: Global
    socket: AdminSocket
    defaults: Defaults
    frontends: tuple[Frontend, ...]
    backends: tuple[Backend, ...]
    raw: tuple[str, ...]

    @property
    def transparent(self) -> bool:
        return any(backend.is_transparent for backend in self.backends)


@dataclass(frozen=True)
class Member:
    """A host of an inventory group, as the filter found it."""

    name: str
    address: str | None
    address_ipv6: str | None
    settings: t.Any = None


Groups = t.Mapping[str, t.Sequence[Member]]


def read_site(
    variables: t.Mapping[str, t.Any], groups: Groups
) -> tuple[Site, list[str], list[str]]:
    """Return the site, the problems and the warnings.

    C(variables) has the role's variables without their prefix, C(groups) the inventory groups that
    backends name in C(servers_group).
    """
    problems: list[str] = []
    warnings: list[str] = []
    defaults = _defaults(Reader(variables.get("defaults"), f"{VAR}_defaults", problems))
    settings = _settings(Reader(variables.get("global"), f"{VAR}_global", problems))
    socket = _socket(Reader(variables.get("admin_socket"), f"{VAR}_admin_socket", problems))
    backends = tuple(
        _backend(reader, defaults, groups, warnings)
        for reader in read_list(variables.get("backends") or [], f"{VAR}_backends", problems)
    )
    frontends = tuple(
        _frontend(reader, defaults)
        for reader in read_list(variables.get("frontends") or [], f"{VAR}_frontends", problems)
    )
    raw = read_lines(variables.get("raw"), f"{VAR}_raw", problems)
    site = Site(settings, socket, defaults, frontends, backends, raw)
    _check_names(site, problems)
    _check_rules(site, problems)
    _check_families(site, problems, warnings)
    return site, problems, warnings


def _settings(reader: Reader) -> Global:
    found = Global(
        log=reader.lines("log"),
        maxconn=reader.integer("maxconn", None, 1, 2**31 - 1),
        nbthread=reader.integer("nbthread", None, 1, 4096),
        chroot=reader.text("chroot", None, _PATH, "an absolute path"),
        user=reader.text("user", "haproxy", _ACCOUNT, "a user name") or "haproxy",
        group=reader.text("group", "haproxy", _ACCOUNT, "a group name") or "haproxy",
        raw=reader.lines("raw"),
    )
    reader.finish()
    return found


def _socket(reader: Reader) -> AdminSocket:
    default = "/run/haproxy/admin.sock"
    found = AdminSocket(
        path=reader.text("path", default, _PATH, "an absolute path") or default,
        mode=reader.text("mode", "660", _MODE_BITS, "octal digits in quotes, like '660'") or "660",
        level=reader.choice("level", "admin", LEVELS),
        user=reader.text("user", None, _ACCOUNT, "a user name"),
        group=reader.text("group", None, _ACCOUNT, "a group name"),
        timeout=reader.time("timeout", "30s") or "30s",
    )
    # sun_path has 108 bytes, HAProxy binds PATH.PID.tmp first, and the peers' socket is PATH.peers
    if len(found.path) > 84:
        reader.problem("path", f"is {len(found.path)} characters long; give a path of at most 84")
    if found.level != "admin":
        reader.problem(
            "level",
            f"is {found.level!r}; this socket keeps server states over reloads and needs admin,"
            f" add a socket of less rights in {VAR}_global.raw",
        )
    reader.finish()
    return found


_TIMEOUTS = {
    "connect": "5s",
    "client": "1m",
    "server": "1m",
    "queue": "30s",
    "http_request": "10s",
    "http_keep_alive": "10s",
    "check": "5s",
    "tunnel": "1h",
}


def _defaults(reader: Reader) -> Defaults:
    timeouts = reader.sub("timeouts")
    times = {key: timeouts.time(key, value) for key, value in _TIMEOUTS.items()}
    for key in ("client_fin", "server_fin", "tarpit"):
        times[key] = timeouts.time(key, None)
    timeouts.finish()
    found = Defaults(
        mode=reader.choice("mode", "http", MODES),
        log=reader.text("log", "global") or "global",
        retries=reader.integer("retries", 3, 0, 1000) or 0,
        maxconn=reader.integer("maxconn", None, 1, 2**31 - 1),
        timeouts=tuple((key.replace("_", "-"), value) for key, value in times.items() if value),
        # redispatch: a client whose server died is moved instead of being refused until it comes back
        options=reader.lines("options") if reader.has("options") else ("dontlognull", "redispatch"),
        raw=reader.lines("raw"),
    )
    reader.finish()
    return found


# --- frontends


def _frontend(reader: Reader, defaults: Defaults) -> Frontend:
    rules = []
    for rule in reader.subs("use_backends"):
        name = rule.name("backend")
        condition = rule.required("if", None, "a HAProxy condition without the word if")
        if condition and condition.split()[0] in ("if", "unless"):
            rule.problem(
                "if", f"starts with {condition.split()[0]!r}; give only the condition itself"
            )
        rule.finish()
        if name and condition:
            rules.append(Rule(rule.at("backend"), name, condition))
    if reader.has("default_backend"):
        name = reader.name("default_backend")
        if name:
            rules.append(Rule(reader.at("default_backend"), name, ""))
    binds: list[Bind] = []
    for bind in reader.subs("binds"):
        binds += _bind(bind)
    found = Frontend(
        path=reader.path,
        name=reader.name() or "",
        mode=reader.choice("mode", defaults.mode, MODES),
        maxconn=reader.integer("maxconn", None, 1, 2**31 - 1),
        binds=tuple(binds),
        options=reader.lines("options"),
        rules=tuple(rules),
        raw=reader.lines("raw"),
    )
    if not binds and not any(line.split()[0] == "bind" for line in found.raw):
        reader.problem("binds", "is empty; give at least one address and port")
    reader.finish()
    return found


def _bind(reader: Reader) -> list[Bind]:
    address = reader.text("address", "*", None, "an IP address, * or a socket path") or "*"
    words = [word for line in reader.lines("options") for word in line.split()]
    if reader.flag("transparent", False) and "transparent" not in words:
        words.insert(0, "transparent")
    if "/" in address or "@" in address:
        if reader.has("port"):
            reader.problem("port", f"is given, but {address!r} is no IP address; remove the port")
        reader.finish()
        return [Bind(reader.path, "", 0, " ".join(words), other=address)]
    port = reader.integer("port", None, 1, 65535)
    if not reader.has("port"):
        reader.problem("port", "is missing; give a whole number from 1 to 65535")
    reader.finish()
    if address == "*":
        address = "0.0.0.0"
    parsed = _ip(address.strip("[]"))
    if parsed is None:
        reader.problem("address", f"is {address!r}; give an IP address, * or a socket path")
        return []
    if port is None:
        return []
    text = " ".join(words)
    if parsed.version == 4:
        return [Bind(reader.path, str(parsed), port, text)]
    # An IPv4 client that arrives on a dual-stack socket has an IPv4-mapped IPv6 source, which can
    # not be used towards an IPv4 server (measured). So every bind is of one family, whatever
    # net.ipv6.bindv6only says, and "v4v6" becomes two of them.
    both = "v4v6" in words
    text = " ".join(word for word in words if word not in ("v4v6", "v6only"))
    if int(parsed) == 0:
        binds = [Bind(reader.path, str(parsed), port, _join("v6only", text))]
        if both:
            binds.insert(0, Bind(reader.path, "0.0.0.0", port, text))
        return binds
    return [Bind(reader.path, str(parsed), port, text)]


# --- backends


def _backend(reader: Reader, defaults: Defaults, groups: Groups, warnings: list[str]) -> Backend:
    mode = reader.choice("mode", defaults.mode, MODES)
    transparent = _transparent(reader, mode)
    persistence = _persistence(reader, mode, warnings)
    balance = reader.text("balance")
    hash_type = reader.text("hash_type")
    if persistence.method == "source":
        if balance and balance.split()[0] != "source":
            reader.problem(
                "balance", f"is {balance!r}, but persistence.method is source; remove one of them"
            )
        balance = balance or "source"
    # some algorithms have their argument in parentheses: hdr(NAME)
    if balance and re.split(r"[\s(]", balance)[0] in (
        "source",
        "uri",
        "url_param",
        "hdr",
        "rdp-cookie",
        "hash",
    ):
        # consistent: a server that leaves or comes moves only its own share of the clients
        hash_type = hash_type or "consistent"
    default_server, words, port = _server_defaults(reader.sub("server_defaults"))
    servers = _servers(reader, groups, port)
    is_transparent = transparent != "none"
    found = Backend(
        path=reader.path,
        name=reader.name() or "",
        mode=mode,
        balance=balance or "roundrobin",
        hash_type=hash_type,
        transparent=transparent,
        persistence=persistence,
        # An idle server connection of one client is of no use to another client's address, so
        # keeping them costs half the throughput (measured on 2.6, 3.2 and 3.4).
        http_reuse=reader.choice(
            "http_reuse",
            "never" if is_transparent and mode == "http" else "",
            ("never", "safe", "aggressive", "always", ""),
        )
        or None,
        options=reader.lines("options"),
        default_server=_join(default_server, words),
        servers=_checked_servers(reader, servers, transparent, persistence),
        raw=reader.lines("raw"),
    )
    reader.finish()
    return found


def _transparent(reader: Reader, mode: str) -> str:
    value = reader.text(
        "transparent", "none", None, "clientip, client, hdr_ip(HEADER), an address or none"
    )
    value = (value or "none").strip()
    if _HEADER_SOURCE.match(value) and mode != "http":
        # HAProxy only warns and then connects with the proxy's own address
        reader.problem(
            "transparent",
            f"is {value!r}, which needs mode http; set mode: http or use clientip",
        )
        return "none"
    if value in ("none", "clientip", "client") or _HEADER_SOURCE.match(value):
        return value
    parsed = _ip(value.strip("[]"))
    if parsed is None:
        reader.problem(
            "transparent",
            f"is {value!r}; give clientip, client, hdr_ip(HEADER), an IP address or none",
        )
        return "none"
    return str(parsed)


def _server_words(reader: Reader, check: bool | None) -> str:
    """Return the words that a server line and a default-server line share."""
    words = []
    if reader.has("check"):
        check = reader.flag("check", True)
        words.append("check" if check else "no-check")
    elif check is not None:
        words.append("check" if check else "no-check")
    for key in ("inter", "fastinter", "downinter", "slowstart"):
        value = reader.time(key, None)
        if value:
            words += [key, value]
    for key, high in (
        ("rise", 2**31 - 1),
        ("fall", 2**31 - 1),
        ("maxconn", 2**31 - 1),
        ("weight", 256),
    ):
        number = reader.integer(key, None, 0 if key in ("weight", "maxconn") else 1, high)
        if number is not None:
            words += [key, str(number)]
    marked = reader.text("on_marked_down")
    if marked:
        if marked != "shutdown-sessions":
            reader.problem("on_marked_down", f"is {marked!r}; give shutdown-sessions")
        words += ["on-marked-down", "shutdown-sessions"]
    return " ".join(words)


def _server_defaults(reader: Reader) -> tuple[str, str, int | None]:
    port = reader.integer("port", None, 1, 65535)
    # Without a check a dead server keeps its share of the clients, so a check is the default.
    words = _server_words(reader, True)
    options = " ".join(reader.lines("options"))
    reader.finish()
    return words, options, port


def _servers(reader: Reader, groups: Groups, port: int | None) -> list[Server]:
    found = []
    if reader.has("servers_group") and reader.has("servers"):
        reader.problem("servers_group", "is given together with servers; give one of them")
    if reader.has("servers_group"):
        group = reader.text("servers_group") or ""
        members = groups.get(group)
        if not members:
            reader.problem(
                "servers_group",
                f"is {group!r}, which has no host in the inventory; name a group that has hosts",
            )
        for member in members or ():
            settings = Reader(
                member.settings, f"{VAR}_server of host {member.name}", reader.problems
            )
            if not NAME.match(member.name):
                reader.problem(
                    "servers_group",
                    f"has host {member.name!r}, whose name HAProxy does not take; rename it with letters,"
                    " digits and _.:-",
                )
            if not (
                member.address
                or member.address_ipv6
                or settings.has("address")
                or settings.has("address_ipv6")
            ):
                reader.problem(
                    "servers_group",
                    f"has host {member.name}, a server without address; set {VAR}_address (or"
                    f" {VAR}_address_ipv6) for {member.name} or gather its facts",
                )
                continue
            server = _server(
                settings,
                member.name,
                member,
                port,
                f"set {reader.at('server_defaults.port')}",
                f"{VAR}_address of host {member.name}",
            )
            found.append(server)
        return found
    for server_reader in reader.subs("servers"):
        name = server_reader.name()
        if not (server_reader.has("address") or server_reader.has("address_ipv6")):
            server_reader.problem(
                "address",
                f"is missing, {name or 'this'} would be a server without address; give address or"
                " address_ipv6",
            )
            server_reader.known.update({"address", "address_ipv6"})
        found.append(
            _server(
                server_reader,
                name or "",
                None,
                port,
                f"set {reader.at('server_defaults.port')}",
                "",
            )
        )
    if not found:
        reader.problem("servers", "is empty; give servers or servers_group")
    return found


def _server(
    reader: Reader, name: str, member: Member | None, port: int | None, remedy: str, origin: str
) -> Server:
    address = reader.text("address", member.address if member else None)
    address_ipv6 = reader.text("address_ipv6", member.address_ipv6 if member else None)
    if address:
        parsed = _ip(address.strip("[]"))
        if parsed is not None and parsed.version == 6:
            if address_ipv6 and address_ipv6 != address:
                _blame(
                    reader, origin, "address", f"is {address!r}, which is IPv6; use address_ipv6"
                )
            address, address_ipv6 = None, str(parsed)
        elif parsed is None and not _HOSTNAME.match(address):
            _blame(reader, origin, "address", f"is {address!r}; give an IP address or a host name")
            address = None
    if address_ipv6:
        parsed = _ip(address_ipv6.strip("[]"))
        if parsed is None or parsed.version != 6:
            where = f"{VAR}_address_ipv6 of host {member.name}" if member else ""
            _blame(reader, where, "address_ipv6", f"is {address_ipv6!r}; give an IPv6 address")
            address_ipv6 = None
        else:
            address_ipv6 = str(parsed)
    wanted = {address, address_ipv6} & {"0.0.0.0", "::"}
    if wanted and {address, address_ipv6} - {"0.0.0.0", "::", None}:
        reader.problem(
            "address",
            f"is {address!r} and address_ipv6 {address_ipv6!r}; 0.0.0.0 and :: are the address that the"
            " client wanted, so give both of them or none",
        )
    own = reader.integer("port", port, 1, 65535)
    if own is None and not wanted:
        reader.problem("port", f"is missing; give it or {remedy}")
    cookie = reader.text(
        "cookie",
        name.replace(":", "-"),
        _COOKIE_VALUE,
        "a value without blanks, quotes and ,;~|\\#${}",
    )
    if wanted and reader.has("check") and reader.flag("check", False):
        reader.problem(
            "check", f"is true, but {min(wanted)} is no host that could be checked; remove it"
        )
    # The checks of server_defaults are not for a server that is a different one for every client.
    words = _server_words(reader, False if wanted else None)
    if reader.flag("backup", False):
        words = _join(words, "backup")
    words = _join(words, " ".join(reader.lines("options")))
    reader.finish()
    return Server(reader.path, name, address, address_ipv6, own or 0, cookie or name, words)


def _blame(reader: Reader, origin: str, key: str, text: str) -> None:
    """Note a problem at the hostvar that the value came from, if it came from one."""
    if origin and not reader.has(key):
        reader.problems.append(f"{origin} {text}.")
    else:
        reader.problem(key, text)


def _checked_servers(
    reader: Reader, servers: list[Server], transparent: str, persistence: Persistence
) -> tuple[Server, ...]:
    names: dict[str, Server] = {}
    cookies: dict[str, Server] = {}
    needs = None
    if transparent not in ("none", "clientip", "client"):
        # hdr_ip() reads IPv4 only and falls back to the proxy's address silently (measured)
        needs = 6 if ":" in transparent else 4
    for server in servers:
        if not server.name:
            continue
        if server.name in names:
            reader.problems.append(
                f"{server.path} has the name {server.name!r} again (first in {names[server.name].path});"
                " give every server of a backend its own name."
            )
        names[server.name] = server
        if persistence.method == "cookie":
            if server.cookie in cookies:
                reader.problems.append(
                    f"{server.path}.cookie of {server.name} is {server.cookie!r}, the value of"
                    f" {cookies[server.cookie].name} too; give every server its own cookie value."
                )
            cookies[server.cookie] = server
        if transparent != "none" and server.address and _ip(server.address) is None:
            reader.problems.append(
                f"{server.path}.address is the name {server.address!r}, but {reader.at('transparent')} needs"
                " to know its family; give an IP address."
            )
        if (needs == 4 and not server.address) or (needs == 6 and not server.address_ipv6):
            reader.problems.append(
                f"{server.path} {server.name} has no IPv{needs} address, which {reader.at('transparent')}"
                f" {transparent} needs; give it one or remove it from this backend."
            )
    return tuple(servers)


# --- persistence: one reader for each method


def _persistence(reader: Reader, mode: str, warnings: list[str]) -> Persistence:
    given = reader.sub("persistence")
    line = given.text("appsession")
    method = given.text("method")
    if line is None and method and method.split()[0] == "appsession":
        line, method = method, None
    if line is not None:
        where = "appsession" if given.has("appsession") else "method"
        if method not in (None, "app_session"):
            given.problem(
                "method", f"is {method!r}, but {given.at('appsession')} is given; remove one"
            )
        try:
            translated = translate(line)
        except AppsessionError as error:
            given.problem(where, f"cannot be translated: {error}")
            return Persistence("none")
        extra = {
            key: value for key, value in given.data.items() if key not in ("appsession", "method")
        }
        warnings.append(
            f"{given.at(where)}: HAProxy has no appsession since 1.6; it is translated into"
            f" {describe({**translated, **extra})}."
        )
        if not (translated["request_learn"] or extra.get("request_learn")):
            warnings.append(
                f"{given.at(where)} has no request-learn: a client whose entry is lost while its session"
                " lives is not pinned again, because applications like PHP send Set-Cookie only once;"
                " add request_learn: true."
            )
        given = Reader({**translated, **extra}, given.path, given.problems)
        method = given.text("method")
    if method is None and given.data:
        given.problem("method", f"is missing; give one of {', '.join(METHODS)}")
        return Persistence("none")
    method = method or "none"
    if method not in METHODS:
        given.problem(
            "method", f"is {method!r}, an unknown method; give one of {', '.join(METHODS)}"
        )
        return Persistence("none")
    if method in _HTTP_ONLY and mode != "http":
        given.problem(
            "method", f"is {method!r}, which needs mode http; set mode: http or use source"
        )
    values = METHODS[method](given)
    given.finish()
    return Persistence(method, values)


def _no_values(reader: Reader) -> dict[str, t.Any]:
    return {}


def _cookie_values(reader: Reader) -> dict[str, t.Any]:
    mode = reader.choice("mode", "insert", COOKIE_MODES)
    insert = mode == "insert"
    domain = reader.lines("domain")
    values = {
        "name": reader.text(
            "name", "SERVERID", COOKIE_NAME, "a cookie name of letters, digits and _.-"
        ),
        "mode": mode,
        # indirect and nocache: the application never sees the cookie, and caches never share it
        "indirect": reader.flag("indirect", insert),
        "nocache": reader.flag("nocache", insert),
        "postonly": reader.flag("postonly", False),
        "preserve": reader.flag("preserve", False),
        "httponly": reader.flag("httponly", False),
        "secure": reader.flag("secure", False),
        "domain": domain,
        "maxidle": reader.time("maxidle", None),
        "maxlife": reader.time("maxlife", None),
        "attr": reader.lines("attr"),
    }
    # What HAProxy refuses or ignores (configuration manual, "cookie"), said with the variable's path.
    for key in ("indirect", "postonly", "preserve", "maxidle", "maxlife"):
        if values[key] and not insert:
            reader.problem(key, f"is given, but mode is {mode}; it works in mode insert only")
    for index, name in enumerate(domain):
        if not re.match(r"\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+\Z", name):
            reader.problem(f"domain[{index}]", f"is {name!r}; give a domain name with a dot")
    for index, text in enumerate(t.cast("tuple[str, ...]", values["attr"])):
        if not _COOKIE_ATTR.match(text):
            reader.problem(
                f"attr[{index}]",
                f"is {text!r}; give NAME or NAME=VALUE, like SameSite=Strict, without quotes and ;#\\$",
            )
    return values


def _app_session_values(reader: Reader) -> dict[str, t.Any]:
    return {
        "name": reader.required("name", COOKIE_NAME, "the session cookie's name, like PHPSESSID"),
        "len": reader.integer("len", 64, 1, 16383),
        "timeout": reader.time("timeout", "1h"),
        "table_size": reader.text("table_size", "100k", SIZE, "a number of entries, like 100k"),
        # The application names the session only once. Without learning from requests a client whose
        # entry was lost (expired, reloaded, other proxy) would be balanced anew on each request.
        "request_learn": reader.flag("request_learn", True),
        "prefix": reader.flag("prefix", False),
        "path_parameter": reader.flag("path_parameter", False),
        "query_string": reader.flag("query_string", False),
    }


METHODS: dict[str, t.Callable[[Reader], dict[str, t.Any]]] = {
    "none": _no_values,
    "source": _no_values,
    "cookie": _cookie_values,
    "app_session": _app_session_values,
}
_HTTP_ONLY = ("cookie", "app_session")


# --- what only the whole can tell


def _check_names(site: Site, problems: list[str]) -> None:
    # One name for a frontend and a backend is refused since 3.3 and dangerous before.
    seen: dict[str, str] = {}
    items: tuple[Frontend | Backend, ...] = (*site.frontends, *site.backends)
    for item in items:
        names = [item.name]
        if isinstance(item, Backend) and item.paired:
            names.append(item.ipv6_name)
        for name in filter(None, names):
            if name in seen:
                problems.append(
                    f"{item.path}.name makes the section {name!r}, which {seen[name]} makes too;"
                    " give every frontend and backend its own name."
                )
            seen.setdefault(name, item.path)
    where: dict[tuple[str, int], str] = {}
    for frontend in site.frontends:
        for bind in frontend.binds:
            key = (bind.other or bind.address, bind.port)
            if key in where:
                shown = bind.line.split()[1]
                problems.append(
                    f"{bind.path} listens on {shown}, and so does {where[key]}; remove one of them."
                )
            where.setdefault(key, bind.path)


def _check_rules(site: Site, problems: list[str]) -> None:
    backends = {backend.name: backend for backend in site.backends}
    elsewhere = set(
        re.findall(r"^\s*(?:backend|listen)\s+(\S+)", "\n".join(site.raw), re.MULTILINE)
    )
    for frontend in site.frontends:
        for rule in frontend.rules:
            backend = backends.get(rule.backend)
            if backend is None:
                if rule.backend not in elsewhere:
                    known = ", ".join(sorted(set(backends) | elsewhere)) or "none"
                    problems.append(
                        f"{rule.path} is {rule.backend!r}, an unknown backend; define it in"
                        f" {VAR}_backends or name one of these: {known}."
                    )
            elif frontend.mode != backend.mode and frontend.mode == "http":
                problems.append(
                    f"{rule.path} is {rule.backend!r} of mode {backend.mode}, but the frontend has mode"
                    f" {frontend.mode}; give both the same mode."
                )
        for index, line in enumerate(frontend.raw):
            match = _RAW_SWITCH.match(line)
            if match and match.group(1) in backends and backends[match.group(1)].paired:
                problems.append(
                    f"{frontend.path}.raw[{index}] names the backend {match.group(1)!r}, which has one"
                    f" section for each address family; write it as {frontend.path}.use_backends or"
                    " default_backend."
                )


def _check_families(site: Site, problems: list[str], warnings: list[str]) -> None:
    """HAProxy cannot connect to a server of one family with a client's address of the other (measured)."""
    backends = {backend.name: backend for backend in site.backends}
    for frontend in site.frontends:
        reached = {rule.backend for rule in frontend.rules}
        for name in sorted(reached):
            backend = backends.get(name)
            if backend is None or not backend.by_family:
                continue
            for bind in frontend.binds:
                if bind.other:
                    continue
                have = any(s.address_ipv6 if bind.ipv6 else s.address for s in backend.servers)
                if not have and backend.servers:
                    family, key = ("IPv6", "address_ipv6") if bind.ipv6 else ("IPv4", "address")
                    problems.append(
                        f"{bind.path} accepts {family} clients, but no server of backend {name!r}, which"
                        f" is transparent, has an {family} address; give the servers {key} (hosts of a"
                        f" group: {VAR}_{key}) or remove the bind."
                    )
    for backend in site.backends:
        if backend.paired:
            for server in backend.servers:
                if not (server.address and server.address_ipv6):
                    family = "IPv4" if server.address_ipv6 else "IPv6"
                    warnings.append(
                        f"{server.path} {server.name} has no {family} address, so {family} clients of"
                        f" backend {backend.name!r} never reach it."
                    )


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
