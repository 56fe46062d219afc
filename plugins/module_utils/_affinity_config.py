# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Write a site description as the sections of haproxy.cfg for one HAProxy version; private to the collection, pure."""

from __future__ import annotations

import dataclasses
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_model import (
    VAR,
    Backend,
    Frontend,
    Groups,
    Persistence,
    Server,
    Site,
    read_site,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_rights import (
    Choice,
    Refusal,
    choose,
)

Version = tuple[int, int]
Section = dict[str, t.Any]

# A client is IPv6 when its address is written with a colon, except for IPv4-mapped addresses.
# "src ::/0" would not do: HAProxy converts between the families before it compares networks, so that
# matches IPv4 clients too, and "src 0.0.0.0/0" matches 6to4 (2002::/16).
IPV6_CLIENT = "{ src -m sub : } !{ src ::ffff:0:0/96 }"

# The peers section, and the name of the only peer in it: a worker that goes teaches its stick tables
# to the worker that comes.
PEERS = VAR

# Set-Cookie lines of one response that are searched for a cookie name's prefix. HAProxy stores at
# most 8 entries a stream, and applications send the session cookie among the first.
SET_COOKIES = 5


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the role's tasks need to know, as plain data."""

    problems: list[str]
    warnings: list[str]
    sections: list[Section]
    binds: list[dict[str, t.Any]]
    transparent: bool
    user: str
    group: str
    socket: str
    rights: Choice


def make_plan(
    variables: t.Mapping[str, t.Any],
    groups: Groups,
    version: Version | None,
    host: t.Mapping[str, t.Any],
) -> Plan:
    """Return the plan. C(version) is None where no HAProxy is installed yet: then there are no sections.

    C(host) says what the role saw on the host: C(dev_log) (bool) and C(state_file) (path), and what _affinity_rights' choose() looks at.
    """
    site, problems, warnings = read_site(variables, groups)
    rights = Choice()
    if version is not None and not problems:
        try:
            rights = choose(site, variables, version, host)
        except Refusal as refusal:
            problems.append(str(refusal))
        if rights.warning:
            warnings.append(rights.warning)
    sections: list[Section] = []
    if version is not None and not problems:
        sections = [
            _global(site, rights, host),
            _defaults(site),
            *_peers(site, rights),
            *(_frontend(frontend, site) for frontend in site.frontends),
            *(
                section
                for backend in site.backends
                for section in _backend(backend, _peers_name(site))
            ),
        ]
        if site.raw:
            sections.append({"header": "", "lines": list(site.raw)})
    return Plan(
        problems=problems,
        warnings=warnings,
        sections=sections,
        binds=[
            {
                "address": bind.address,
                "port": bind.port,
                "where": bind.path,
                "transparent": bind.transparent,
            }
            for frontend in site.frontends
            for bind in frontend.binds
            if not bind.other
        ],
        transparent=site.transparent,
        user=site.settings.user,
        group=site.settings.group,
        socket=site.socket.path,
        rights=rights,
    )


def parse_version(text: str) -> Version | None:
    """Return (major, minor) from the first line of C(haproxy -v), None when it is not HAProxy's."""
    match = re.search(r"^HA-?Proxy version (\d+)\.(\d+)", text, re.MULTILINE)
    return (int(match.group(1)), int(match.group(2))) if match else None


# --- sections


def _global(site: Site, rights: Choice, host: t.Mapping[str, t.Any]) -> Section:
    settings, socket = site.settings, site.socket
    log = settings.log or (
        ("/dev/log local0",) if host.get("dev_log") else ("stdout format raw local0",)
    )
    lines = [f"log {target}" for target in log]
    for key in ("maxconn", "nbthread", "chroot"):
        value = getattr(settings, key)
        if value is not None:
            lines.append(f"{key} {value}")
    lines += rights.lines
    owners = "".join(
        f" {key} {value}"
        for key, value in (("user", socket.user), ("group", socket.group))
        if value
    )
    lines.append(f"stats socket {socket.path} mode {socket.mode}{owners} level {socket.level}")
    lines.append(f"stats timeout {socket.timeout}")
    if _peers_name(site):
        # else it is the host's name, which may change
        lines.append(f"localpeer {PEERS}")
    if host.get("state_file"):
        lines.append(f"server-state-file {host['state_file']}")
    return {"header": "global", "lines": lines + list(settings.raw)}


def _defaults(site: Site) -> Section:
    defaults = site.defaults
    lines = [f"mode {defaults.mode}", f"log {defaults.log}", f"retries {defaults.retries}"]
    if defaults.maxconn is not None:
        lines.append(f"maxconn {defaults.maxconn}")
    lines += [f"option {option}" for option in defaults.options]
    lines += [f"timeout {key} {value}" for key, value in defaults.timeouts]
    lines.append("load-server-state-from-file global")
    return {"header": "defaults", "lines": lines + list(defaults.raw)}


def _peers_name(site: Site) -> str:
    """Return the peers section of the tables, nothing where there is no table or the section cannot work.

    A worker in a chroot does not reach the socket; a process has one name for all peers sections, so
    sections that the user wrote keep theirs.
    """
    own = site.settings.raw + site.raw
    if (
        all(backend.persistence.method != "app_session" for backend in site.backends)
        or site.settings.chroot
        or any(line.split()[0] in ("chroot", "localpeer", "peers") for line in own)
    ):
        return ""
    return PEERS


def _peers(site: Site, rights: Choice) -> list[Section]:
    if not _peers_name(site):
        return []
    # Only the worker itself connects. A socket of HAProxy is made before rights are given up.
    lines = [f"bind unix@{site.socket.path}.peers mode 600 user {rights.user}", f"server {PEERS}"]
    return [{"header": f"peers {PEERS}", "lines": lines}]


def _frontend(frontend: Frontend, site: Site) -> Section:
    paired = {backend.name: backend.ipv6_name for backend in site.backends if backend.paired}
    lines = [f"mode {frontend.mode}"]
    lines += [bind.line for bind in frontend.binds]
    if frontend.maxconn is not None:
        lines.append(f"maxconn {frontend.maxconn}")
    log = "httplog" if frontend.mode == "http" else "tcplog"
    if not any(
        option.split()[0] in ("httplog", "tcplog", "httpslog") for option in frontend.options
    ):
        lines.append(f"option {log}")
    lines += [f"option {option}" for option in frontend.options]
    lines += frontend.raw
    for rule in frontend.rules:
        if rule.backend in paired:
            condition = both(rule.condition, IPV6_CLIENT)
            lines.append(f"use_backend {paired[rule.backend]} if {condition}")
        if rule.condition:
            lines.append(f"use_backend {rule.backend} if {rule.condition}")
        else:
            lines.append(f"default_backend {rule.backend}")
    return {"header": f"frontend {frontend.name}", "lines": lines}


def both(condition: str, extra: str) -> str:
    """Return a condition that holds when C(condition) and C(extra) hold.

    HAProxy has no parentheses, and "or" binds weaker than the implied "and", so every alternative
    gets the extra terms. Words inside braces and quotes are not operators.
    """
    if not condition:
        return extra
    words = re.findall(r"(?:\\.|\"(?:\\.|[^\"\\])*\"|'[^']*'|[^\s\"'\\])+", condition)
    alternatives: list[list[str]] = [[]]
    depth = 0
    for word in words:
        if word in ("{", "!{"):
            depth += 1
        elif word == "}":
            depth -= 1
        if depth == 0 and word in ("or", "||"):
            alternatives.append([])
        else:
            alternatives[-1].append(word)
    return " || ".join(" ".join([*words, extra]) for words in alternatives)


def _backend(backend: Backend, peers: str) -> list[Section]:
    if not backend.paired:
        return [_family(backend, backend.name, None, peers)]
    return [_family(backend, backend.name, 4, peers), _family(backend, backend.ipv6_name, 6, peers)]


def _family(backend: Backend, name: str, family: int | None, peers: str) -> Section:
    """Return the section of one family, or of a backend that needs only one section (C(family) None)."""
    lines = [f"mode {backend.mode}", f"balance {backend.balance}"]
    if backend.hash_type:
        lines.append(f"hash-type {backend.hash_type}")
    single = family
    if single is None and backend.is_transparent:
        # One family only: that of the fixed address, IPv4 for headers, else what the servers have.
        if backend.by_family:
            single = 4 if any(server.address for server in backend.servers) else 6
        else:
            single = 6 if ":" in backend.transparent else 4
    if backend.is_transparent:
        # "source ::" is a syntax error, the brackets are needed
        usesrc = f"[{backend.transparent}]" if ":" in backend.transparent else backend.transparent
        lines.append(f"source {'[::]' if single == 6 else '0.0.0.0'} usesrc {usesrc}")
    if backend.http_reuse:
        lines.append(f"http-reuse {backend.http_reuse}")
    lines += [f"option {option}" for option in backend.options]
    table = backend.name if family == 6 else None
    lines += PERSISTENCE[backend.persistence.method](backend.persistence, table, peers)
    if any(server.wanted for server in backend.servers):
        # Who connects to HAProxy's own address would be sent to HAProxy, and so on until maxconn.
        lines.append("tcp-request content reject if { dst_is_local }")
    lines += backend.raw
    if backend.default_server:
        lines.append(f"default-server {backend.default_server}")
    for number, server in enumerate(backend.servers, 1):
        address = _address(server, single)
        if address is None:
            continue
        # Both sections share one stick table, whose entries name a server by its number
        # too: the same server has the same number in both.
        number_words = f" id {number}" if family else ""
        cookie = f" cookie {server.cookie}" if backend.persistence.method == "cookie" else ""
        words = f" {server.words}" if server.words else ""
        # Without a port it is the one that the client wanted.
        port = f":{server.port}" if server.port else ""
        lines.append(f"server {server.name} {address}{port}{number_words}{cookie}{words}")
    return {"header": f"backend {name}", "lines": lines}


def _address(server: Server, family: int | None) -> str | None:
    if family == 4:
        return server.address
    if family == 6 or not server.address:
        return f"[{server.address_ipv6}]" if server.address_ipv6 else None
    return server.address


# --- persistence: one writer for each method


def _nothing(_persistence: Persistence, _table: str | None, _peers: str) -> list[str]:
    return []


def _cookie(persistence: Persistence, _table: str | None, _peers: str) -> list[str]:
    values = persistence.values
    words = ["cookie", values["name"], values["mode"]]
    for flag in ("indirect", "nocache", "postonly", "preserve", "httponly", "secure"):
        if values[flag]:
            words.append(flag)
    for domain in values["domain"]:
        words += ["domain", domain]
    for key in ("maxidle", "maxlife"):
        if values[key]:
            words += [key, seconds(values[key])]
    for attr in values["attr"]:
        words += ["attr", f'"{attr}"' if " " in attr else attr]
    return [" ".join(words)]


def seconds(text: str) -> str:
    """Return a HAProxy time in the seconds that maxidle and maxlife want; less than one becomes one."""
    match = re.match(r"(\d+)(us|ms|s|m|h|d)", text)
    if not match:
        return text
    scale = {"us": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600, "d": 86400}[match.group(2)]
    return f"{max(1, int(int(match.group(1)) * scale))}s"


def _app_session(persistence: Persistence, table: str | None, peers: str) -> list[str]:
    values = persistence.values
    where = f" table {table}" if table else ""
    lines = []
    if not table:
        lines.append(
            f"stick-table type string len {values['len']} size {values['table_size']} expire {values['timeout']}"
            f"{f' peers {peers}' if peers else ''}"
        )
    # "stick on" looks up and learns, "stick match" only looks up. Both renew the entry's expiry.
    verb = "stick on" if values["request_learn"] else "stick match"
    for pattern, condition in _request_patterns(values):
        lines.append(f"{verb} {pattern}{where}{f' if {condition}' if condition else ''}")
    for pattern, condition in _response_patterns(values):
        lines.append(
            f"stick store-response {pattern}{where}{f' if {condition}' if condition else ''}"
        )
    return lines


def _request_patterns(values: t.Mapping[str, t.Any]) -> list[tuple[str, str]]:
    name = values["name"]
    if values["prefix"]:
        found = [_after_prefix("req.fhdr(cookie)", name, "; ", ";")]
        if values["path_parameter"]:
            found += [_after_prefix("path", each, ";", ";/?") for each in _spellings(name)]
        if values["query_string"]:
            found.append(_after_prefix("query", name, "&", "&;"))
        return found
    found = [(f"req.cook({name})", "")]
    if values["path_parameter"]:
        # HAProxy ends the value at the delimiter or "&" only, not where the query begins
        found += [(f"urlp({each},;),field(1,?)", "") for each in _spellings(name)]
    if values["query_string"]:
        found.append((f"urlp({name})", ""))
    return found


def _spellings(name: str) -> list[str]:
    """The cookie is JSESSIONID, but the servlet specification writes ;jsessionid= in paths."""
    return [name] if name == name.lower() else [name, name.lower()]


def _response_patterns(values: t.Mapping[str, t.Any]) -> list[tuple[str, str]]:
    name = values["name"]
    if not values["prefix"]:
        return [(f"res.cook({name})", "")]
    return [
        _after_prefix(f"res.fhdr(set-cookie,{number})", name, "", ";")
        for number in range(1, SET_COOKIES + 1)
    ]


def _after_prefix(fetch: str, prefix: str, before: str, after: str) -> tuple[str, str]:
    """Return expression and condition for "what follows the prefix", as appsession's prefix option had it.

    req.cook() wants the whole name. The condition is needed because regsub() returns its input
    unchanged where nothing matches.
    """
    name = prefix.replace(".", "[.]")
    head, group = (f"^(.*[{before}])?", 2) if before else ("^", 1)
    test = f"(^|[{before}])" if before else "^"
    return (
        f"""{fetch},'regsub("{head}{name}([^{after}]*).*$","\\{group}")'""",
        f"{{ {fetch} -m reg '{test}{name}' }}",
    )


PERSISTENCE: dict[str, t.Callable[[Persistence, str | None, str], list[str]]] = {
    "none": _nothing,
    "source": _nothing,
    "cookie": _cookie,
    "app_session": _app_session,
}
