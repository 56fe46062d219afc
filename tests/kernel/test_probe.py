# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The live probe and the canary on a real network: whatever breaks is named, from the packets alone."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import COMMENT, Host, Network

FILE = Path(__file__).parents[2] / "plugins/module_utils/_kernel_probe.py"
NEAR = [["10.9.2.11", 8080], ["fd09:2::11", 8080]]
FAR = [["10.9.3.11", 8080], ["fd09:3::11", 8080]]
# Of the clients' own network, so that the proxy has a route to them.
CLIENTS = ["10.9.1.77", "fd09:1::77"]
# Seconds that a connection on these networks never needs; each broken path costs it at least twice.
SECONDS = 0.4
DRIVER = """
import dataclasses, json, sys
sys.path.insert(0, sys.argv[1])
import _kernel_probe
asked = json.load(sys.stdin)
try:
    results = _kernel_probe.probe(asked.pop("servers"), **asked)
    answer = [dataclasses.asdict(result) for result in results]
except _kernel_probe.ProbeInputError as error:
    answer = str(error)
print(json.dumps(answer))
"""

TCP = f"PREROUTING -p tcp -m socket --transparent {COMMENT} -j DIVERT"
MARK = f"DIVERT 1 {COMMENT} -j MARK --set-xmark"


# Everything as the module made it, in a tenth of the time.
RESET = """
nft flush ruleset
for family in -4 -6; do
    for rule in 'priority 100' 'priority 101' 'priority 32767 fwmark 1/1'; do
        while ip $family rule del $rule 2>/dev/null; do :; done
    done
done
tproxy-host start
"""


def both(script: str) -> str:
    """An iptables or ip command for both families."""
    six = re.sub(r"^ip(?=tables)", "ip6", script)
    return f"{script}; {re.sub(r'^ip ', 'ip -6 ', six)}"


def probe(host: Host, servers: t.Any = None, *prefix: str, **options: t.Any) -> t.Any:
    asked = {"servers": servers or NEAR, "timeout": SECONDS, **options}
    command = (*prefix, sys.executable, "-c", DRIVER, str(FILE.parent))
    return json.loads(host.run(*command, text=json.dumps(asked)))


def settled(network: Network, servers: t.Any = None) -> None:
    """Link-local addresses are checked for duplicates for a second; until then there is no IPv6."""
    results = probe(network.proxy, servers, timeout=5)
    assert [result["status"] for result in results] == ["ok", "ok"], results


@pytest.fixture(scope="module")
def path(network: Network) -> Network:
    settled(network)
    return network


@dataclass(frozen=True)
class Case:
    """What a hand may do; where packets then die, in both families or in each; how it is undone."""

    script: str
    hop: str | None
    said: str
    undo: str = ":"
    ipv6: str | None = "same"
    options: tuple[tuple[str, t.Any], ...] = ()
    at: str = "proxy"


BREAKAGES = {
    "rule gone": Case(
        both(f"iptables -t mangle -D {TCP}"), "divert_rule", "no firewall rule looks for"
    ),
    "IPv6 half gone": Case(
        f"ip6tables -t mangle -D {TCP}", None, "acknowledged 6000 bytes", ipv6="divert_rule"
    ),
    "ruleset flushed": Case("nft flush ruleset", "divert_rule", "no firewall rule looks for"),
    "foreign ACCEPT first": Case(
        both("iptables -t mangle -I PREROUTING -i back -j ACCEPT"),
        "divert_rule",
        "did not reach the rule 'mangle PREROUTING -p tcp -m socket --transparent",
        undo=both("iptables -t mangle -D PREROUTING -i back -j ACCEPT"),
    ),
    "rule of another interface": Case(
        both(f"iptables -t mangle -R PREROUTING 1 -i front {TCP[len('PREROUTING ') :]}"),
        "divert_rule",
        "the rules look only at front",
    ),
    "chain without a mark": Case(
        both("iptables -t mangle -D DIVERT 1"), "divert_rule", "but sets no mark"
    ),
    "wrong mark": Case(
        both(f"iptables -t mangle -R {MARK} 0x2/0x2"),
        "mark",
        "packets with the mark 0x2 are not for this host",
    ),
    "ip rule gone": Case(both("ip rule del priority 101"), "ip_rule", "no ip rule selects them"),
    "ip rule behind main": Case(
        both("ip rule del priority 101")
        + "; "
        + both("ip rule add priority 32767 fwmark 0x1/0x1 lookup 100 protocol kernel"),
        "ip_rule",
        "a rule before it takes them",
        options=(("sources", CLIENTS),),
    ),
    "ip rule of another interface": Case(
        both("ip rule del priority 101")
        + "; "
        + both("ip rule add priority 101 iif front fwmark 0x1/0x1 lookup 100"),
        "ip_rule",
        "no ip rule selects them",
    ),
    "table empty": Case(both("ip route flush table 100"), "table", "has no local default route"),
    "source validation by mark": Case(
        "ip rule del priority 100; echo 1 >/proc/sys/net/ipv4/conf/all/src_valid_mark",
        "rp_filter",
        "src_valid_mark",
        undo="echo 0 >/proc/sys/net/ipv4/conf/all/src_valid_mark",
        ipv6=None,
    ),
    "INPUT drops it": Case(
        "iptables -A INPUT -p tcp -d 192.0.2.77 -j DROP; ip6tables -P INPUT DROP",
        "input_filter",
        "meanwhile packets were dropped by 'filter INPUT ",
        undo="iptables -F INPUT; ip6tables -P INPUT ACCEPT",
    ),
    "nft drops it in INPUT": Case(
        "nft add table inet foreign; nft add chain inet foreign in '{ type filter hook input priority 0; }';"
        " nft add rule inet foreign in fib daddr type != local counter drop",
        "input_filter",
        "meanwhile packets were dropped by 'nft inet foreign in handle ",
        undo="nft delete table inet foreign",
    ),
    "OUTPUT drops it": Case(
        "iptables -A OUTPUT -p tcp -s 192.0.2.77 -j DROP; ip6tables -A OUTPUT -p tcp -s 2001:db8::77 -j DROP",
        "output_filter",
        "meanwhile packets were dropped by 'filter OUTPUT -s ",
        undo=both("iptables -F OUTPUT"),
    ),
    "MASQUERADE": Case(
        both("iptables -t nat -A POSTROUTING -o back -j MASQUERADE"),
        "source_nat",
        "the request left back with the source ",
        undo=both("iptables -t nat -F"),
    ),
    "MASQUERADE of the port too": Case(
        both("iptables -t nat -A POSTROUTING -p tcp -o back -j MASQUERADE --random"),
        "source_nat",
        "the request left back with the source ",
        undo=both("iptables -t nat -F"),
    ),
    "no route to the server": Case(
        "ip route del 10.9.2.0/24; ip -6 route del fd09:2::/64",
        "route",
        "Network is unreachable",
        undo="ip route add 10.9.2.0/24 dev back src 10.9.2.2; ip -6 route add fd09:2::/64 dev back",
    ),
    "next hop dead": Case(
        "ip route add 10.9.8.0/24 via 10.9.2.99; ip -6 route add fd09:8::/64 via fd09:2::99",
        "next_hop",
        "99 does not answer on back (",
        undo="ip route del 10.9.8.0/24; ip -6 route del fd09:8::/64",
        options=(("servers", [["10.9.8.1", 80], ["fd09:8::1", 80]]),),
    ),
    "server's gateway wrong": Case(
        both("ip route del default"),
        "return_path",
        "nothing came back, while the server answers this host's own address (connected)",
        undo="ip route add default via 10.9.2.2; ip -6 route add default via fd09:2::2",
        at="server",
    ),
    "server rejects foreign addresses": Case(
        "iptables -A INPUT -p tcp -s 192.0.2.77 -j REJECT; ip6tables -A INPUT -p tcp -s 2001:db8::77 -j REJECT",
        "server_filter",
        "says: destination unreachable",
        undo=both("iptables -F INPUT"),
        at="server",
    ),
    "server drops everybody": Case(
        both("iptables -A INPUT -p tcp --dport 8080 -j DROP"),
        "server",
        "a connection from this host's own address gets no further (silent)",
        undo=both("iptables -F INPUT"),
        at="server",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_each_breakage_is_named(path: Network, name: str) -> None:
    case = BREAKAGES[name]
    host = path.proxy if case.at == "proxy" else path.server
    expected = {"ipv4": case.hop, "ipv6": case.hop if case.ipv6 == "same" else case.ipv6}
    host.sh(case.script)
    try:
        results = probe(path.proxy, **dict(case.options))
    finally:
        host.sh(case.undo)
        path.proxy.sh(RESET)
    assert {result["family"]: result["hop"] for result in results} == expected, results
    assert case.said in results[0]["observed"]
    for result in results:
        if result["hop"] is None:
            assert result["status"] == "ok"
        else:
            # A server that answers nobody says nothing about the path.
            assert result["status"] == ("unknown" if result["hop"] == "server" else "failed")
            assert result["remedy"]


def test_a_healthy_path_is_proven_for_both_families_with_one_connection(path: Network) -> None:
    for name in ("iptables", "ip6tables"):
        path.server.sh(f"{name} -A INPUT -p tcp --syn --dport 8080")
    try:
        results = probe(path.proxy)
        assert [(result["status"], result["source"]) for result in results] == [
            ("ok", "192.0.2.77"),
            ("ok", "2001:db8::77"),
        ]
        for result in results:
            assert result["observed"] == "the server answered and acknowledged 6000 bytes"
            assert result["seconds"] < SECONDS
        for name in ("iptables", "ip6tables"):
            counted = path.server.sh(f"{name} -vnxL INPUT | awk '/tcp/ {{print $1}}'")
            assert counted.strip() == "1"
    finally:
        path.server.sh("iptables -F INPUT; ip6tables -F INPUT")


AGAIN = """
import sys, time
sys.path.insert(0, sys.argv[1])
import _kernel_probe
print("ready", flush=True)
while True:
    _kernel_probe.probe([("10.9.2.11", 8080), ("fd09:2::11", 8080)], payload="none",
                        sources=["192.0.2.79", "2001:db8::79"])
    time.sleep(0.02)
"""


def test_two_probes_at_once_are_told_apart(path: Network) -> None:
    """What another one sends to the same server is none of ours, also while nothing of ours leaves."""
    case = BREAKAGES["OUTPUT drops it"]
    path.proxy.start(sys.executable, "-c", AGAIN, str(FILE.parent))
    try:
        assert [found["status"] for found in probe(path.proxy)] == ["ok", "ok"]
        path.proxy.sh(case.script)
        for found in probe(path.proxy):
            assert found["hop"] == "output_filter", found
        path.proxy.sh(case.undo)
        path.proxy.sh(BREAKAGES["MASQUERADE of the port too"].script)
        for found in probe(path.proxy):
            assert found["hop"] == "source_nat", found
    finally:
        path.proxy.stop_children(1)
        path.proxy.sh(f"{case.undo}; {both('iptables -t nat -F')}")
        path.proxy.sh(RESET)


def test_a_dead_path_leaves_no_connection_behind(path: Network) -> None:
    path.proxy.sh("ip route flush table 100")
    try:
        assert probe(path.proxy, sources=["192.0.2.78"])[0]["hop"] == "table"
        assert "192.0.2.78" not in path.proxy.run("ss", "-Htan")
        # The server alone cannot know that nobody waits for its SYN-ACK any more.
        assert "192.0.2.78" not in path.server.run("ss", "-Htan", "state", "established")
    finally:
        path.proxy.sh(RESET)


def test_the_port_is_closed_and_the_path_works(path: Network) -> None:
    for result in probe(path.proxy, [["10.9.2.11", 81], ["fd09:2::11", 81]]):
        assert (result["status"], result["hop"]) == ("ok", None)
        assert "refused the port" in result["observed"]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        (["10.9.2.77", "fd09:2::77"], "is in the server's own subnet"),
        (["10.9.2.11", "fd09:2::11"], "is the server itself"),
    ],
    ids=["client in the server's subnet", "server as client"],
)
def test_clients_that_a_server_answers_directly(
    path: Network, sources: list[str], said: str
) -> None:
    for result in probe(path.proxy, sources=sources):
        assert result["hop"] == "return_path", result
        assert said in result["observed"]


def test_a_server_on_the_proxy_itself_is_named(path: Network) -> None:
    for result in probe(path.proxy, [["10.9.2.2", 80], ["fd09:2::2", 80]]):
        assert result["hop"] == "local_server", result


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sources": ["10.9.2.2"]}, "sources: 10.9.2.2 is this host's own address"),
        ({"sources": ["fd09:1::2"]}, "sources: fd09:1::2 is this host's own address"),
        ({"sources": ["127.0.0.1"]}, "sources: 127.0.0.1 can be no client's address"),
        ({"sources": ["web1"]}, "sources: 'web1' is not an IP address"),
        ({"servers": [["10.9.2.11", 0]]}, "servers: the port '0' of 10.9.2.11"),
        ({"servers": [["no.such.invalid", 80]]}, "servers: 'no.such.invalid' has no address"),
        ({"timeout": 0}, "timeout: 0 is not between"),
    ],
)
def test_bad_input_is_one_sentence(path: Network, options: dict[str, t.Any], said: str) -> None:
    assert probe(path.proxy, **options).startswith(said)


def test_without_rights_it_says_which(path: Network) -> None:
    for result in probe(path.proxy, None, "setpriv", "--bounding-set=-all"):
        assert (result["status"], result["hop"]) == ("unknown", "rights")
        assert "NET_RAW" in result["remedy"]


def test_net_raw_alone_proves_a_path_and_sees_packets(path: Network) -> None:
    only = ("setpriv", "--bounding-set=-all,+net_raw")
    assert [result["status"] for result in probe(path.proxy, None, *only)] == ["ok", "ok"]
    path.proxy.sh("nft flush ruleset")
    try:
        results = probe(path.proxy, None, *only)
    finally:
        path.proxy.sh(RESET)
    for result in results:
        assert result["hop"] == "delivery"
        assert "the firewall could not be read" in result["observed"]
        assert "NET_ADMIN" in result["remedy"]


NFT = """
table inet ours {
    chain divert {
        type filter hook prerouting priority mangle; policy accept;
        %s socket transparent 1 meta mark set meta mark | %s counter accept
    }
}
"""


@pytest.mark.parametrize(
    ("match", "mark", "hop", "said"),
    [
        ("meta l4proto { tcp, icmp, icmpv6 }", "0x1", None, "acknowledged 6000 bytes"),
        ("meta l4proto { icmp, icmpv6 }", "0x1", "divert_rule", "no firewall rule looks for"),
        ("iifname front meta l4proto tcp", "0x1", "divert_rule", "the rules look only at front"),
        ("meta l4proto tcp", "0x4", "mark", "packets with the mark 0x4"),
        ("ip ttl 1 meta l4proto tcp", "0x1", "divert_rule", "did not reach the rule 'nft inet"),
    ],
    ids=["healthy", "ICMP only", "other interface", "wrong mark", "never matches"],
)
def test_rules_of_nft_are_read_too(
    path: Network, match: str, mark: str, hop: str | None, said: str
) -> None:
    path.proxy.sh("nft flush ruleset")
    path.proxy.run("nft", "-f", "-", text=NFT % (match, mark))
    try:
        results = probe(path.proxy)
    finally:
        path.proxy.sh("nft flush ruleset")
        path.proxy.sh(RESET)
    for result in results:
        assert result["hop"] == hop, result
        assert said in result["observed"]


def test_legacy_iptables_is_read_and_never_loaded(path: Network) -> None:
    path.proxy.sh("nft flush ruleset")
    tables = "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || :"
    assert path.proxy.sh(tables) == ""
    try:
        assert probe(path.proxy)[0]["hop"] == "divert_rule"
        assert path.proxy.sh(tables) == ""
        for name in ("iptables-legacy", "ip6tables-legacy"):
            path.proxy.sh(
                f"{name} -t mangle -A PREROUTING -i back -j ACCEPT;"
                f"{name} -t mangle -A PREROUTING -p tcp -m socket --transparent -j MARK --set-xmark 1/1"
            )
        for result in probe(path.proxy):
            assert result["hop"] == "divert_rule"
            assert "did not reach the rule 'legacy mangle PREROUTING" in result["observed"]
        path.proxy.sh(
            "iptables-legacy -t mangle -D PREROUTING 1; ip6tables-legacy -t mangle -D PREROUTING 1"
        )
        assert [result["status"] for result in probe(path.proxy)] == ["ok", "ok"]
    finally:
        path.proxy.sh("iptables-legacy -t mangle -F; ip6tables-legacy -t mangle -F")
        path.proxy.sh(RESET)


def test_large_packets_over_a_smaller_link(tmp_path: Path) -> None:
    with contextlib.closing(Network(tmp_path, router_mtu=1400)) as network:
        network.server.module("tproxy_return_path", gateways=network.gateways)
        network.proxy.module()
        settled(network, FAR)
        forget = both("ip route flush cache")
        network.proxy.sh(forget)
        for result in probe(network.proxy, FAR):
            assert (result["status"], result["mtu"]) == ("ok", 1400), result

        for name, protocol in (("iptables", "icmp"), ("ip6tables", "icmpv6")):
            network.proxy.sh(f"{name} -t mangle -D {TCP.replace('-p tcp', f'-p {protocol}')}")
        network.proxy.sh(forget)
        for result in probe(network.proxy, FAR, sources=["10.9.1.11", "fd09:1::11"]):
            assert (result["hop"], result["mtu"]) == ("icmp", 1400), result
            assert "is forwarded to front" in result["observed"]
        # Given up means reset: nothing is retransmitted any more.
        assert not network.proxy.run("ss", "-Htan", "state", "fin-wait-1")
        # Small requests do not notice.
        assert [result["status"] for result in probe(network.proxy, FAR, payload="none")] == [
            "ok",
            "ok",
        ]

        # A router that does not say anything, whatever is diverted.
        network.proxy.module()
        network.proxy.sh(forget)
        router = network.hosts[-1]
        router.sh(
            "iptables -A OUTPUT -p icmp -j DROP;"
            "ip6tables -A OUTPUT -p icmpv6 --icmpv6-type packet-too-big -j DROP"
        )
        for result in probe(network.proxy, FAR):
            assert (result["hop"], result["mtu"]) == ("path_mtu", None), result


# The canary: the same file as a script.

SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)(\{(?P<labels>([a-z]+="[^"\\\n]*")(,[a-z]+="[^"\\\n]*")*)\})? (?P<value>[0-9.]+)'
)


def read_metrics(text: str) -> dict[str, dict[str, float]]:
    """The text format as the exporter's parser takes it: HELP, TYPE, then the samples, family by family."""
    families: dict[str, dict[str, float]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in families
            families[name] = {}
        elif line.startswith("# TYPE "):
            assert line == f"# TYPE {name} gauge"
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found["name"] == name
            assert (found["labels"] or "") not in families[name]
            families[name][found["labels"] or ""] = float(found["value"])
    assert text.endswith("\n")
    return families


def canary(host: Host, **options: t.Any) -> tuple[int, str]:
    """Exit code and everything it says."""
    configuration = {
        "servers": [{"address": address, "port": port} for address, port in NEAR],
        "timeout": SECONDS,
        "textfile": "/var/lib/canary/tproxy.prom",
        **options,
    }
    host.run(
        "sh",
        "-c",
        "mkdir -p /var/lib/canary; cat >/etc/tproxy-canary.json",
        text=json.dumps(configuration),
    )
    said = host.sh(
        f"{sys.executable} -I {FILE} /etc/tproxy-canary.json 2>&1 || echo exit $?", check=False
    )
    body, _exit, code = said.partition("exit ")
    return int(code or 0), body


def test_the_canary_tells_prometheus_and_the_journal(path: Network) -> None:
    textfile = "cat /var/lib/canary/tproxy.prom"
    four = 'server="10.9.2.11:8080",family="ipv4",source="192.0.2.77"'
    six = 'server="[fd09:2::11]:8080",family="ipv6",source="2001:db8::77"'

    assert canary(path.proxy) == (0, "2 of 2 paths work\n")
    healthy = read_metrics(path.proxy.sh(textfile))
    assert healthy["haproxy_tproxy_path_up"] == {four: 1, six: 1}
    assert healthy["haproxy_tproxy_path_failed_hop"] == {}
    assert all(0 < value < SECONDS for value in healthy["haproxy_tproxy_path_seconds"].values())

    path.proxy.sh("ip route flush table 100")
    try:
        code, said = canary(path.proxy)
    finally:
        path.proxy.sh(RESET)
    assert code == 1
    assert said.startswith("10.9.2.11:8080 from 192.0.2.77: table: ")
    assert len(said.splitlines()) == 1
    broken = read_metrics(path.proxy.sh(textfile))
    assert broken["haproxy_tproxy_path_up"] == {four: 0, six: 1}
    assert broken["haproxy_tproxy_path_failed_hop"] == {f'{four},hop="table"': 1}
    checked = "haproxy_tproxy_path_checked_timestamp_seconds"
    assert broken[checked][""] > healthy[checked][""]
    assert path.proxy.sh("ls -A /var/lib/canary; stat -c %a /var/lib/canary/*").split() == [
        "tproxy.prom",
        "644",
    ]


def test_a_server_that_is_down_is_not_the_canarys_business(path: Network) -> None:
    path.server.sh("iptables -A INPUT -p tcp --dport 8080 -j DROP")
    try:
        code, said = canary(path.proxy)
    finally:
        path.server.sh("iptables -F INPUT")
    assert code == 0
    assert said.startswith("10.9.2.11:8080 from 192.0.2.77: server: ")
    families = read_metrics(path.proxy.sh("cat /var/lib/canary/tproxy.prom"))
    assert len(families["haproxy_tproxy_path_up"]) == 1
    assert list(families["haproxy_tproxy_path_failed_hop"]) == [
        'server="10.9.2.11:8080",family="ipv4",source="192.0.2.77",hop="server"'
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"textfile": "/var/lib/no/such/directory/tproxy.prom"},
        {"servers": [{"address": "10.9.2.11"}]},
        {"sources": ["10.9.2.2"]},
    ],
)
def test_a_canary_that_cannot_look_says_so(path: Network, options: dict[str, t.Any]) -> None:
    code, said = canary(path.proxy, **options)
    assert code == 2
    assert said.startswith("tproxy-canary: /etc/tproxy-canary.json: ")
    assert len(said.splitlines()) == 1
