# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the wanted rules, and the files that load them at boot. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    OWNER,
    TABLE_MAIN,
    Desired,
    FilterRule,
    IpRule,
    Route,
    sysctl_name,
)

HEADER = (
    "# Written by clearproxy.haproxy.tproxy_rules; changes made here are undone by its next run."
)

CONFIGURATION = "/etc/tproxy-host"
LOADER = "/usr/local/sbin/tproxy-host"
UNIT_NAME = "tproxy-host.service"
UNIT = f"/etc/systemd/system/{UNIT_NAME}"
SYSCTLS = "/etc/sysctl.d/99-tproxy-host.conf"
TABLE_NAME = "/etc/iproute2/rt_tables.d/tproxy-host.conf"
FIREWALL = {"ipv4": f"{CONFIGURATION}/iptables.rules", "ipv6": f"{CONFIGURATION}/ip6tables.rules"}
ROUTING = {"ipv4": f"{CONFIGURATION}/ip4.batch", "ipv6": f"{CONFIGURATION}/ip6.batch"}
FILES = (*FIREWALL.values(), *ROUTING.values(), SYSCTLS, TABLE_NAME, UNIT, LOADER)
RECORD = "/var/lib/tproxy-host/state.json"

EXECUTABLES = (LOADER,)

# Units that load a firewall and flush what was there; not every host has them.
FLUSHERS = ("nftables.service", "netfilter-persistent.service", "firewalld.service")

IPTABLES = {"ipv4": "iptables", "ipv6": "ip6tables"}
IP_OPTION = {"ipv4": "-4", "ipv6": "-6"}


def protocols(family: str) -> tuple[str, str]:
    # ICMP errors about a spoofed connection are sent to the client's address. Unless they are
    # delivered
    # here too, this host never learns of a smaller path MTU and large requests hang.
    return ("tcp", "icmp") if family == "ipv4" else ("tcp", "icmpv6")


def jumps(desired: Desired, family: str) -> tuple[FilterRule, ...]:
    """The rules at the top of mangle PREROUTING.

    --transparent: only packets of sockets that asked for foreign addresses. Without it, every local
    service's packets would be marked, and under src_valid_mark that locks SSH out.
    """
    return tuple(
        FilterRule(
            "PREROUTING",
            (
                *(("-i", interface) if interface else ()),
                *(
                    "-p",
                    protocol,
                    "-m",
                    "socket",
                    "--transparent",
                    "-m",
                    "comment",
                    "--comment",
                    OWNER,
                ),
                *("-j", desired.chain),
            ),
        )
        for interface in (desired.interfaces or (None,))
        for protocol in protocols(family)
    )


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

    With server-facing interfaces the lookup is bound to them; without, a guard sends what this host
    itself emits to main first. Either keeps source validation (src_valid_mark) and accepted sockets
    (tcp_fwmark_accept) out of our table. Protocol kernel: systemd-networkd removes any other.
    """
    base = IpRule(
        priority=desired.rule_priority + 1,
        table=desired.table,
        mark=desired.mark,
        mask=desired.mask,
    )
    if desired.interfaces:
        return tuple(
            IpRule(base.priority, base.table, base.mark, base.mask, iif=interface)
            for interface in desired.interfaces
        )
    return (IpRule(desired.rule_priority, TABLE_MAIN, base.mark, base.mask, iif="lo"), base)


def route(desired: Desired, family: str) -> Route:
    """Everything is local: a marked packet is delivered on this host, whatever its destination."""
    return Route("local", "default", "lo", metric=1024 if family == "ipv6" else 0)


def route_words(desired: Desired) -> str:
    return f"local default dev lo table {desired.table} proto kernel"


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
            wanted["net/ipv4/conf/all/forwarding"] = value
            for interface in desired.interfaces:
                wanted[f"net/ipv4/conf/{interface}/forwarding"] = value
    if desired.send_redirects is not None and "ipv4" in desired.families:
        value = "1" if desired.send_redirects else "0"
        # The kernel sends redirects if `all` OR the interface says so; `default` is for interfaces
        # to come.
        for interface in ("all", "default", *(desired.interfaces or ("*",))):
            wanted[f"net/ipv4/conf/{interface}/send_redirects"] = value
    wanted.update(desired.sysctls)
    return tuple(wanted.items())


def firewall_file(desired: Desired, family: str) -> str:
    """Input for `iptables-restore --noflush`: naming the chain creates it, or empties it if it
    is there.
    """
    lines = [HEADER, "*mangle", f":{desired.chain} - [0:0]"]
    lines += [str(rule) for rule in chain_rules(desired)]
    lines += [
        f"-I PREROUTING {number} {rule.spec}"
        for number, rule in enumerate(jumps(desired, family), start=1)
    ]
    return "\n".join([*lines, "COMMIT"]) + "\n"


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
    flushers = " ".join(FLUSHERS)
    return f"""\
{HEADER}
[Unit]
Description=Kernel side of the transparent proxy: marks, rules, routes
Wants=network-pre.target
# After those who may flush the firewall, before the first connection.
After=network-pre.target {flushers} ufw.service docker.service
Before=haproxy.service
# They flush when they stop or reload. Wanted by them below, so that starting them again brings this back.
PartOf={flushers}
ReloadPropagatedFrom={flushers}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={LOADER} start
ExecReload={LOADER} start
ExecStop={LOADER} stop

[Install]
WantedBy=multi-user.target haproxy.service {flushers}
"""


def loader() -> str:
    return f"""\
#!/bin/sh
{HEADER}
# tproxy-host start: load the files of {CONFIGURATION} and {SYSCTLS}; what is there already stays.
# tproxy-host stop:  remove the rules and routes again. Sysctls stay as they are.
set -u
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
configuration={CONFIGURATION}
sysctls={SYSCTLS}
failed=0

# Our own rules in the chains of others, as commands that delete them.
deletions() {{
    "$1-save" -t mangle | sed -n 's/^-A \\(PREROUTING .*--comment "\\{{0,1\\}}{OWNER}"\\{{0,1\\}} .*\\)$/-D \\1/p'
}}

# One transaction: there is no moment without a rule, and no second copy of one.
load_firewall() {{
    [ -e "$2" ] || return 0
    {{
        sed -n '/^[*:]/p' "$2"
        deletions "$1"
        sed '/^[*:#]/d' "$2"
    }} | "$1-restore" --noflush --wait=10
}}

remove_firewall() {{
    [ -e "$2" ] || return 0
    chain=$(sed -n 's/^:\\([^ ]*\\) .*/\\1/p' "$2")
    {{
        echo '*mangle'
        deletions "$1"
        if "$1-save" -t mangle | grep -q "^:$chain "; then
            echo "-F $chain"
            echo "-X $chain"
        fi
        echo COMMIT
    }} | "$1-restore" --noflush --wait=10
}}

load_routing() {{
    [ -e "$2" ] || return 0
    result=0
    while read -r object command words; do
        case $object in ''|'#'*) continue ;; esac
        # shellcheck disable=SC2086
        message=$(ip "$1" "$object" "$command" $words 2>&1) && continue
        case "$command $message" in
            'add '*'File exists'*) ;;
            *) echo "ip $1 $object $command $words: $message" >&2; result=1 ;;
        esac
    done <"$2"
    return "$result"
}}

remove_routing() {{
    [ -e "$2" ] || return 0
    while read -r object command words; do
        case $object in ''|'#'*) continue ;; esac
        # shellcheck disable=SC2086
        while ip "$1" "$object" del $words 2>/dev/null; do :; done
    done <"$2"
}}

load_sysctls() {{
    [ -e "$sysctls" ] || return 0
    result=0
    while read -r name _ value; do
        case $name in ''|'#'*) continue ;; */*) path=$name ;; *) path=$(echo "$name" | tr . /) ;; esac
        for file in /proc/sys/$path; do
            # An interface that is not there yet takes its values from `default`.
            [ -e "$file" ] || continue
            echo "$value" >"$file" || result=1
        done
    done <"$sysctls"
    return "$result"
}}

case ${{1-}} in
    start)
        load_sysctls || failed=1
        load_routing -4 "$configuration/ip4.batch" || failed=1
        load_routing -6 "$configuration/ip6.batch" || failed=1
        load_firewall iptables "$configuration/iptables.rules" || failed=1
        load_firewall ip6tables "$configuration/ip6tables.rules" || failed=1
        ;;
    stop)
        remove_firewall iptables "$configuration/iptables.rules" || failed=1
        remove_firewall ip6tables "$configuration/ip6tables.rules" || failed=1
        remove_routing -4 "$configuration/ip4.batch" || failed=1
        remove_routing -6 "$configuration/ip6.batch" || failed=1
        ;;
    *)
        echo "usage: tproxy-host start|stop" >&2
        exit 2
        ;;
esac
exit "$failed"
"""


def files(desired: Desired, advertised: t.Iterable[str]) -> dict[str, str | None]:
    """Every file of ours; None for one that shall not be there."""
    wanted: dict[str, str | None] = dict.fromkeys(FILES)
    for family in FAMILIES:
        if family in desired.families:
            wanted[FIREWALL[family]] = firewall_file(desired, family)
            wanted[ROUTING[family]] = routing_file(desired, family)
    wanted[SYSCTLS] = sysctl_file(desired, advertised)
    wanted[TABLE_NAME] = f"{HEADER}\n{desired.table} {desired.table_name}\n"
    wanted[UNIT] = unit_file()
    wanted[LOADER] = loader()
    return wanted
