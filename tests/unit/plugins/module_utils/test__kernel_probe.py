# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the probe makes of what it saw: packets, rules, and where they died."""

from __future__ import annotations

import ast
import errno
import ipaddress
import json
import socket
import struct
import sys
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_probe as probe
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_probe import (
    Delivery,
    DivertRule,
    Evidence,
    Firewall,
    Packet,
    verdict,
)

SYN = Packet("out", "back", "syn", "192.0.2.77")
ANSWER = Packet("in", "back", "syn-ack", "10.9.2.11")
TCP = frozenset(["tcp"])
RULE = DivertRule("mangle PREROUTING … -j DIVERT", 5, TCP, None, 0x1)
BEFORE = Firewall((replace(RULE, packets=4),), {"filter INPUT -j DROP": 2})
AFTER = Firewall((RULE,), {"filter INPUT -j DROP": 2})
LOCAL = Delivery(1, "local", "local 192.0.2.77 …", "101: fwmark 0x1/0x1 lookup 100", "100", True)
ASKED = Evidence("ipv4", "10.9.2.11", 80, "192.0.2.77", "connect", packets=(SYN,), device="back")
CAME = replace(ASKED, packets=(SYN, ANSWER), before=BEFORE, after=AFTER, deliveries=(LOCAL,))
SENT = replace(CAME, step="payload", payload=6000, segment=1448)
DONE = replace(CAME, step="done", payload=6000, acknowledged=True)


def fails(**changes: t.Any) -> Evidence:
    return replace(CAME, **changes)


CASES: dict[str, tuple[Evidence, str, str | None, str]] = {
    "well": (DONE, "ok", None, "acknowledged 6000 bytes"),
    "well, but not seen": (replace(DONE, packets=None), "ok", None, "not proven"),
    "well, at the second attempt": (replace(DONE, again=True), "ok", None, "second connection"),
    "closed early": (
        replace(DONE, acknowledged=False, closed=True),
        "ok",
        None,
        "large packets were not tried",
    ),
    "port closed": (replace(DONE, error=errno.ECONNREFUSED), "ok", None, "the path works"),
    "no right": (replace(ASKED, step="socket", error=errno.EPERM), "unknown", "rights", "foreign"),
    "no kernel": (replace(ASKED, step="socket", error=errno.EINVAL), "failed", "kernel", "Invalid"),
    "server on this host": (fails(server_is_local=True), "failed", "local_server", "of this host"),
    "source replaced": (
        replace(DONE, packets=(replace(SYN, source="10.9.2.2"), ANSWER)),
        "failed",
        "source_nat",
        "with the source 10.9.2.2",
    ),
    "no route": (
        replace(ASKED, packets=(), error=errno.ENETUNREACH),
        "failed",
        "route",
        "Network is unreachable",
    ),
    "gateway dead": (
        replace(ASKED, packets=(), neighbour="FAILED", gateway="10.9.2.1"),
        "failed",
        "next_hop",
        "10.9.2.1 does not answer on back",
    ),
    "gateway dead, and the kernel says so": (
        replace(
            ASKED, packets=(), neighbour="FAILED", gateway="10.9.2.1", error=errno.EHOSTUNREACH
        ),
        "failed",
        "next_hop",
        "10.9.2.1 does not answer on back",
    ),
    "server dead": (
        replace(ASKED, packets=(), neighbour="INCOMPLETE"),
        "unknown",
        "next_hop",
        "10.9.2.11 does not answer on back",
    ),
    "never left": (
        replace(ASKED, packets=(), control="connected", neighbour="REACHABLE"),
        "failed",
        "output_filter",
        "is connected",
    ),
    "nobody is answered": (replace(ASKED, control="silent"), "unknown", "server", "(silent)"),
    "everybody is rejected": (
        replace(
            ASKED,
            packets=(SYN, Packet("in", "back", "icmp", "10.9.2.11", 0, "unreachable (3)")),
            error=errno.ECONNREFUSED,
            control="refused",
        ),
        "unknown",
        "server",
        "unreachable (3)",
    ),
    "only clients are rejected": (
        replace(
            ASKED,
            packets=(SYN, Packet("in", "back", "icmp", "10.9.2.11", 0, "unreachable (3)")),
            control="connected",
        ),
        "failed",
        "server_filter",
        "10.9.2.11 says: unreachable (3)",
    ),
    "answered elsewhere": (
        replace(ASKED, control="connected", own_address="10.9.2.2"),
        "failed",
        "return_path",
        "nothing came back",
    ),
    "refused, elsewhere": (replace(ASKED, control="refused"), "failed", "return_path", "(refused)"),
    "client beside the server": (
        replace(ASKED, control="connected", subnet="192.0.2.0/24"),
        "failed",
        "return_path",
        "the server's own subnet 192.0.2.0/24",
    ),
    "hairpin": (
        replace(
            ASKED,
            source="10.9.2.11",
            packets=(replace(SYN, source="10.9.2.11"),),
            control="connected",
            subnet="10.9.2.0/24",
        ),
        "failed",
        "return_path",
        "is the server itself",
    ),
    "answered past this host": (
        fails(packets=(SYN, replace(ANSWER, direction="passing"))),
        "failed",
        "return_path",
        "passes through back",
    ),
    "nothing can be seen": (
        replace(ASKED, packets=None, control="connected"),
        "failed",
        "delivery",
        "could not be looked at",
    ),
    "no firewall to be read": (fails(after=None), "failed", "delivery", "could not be read"),
    "no firewall to be read, but routes": (
        fails(after=None, deliveries=(Delivery(1, "unicast", "via front"),)),
        "failed",
        "ip_rule",
        "no ip rule",
    ),
    "no rule": (fails(after=Firewall()), "failed", "divert_rule", "no firewall rule looks"),
    "only an ICMP rule": (
        fails(after=Firewall((replace(RULE, protocols=frozenset(["icmp"])),))),
        "failed",
        "divert_rule",
        "no firewall rule looks",
    ),
    "other interface": (
        fails(after=Firewall((replace(RULE, interfaces=frozenset(["eth7"])),))),
        "failed",
        "divert_rule",
        "look only at eth7",
    ),
    "not reached": (fails(after=BEFORE), "failed", "divert_rule", "counter stays at 4"),
    "not reached, something else drops": (
        fails(after=replace(BEFORE, drops={"raw PREROUTING -j DROP": 1})),
        "failed",
        "divert_rule",
        "dropped by 'raw PREROUTING -j DROP'",
    ),
    "no mark": (
        fails(after=Firewall((replace(RULE, mark=None),)), deliveries=()),
        "failed",
        "divert_rule",
        "sets no mark",
    ),
    "other mark": (
        fails(
            after=Firewall((replace(RULE, mark=2),)),
            deliveries=(Delivery(2, "unicast", "via front", local_rules=("101: fwmark 0x1",)),),
        ),
        "failed",
        "mark",
        "the ip rule is '101: fwmark 0x1'",
    ),
    "no ip rule": (
        fails(deliveries=(Delivery(1, "unicast", "via front"),)),
        "failed",
        "ip_rule",
        "no ip rule selects them",
    ),
    "ip rule too late": (
        fails(deliveries=(replace(LOCAL, type="unicast"),)),
        "failed",
        "ip_rule",
        "a rule before it",
    ),
    "table empty": (
        fails(deliveries=(replace(LOCAL, type="unicast", table_is_local=False),)),
        "failed",
        "table",
        "no local default route",
    ),
    "reverse path": (
        fails(deliveries=(replace(LOCAL, type="error", text="Invalid cross-device link"),)),
        "failed",
        "rp_filter",
        "source validation",
    ),
    "martian": (
        fails(deliveries=(replace(LOCAL, type="error", text="Invalid argument"),)),
        "failed",
        "rp_filter",
        "src_valid_mark",
    ),
    "dropped in INPUT": (
        fails(after=replace(AFTER, drops={"filter INPUT -j DROP": 3})),
        "failed",
        "input_filter",
        "dropped by 'filter INPUT -j DROP'",
    ),
    "dropped by nobody who counts": (CAME, "failed", "input_filter", "only INPUT rules"),
    "a rule without counter": (
        fails(after=Firewall((replace(RULE, packets=None),))),
        "failed",
        "input_filter",
        "only INPUT rules",
    ),
    "too big, ICMP lost": (
        replace(SENT, packets=(SYN, ANSWER, Packet("in", "back", "icmp", "10.9.2.1", 1400, "…"))),
        "failed",
        "icmp",
        "takes 1400 bytes",
    ),
    "too big, no ICMP": (replace(SENT, small_segments=True), "failed", "path_mtu", "of 536 were"),
    "not even small ones": (
        replace(SENT, small_segments=False),
        "failed",
        "large_payload",
        "neither were small ones",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_verdict(name: str) -> None:
    seen, status, hop, said = CASES[name]
    found = verdict(seen)
    assert (found.status, found.hop) == (status, hop)
    assert said in found.observed
    assert bool(found.remedy) == (status != "ok")


def test_every_hop_has_a_case() -> None:
    assert {hop for _seen, _status, hop, _said in CASES.values()} - {None} == set(probe.HOPS)


NUMBERS = st.none() | st.integers(0, 3)
NAMES = st.sampled_from(["back", "front"])
PACKETS = st.builds(
    Packet,
    st.sampled_from(["in", "out", "passing"]),
    NAMES,
    st.sampled_from(["syn", "syn-ack", "rst", "icmp", "other"]),
    st.sampled_from(["192.0.2.77", "10.9.2.11"]),
    st.integers(0, 1),
)
FIREWALLS = st.none() | st.builds(
    Firewall,
    st.lists(
        st.builds(
            DivertRule,
            st.just("rule"),
            NUMBERS,
            st.none() | st.just(TCP),
            st.none() | st.frozensets(NAMES),
            NUMBERS,
        )
    ).map(tuple),
    st.dictionaries(NAMES, st.integers(0, 3)),
)


@given(
    st.builds(
        Evidence,
        st.sampled_from(probe.FAMILIES),
        st.just("10.9.2.11"),
        st.just(80),
        st.just("192.0.2.77"),
        st.sampled_from(["socket", "connect", "payload", "done"]),
        error=st.none() | st.sampled_from([errno.EPERM, errno.EHOSTUNREACH, errno.ECONNREFUSED]),
        packets=st.none() | st.lists(PACKETS).map(tuple),
        control=st.sampled_from([None, "connected", "refused", "silent"]),
        neighbour=st.sampled_from([None, "FAILED"]),
        before=FIREWALLS,
        after=FIREWALLS,
        small_segments=st.sampled_from([None, True, False]),
        server_is_local=st.booleans(),
        deliveries=st.lists(
            st.builds(
                Delivery,
                st.integers(1, 3),
                st.sampled_from(["local", "unicast", "error"]),
                st.text(),
                st.none() | st.text(),
                st.none() | st.text(),
                st.booleans(),
            )
        ).map(tuple),
    )
)
def test_there_is_always_a_verdict(seen: Evidence) -> None:
    found = verdict(seen)
    assert found.status in ("ok", "failed", "unknown")
    assert (found.hop is None) == (found.status == "ok")
    assert found.hop is None or found.hop in probe.HOPS
    # Success is never a guess.
    assert found.status != "ok" or seen.step == "done"


def test_rules_of_iptables() -> None:
    text = """\
# Generated
*mangle
:PREROUTING ACCEPT [9:900]
:DIVERT - [0:0]
[7:420] -A PREROUTING -i back -p tcp -m socket --transparent -m comment --comment "a b" -j DIVERT
[0:0] -A PREROUTING -p icmp -m socket --transparent -j DIVERT
[1:1] -A PREROUTING -m socket -j MARK --set-xmark 0x101/0x1
[0:0] -A PREROUTING -p tcp -j DIVERT
[7:420] -A DIVERT -j MARK --set-xmark 0x6/0x2
[7:420] -A DIVERT -j ACCEPT
COMMIT
*filter
:INPUT DROP [3:180]
:FORWARD ACCEPT [0:0]
[2:80] -A INPUT -p udp -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""
    found = probe.read_iptables_save(text)
    assert [
        (rule.packets, rule.protocols, rule.interfaces, rule.mark) for rule in found.diverts
    ] == [
        (7, TCP, frozenset(["back"]), 0x2),
        (0, frozenset(["icmp"]), None, 0x2),
        (1, None, None, 0x1),
    ]
    assert found.drops == {
        "filter INPUT policy DROP": 3,
        "filter INPUT -p udp -j REJECT --reject-with icmp-port-unreachable": 2,
    }


def nft_rule(*expressions: t.Any, family: str = "inet", table: str = "ours") -> dict[str, t.Any]:
    return {
        "rule": {
            "family": family,
            "table": table,
            "chain": "divert",
            "handle": 4,
            "expr": list(expressions),
        }
    }


def match(left: t.Any, right: t.Any) -> dict[str, t.Any]:
    return {"match": {"op": "==", "left": left, "right": right}}


SOCKET = match({"socket": {"key": "transparent"}}, 1)
MARK = {"meta": {"key": "mark"}}


@pytest.mark.parametrize(
    ("value", "mark"),
    [
        (1, 0x1),
        ({"|": [MARK, 4]}, 0x4),
        ({"|": [{"&": [MARK, 0xFFFFFFFE]}, 1]}, 0x1),
        ({"^": [{"&": [MARK, 0xFFFFFFFC]}, "0x2"]}, 0x2),
    ],
)
def test_rules_of_nft(value: t.Any, mark: int) -> None:
    ruleset = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            nft_rule(
                match({"meta": {"key": "iifname"}}, {"set": ["back", "eth7"]}),
                match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "icmp"]}),
                SOCKET,
                {"mangle": {"key": MARK, "value": value}},
                {"counter": {"packets": 3, "bytes": 9}},
                {"accept": None},
            ),
            nft_rule({"counter": {"packets": 8, "bytes": 9}}, {"drop": None}),
            nft_rule(SOCKET, family="ip6", table="six"),
            nft_rule({"drop": None}, family="ip", table="filter"),
            nft_rule({"xt": None}, {"drop": None}, family="bridge"),
        ]
    }
    found = probe.read_nft(json.dumps(ruleset), "ipv4", without_iptables=True)
    assert found == Firewall(
        (
            DivertRule(
                "nft inet ours divert handle 4",
                3,
                frozenset(["tcp", "icmp"]),
                frozenset(["back", "eth7"]),
                mark,
            ),
        ),
        {"nft inet ours divert handle 4": 8},
    )
    assert len(probe.read_nft(json.dumps(ruleset), "ipv6").diverts) == 2
    assert "nft ip filter divert handle 4" in probe.read_nft(json.dumps(ruleset), "ipv4").drops


# Packets.

SERVER4, SERVER6 = ("10.9.2.11", 80), ("fd09:2::11", 80)


def own(server: tuple[str, int], sequence: int | None = 7) -> dict[str, t.Any]:
    """The connection's own end."""
    source = "192.0.2.77" if server == SERVER4 else "2001:db8::77"
    return {"local": (source, 4000), "sequence": sequence}


def ip(
    source: str, target: str, protocol: int, body: bytes, hop_limit: int = 64, options: bytes = b""
) -> bytes:
    one, other = ipaddress.ip_address(source), ipaddress.ip_address(target)
    if one.version == 4:
        first = 0x45 + len(options) // 4
        header = struct.pack("!BBHHHBBH", first, 0, 0, 0, 0, hop_limit, protocol, 0)
        return header + one.packed + other.packed + options + body
    return (
        struct.pack("!IHBB", 6 << 28, len(body), protocol, hop_limit)
        + one.packed
        + other.packed
        + body
    )


def tcp(source_port: int, target_port: int, flags: int, number: int = 7) -> bytes:
    return struct.pack("!HHIIBBHHH", source_port, target_port, number, 0, 0x50, flags, 0, 0, 0)


SYN4 = ip("192.0.2.77", "10.9.2.11", 6, tcp(4000, 80, 0x02), 59)
SYN6 = ip("2001:db8::77", "fd09:2::11", 6, tcp(4000, 80, 0x02), 59)
OTHER4 = ip("192.0.2.77", "10.9.2.12", 6, tcp(4000, 80, 0x02))
PACKET_CASES: dict[str, tuple[bytes, tuple[str, int], Packet | None]] = {
    "SYN": (SYN4, SERVER4, Packet("in", "back", "syn", "192.0.2.77")),
    "SYN, IPv6": (SYN6, SERVER6, Packet("in", "back", "syn", "2001:db8::77")),
    "SYN from another port": (
        ip("10.9.2.2", "10.9.2.11", 6, tcp(5000, 80, 0x02), 59),
        SERVER4,
        Packet("in", "back", "syn", "10.9.2.2"),
    ),
    "SYN of somebody else": (
        ip("10.9.2.2", "10.9.2.11", 6, tcp(5000, 80, 0x02), 64),
        SERVER4,
        None,
    ),
    "SYN of another probe": (
        ip("192.0.2.78", "10.9.2.11", 6, tcp(5000, 80, 0x02, 8), 59),
        SERVER4,
        None,
    ),
    "SYN of another probe, by chance from the same port": (
        ip("192.0.2.78", "10.9.2.11", 6, tcp(4000, 80, 0x02, 8), 59),
        SERVER4,
        None,
    ),
    "answer to another probe": (
        ip("10.9.2.11", "192.0.2.78", 6, tcp(80, 4000, 0x12)),
        SERVER4,
        None,
    ),
    "ICMP about another probe": (
        ip(
            "10.9.2.1",
            "192.0.2.78",
            1,
            struct.pack("!BBHHH", 3, 4, 0, 0, 1400)
            + ip("192.0.2.78", "10.9.2.11", 6, tcp(4000, 80, 2)),
        ),
        SERVER4,
        None,
    ),
    "data of somebody else": (
        ip("10.9.2.2", "10.9.2.11", 6, tcp(5000, 80, 0x10), 59),
        SERVER4,
        None,
    ),
    "SYN-ACK with options": (
        ip("10.9.2.11", "192.0.2.77", 6, tcp(80, 4000, 0x12), options=b"\1" * 8),
        SERVER4,
        Packet("in", "back", "syn-ack", "10.9.2.11"),
    ),
    "SYN-ACK, IPv6": (
        ip("fd09:2::11", "2001:db8::77", 6, tcp(80, 4000, 0x12)),
        SERVER6,
        Packet("in", "back", "syn-ack", "fd09:2::11"),
    ),
    "reset": (
        ip("10.9.2.11", "192.0.2.77", 6, tcp(80, 4000, 0x14)),
        SERVER4,
        Packet("in", "back", "rst", "10.9.2.11"),
    ),
    "another server": (ip("10.9.2.12", "192.0.2.77", 6, tcp(80, 4000, 0x12)), SERVER4, None),
    "fragmentation needed": (
        ip("10.9.2.1", "192.0.2.77", 1, struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + SYN4[:28]),
        SERVER4,
        Packet("in", "back", "icmp", "10.9.2.1", 1400, "fragmentation needed"),
    ),
    "prohibited": (
        ip("10.9.2.1", "192.0.2.77", 1, struct.pack("!BBHHH", 3, 13, 0, 0, 0) + SYN4[:28]),
        SERVER4,
        Packet("in", "back", "icmp", "10.9.2.1", 0, "destination unreachable (13)"),
    ),
    "packet too big": (
        ip("fd09:2::1", "2001:db8::77", 58, struct.pack("!BBHI", 2, 0, 0, 1280) + SYN6),
        SERVER6,
        Packet("in", "back", "icmp", "fd09:2::1", 1280, "packet too big"),
    ),
    "ICMP about somebody else": (
        ip(
            "10.9.2.1",
            "192.0.2.77",
            1,
            struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + ip("1.1.1.1", "10.9.2.11", 6, tcp(1, 80, 2)),
        ),
        SERVER4,
        None,
    ),
    "ICMP about another server": (
        ip("10.9.2.1", "192.0.2.77", 1, struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + OTHER4[:28]),
        SERVER4,
        None,
    ),
    "ping": (ip("10.9.2.1", "192.0.2.77", 1, struct.pack("!BBHHH", 8, 0, 0, 0, 0)), SERVER4, None),
    "UDP": (ip("10.9.2.11", "192.0.2.77", 17, tcp(80, 4000, 0)), SERVER4, None),
}
# The filter is coarser: every ICMP error passes it.
PASSES = {
    "SYN of another probe",
    "SYN of another probe, by chance from the same port",
    "answer to another probe",
    "ICMP about another probe",
    "ICMP about somebody else",
    "ICMP about another server",
    "ping",
    "another server",
    "data of somebody else",
}


@pytest.mark.parametrize("name", PACKET_CASES)
def test_packets_of_the_connection_are_told_from_others(name: str) -> None:
    data, server, expected = PACKET_CASES[name]
    assert probe.read_packet(data, "in", "back", server=server, **own(server)) == expected


def test_without_a_number_the_hop_limit_must_do() -> None:
    for number in (7, 8):
        data = ip("10.9.2.2", "10.9.2.11", 6, tcp(5000, 80, 0x02, number), 59)
        found = probe.read_packet(data, "in", "back", server=SERVER4, **own(SERVER4, None))
        assert found == Packet("in", "back", "syn", "10.9.2.2")


@pytest.mark.skipif(sys.platform != "linux", reason="the filter runs in Linux")
@pytest.mark.parametrize("name", PACKET_CASES)
def test_the_kernels_filter_lets_them_pass(name: str) -> None:
    data, server, expected = PACKET_CASES[name]
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        probe.attach_filter(other, probe.packet_filter(4000, server[1]))
        other.setblocking(False)
        one.send(data)
        if expected is None and name not in PASSES:
            with pytest.raises(BlockingIOError):
                other.recv(4096)
        else:
            assert data.startswith(other.recv(4096))


@given(st.binary(max_size=120), st.sampled_from([SERVER4, SERVER6]))
def test_no_packet_is_too_strange(data: bytes, server: tuple[str, int]) -> None:
    found = probe.read_packet(data, "in", "back", server=server, **own(server))
    assert found is None or found.interface == "back"


@given(st.binary(max_size=60))
def test_no_icmp_error_is_too_strange(rest: bytes) -> None:
    body = struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + rest
    data = ip("10.9.2.1", "192.0.2.77", 1, body)
    assert probe.read_packet(data, "in", "back", server=SERVER4, **own(SERVER4)) is None


# Input, output.


def test_a_source_is_chosen_for_each_family() -> None:
    assert probe._sources(["198.51.100.7"], "ipv4") == ["198.51.100.7"]
    assert probe._sources(["198.51.100.7"], "ipv6") == ["2001:db8::77"]
    assert probe._sources(["2001:DB8:0::5", "2001:db8::5"], "ipv6") == ["2001:db8::5"]


@pytest.mark.parametrize("address", ["10.9.2.11", "fd09:2::11"])
def test_the_request_is_large_and_below_every_servers_limits(address: str) -> None:
    target = probe._Target(ipaddress.ip_address(address), 80, "192.0.2.77")
    request = probe._payload_bytes("http", target)
    assert len(request) == 6000
    assert request.endswith(b"x\r\n\r\n")
    assert request.count(b"\r\n\r\n") == 1
    assert probe._payload_bytes("none", target) == b""
    assert probe._payload_bytes("NOOP\r\n", target) == b"NOOP\r\n"


def test_it_can_be_installed_alone() -> None:
    """The canary is this very file: nothing but the standard library, on any interpreter of a host."""
    tree = ast.parse(Path(probe.__file__).read_text(encoding="utf-8"), feature_version=(3, 9))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    if sys.version_info >= (3, 10):
        assert names <= set(sys.stdlib_module_names)
    assert "ansible_collections" not in names


def test_a_text_file_is_whole_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "tproxy.prom"
    probe.write_atomically(str(path), "one 1\n")
    with pytest.raises(UnicodeEncodeError):
        probe.write_atomically(str(path), "two …\n")
    assert path.read_text() == "one 1\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["tproxy.prom"]
