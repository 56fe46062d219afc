# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: HAProxy's build, processes and configuration, as far as transparency goes. Private to the collection."""

from __future__ import annotations

import ipaddress
import re
import shlex
import typing as t
from dataclasses import dataclass, field, replace

# capabilities(7): either lets a process set IP_TRANSPARENT.
CAP_NET_ADMIN, CAP_NET_RAW = 12, 13

_SECTIONS = (
    "global|defaults|frontend|backend|listen|peers|resolvers|userlist|mailers|program|cache|"
    "http-errors|ring|log-forward|log-profile|fcgi-app|crt-store|traces|acme|dynamic-update"
)


@dataclass(frozen=True)
class Binary:
    path: str
    # "2.6.12-1+deb12u3"
    version: str
    transparent: bool | None

    @property
    def branch(self) -> tuple[int, int]:
        found = re.match(r"(\d+)\.(\d+)", self.version)
        return (int(found.group(1)), int(found.group(2))) if found else (0, 0)


def binary(text: str, path: str) -> Binary:
    """`haproxy -vv`."""
    version = re.search(r"^HA-?Proxy version (\S+)", text, re.MULTILINE)
    features = re.search(r"^Feature list\s*:(.*)$", text, re.MULTILINE)
    words = features.group(1).split() if features else []
    transparent: bool | None = None
    if "+LINUX_TPROXY" in words or re.search(r"\bUSE_LINUX_TPROXY=1\b", text):
        transparent = True
    elif words:
        transparent = False
    return Binary(path, version.group(1) if version else "", transparent)


def is_name(text: str) -> bool:
    """Whether HAProxy's program is called so: haproxy, or with its version, like haproxy-3.0.11 and haproxy26.

    Other software begins with the word too, like haproxy_exporter.
    """
    return re.fullmatch(r"haproxy(-?v?\d[\w.+~-]*)?", text) is not None


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    argv: tuple[str, ...] = ()
    uid: int | None = None
    # The effective set as a number; None where it cannot be read.
    capabilities: int | None = None
    # How many sockets it accepts connections on; None where it cannot be read.
    listening: int | None = None

    @property
    def may_be_transparent(self) -> bool | None:
        if self.capabilities is None:
            return None
        return bool(self.capabilities & (1 << CAP_NET_ADMIN | 1 << CAP_NET_RAW))

    @property
    def supervises(self) -> bool:
        return any(re.fullmatch(r"-W|-Ws", word) for word in self.argv)

    @property
    def files(self) -> tuple[str, ...]:
        """The -f arguments, and what follows a "--"."""
        found: list[str] = []
        words = iter(self.argv[1:])
        for word in words:
            if word == "--":
                found += words
            elif word == "-f":
                found += [path for path in (next(words, None),) if path]
            elif word in ("-sf", "-st"):
                break
        return tuple(found)

    @property
    def predecessors(self) -> tuple[int, ...]:
        """The pids after -sf or -st: processes that were told to finish."""
        found: list[int] = []
        collecting = False
        for word in self.argv[1:]:
            if word in ("-sf", "-st"):
                collecting = True
            elif collecting and word.isdecimal():
                found.append(int(word))
            else:
                collecting = False
        return tuple(found)


def status(text: str) -> tuple[int | None, int | None, int | None]:
    """/proc/PID/status -> parent, effective uid, effective capabilities."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    try:
        parent = int(fields.get("PPid", ""))
    except ValueError:
        parent = None
    words = fields.get("Uid", "").split()
    uid = int(words[1]) if len(words) > 1 and words[1].isdecimal() else None
    try:
        capabilities = int(fields.get("CapEff", "").strip(), 16)
    except ValueError:
        capabilities = None
    return parent, uid, capabilities


@dataclass(frozen=True)
class Instance:
    """One running HAProxy: a master with its workers, or one process that is both."""

    master: Process
    workers: tuple[Process, ...] = ()
    # Told to finish, or left behind by a master that is gone.
    old: tuple[Process, ...] = ()


def instances(processes: t.Iterable[Process]) -> tuple[Instance, ...]:
    """Who is whose worker, and of which generation."""
    known = {process.pid: process for process in processes}
    roots = [process for process in known.values() if process.parent not in known]
    children: dict[int, list[Process]] = {}
    for process in known.values():
        if process.parent in known:
            children.setdefault(process.parent, []).append(process)
    told = {pid for process in known.values() for pid in process.predecessors}
    leaders = [
        root
        for root in roots
        # A worker whose master is gone still has the master's -W in its arguments.
        if root.pid not in told and (root.pid in children or not root.supervises)
    ]
    strays = [root for root in roots if root not in leaders]
    made = []
    for leader in leaders:
        below = sorted(children.get(leader.pid, ()), key=lambda process: process.pid)
        workers = [process for process in below if process.pid not in told]
        old = [process for process in below if process.pid in told]
        if not below:
            workers = [leader]
        mine = [stray for stray in strays if stray.files == leader.files]
        strays = [stray for stray in strays if stray not in mine]
        made.append(Instance(leader, tuple(workers), (*old, *mine)))
    # A master without a worker, or a worker without a master: nobody else is there to be either.
    made += [Instance(stray, (stray,)) for stray in strays]
    return tuple(made)


# The configuration


@dataclass(frozen=True)
class Source:
    """A `source … usesrc …`, or one without usesrc."""

    address: str
    # clientip, client, an address, hdr_ip(…), or nothing.
    usesrc: str = ""


@dataclass(frozen=True)
class Server:
    name: str
    address: str
    port: int | None = None
    source: Source | None = None

    @property
    def family(self) -> str | None:
        return _family(self.address)


@dataclass(frozen=True)
class Proxy:
    """A defaults, frontend, backend or listen section."""

    kind: str
    name: str
    source: Source | None = None
    server_source: Source | None = None
    servers: tuple[Server, ...] = ()
    binds: tuple[str, ...] = ()
    default_backend: str | None = None
    switches: bool = False

    def source_of(self, server: Server) -> Source | None:
        return server.source or self.server_source or self.source


@dataclass(frozen=True)
class Configuration:
    paths: tuple[str, ...] = ()
    proxies: tuple[Proxy, ...] = ()
    user: str | None = None
    setcap: tuple[str, ...] = ()

    @property
    def backends(self) -> tuple[Proxy, ...]:
        return tuple(proxy for proxy in self.proxies if proxy.kind in ("backend", "listen"))

    @property
    def transparent(self) -> tuple[Proxy, ...]:
        """The backends that use a client's address towards at least one server, or would."""
        return tuple(
            proxy
            for proxy in self.backends
            if (proxy.source is not None and proxy.source.usesrc)
            or any((proxy.source_of(server) or Source("")).usesrc for server in proxy.servers)
        )

    def targets(self) -> tuple[tuple[str, str, int | None], ...]:
        """The servers (family, address, port) to which connections are transparent."""
        found: dict[tuple[str, str, int | None], None] = {}
        for proxy in self.transparent:
            for server in proxy.servers:
                source = proxy.source_of(server)
                if source is None or not source.usesrc or server.family is None:
                    continue
                # 0.0.0.0 and :: stand for what the client wanted.
                if not ipaddress.ip_address(server.address).is_unspecified:
                    found[server.family, server.address, server.port] = None
        return tuple(found)


def _family(address: str) -> str | None:
    try:
        return f"ipv{ipaddress.ip_address(address).version}"
    except ValueError:
        return None


@dataclass
class _Draft:
    """What is read so far of one section."""

    proxy: Proxy
    server_lines: list[Server] = field(default_factory=list)


def configuration(texts: t.Iterable[tuple[str, str]]) -> Configuration:
    """The files of one HAProxy (path, text), in order. Lines that do not matter here are passed over.

    Conditional blocks count as if every condition were true.
    """
    done: list[Proxy] = []
    defaults: dict[str, Proxy] = {}
    last = Proxy("defaults", "")
    draft: _Draft | None = None
    section = ""
    user: str | None = None
    setcap: tuple[str, ...] = ()
    paths = []

    def close() -> None:
        nonlocal draft, last
        if draft is None:
            return
        proxy = replace(draft.proxy, servers=tuple(draft.server_lines))
        if proxy.kind == "defaults":
            last = proxy
            defaults[proxy.name] = proxy
        else:
            done.append(proxy)
        draft = None

    for path, text in texts:
        paths.append(path)
        for words in _lines(text):
            word = words[0]
            if re.fullmatch(_SECTIONS, word):
                close()
                section = word
                if word in ("defaults", "frontend", "backend", "listen"):
                    name = words[1] if len(words) > 1 else ""
                    start = last
                    if "from" in words[1:-1]:
                        start = defaults.get(words[words.index("from", 1) + 1], last)
                    if word == "defaults":
                        named = "" if name == "from" else name
                        start = start if "from" in words else Proxy("defaults", "")
                        draft = _Draft(replace(start, kind=word, name=named))
                    else:
                        draft = _Draft(replace(start, kind=word, name=name))
            elif section == "global":
                if word in ("user", "uid") and len(words) > 1:
                    user = words[1]
                elif word == "setcap" and len(words) > 1:
                    setcap = tuple(part.strip() for part in words[1].split(",") if part.strip())
            elif draft is not None:
                _take(draft, words)
    close()
    return Configuration(tuple(paths), tuple(done), user, setcap)


def _take(draft: _Draft, words: list[str]) -> None:
    proxy = draft.proxy
    word = words[0]
    if word == "no":
        return
    if word == "source":
        draft.proxy = replace(proxy, source=_source(words))
    elif word == "default-server":
        found = _embedded_source(words)
        if found is not None:
            draft.proxy = replace(proxy, server_source=found)
    elif word in ("server", "server-template") and len(words) > 2:
        # server-template NAME COUNT ADDRESS
        at = 2 if word == "server" else 3
        if len(words) > at:
            address, port = _address(words[at])
            found = _embedded_source(words[at:])
            draft.server_lines.append(Server(words[1], address, port, found))
    elif word == "bind" and len(words) > 1:
        draft.proxy = replace(proxy, binds=(*proxy.binds, *words[1].split(",")))
    elif word == "default_backend" and len(words) > 1:
        draft.proxy = replace(proxy, default_backend=words[1])
    elif word == "use_backend":
        draft.proxy = replace(proxy, switches=True)


def _source(words: list[str]) -> Source:
    address = words[1] if len(words) > 1 else ""
    usesrc = ""
    if "usesrc" in words[1:-1]:
        usesrc = words[words.index("usesrc", 1) + 1]
    return Source(address, usesrc)


def _embedded_source(words: list[str]) -> Source | None:
    """The source of a server line; `source` may also be the value of something else, never first."""
    for index, word in enumerate(words[1:-1], start=1):
        if word == "source":
            rest = words[index : index + 4]
            return _source(rest if len(rest) > 2 and rest[2] == "usesrc" else rest[:2])
    return None


def _address(text: str) -> tuple[str, int | None]:
    """HAProxy's address syntax: the host part as far as it is an address, and the port."""
    text = re.sub(r"^(ipv4|ipv6|tcp4|tcp6|tcp|quic4|quic6)@", "", text)
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::([+-]?\w*))?", text)
    if bracketed:
        host, port = bracketed.group(1), bracketed.group(2)
    elif text.startswith(("/", "unix@", "abns@", "abnsz@", "fd@", "sockpair@", "@")):
        return text, None
    elif _family(text) is not None and text.count(":") != 1:
        # A bare IPv6 address's last colon begins the port only where a port must be.
        head, _colon, tail = text.rpartition(":")
        if text.count(":") > 1 and tail.isdecimal() and _family(head) is not None:
            host, port = head, tail
        else:
            host, port = text, ""
    else:
        host, _colon, port = text.rpartition(":") if ":" in text else (text, "", "")
    number = int(port) if port and port.isdecimal() and int(port) < 65536 else None
    return host, number


def bind_families(bind: str) -> tuple[str, ...]:
    """The families that a bind address accepts connections of."""
    if bind.startswith(("ipv6@", "tcp6@", "quic6@")):
        return ("ipv6",)
    if bind.startswith(("/", "unix@", "abns@", "fd@", "sockpair@", "abnsz@")):
        return ()
    host, _port = _address(bind)
    if host in ("", "*"):
        return ("ipv4",)
    family = _family(host)
    return () if family is None else (family,)


def _lines(text: str) -> t.Iterator[list[str]]:
    """The words of every line, unquoted, without comments."""
    for raw in text.splitlines():
        try:
            lexer = shlex.shlex(raw, posix=True, punctuation_chars=False)
            lexer.whitespace_split = True
            lexer.commenters = "#"
            words = list(lexer)
        except ValueError:
            words = raw.split("#", 1)[0].split()
        if words and not words[0].startswith("."):
            yield words
