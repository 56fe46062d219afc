# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the wanted rules, and the files that load them at boot. Private to the collection."""

from __future__ import annotations

import os
import typing as t
from dataclasses import replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_nft as nft
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    IPTABLES_BACKENDS,
    Desired,
    sysctl_name,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_loader import (
    loader as _loader,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    OWNER,
    RTPROT_NUMBERS,
    TABLE_MAIN,
    FilterRule,
    IpRule,
    NftChain,
    NftRule,
    NftTable,
    Route,
)

HEADER = (
    "# Written by clearproxy.haproxy.tproxy_rules; changes made here are undone by its next run."
)

CONFIGURATION = "/etc/tproxy-host"
LOADER = "/usr/local/sbin/tproxy-host"
UNIT_NAME = "tproxy-host.service"
UNIT = f"/etc/systemd/system/{UNIT_NAME}"
# Is there while the rules are stopped by hand.
STOPPED = "/var/lib/tproxy-host/stopped"
GUARD_NAME = "tproxy-host-guard.service"
GUARD_UNIT = f"/etc/systemd/system/{GUARD_NAME}"
SYSCTLS = "/etc/sysctl.d/99-tproxy-host.conf"
TABLE_NAME = "/etc/iproute2/rt_tables.d/tproxy-host.conf"
FIREWALL = {"ipv4": f"{CONFIGURATION}/iptables.rules", "ipv6": f"{CONFIGURATION}/ip6tables.rules"}
NFT = f"{CONFIGURATION}/nftables.rules"
ROUTING = {"ipv4": f"{CONFIGURATION}/ip4.batch", "ipv6": f"{CONFIGURATION}/ip6.batch"}
# Units that flush the firewall when they start, stop or reload; not every host has them.
FLUSHERS = ("nftables.service", "netfilter-persistent.service", "firewalld.service")
DROP_INS = {unit: f"/etc/systemd/system/{unit}.d/tproxy-host.conf" for unit in FLUSHERS}
FILES = (
    *FIREWALL.values(),
    NFT,
    *ROUTING.values(),
    SYSCTLS,
    TABLE_NAME,
    UNIT,
    GUARD_UNIT,
    *DROP_INS.values(),
    LOADER,
    STOPPED,
)
RECORD = "/var/lib/tproxy-host/state.json"
OWN_DIRECTORIES = (
    CONFIGURATION,
    os.path.dirname(RECORD),
    *(os.path.dirname(path) for path in DROP_INS.values()),
)
# Between two looks of the guard. What is removed shall be back within 10 s, also on a busy host.
GUARD_SECONDS = 5

EXECUTABLES = (LOADER,)


IPTABLES = {"ipv4": "iptables", "ipv6": "ip6tables"}
IP_OPTION = {"ipv4": "-4", "ipv6": "-6"}

# Of our nft chain. One above mangle, so that rules at mangle, where marks are usually set, have run: an
# accept in one nft chain spares no packet the next one, and who sets the whole mark last wins.
# Still before dstnat (-100).
NFT_PRIORITY = -149
# Of iptables' own chains in mangle (netfilter_ipv4.h).
MANGLE_PRIORITY = -150


def mark_priority(desired: Desired) -> int:
    """Where in prerouting the mark is set."""
    return NFT_PRIORITY if desired.firewall == "nftables" else MANGLE_PRIORITY


def program(variant: str, family: str, suffix: str = "") -> str:
    """("iptables-legacy", "ipv6", "-save") -> ip6tables-legacy-save"""
    return f"{variant.replace('iptables', IPTABLES[family], 1)}{suffix}"


def protocols(family: str) -> tuple[str, str]:
    # ICMP errors about a spoofed connection are sent to the client's address. Unless they are
    # delivered
    # here too, this host never learns of a smaller path MTU and large requests hang.
    return ("tcp", "icmp") if family == "ipv4" else ("tcp", "icmpv6")


def diverted(desired: Desired, family: str) -> tuple[str, ...]:
    """The protocols whose packets are delivered here if they belong to a socket."""
    return protocols(family) if desired.icmp else protocols(family)[:1]


def jumps(desired: Desired, family: str) -> tuple[FilterRule, ...]:
    """The rules of mangle PREROUTING: what belongs to a socket, then what is caught.

    --transparent: only packets of sockets that asked for foreign addresses. Without it, every local
    service's packets would be marked, and under src_valid_mark that locks SSH out.
    """
    return tuple(
        FilterRule(
            "PREROUTING",
            (
                *(("-i", interface) if interface else ()),
                *("-p", protocol, "-m", "socket"),
                *(("--transparent",) if desired.socket_match == "transparent" else ()),
                *("-m", "comment", "--comment", OWNER),
                *("-j", desired.chain),
            ),
        )
        for interface in (desired.incoming or (None,))
        for protocol in diverted(desired, family)
    ) + intercepts(desired, family)


def intercepts(desired: Desired, family: str) -> tuple[FilterRule, ...]:
    """Every caught port: the words in iptables-save's own order.

    What is addressed to this host itself is not caught, or nobody could reach its own services.
    Where HAProxy does not listen, TPROXY drops.
    """
    any_address = "0.0.0.0" if family == "ipv4" else "::"
    return tuple(
        FilterRule(
            "PREROUTING",
            (
                *(("-s", catch.source) if catch.source else ()),
                *(("-d", catch.destination) if catch.destination else ()),
                *(("-i", catch.interface) if catch.interface else ()),
                *("-p", "tcp", "-m", "tcp", "--dport", catch.port),
                *("-m", "addrtype", "!", "--dst-type", "LOCAL"),
                *("-m", "comment", "--comment", OWNER),
                *("-j", "TPROXY", "--on-port", str(catch.to_port), "--on-ip", any_address),
                *("--tproxy-mark", f"0x{desired.mark:x}/0x{desired.mask:x}"),
            ),
        )
        for catch in desired.catches(family)
    )


def nft_intercepts(desired: Desired, family: str) -> tuple[NftRule, ...]:
    """The same in nft, one rule a port and network, too: sets of ranges are listed in another way by every version.

    tproxy lets pass what HAProxy does not listen for. It is dropped as by the TPROXY target: when
    HAProxy comes back a moment later, the client's next try is answered, while a connection made
    around it would be cut then.
    """
    ip = "ip" if family == "ipv4" else "ip6"
    rules = []
    for catch in desired.catches(family):
        networks = [
            f"{ip} {end} {network.removesuffix('/32' if family == 'ipv4' else '/128')}"
            for end, network in (("saddr", catch.source), ("daddr", catch.destination))
            if network
        ]
        words = (
            *((f'iifname "{catch.interface}"',) if catch.interface else ()),
            # An address says the family itself.
            *(networks or (f"meta nfproto {family}",)),
            f"tcp dport {catch.port.replace(':', '-')}",
            "fib daddr type != local",
        )
        marked = nft.mark_words(~desired.mask & 0xFFFFFFFF, desired.mark)
        for verdict in (
            (f"tproxy {ip} to :{catch.to_port}", "counter", marked, "accept"),
            ("drop",),
        ):
            rules.append(NftRule(desired.chain, (*words, *verdict), comment=OWNER))
    return tuple(rules)


def nft_passes(desired: Desired, family: str) -> tuple[NftRule, ...]:
    """nft's socket match finds HAProxy's listener also for connections to the same port of any other
    host, which -m socket does not; those are nobody's to divert.
    """
    ports = sorted({catch.to_port for catch in desired.catches(family)})
    return tuple(
        NftRule(
            desired.chain,
            (f"meta nfproto {family}", f"tcp dport {port}", "socket wildcard 1", "accept"),
            comment=OWNER,
        )
        for port in ports
    )


def nft_table(desired: Desired) -> NftTable:
    """The same in nft: one chain of a table that is all ours."""
    rules = [rule for family in desired.families for rule in nft_rules(desired, family)]
    chain = NftChain(desired.chain, hook="prerouting", priority=NFT_PRIORITY)
    return NftTable("inet", desired.nft_table, (chain,), tuple(rules))


def nft_rules(desired: Desired, family: str) -> tuple[NftRule, ...]:
    """The family's rules, in the words in which nft lists them.

    `transparent { 0, 1 }` is any socket. `socket wildcard 0`, as -m socket has it, would miss
    connections that are being made.
    """
    interfaces = nft.set_words(f'"{name}"' for name in desired.incoming) if desired.incoming else ""
    match = "1" if desired.socket_match == "transparent" else "{ 0, 1 }"
    diverting = tuple(
        NftRule(
            desired.chain,
            (
                # ICMP says its family itself, and nft does not list what goes without saying.
                *((f"meta nfproto {family}",) if protocol == "tcp" else ()),
                *((f"iifname {interfaces}",) if interfaces else ()),
                f"meta l4proto {protocol}",
                f"socket transparent {match}",
                "counter",
                nft.mark_words(~desired.mask & 0xFFFFFFFF, desired.mark),
                "accept",
            ),
            comment=OWNER,
        )
        for protocol in diverted(desired, family)
    )
    return (*nft_passes(desired, family), *diverting, *nft_intercepts(desired, family))


def chain_rules(desired: Desired) -> tuple[FilterRule, ...]:
    """Sets only the bits of the mask, so that marks of others survive."""
    comment = ("-m", "comment", "--comment", OWNER)
    return (
        FilterRule(
            desired.chain,
            (*comment, "-j", "MARK", "--set-xmark", f"0x{desired.mark:x}/0x{desired.mask:x}"),
        ),
        FilterRule(desired.chain, (*comment, "-j", "ACCEPT")),
    )


def ip_rules(desired: Desired) -> tuple[IpRule, ...]:
    """The same in both families.

    With interfaces, server-facing ones and those where connections are caught, the lookup is bound
    to them; without, a guard sends what this host itself emits to main first. Either keeps source validation (src_valid_mark) and accepted sockets
    (tcp_fwmark_accept) out of our table. Protocol kernel: systemd-networkd removes any other.
    """
    base = IpRule(
        priority=desired.rule_priority + 1,
        table=desired.table,
        mark=desired.mark,
        mask=desired.mask,
        protocol=RTPROT_NUMBERS[desired.rule_protocol],
    )
    if desired.incoming:
        return tuple(replace(base, iif=interface) for interface in desired.incoming)
    guard = replace(base, priority=desired.rule_priority, table=TABLE_MAIN, iif="lo")
    return (guard, base) if desired.guard_rule else (base,)


def route(desired: Desired, family: str) -> Route:
    """Everything is local: a marked packet is delivered on this host, whatever its destination."""
    return Route(
        "local",
        "default",
        "lo",
        protocol=RTPROT_NUMBERS[desired.rule_protocol],
        metric=1024 if family == "ipv6" else 0,
    )


def route_words(desired: Desired) -> str:
    return f"local default dev lo table {desired.table} proto {desired.rule_protocol}"


def sysctls(desired: Desired, advertised: t.Iterable[str]) -> tuple[tuple[str, str], ...]:
    """(path below /proc/sys, possibly with *; value), in the order of writing."""
    wanted: dict[str, str] = {}
    if desired.forwarding is not None:
        value = "1" if desired.forwarding else "0"
        if "ipv6" in desired.families:
            if desired.forwarding:
                # First: once forwarding is on, accept_ra=1 means off, and the default route is
                # dropped.
                for interface in advertised:
                    wanted[f"net/ipv6/conf/{interface}/accept_ra"] = "2"
            wanted["net/ipv6/conf/all/forwarding"] = value
        if "ipv4" in desired.families:
            # Writing `all` writes every interface and `default`, but each can be changed afterwards,
            # and the interface's own value is the one that counts.
            for interface in ("all", "default", *(desired.incoming or ("*",))):
                wanted[f"net/ipv4/conf/{interface}/forwarding"] = value
    if desired.send_redirects is not None and "ipv4" in desired.families:
        # The kernel sends redirects if `all` OR the interface says so; `default` is for interfaces
        # to come.
        others = () if desired.send_redirects else ("default", *(desired.incoming or ("*",)))
        for interface in ("all", *others):
            wanted[f"net/ipv4/conf/{interface}/send_redirects"] = str(int(desired.send_redirects))
    if desired.rp_filter is not None and "ipv4" in desired.families:
        # The greater of `all` and the interface's own counts, so 2 on `all` is enough for all.
        every = ("all",) if desired.rp_filter == 2 else ("all", "*")
        for interface in desired.incoming or every:
            wanted[f"net/ipv4/conf/{interface}/rp_filter"] = str(desired.rp_filter)
    wanted.update(desired.sysctls)
    return tuple(wanted.items())


def firewall_file(desired: Desired, family: str) -> str:
    """Input for `iptables-restore --noflush`: naming the chain creates it, or empties it if it
    is there.
    """
    lines = [HEADER, f"# Program: {program(desired.firewall, family)}", "*mangle"]
    lines += [f":{desired.chain} - [0:0]", *map(str, chain_rules(desired))]
    lines += [
        f"-I PREROUTING {number} {rule.spec}" if desired.position == "first" else str(rule)
        for number, rule in enumerate(jumps(desired, family), start=1)
    ]
    return "\n".join([*lines, "COMMIT"]) + "\n"


def nft_file(desired: Desired) -> str:
    """Input for `nft -f`."""
    return f"{HEADER}\n{nft.table_text(nft_table(desired))}"


def routing_file(desired: Desired, family: str) -> str:
    """Lines for `ip -batch`."""
    lines = [HEADER, f"route replace {route_words(desired)}"]
    lines += [f"rule add {rule.selectors}" for rule in ip_rules(desired)]
    return "\n".join(lines) + "\n"


def sysctl_file(desired: Desired, advertised: t.Iterable[str]) -> str | None:
    wanted = sysctls(desired, advertised)
    if not wanted:
        return None
    return "\n".join([HEADER, *(f"{sysctl_name(path)} = {value}" for path, value in wanted)]) + "\n"


def unit_file() -> str:
    """Not PartOf the FLUSHERS: firewalld conflicts with nftables.service, so systemd could not restart it."""
    return f"""\
{HEADER}
[Unit]
Description=Kernel side of the transparent proxy: marks, rules, routes
Wants=network-pre.target
# After those who may flush the firewall, before the first connection.
After=network-pre.target {" ".join(FLUSHERS)} ufw.service
Before=haproxy.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={LOADER} start
ExecReload={LOADER} start
ExecStop={LOADER} stop

[Install]
WantedBy=multi-user.target haproxy.service
"""


def drop_in(unit: str, restore: str, header: str = HEADER) -> str:
    """Has a unit of FLUSHERS run a command of ours whenever it may have flushed, before systemd calls it done.

    A failure of ours is none of its own.
    """
    commands = [f"-{restore}"]
    if unit == "firewalld.service":
        # It flushes after it has taken its name on the bus, and answers after that.
        commands.insert(0, "-firewall-cmd --quiet --state")
    # The others cannot be reloaded, and shall not seem so.
    reloads = ("ExecReload",) if unit != "netfilter-persistent.service" else ()
    lines = [
        f"{setting}={command}" for setting in ("ExecStartPost", *reloads) for command in commands
    ]
    return "\n".join([header, "[Service]", *lines, f"ExecStopPost=-{restore}"]) + "\n"


def guard_unit_file(
    unit: str = UNIT_NAME,
    program: str = LOADER,
    header: str = HEADER,
    what: str = "the transparent proxy's rules",
) -> str:
    return f"""\
{header}
[Unit]
Description=Watch over {what} and put back what is removed
After={unit}
# Stops with it. Wanted by it below, so that it comes back with it too.
PartOf={unit}
# Nor does it give up when that is tried again and again.
StartLimitIntervalSec=0

[Service]
ExecStart={program} guard
Restart=on-failure
RestartSec=5
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW
NoNewPrivileges=yes
ProtectSystem=strict
# The lock of iptables-legacy.
ReadWritePaths=/run
ProtectHome=yes
PrivateTmp=yes
RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native

[Install]
WantedBy={unit}
"""


def loader() -> str:
    return _loader(
        program=os.path.basename(LOADER),
        usage=(
            f"start: load the files of {CONFIGURATION} and {SYSCTLS}; what is there already stays.",
            "stop: remove the rules and routes again. Sysctls stay as they are.",
        ),
        header=HEADER,
        owner=OWNER,
        configuration=CONFIGURATION,
        sysctls=SYSCTLS,
        table_name=TABLE_NAME,
        stopped=STOPPED,
        guard_seconds=GUARD_SECONDS,
        nft=os.path.basename(NFT),
        routing={IP_OPTION[family]: os.path.basename(path) for family, path in ROUTING.items()},
        iptables=map(os.path.basename, FIREWALL.values()),
        removes=True,
    )


def units(desired: Desired) -> tuple[str, ...]:
    """What systemd runs of ours."""
    return (UNIT_NAME, GUARD_NAME) if desired.guard else (UNIT_NAME,)


def files(desired: Desired, advertised: t.Iterable[str]) -> dict[str, str | None]:
    """Every file of ours; None for one that shall not be there."""
    wanted: dict[str, str | None] = dict.fromkeys(FILES)
    for family in FAMILIES:
        if family in desired.families:
            if desired.firewall in IPTABLES_BACKENDS:
                wanted[FIREWALL[family]] = firewall_file(desired, family)
            wanted[ROUTING[family]] = routing_file(desired, family)
    if desired.firewall == "nftables":
        wanted[NFT] = nft_file(desired)
    wanted[SYSCTLS] = sysctl_file(desired, advertised)
    wanted[TABLE_NAME] = f"{HEADER}\n{desired.table} {desired.table_name}\n"
    wanted[UNIT] = unit_file()
    wanted[GUARD_UNIT] = guard_unit_file() if desired.guard else None
    for unit, path in DROP_INS.items():
        wanted[path] = drop_in(unit, f"{LOADER} restore")
    wanted[LOADER] = loader()
    return wanted
