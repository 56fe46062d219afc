# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The live probe: a connection from a foreign address, and where it died. Private to the collection.

It does what HAProxy does with `usesrc clientip`: connects to a server from an address that this
host does not have, and waits for the answer. Standard library only, because the same file is
installed on proxies as the canary: `python3 tproxy-canary.py CONFIGURATION`.

One connection a server and source; only when it fails are there a second one, with the firewall's
counters read before and after, and one from the host's own address to compare with.
"""

from __future__ import annotations

import array
import concurrent.futures
import contextlib
import errno
import ipaddress
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass, field, replace

Address = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

# Documentation addresses (RFC 5737, RFC 3849): no client has them.
DEFAULT_SOURCES = {"ipv4": "192.0.2.77", "ipv6": "2001:db8::77"}
FAMILIES = ("ipv4", "ipv6")

# Where a packet can die, in its own order.
HOPS = {
    "rights": "this process may not use foreign source addresses",
    "kernel": "the kernel refuses a foreign source address",
    "local_server": "the server is an address of the proxy host itself",
    "route": "the proxy host has no route to the server",
    "next_hop": "the next hop to the server does not answer ARP or neighbour discovery",
    "output_filter": "the request never left the proxy host",
    "source_nat": "the request left with another source address",
    "server": "the server answers nobody",
    "server_filter": "a firewall at the server or before it refuses the client's address",
    "return_path": "the server's answer does not come back to the proxy host",
    "divert_rule": "the answer came back and no firewall rule marked it",
    "mark": "the firewall sets another mark than the ip rule selects",
    "ip_rule": "the marked answer is not looked up in a table that delivers it here",
    "table": "the table of marked packets does not deliver them here",
    "rp_filter": "the kernel's source validation dropped the answer",
    "input_filter": "the answer was marked and routed here, and dropped before the socket",
    "delivery": "the answer came back and did not reach the socket",
    "icmp": "ICMP errors about large packets do not reach the socket",
    "path_mtu": "large packets vanish on the way to the server",
    "large_payload": "the server's host stopped acknowledging",
}

# linux/in.h, linux/in6.h, linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h,
# linux/sockios.h; not all in the socket module of Python 3.9.
_IP_TRANSPARENT, _IPV6_TRANSPARENT = 19, 75
_PACKET_OTHERHOST, _PACKET_OUTGOING = 3, 4
_ETH_P_ALL = 3
_SO_ATTACH_FILTER = 26
_TCP_ESTABLISHED = 1

# The probes' first packets are told from those of others by this, and from each other by their
# sequence number, even if a source-translating rule changes address and port.
_HOP_LIMIT = 59
# linux/tcp.h
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_TCP_SEND_QUEUE = 2
# Segments that pass every path: RFC 9293 (536), RFC 8200 (1280 less headers).
_SMALL_SEGMENT = {"ipv4": 536, "ipv6": 1220}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProbeInputError(ValueError):
    """A server, source or other value that cannot be probed; one sentence."""


# What is known about one connection, and what it means.


@dataclass(frozen=True)
class Packet:
    """One captured packet of the probe's connection, or an ICMP error about it."""

    # out: leaves this host; in: came to this host; passing: came, but for another host (bridges).
    direction: str
    interface: str
    # syn, syn-ack, rst, other, icmp
    kind: str
    source: str
    # Of an ICMP error: the next hop's MTU (0: not one about size), and its words.
    mtu: int = 0
    reason: str = ""


@dataclass(frozen=True)
class DivertRule:
    """A firewall rule that matches packets of transparent sockets."""

    text: str
    # None: the rule has no counter.
    packets: int | None
    # None: all.
    protocols: frozenset[str] | None = None
    interfaces: frozenset[str] | None = None
    # What a packet without mark has afterwards; None: the rule sets none.
    mark: int | None = None


@dataclass(frozen=True)
class Firewall:
    diverts: tuple[DivertRule, ...] = ()
    # Rules and policies that drop or reject, by their text.
    drops: t.Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Delivery:
    """Where the kernel would send the server's answer, given that it has this mark."""

    mark: int
    # local, another type of route, or error
    type: str
    # The route or the error, in ip's own words.
    text: str
    # The policy routing rule and the table that the mark selects for packets from that interface.
    rule: str | None = None
    table: str | None = None
    table_is_local: bool = False
    # Rules that look up a table where everything is local, whatever their mark.
    local_rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Everything that was observed; verdict() looks at nothing else."""

    family: str
    server: str
    port: int
    source: str
    # How far it got: socket, connect, payload, done.
    step: str
    seconds: float = 0.0
    # Of the call that failed; None when time was up.
    error: int | None = None
    # None: this process may not capture.
    packets: tuple[Packet, ...] | None = None
    # Large payload: bytes, whether all were acknowledged, whether the server closed before.
    payload: int = 0
    acknowledged: bool = False
    closed: bool = False
    segment: int = 0
    # Whether a second connection with small segments got everything through; None: not tried.
    small_segments: bool | None = None
    # True: the first connection got no answer, this is the second.
    again: bool = False
    # Connection from the host's own address: connected, refused, silent, or the error's text.
    control: str | None = None
    # This host's own way to the server.
    own_address: str | None = None
    subnet: str | None = None
    gateway: str | None = None
    device: str | None = None
    server_is_local: bool = False
    neighbour: str | None = None
    # Before and after the second connection; None: could not be read.
    before: Firewall | None = None
    after: Firewall | None = None
    deliveries: tuple[Delivery, ...] = ()


@dataclass(frozen=True)
class Verdict:
    # ok, failed, unknown (nothing can be said about the transparent path)
    status: str
    hop: str | None
    observed: str
    remedy: str = ""


@dataclass(frozen=True)
class Result:
    """The answer about one server from one source."""

    name: str
    server: str
    family: str
    source: str
    # ok, failed, unknown
    status: str
    # Until the answer, or until the last byte was acknowledged; when it failed, until given up.
    seconds: float
    # One of HOPS; None when all is well.
    hop: str | None
    observed: str
    expected: str
    remedy: str
    # Smallest MTU that a router on the way reported, None if none did.
    mtu: int | None = None

    @property
    def sentence(self) -> str:
        """All of it in one line, for a log."""
        if self.status == "ok":
            return f"{self.server} from {self.source}: {self.observed}"
        words = f"{self.server} from {self.source}: {self.hop}: {self.observed}"
        return f"{words}; {self.remedy}" if self.remedy else words


def server_name(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def verdict(seen: Evidence) -> Verdict:
    """What the evidence says. Pure."""
    if seen.step == "socket":
        return _refused_socket(seen)
    if seen.server_is_local and seen.step != "done":
        return Verdict(
            "failed",
            "local_server",
            f"{seen.server} is an address of this host: the server's answers to clients never "
            "come in from a network, so that nothing can catch them",
            "give the server another host, or take it out of the transparent backend",
        )
    sources = _sources_on_the_wire(seen)
    if sources and seen.source not in sources:
        return Verdict(
            "failed",
            "source_nat",
            f"the request left {_interfaces(seen, 'out', 'syn')} with the source {sources[0]}: "
            "a NAT rule of this host replaces the client's address",
            "exempt connections of HAProxy from SNAT and MASQUERADE, for example by accepting "
            "its user's packets before that rule in nat POSTROUTING (-m owner --uid-owner)",
        )
    if seen.step == "done":
        return _done(seen)
    if seen.step == "payload":
        return _payload(seen)
    return _no_connection(seen)


def _refused_socket(seen: Evidence) -> Verdict:
    if seen.error in (errno.EPERM, errno.EACCES):
        return Verdict(
            "unknown",
            "rights",
            f"a socket may not take a foreign address: {_words(seen.error)}",
            "run the probe as root, or with the capability NET_RAW (in a container too)",
        )
    return Verdict(
        "failed",
        "kernel",
        f"a socket cannot take the address {seen.source}: {_words(seen.error)}",
        "switch the family on (net.ipv6.conf.*.disable_ipv6), or boot a kernel that has it"
        if seen.family == "ipv6"
        else "boot a kernel that supports IP_TRANSPARENT",
    )


def _done(seen: Evidence) -> Verdict:
    words = "the server answered"
    if seen.error == errno.ECONNREFUSED:
        # Its refusal came back to a socket with a foreign address: the path works.
        words = "the server refused the port; its refusal came back, so the path works"
    elif seen.acknowledged:
        words = f"the server answered and acknowledged {seen.payload} bytes"
    elif seen.payload:
        words = (
            f"the server answered; it closed the connection before {seen.payload} bytes were "
            "acknowledged, so large packets were not tried"
        )
    mtu = smallest_mtu(seen)
    if mtu:
        words += f", over a path of MTU {mtu}"
    if seen.again:
        words += ", but only a second connection"
    if seen.packets is None:
        words += "; its packets could not be looked at, so the source address is not proven"
    return Verdict("ok", None, words)


def _payload(seen: Evidence) -> Verdict:
    what = (
        f"the connection was made, but {seen.payload} bytes in segments of {seen.segment} were "
        "not acknowledged"
    )
    mtu = smallest_mtu(seen)
    if mtu:
        return Verdict(
            "failed",
            "icmp",
            f"{what}: a router answers that its next link takes {mtu} bytes; that ICMP error, "
            f"sent to {seen.source}, reaches this host{_forwarded(seen, 'icmp')}, but not the socket",
            f"divert {'ICMP' if seen.family == 'ipv4' else 'ICMPv6'} too, before other rules, and "
            "let RELATED packets in (role tproxy_host)",
        )
    if seen.small_segments:
        return Verdict(
            "failed",
            "path_mtu",
            f"{what}, while segments of {_SMALL_SEGMENT[seen.family]} were; no ICMP error about "
            "the size came back",
            "let the routers and filters on the way send and pass ICMP 'fragmentation needed' "
            "and ICMPv6 'packet too big' to the clients' addresses, or lower the MTU of the "
            "route to the server",
        )
    return Verdict(
        "failed",
        "large_payload",
        f"{what}{', and neither were small ones' if seen.small_segments is False else ''}",
        "look at the server's own firewall and load; if the server must not get such a request, "
        "give the probe another payload",
    )


def _no_connection(seen: Evidence) -> Verdict:
    packets = seen.packets or ()
    reply = [packet for packet in packets if packet.kind in ("syn-ack", "rst")]
    came = [packet for packet in reply if packet.direction == "in"]
    if came:
        return _not_delivered(seen, came[-1])
    if any(packet.direction == "passing" for packet in reply):
        return Verdict(
            "failed",
            "return_path",
            f"the server's answer passes through {_interfaces(seen, 'passing')} with another "
            "host's link address",
            "make this host the server's next hop to the clients (role tproxy_backend)",
        )
    if seen.error is not None and not any(packet.kind == "syn" for packet in packets):
        if seen.error == errno.EHOSTUNREACH and _neighbour_is_dead(seen):
            return _dead_next_hop(seen)
        return Verdict(
            "failed",
            "route",
            f"connecting fails: {_words(seen.error)}",
            f"give this host a route to {seen.server}",
        )
    if seen.packets is not None and not any(
        packet.direction == "out" and packet.kind == "syn" for packet in packets
    ):
        if _neighbour_is_dead(seen):
            return _dead_next_hop(seen)
        return Verdict(
            "failed",
            "output_filter",
            f"no packet of the request left this host{_dropped(seen)}; from this host's own "
            f"address the server is {seen.control or 'not tried'}",
            "let HAProxy's connections from foreign addresses out: look at the OUTPUT and "
            "POSTROUTING rules of this host",
        )
    return _no_answer(seen)


def _neighbour_is_dead(seen: Evidence) -> bool:
    return seen.neighbour in ("FAILED", "INCOMPLETE")


def _dead_next_hop(seen: Evidence) -> Verdict:
    hop = seen.gateway or seen.server
    return Verdict(
        "failed" if seen.gateway else "unknown",
        "next_hop",
        f"{hop} does not answer on {seen.device} ({seen.neighbour})",
        f"is {hop} switched on, and in the network of {seen.device}?",
    )


def _no_answer(seen: Evidence) -> Verdict:
    errors = [packet for packet in seen.packets or () if packet.kind == "icmp"]
    said = f"; {errors[-1].source} says: {errors[-1].reason}" if errors else ""
    left = (
        f"the request left {_interfaces(seen, 'out', 'syn')} and nothing came back{said}"
        if seen.packets is not None
        else f"nothing came back{said}"
    )
    if seen.control not in ("connected", "refused") or (errors and seen.control == "refused"):
        return Verdict(
            "unknown",
            "server",
            f"{left}; a connection from this host's own address gets no further "
            f"({seen.control or 'not tried'})",
            "is the server up? Look at its address, port, and firewall",
        )
    own = f", while the server answers this host's own address ({seen.control})"
    if errors:
        return Verdict(
            "failed",
            "server_filter",
            f"{left}{own}",
            f"let the clients' addresses in at {errors[-1].source}",
        )
    if seen.packets is None:
        return Verdict(
            "failed",
            "delivery",
            f"{left}{own}; whether an answer arrived could not be looked at",
            "run the probe with the capability NET_RAW",
        )
    via = seen.own_address or "this host"
    if seen.source == seen.server:
        case = f"; {seen.source} is the server itself, which drops packets from its own address"
        remedy = "connect a server's own requests from the proxy's address (http-request set-src)"
    elif seen.subnet and _within(seen.source, seen.subnet):
        case = (
            f"; {seen.source} is in the server's own subnet {seen.subnet}, so that the server "
            "answers it directly"
        )
        remedy = (
            f"give the server a policy route through {via} for its service address (role "
            "tproxy_backend), or move the clients to another subnet"
        )
    else:
        case = ""
        remedy = (
            f"on the server `ip route get {seen.source}` must say via {via} (role "
            "tproxy_backend), and its firewall must let foreign sources in"
        )
    return Verdict("failed", "return_path", f"{left}{own}{case}", remedy)


def _not_delivered(seen: Evidence, reply: Packet) -> Verdict:
    came = f"the server's answer came in on {reply.interface}"
    role = "run the role tproxy_host"
    if seen.after is None:
        if seen.deliveries and all(entry.type != "local" for entry in seen.deliveries):
            return _not_routed(seen, reply, came, seen.deliveries[0])
        return Verdict(
            "failed",
            "delivery",
            f"{came} and did not reach the socket{_forwarded(seen)}; the firewall could not be read",
            f"{role}; run the probe with the capability NET_ADMIN to learn more",
        )
    diverts = [rule for rule in seen.after.diverts if _applies(rule.protocols, "tcp")]
    if not diverts:
        return Verdict(
            "failed",
            "divert_rule",
            f"{came}{_forwarded(seen)}; no firewall rule looks for packets of transparent sockets",
            role,
        )
    on_interface = [rule for rule in diverts if _applies(rule.interfaces, reply.interface)]
    if not on_interface:
        bound = sorted({name for rule in diverts for name in rule.interfaces or ()})
        return Verdict(
            "failed",
            "divert_rule",
            f"{came}{_forwarded(seen)}; the rules look only at {', '.join(bound)}",
            f"add {reply.interface} to tproxy_host_interfaces",
        )
    counted = [rule for rule in on_interface if _rise(seen, rule) != 0]
    if not counted:
        return Verdict(
            "failed",
            "divert_rule",
            f"{came}{_forwarded(seen)} and did not reach the rule '{on_interface[0].text}', whose "
            f"counter stays at {on_interface[0].packets}{_dropped(seen)}",
            f"an earlier rule takes the packets away: {role}, which puts its rules first",
        )
    marks = {rule.mark for rule in counted}
    wanted = [entry for entry in seen.deliveries if entry.mark in marks]
    if not any(marks):
        return Verdict(
            "failed",
            "divert_rule",
            f"{came} and the rule '{counted[0].text}' matched it, but sets no mark",
            role,
        )
    broken = [entry for entry in wanted if entry.type != "local"]
    if broken:
        return _not_routed(seen, reply, came, broken[0])
    return Verdict(
        "failed",
        "input_filter",
        f"{came}; the rule '{counted[0].text}' marked packets meanwhile, and packets with that "
        "mark are for this host, but the socket got none"
        f"{_dropped(seen) or '; only INPUT rules are left to drop it'}",
        "accept packets with the mark "
        f"{', '.join(f'0x{mark:x}' for mark in sorted(m for m in marks if m))} in INPUT, before "
        "rules that look at the connection's state or at the destination address",
    )


def _not_routed(seen: Evidence, reply: Packet, came: str, entry: Delivery) -> Verdict:
    came = f"{came} and packets with the mark 0x{entry.mark:x}"
    if "cross-device" in entry.text:
        return Verdict(
            "failed",
            "rp_filter",
            f"{came} fail the source validation there ({entry.text})",
            f"let the route to {seen.server} go out of {reply.interface}, or set "
            f"net.ipv4.conf.{reply.interface}.rp_filter and all.rp_filter to 2 or 0",
        )
    if entry.type == "error" and "Invalid argument" in entry.text:
        return Verdict(
            "failed",
            "rp_filter",
            f"{came} are martians to the kernel: their source is looked up with the same mark "
            "and found to be local (src_valid_mark)",
            "bind the ip rule to the server-facing interface, or put the guard rule before it "
            "(role tproxy_host)",
        )
    if entry.rule is None and entry.local_rules:
        return Verdict(
            "failed",
            "mark",
            f"{came} are not for this host ({entry.text}); the ip rule is '{entry.local_rules[0]}'",
            "run the role tproxy_host",
        )
    if entry.rule is None:
        return Verdict(
            "failed",
            "ip_rule",
            f"{came} are not for this host ({entry.text}); no ip rule selects them",
            "run the role tproxy_host",
        )
    if not entry.table_is_local:
        return Verdict(
            "failed",
            "table",
            f"{came} are not for this host ({entry.text}); table {entry.table}, which the rule "
            f"'{entry.rule}' looks up, has no local default route",
            "run the role tproxy_host",
        )
    return Verdict(
        "failed",
        "ip_rule",
        f"{came} are not for this host ({entry.text}), although there is '{entry.rule}': a rule "
        "before it takes them",
        "give tproxy_host_rule_priority a number below that of the rule before",
    )


def smallest_mtu(seen: Evidence) -> int | None:
    return min((packet.mtu for packet in seen.packets or () if packet.mtu), default=None)


def _sources_on_the_wire(seen: Evidence) -> list[str]:
    return [
        packet.source
        for packet in seen.packets or ()
        if packet.direction == "out" and packet.kind == "syn"
    ]


def _interfaces(seen: Evidence, direction: str, kind: str | None = None) -> str:
    names = dict.fromkeys(
        packet.interface
        for packet in seen.packets or ()
        if packet.direction == direction and kind in (None, packet.kind)
    )
    return ", ".join(names) or "no interface"


def _forwarded(seen: Evidence, *kinds: str) -> str:
    left = dict.fromkeys(
        packet.interface
        for packet in seen.packets or ()
        if packet.direction == "out" and packet.kind in (kinds or ("syn-ack", "rst"))
    )
    return f", is forwarded to {', '.join(left)}" if left else ""


def _applies(values: frozenset[str] | None, value: str) -> bool:
    return values is None or value in values


def _rise(seen: Evidence, rule: DivertRule) -> int | None:
    """By how much the counter rose meanwhile; None: nobody counts. Others' packets count too."""
    if rule.packets is None or seen.before is None:
        return None
    old = sum(was.packets or 0 for was in seen.before.diverts if was.text == rule.text)
    return rule.packets - old


def _dropped(seen: Evidence) -> str:
    if seen.before is None or seen.after is None:
        return ""
    rules = [
        text for text, count in seen.after.drops.items() if count > seen.before.drops.get(text, 0)
    ]
    names = "', '".join(rules[:3])
    return f"; meanwhile packets were dropped by '{names}'" if rules else ""


def _within(address: str, subnet: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(subnet, strict=False)


def _words(error: int | None) -> str:
    return os.strerror(error) if error else "no answer"


# Reading what programs print. Pure.


def read_iptables_save(text: str, variant: str = "") -> Firewall:
    """`iptables-save -c`: [packets:bytes] before each rule, after each chain."""
    table = ""
    rules: list[tuple[str, str, list[str], int, str]] = []
    drops: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":"):
            name, policy, counters = (*line[1:].split(), "", "")[:3]
            if policy == "DROP":
                drops[f"{variant}{table} {name} policy DROP"] = _packets(counters)
        elif line.startswith("["):
            counters, _blank, rule = line.partition(" ")
            words = rule.split()
            if len(words) < 2:
                continue
            text_of = f"{variant}{table} {' '.join(words[1:])}"
            rules.append((table, words[1], words, _packets(counters), text_of))
            if _after(words, "-j") in ("DROP", "REJECT"):
                drops[text_of] = _packets(counters)
    marks = {
        (table, chain): mark
        for table, chain, words, _count, _text in reversed(rules)
        for mark in [_xmark(words)]
        if mark is not None
    }
    diverts = []
    for table, _chain, words, count, text_of in rules:
        if not any(pair == ("-m", "socket") for pair in zip(words, words[1:])):
            continue
        protocol, interface = _after(words, "-p"), _after(words, "-i")
        mark = _xmark(words)
        if mark is None:
            mark = marks.get((table, _after(words, "-j") or _after(words, "-g") or ""))
        diverts.append(
            DivertRule(
                text_of,
                count,
                None if protocol is None else frozenset([protocol]),
                None if interface is None else frozenset([interface]),
                mark,
            )
        )
    return Firewall(tuple(diverts), drops)


def _packets(counters: str) -> int:
    digits = counters.strip("[]").partition(":")[0]
    return int(digits) if digits.isdigit() else 0


def _after(words: t.Sequence[str], option: str) -> str | None:
    for word, following in zip(words, words[1:]):
        if word == option:
            return following
    return None


def _xmark(words: t.Sequence[str]) -> int | None:
    """The mark that an unmarked packet has after this rule."""
    text = _after(words, "--set-xmark") or _after(words, "--set-mark")
    if text is None:
        return None
    value, _slash, mask = text.partition("/")
    return int(value, 0) & int(mask or "0xffffffff", 0)


def read_nft(text: str, family: str, *, without_iptables: bool = False) -> Firewall:
    """`nft -j list ruleset`, as libnftables-json(5) describes it.

    without_iptables: leaves out the tables in which iptables-nft keeps its rules.
    """
    families = ("inet", "ip") if family == "ipv4" else ("inet", "ip6")
    rules = [
        entry["rule"]
        for entry in json.loads(text or "{}").get("nftables", ())
        if "rule" in entry
        and entry["rule"]["family"] in families
        and not (
            without_iptables
            and entry["rule"]["family"] != "inet"
            and entry["rule"]["table"] in ("filter", "mangle", "nat", "raw", "security")
        )
    ]
    marks = {
        (rule["family"], rule["table"], rule["chain"]): mark
        for rule in reversed(rules)
        for mark in [_nft_mark(rule)]
        if mark is not None
    }
    diverts, drops = [], {}
    for rule in rules:
        name = f"nft {rule['family']} {rule['table']} {rule['chain']} handle {rule['handle']}"
        packets = None
        transparent = False
        protocols = interfaces = None
        mark = _nft_mark(rule)
        for expression in _expressions(rule):
            key, value = next(iter(expression.items()))
            if key == "counter" and isinstance(value, dict):
                packets = value.get("packets")
            elif key in ("drop", "reject"):
                drops[name] = packets or 0
            elif key in ("jump", "goto") and mark is None:
                mark = marks.get((rule["family"], rule["table"], value.get("target")))
            elif key == "match":
                left = value["left"] if isinstance(value["left"], dict) else {}
                if left.get("socket", {}).get("key") == "transparent":
                    transparent = True
                elif left.get("meta", {}).get("key") == "l4proto":
                    protocols = _nft_values(value["right"])
                elif left.get("meta", {}).get("key") in ("iifname", "iif"):
                    interfaces = _nft_values(value["right"])
        if transparent:
            diverts.append(DivertRule(name, packets, protocols, interfaces, mark))
    return Firewall(tuple(diverts), drops)


def _expressions(rule: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    return [entry for entry in rule.get("expr", ()) if isinstance(entry, dict) and entry]


def _nft_mark(rule: t.Mapping[str, t.Any]) -> int | None:
    for expression in _expressions(rule):
        mangle = expression.get("mangle")
        if mangle and mangle["key"] == {"meta": {"key": "mark"}}:
            return _nft_number(mangle["value"])
    return None


def _nft_number(value: t.Any) -> int:
    """The value of an expression of an unmarked packet."""
    if isinstance(value, dict):
        for operator, result in (
            ("|", lambda one, other: one | other),
            ("&", lambda one, other: one & other),
            ("^", lambda one, other: one ^ other),
        ):
            if operator in value:
                numbers = [_nft_number(part) for part in value[operator]]
                total = numbers[0]
                for number in numbers[1:]:
                    total = result(total, number)
                return total
        return 0
    return int(str(value), 0)


def _nft_values(right: t.Any) -> frozenset[str]:
    if isinstance(right, dict) and "set" in right:
        return frozenset(str(value) for value in right["set"])
    return frozenset([str(right)])


def merged(parts: t.Iterable[Firewall]) -> Firewall:
    parts = list(parts)
    return Firewall(
        tuple(rule for part in parts for rule in part.diverts),
        {text: count for part in parts for text, count in part.drops.items()},
    )


# Captured packets.


def read_packet(
    data: bytes,
    direction: str,
    interface: str,
    *,
    server: tuple[str, int],
    local: tuple[str, int],
    sequence: int | None,
) -> Packet | None:
    """A packet of the connection, or an ICMP error about it; None for any other.

    sequence: of the first packet; None if it could not be chosen. Then that of another probe whose source is
    translated may be taken for ours.
    """
    outer = _ip_header(data)
    if outer is None:
        return None
    source, target, protocol, hop_limit, body = outer
    address, port = server
    if protocol == socket.IPPROTO_TCP and len(body) >= 14:
        source_port, target_port, number = struct.unpack("!HHI", body[:8])
        flags = body[13]
        syn, rst, ack = flags & 0x02, flags & 0x04, flags & 0x10
        if (target, target_port) == (address, port):
            translated = hop_limit == _HOP_LIMIT and sequence in (None, number)
            if (source, source_port) != local and not (syn and translated):
                return None
            return Packet(direction, interface, "syn" if syn else "other", source)
        if (source, source_port, target, target_port) == (address, port, *local):
            kind = "rst" if rst else "syn-ack" if syn and ack else "other"
            return Packet(direction, interface, kind, source)
        return None
    error = _icmp_error(protocol, body)
    if error is None:
        return None
    reason, mtu, quoted = error
    inner = _ip_header(quoted)
    if inner is None or inner[:2] != (local[0], address) or len(inner[4]) < 4:
        return None
    if struct.unpack("!HH", inner[4][:4]) != (local[1], port):
        return None
    return Packet(direction, interface, "icmp", source, mtu, reason)


def _ip_header(data: bytes) -> tuple[str, str, int, int, bytes] | None:
    """Source, destination, protocol, hop limit, the rest. Extension headers are not followed."""
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        return (
            str(ipaddress.IPv4Address(data[12:16])),
            str(ipaddress.IPv4Address(data[16:20])),
            data[9],
            data[8],
            data[(data[0] & 15) * 4 :],
        )
    if version == 6 and len(data) >= 40:
        return (
            str(ipaddress.IPv6Address(data[8:24])),
            str(ipaddress.IPv6Address(data[24:40])),
            data[6],
            data[7],
            data[40:],
        )
    return None


def _icmp_error(protocol: int, body: bytes) -> tuple[str, int, bytes] | None:
    """RFC 792, RFC 1191, RFC 4443: what it says, the MTU it gives, the packet it quotes."""
    if len(body) < 8:
        return None
    kind, code = body[0], body[1]
    if protocol == socket.IPPROTO_ICMP and kind == 3:
        mtu = struct.unpack("!H", body[6:8])[0] if code == 4 else 0
        reason = "fragmentation needed" if code == 4 else f"destination unreachable ({code})"
        return reason, mtu, body[8:]
    if protocol == socket.IPPROTO_ICMPV6 and kind in (1, 2):
        mtu = struct.unpack("!I", body[4:8])[0] if kind == 2 else 0
        reason = "packet too big" if kind == 2 else f"destination unreachable ({code})"
        return reason, mtu, body[8:]
    return None


def packet_filter(local_port: int, server_port: int) -> bytes:
    """Classic BPF: TCP with our port at either end, or to the server with our hop limit; all ICMP.

    A busy proxy's other packets cost one run of this each.
    """
    byte, half, half_after = 0x30, 0x28, 0x48
    shift, header_length, equal, leave = 0x74, 0xB1, 0x15, 0x06
    tcp, icmp, icmpv6 = socket.IPPROTO_TCP, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6
    # Label, operation, operand, where to go if equal, and if not ("": on). RFC 791, 8200, 9293.
    program: list[tuple[str, int, int, str, str]] = [
        ("", byte, 0, "", ""),
        ("", shift, 4, "", ""),
        ("", equal, 6, "ipv6", ""),
        ("", equal, 4, "", "drop"),
        ("", byte, 9, "", ""),
        ("", equal, icmp, "keep", ""),
        ("", equal, tcp, "", "drop"),
        ("", header_length, 0, "", ""),
        ("", half_after, 0, "", ""),
        ("", equal, local_port, "keep", ""),
        ("", half_after, 2, "", ""),
        ("", equal, local_port, "keep", ""),
        ("", equal, server_port, "", "drop"),
        ("", byte, 8, "", ""),
        ("", equal, _HOP_LIMIT, "keep", "drop"),
        ("ipv6", byte, 6, "", ""),
        ("", equal, icmpv6, "keep", ""),
        ("", equal, tcp, "", "drop"),
        ("", half, 40, "", ""),
        ("", equal, local_port, "keep", ""),
        ("", half, 42, "", ""),
        ("", equal, local_port, "keep", ""),
        ("", equal, server_port, "", "drop"),
        ("", byte, 7, "", ""),
        ("", equal, _HOP_LIMIT, "keep", "drop"),
        ("keep", leave, 256, "", ""),
        ("drop", leave, 0, "", ""),
    ]
    places = {label: number for number, (label, *_rest) in enumerate(program) if label}
    code = b""
    for number, (_label, operation, operand, yes, no) in enumerate(program):
        jumps = [places[label] - number - 1 if label else 0 for label in (yes, no)]
        code += struct.pack("HBBI", operation, *jumps, operand)
    return code


def attach_filter(receiver: socket.socket, program: bytes) -> None:
    """Packets for which the program says 0 never reach the socket. Raises OSError."""
    code = array.array("B", program)
    # struct sock_fprog: number of instructions, where they are
    pointer = struct.pack("HP", len(code) // 8, code.buffer_info()[0])
    receiver.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


class _Capture:
    """The packets of one connection on all interfaces of this host."""

    def __init__(
        self, server: tuple[str, int], local: tuple[str, int], sequence: int | None
    ) -> None:
        self.server, self.local, self.sequence = server, local, sequence
        # What comes in before the filter is there is sorted out by read_packet().
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        try:
            attach_filter(self.socket, packet_filter(local[1], server[1]))
            self.socket.setblocking(False)
        except OSError:
            self.socket.close()
            raise
        self.packets: list[Packet] = []

    def fileno(self) -> int:
        return self.socket.fileno()

    def read(self) -> None:
        directions = {_PACKET_OUTGOING: "out", _PACKET_OTHERHOST: "passing"}
        while True:
            try:
                data, (interface, _protocol, kind, *_rest) = self.socket.recvfrom(256)
            except BlockingIOError:
                return
            packet = read_packet(
                data,
                directions.get(kind, "in"),
                interface,
                server=self.server,
                local=self.local,
                sequence=self.sequence,
            )
            if packet is not None and packet not in self.packets:
                self.packets.append(packet)


# Doing.


@dataclass(frozen=True)
class _Target:
    address: Address
    port: int
    source: str

    @property
    def family(self) -> str:
        return f"ipv{self.address.version}"


def _connect(
    target: _Target, payload: bytes, seconds: float, *, small_segments: bool = False
) -> Evidence:
    """One connection from the foreign address, within that time; nothing stays open."""
    server = str(target.address)
    seen = Evidence(target.family, server, target.port, target.source, "socket")
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(_foreign_socket(target))
        except OSError as exc:
            return replace(seen, error=exc.errno)
        if small_segments:
            connection.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SMALL_SEGMENT[target.family]
            )
        capture = None
        # Without the right to, the probe still says whether it works.
        with contextlib.suppress(PermissionError):
            local = (target.source, connection.getsockname()[1])
            capture = _Capture((server, target.port), local, _choose_sequence(connection))
            stack.callback(capture.socket.close)
        seen = _converse(connection, capture, replace(seen, step="connect"), payload, seconds)
        seen = replace(
            seen,
            seconds=time.monotonic() - started,
            packets=None if capture is None else tuple(capture.packets),
        )
        if seen.step == "done" and seen.error is None:
            _part(connection, started + seconds)
        else:
            # A reset frees the server; nothing is retransmitted after this.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return seen


def _foreign_socket(target: _Target) -> socket.socket:
    version4 = target.address.version == 4
    connection = socket.socket(socket.AF_INET if version4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        level = socket.IPPROTO_IP if version4 else socket.IPPROTO_IPV6
        connection.setsockopt(level, _IP_TRANSPARENT if version4 else _IPV6_TRANSPARENT, 1)
        connection.setsockopt(
            level, socket.IP_TTL if version4 else socket.IPV6_UNICAST_HOPS, _HOP_LIMIT
        )
        connection.bind((target.source, 0))
        connection.setblocking(False)
    except OSError:
        connection.close()
        raise
    return connection


def _choose_sequence(connection: socket.socket) -> int | None:
    """The sequence number of its first packet; None if this process may not choose it (NET_ADMIN)."""
    number = int.from_bytes(os.urandom(4), "big") or 1
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except OSError:
        return None
    try:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _TCP_SEND_QUEUE)
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, struct.pack("I", number))
    except OSError:
        return None
    finally:
        connection.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 0)
    return number


def _converse(
    connection: socket.socket,
    capture: _Capture | None,
    seen: Evidence,
    payload: bytes,
    seconds: float,
) -> Evidence:
    deadline = time.monotonic() + seconds

    def look(*, until: float, for_writing: bool) -> bool:
        """Reads what was captured; True once the connection can be written to."""
        readable, writable, _none = select.select(
            [capture] if capture else [],
            [connection] if for_writing else [],
            [],
            max(0.0, until - time.monotonic()),
        )
        if readable and capture:
            capture.read()
        return bool(writable)

    error = connection.connect_ex((seen.server, seen.port))
    if error == errno.EINPROGRESS:
        error = 0
        while not look(until=deadline, for_writing=True):
            if time.monotonic() >= deadline:
                return seen
        error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    look(until=0, for_writing=False)
    if error == errno.ECONNREFUSED:
        # An ICMP error may say so too; only the server's own reset proves the way back.
        reset = capture is None or any(
            packet.kind == "rst" and packet.direction == "in" for packet in capture.packets
        )
        return replace(seen, step="done" if reset else "connect", error=error)
    if error:
        return replace(seen, error=error)
    if not payload:
        return replace(seen, step="done")

    seen = replace(seen, step="payload", payload=len(payload))
    rest = memoryview(payload)
    while True:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
        # struct tcp_info: state, snd_mss, bytes_acked (which counts the SYN).
        segment, acknowledged = (
            struct.unpack_from("I", info, 16)[0],
            struct.unpack_from("Q", info, 120)[0] - 1,
        )
        seen = replace(seen, segment=segment)
        if acknowledged >= len(payload):
            return replace(seen, step="done", acknowledged=True)
        try:
            if rest:
                rest = rest[connection.send(rest) :]
        except BlockingIOError:
            pass
        except OSError:
            return replace(seen, step="done", closed=True)
        if info[0] != _TCP_ESTABLISHED and _is_reset(connection):
            return replace(seen, step="done", closed=True)
        if time.monotonic() >= deadline:
            return seen
        # The kernel tells nobody of an acknowledgement.
        time.sleep(0.005)
        look(until=0, for_writing=False)


def _is_reset(connection: socket.socket) -> bool:
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def _part(connection: socket.socket, deadline: float) -> None:
    """Ends the connection in order: with unread data, close() would reset it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while True:
            connection.settimeout(max(0.01, min(1.0, deadline - time.monotonic())))
            if not connection.recv(65536):
                return


def _control(target: _Target, seconds: float) -> str:
    """The same server from this host's own address."""
    try:
        with socket.create_connection((str(target.address), target.port), timeout=seconds):
            return "connected"
    except ConnectionRefusedError:
        return "refused"
    except OSError as exc:
        # socket.timeout is no TimeoutError before Python 3.10.
        silent = isinstance(exc, (TimeoutError, socket.timeout))
        return "silent" if silent else exc.strerror or str(exc)


def _run(*argv: str) -> subprocess.CompletedProcess[str] | None:
    program = shutil.which(argv[0], path=_PATH)
    if program is None:
        return None
    try:
        return subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
            env={"PATH": _PATH, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _ip(family: str, *argv: str) -> list[dict[str, t.Any]]:
    done = _run("ip", f"-{family[-1]}", "-j", *argv)
    try:
        answer = json.loads(done.stdout) if done and not done.returncode else []
    except ValueError:
        return []
    return [entry for entry in answer if isinstance(entry, dict) and entry]


def _read_firewall(family: str) -> Firewall | None:
    """None if it could not be read, or not all of it and no rule of interest was in the rest."""
    name = "iptables" if family == "ipv4" else "ip6tables"
    variants = [f"{name}-nft-save", f"{name}-legacy-save"]
    if not any(shutil.which(variant, path=_PATH) for variant in variants):
        variants = [f"{name}-save"]
    parts, unread, seen_by_iptables = [], False, False
    for variant in variants:
        # Without -t: naming a table would make legacy iptables load it.
        done = _run(variant, "-c")
        if done is None:
            continue
        unread = unread or done.returncode != 0
        if not done.returncode:
            legacy = "legacy" in variant
            seen_by_iptables = seen_by_iptables or not legacy
            parts.append(read_iptables_save(done.stdout, "legacy " if legacy else ""))
    # Terse: the elements of sets may be many.
    done = _run("nft", "-j", "-t", "list", "ruleset")
    if done is not None:
        try:
            parts.append(read_nft(done.stdout, family, without_iptables=seen_by_iptables))
        except (ValueError, KeyError, TypeError):
            unread = True
        unread = unread or done.returncode != 0
    found = merged(parts)
    return None if not parts or (unread and not found.diverts) else found


def _way_to_server(target: _Target, seen: Evidence) -> Evidence:
    """What this host's own tables say about the server, and the next hop's state."""
    family, server = target.family, seen.server
    routes = _ip(family, "route", "get", server)
    if not routes:
        return seen
    route = routes[0]
    device, gateway = route.get("dev"), route.get("gateway")
    subnet = None
    for link in _ip(family, "address", "show", "dev", str(device)):
        for entry in link.get("addr_info", ()):
            network = f"{entry.get('local')}/{entry.get('prefixlen')}"
            if entry.get("local") and _within(server, network):
                subnet = str(ipaddress.ip_network(network, strict=False))
    neighbours = _ip(family, "neigh", "show", "to", gateway or server, "dev", str(device))
    states = neighbours[0].get("state", []) if neighbours else []
    return replace(
        seen,
        own_address=route.get("prefsrc"),
        device=device,
        gateway=gateway,
        subnet=subnet,
        server_is_local=route.get("type") == "local",
        neighbour=states[0] if states else None,
    )


def _delivery(target: _Target, interface: str, mark: int) -> Delivery:
    """What the kernel would do with the server's answer, if it has this mark."""
    question = (
        *("route", "get", target.source, "from", str(target.address)),
        *("iif", interface, "mark", f"0x{mark:x}"),
    )
    done = _run("ip", f"-{target.family[-1]}", *question)
    text = "ip is not installed" if done is None else " ".join(done.stdout.split())
    if done is not None and done.returncode:
        text = done.stderr.strip().replace("RTNETLINK answers: ", "")
        kind = "error"
    else:
        kind = text.split(" ", 1)[0] if text.startswith(("local ", "unreachable ")) else "unicast"
    selecting: list[tuple[str | None, str | None, bool]] = []
    local_rules = []
    for entry in _ip(target.family, "rule", "show"):
        if "fwmark" not in entry or entry.get("iif", interface) != interface or "not" in entry:
            continue
        looked_up, mask = str(entry.get("table")), int(str(entry.get("fwmask", "0xffffffff")), 0)
        words = f"{entry.get('priority')}: fwmark {entry['fwmark']}/0x{mask:x} lookup {looked_up}"
        is_local = any(
            route.get("type") == "local" and route.get("dst") in ("default", "0.0.0.0/0", "::/0")
            for route in _ip(target.family, "-d", "route", "show", "table", looked_up)
        )
        if is_local:
            local_rules.append(words)
        if mark & mask == int(str(entry["fwmark"]), 0):
            selecting.append((words, looked_up, is_local))
    rule, table, is_local = (*selecting, (None, None, False))[0]
    return Delivery(mark, kind, text, rule, table, is_local, tuple(local_rules))


def _diagnose(target: _Target, seen: Evidence, payload: bytes, seconds: float) -> Evidence:
    """More evidence, as far as the first connection leaves a question."""
    if seen.step == "payload":
        if smallest_mtu(seen) is None:
            again = _connect(target, payload, seconds, small_segments=True)
            seen = replace(seen, small_segments=again.acknowledged)
        return seen
    before = _read_firewall(target.family)
    # A path that works answers at once; and a neighbour may have been looked for meanwhile.
    again = _connect(target, payload, min(seconds, 1.0))
    if again.step != "connect":
        again = replace(again, again=True)
        return _diagnose(target, again, payload, seconds) if again.step == "payload" else again
    after = _read_firewall(target.family)
    seen = replace(_way_to_server(target, seen), before=before, after=after)
    if seen.packets is None or again.packets is None:
        return replace(seen, control=_control(target, seconds))
    packets = tuple(dict.fromkeys((*seen.packets, *again.packets)))
    seen = replace(seen, packets=packets)
    came = [
        packet.interface
        for packet in packets
        if packet.direction == "in" and packet.kind in ("syn-ack", "rst")
    ]
    if came:
        # What cannot be read is taken to be the usual mark.
        marks = {rule.mark for rule in after.diverts if rule.mark} if after else {1}
        entries = [_delivery(target, came[-1], mark) for mark in sorted(marks)]
        return replace(seen, deliveries=tuple(entries))
    return replace(seen, control=_control(target, seconds))


def probe(
    servers: t.Iterable[tuple[str, int]],
    *,
    sources: t.Iterable[str] = (),
    timeout: float = 3.0,
    payload: str = "http",
) -> list[Result]:
    """Connects to every server from every source of the same family, up to eight at a time.

    servers: (IP address or host name, port). A name stands for its first address of each family.
    sources: foreign addresses; a family without one uses DEFAULT_SOURCES.
    timeout: seconds for one connection. A dead path takes up to three times that, to find out why.
    payload: `http` sends a request of 6,000 bytes, `none` only connects, any other text is sent
        as it is. Nothing that the server answers is looked at.
    Raises ProbeInputError before any packet is sent.
    """
    if not 0.1 <= timeout <= 60:
        raise ProbeInputError(f"timeout: {timeout} is not between 0.1 and 60 seconds")
    listed = tuple(sources)
    chosen = {family: _sources(listed, family) for family in FAMILIES}
    targets = [
        _Target(address, port, source)
        for name, port in servers
        for address in _addresses(name, port)
        for source in chosen[f"ipv{address.version}"]
    ]

    def one(target: _Target) -> Result:
        data = _payload_bytes(payload, target)
        seen = _connect(target, data, timeout)
        if seen.step in ("connect", "payload"):
            seen = _diagnose(target, seen, data, timeout)
        return _result(seen)

    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(max_workers=8))
        return list(pool.map(one, targets))


def _result(seen: Evidence) -> Result:
    said = verdict(seen)
    server = server_name(seen.server, seen.port)
    return Result(
        name=f"path to {server} from {seen.source}",
        server=server,
        family=seen.family,
        source=seen.source,
        status=said.status,
        seconds=round(seen.seconds, 4),
        hop=said.hop,
        observed=said.observed,
        expected=f"a connection from {seen.source} reaches {server} and its answers come back",
        remedy=said.remedy,
        mtu=smallest_mtu(seen),
    )


def _addresses(name: str, port: int) -> list[Address]:
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise ProbeInputError(f"servers: the port '{port}' of {name} is not between 1 and 65535")
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise ProbeInputError(f"servers: '{name}' has no address: {exc}") from None
    first: dict[int, Address] = {}
    for entry in found:
        address = ipaddress.ip_address(str(entry[4][0]).partition("%")[0])
        first.setdefault(address.version, address)
    return [first[version] for version in sorted(first)]


def _sources(sources: t.Iterable[str], family: str) -> list[str]:
    chosen = []
    for text in sources:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            raise ProbeInputError(f"sources: '{text}' is not an IP address") from None
        if address.is_loopback or address.is_multicast or address.is_unspecified:
            raise ProbeInputError(
                f"sources: {text} can be no client's address in a network; give a unicast address"
            )
        if _is_own(address):
            raise ProbeInputError(
                f"sources: {text} is this host's own address, with which every answer arrives; "
                "give one that it does not have"
            )
        if f"ipv{address.version}" == family:
            chosen.append(str(address))
    return list(dict.fromkeys(chosen)) or [DEFAULT_SOURCES[family]]


def _is_own(address: Address) -> bool:
    """What this host sends to an address of its own has that address as its source too."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect((str(address), 9))  # sends nothing
        return bool(asking.getsockname()[0] == str(address))
    return False


def _payload_bytes(payload: str, target: _Target) -> bytes:
    if payload == "none":
        return b""
    if payload != "http":
        return payload.encode()
    # Below every usual limit (8,190 bytes a header line, 8 KiB all), above four segments.
    request = (
        f"GET / HTTP/1.0\r\nHost: {server_name(str(target.address), target.port)}\r\n"
        "User-Agent: tproxy-probe\r\nX-Padding: "
    )
    return f"{request}{'x' * (6000 - len(request) - 4)}\r\n\r\n".encode()


# The canary.


def metrics(results: t.Iterable[Result], now: float) -> str:
    """The Prometheus text format, version 0.0.4."""
    results = list(results)

    def family(name: str, text: str, samples: t.Iterable[tuple[str, str]]) -> str:
        lines = [f"# HELP {name} {text}", f"# TYPE {name} gauge"]
        return "\n".join(lines + [f"{name}{labels} {value}" for labels, value in samples]) + "\n"

    def labels(result: Result, **more: str) -> str:
        words = {
            "server": result.server,
            "family": result.family,
            "source": result.source,
            **more,
        }
        return "{" + ",".join(f'{key}="{value}"' for key, value in words.items()) + "}"

    return (
        family(
            "haproxy_tproxy_path_up",
            "Whether the server's answers to a foreign source address come back to HAProxy's host."
            " Absent while the server answers nobody.",
            (
                (labels(result), str(int(result.status == "ok")))
                for result in results
                if result.status != "unknown"
            ),
        )
        + family(
            "haproxy_tproxy_path_failed_hop",
            "Always 1; the label says where the packets of a path that is not up died.",
            ((labels(result, hop=result.hop), "1") for result in results if result.hop),
        )
        + family(
            "haproxy_tproxy_path_seconds",
            "Seconds until the server had answered and acknowledged, or until it was given up.",
            ((labels(result), f"{result.seconds:.4f}") for result in results),
        )
        + family(
            "haproxy_tproxy_path_checked_timestamp_seconds",
            "When the paths were looked at, in seconds since 1970.",
            [("", f"{now:.3f}")],
        )
    )


def write_atomically(path: str, text: str) -> None:
    """A reader sees the old file or the new one."""
    draft = f"{path}.new"
    try:
        with open(draft, "w", encoding="ascii") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(draft, 0o644)
        os.replace(draft, path)
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def canary(path: str) -> int:
    """0: no path is dead. 1: one is. 2: it could not be looked at."""
    # Priorities for the journal, sd-daemon(3).
    error, notice, info = (
        ("<3>", "<5>", "<6>") if os.environ.get("JOURNAL_STREAM") else ("", "", "")
    )
    try:
        with open(path, encoding="utf-8") as stream:
            options = json.load(stream)
        results = probe(
            [(server["address"], server["port"]) for server in options["servers"]],
            sources=options.get("sources", ()),
            timeout=options.get("timeout", 3.0),
            payload=options.get("payload", "http"),
        )
        if options.get("textfile"):
            write_atomically(options["textfile"], metrics(results, time.time()))
    except (OSError, ValueError, KeyError, TypeError) as exc:
        sys.stderr.write(f"{error}tproxy-canary: {path}: {exc}\n")
        return 2
    failed = [result for result in results if result.status == "failed"]
    unknown = [result for result in results if result.status == "unknown"]
    for result in (*failed, *unknown):
        sys.stderr.write(f"{error if result in failed else notice}{result.sentence}\n")
    if failed:
        return 1
    if any(result.hop == "rights" for result in unknown):
        return 2
    sys.stdout.write(f"{info}{len(results) - len(unknown)} of {len(results)} paths work\n")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.stderr.write("usage: tproxy-canary.py CONFIGURATION\n")
        raise SystemExit(2)
    raise SystemExit(canary(sys.argv[1]))
