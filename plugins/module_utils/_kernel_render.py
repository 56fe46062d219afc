# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the wanted rules, and the files that load them at boot. Private to the collection."""

from __future__ import annotations

import os
import typing as t
from dataclasses import replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_nft as nft
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    IPTABLES_BACKENDS,
    OWNER,
    RTPROT_NUMBERS,
    TABLE_MAIN,
    Desired,
    FilterRule,
    IpRule,
    NftChain,
    NftRule,
    NftTable,
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
# Is there while the rules are stopped by hand.
STOPPED = "/var/lib/tproxy-host/stopped"
GUARD_UNIT = "/etc/systemd/system/tproxy-host-guard.service"
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
After=network-pre.target {" ".join(FLUSHERS)} ufw.service docker.service
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


def guard_unit_file() -> str:
    return f"""\
{HEADER}
[Unit]
Description=Watch over the transparent proxy's rules and put back what is removed
After={UNIT_NAME}
# Stops with it. Wanted by it below, so that it comes back with it too.
PartOf={UNIT_NAME}

[Service]
ExecStart={LOADER} guard
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
WantedBy={UNIT_NAME}
"""


def loader() -> str:
    return f"""\
#!/bin/sh
{HEADER}
# tproxy-host start: load the files of {CONFIGURATION} and {SYSCTLS}; what is there already stays.
# tproxy-host stop:  remove the rules and routes again. Sysctls stay as they are.
# tproxy-host restore: start, if the unit is active; for others' units, which flush.
# tproxy-host check: say what is not as the files want it, a line each; exit code 0 if nothing, 1 if something,
#                    3 if another one is at work just now.
# tproxy-host guard [SECONDS]: check again and again, and start if anything is missing, until `tproxy-host stop`.
set -u
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
configuration={CONFIGURATION}
sysctls={SYSCTLS}
names={TABLE_NAME}
stopped={STOPPED}
failed=0
newline='
'

# The module holds the same lock while it works.
lock() {{
    [ -d "$configuration" ] && command -v flock >/dev/null || return 0
    exec 9<"$configuration"
    flock "$@" 9
}}

# Our own rules in the chains of others, as commands that delete them.
deletions() {{
    "$1-save" -t mangle | sed -n 's/^-A \\(PREROUTING .*--comment "\\{{0,1\\}}{OWNER}"\\{{0,1\\}} .*\\)$/-D \\1/p'
}}

# The program that the rules in a file are for.
program_of() {{
    program=
    while read -r _ key program; do
        [ "$key" != Program: ] || break
    done <"$1"
}}

# One transaction: there is no moment without a rule, and no second copy of one.
load_firewall() {{
    [ -e "$1" ] || return 0
    program_of "$1"
    {{
        sed -n '/^[*:]/p' "$1"
        deletions "$program"
        sed '/^[*:#]/d' "$1"
    }} | "$program-restore" --noflush --wait=10
}}

load_nft() {{
    [ -e "$1" ] || return 0
    nft -f "$1"
}}

remove_firewall() {{
    [ -e "$1" ] || return 0
    program_of "$1"
    chain=$(sed -n 's/^:\\([^ ]*\\) .*/\\1/p' "$1")
    {{
        echo '*mangle'
        deletions "$program"
        if "$program-save" -t mangle | grep -q "^:$chain "; then
            echo "-F $chain"
            echo "-X $chain"
        fi
        echo COMMIT
    }} | "$program-restore" --noflush --wait=10
}}

# The file's own first two lines make sure that there is a table, and delete it.
remove_nft() {{
    [ -e "$1" ] || return 0
    sed -n '/^table .*[^{{]$/p; /^delete table /p' "$1" | nft -f -
}}

# Our chain must hold our rules and no others, and our jumps must come first, or, where they are appended, be there.
check_firewall() {{
    [ -e "$1" ] || return 0
    program_of "$1"
    "$program-save" -t mangle 2>/dev/null | awk -v program="$program" '
        {{ gsub(/"/, ""); gsub(/ipv6-icmp/, "icmpv6"); sub(/ +$/, "") }}
        FNR == NR && sub(/^-I PREROUTING [0-9]+ /, "-A PREROUTING ") {{ wanted[++jumps] = $0; first = 1; next }}
        FNR == NR && /^-A PREROUTING / {{ wanted[++jumps] = $0; next }}
        FNR == NR && /^-A / {{ chain = $2; rules = rules $0 "\\n"; next }}
        FNR == NR {{ next }}
        /^-A PREROUTING / {{ found[++count] = $0; there[$0] = 1 }}
        /^-A / && $2 == chain {{ content = content $0 "\\n" }}
        END {{
            if (content != rules) {{ print program " mangle chain " chain ": not as wanted"; wrong = 1 }}
            for (i = 1; i <= jumps; i++)
                if (first ? found[i] != wanted[i] : !(wanted[i] in there)) {{
                    print program " mangle: not in place: " wanted[i]
                    wrong = 1
                }}
            exit wrong
        }}' "$1" -
}}

# nft lists the same rule differently from version to version: words are compared, whatever their order.
check_nft() {{
    [ -e "$1" ] || return 0
    table=$(sed -n 's/^delete table //p' "$1")
    # shellcheck disable=SC2086
    nft -s -y list table $table 2>/dev/null | awk -v table="$table" '
        function canonical(line, count, words, i, j, word, text) {{
            gsub(/[{{}},;"]/, " ", line)
            gsub(/ipv6-icmp/, "icmpv6", line)
            gsub(/0x0+/, "0x", line)
            gsub(/ or /, " | ", line)
            gsub(/ and /, " \\\\& ", line)
            count = split(line, words, " ")
            for (i = 1; i <= count; i++) {{
                word = words[i]
                for (j = i - 1; j > 0 && words[j] > word; j--) words[j + 1] = words[j]
                words[j + 1] = word
            }}
            for (i = 1; i <= count; i++) if (words[i] != "meta") text = text " " words[i]
            return text
        }}
        /^#/ || /^delete / || /^table [^{{]*$/ || /^[ \\t}}]*$/ {{ next }}
        FNR == NR {{ wanted = wanted canonical($0) "\\n"; next }}
        {{ found = found canonical($0) "\\n" }}
        END {{ if (found != wanted) {{ print "nft table " table ": " (found ? "not as wanted" : "missing"); exit 1 }} }}
    ' "$1" -
}}

# Whether the words of a line of the routing files are in `ip -d rule` or in the table's routes.
present() {{
    object=$1
    shift 2
    if [ "$object" = route ]; then
        case $newline$routes in *"$newline$1 $2 $3 $4 $7 $8"[!0-9a-z]*) return 0 ;; esac
        return 1
    fi
    not='' source=all mark='' iif='' table='' protocol=boot
    while [ $# -gt 0 ]; do
        case $1 in
            not) not='not '; shift; continue ;;
            priority) priority=$2 ;;
            from) source=$2 ;;
            fwmark) mark=" fwmark ${{2%/0xffffffff}}" ;;
            iif) iif=" iif $2" ;;
            lookup) table=$2 ;;
            protocol) protocol=$2 ;;
        esac
        shift 2
    done
    name=$table
    while read -r number word; do
        [ "$number" != "$table" ] || name=$word
    done <"$names"
    for table in "$table" "$name"; do
        line="$priority:	${{not}}from $source$mark$iif lookup $table proto $protocol"
        case $newline$rules$newline in *"$newline$line$newline"* | *"$newline$line $newline"*) return 0 ;; esac
    done
    return 1
}}

look_at_routing() {{
    # [detached]: the interface is not there just now.
    rules=$(ip "$1" -d rule 2>/dev/null | sed 's/ \\[detached\\]//g')
    table=$(sed -n 's/^route .* table \\([0-9]*\\) .*/\\1/p' "$2")
    routes="$(ip "$1" route show table "$table" 2>/dev/null) "
}}

load_routing() {{
    [ -e "$2" ] || return 0
    result=0
    look_at_routing "$1" "$2"
    while read -r object command words; do
        case $object in ''|'#'*) continue ;; esac
        # shellcheck disable=SC2086
        present "$object" "$command" $words && continue
        # The kernel takes rules that differ in nothing but the protocol for the same.
        # shellcheck disable=SC2086
        [ "$object" = route ] || ip "$1" rule del ${{words%% protocol *}} 2>/dev/null
        # shellcheck disable=SC2086
        message=$(ip "$1" "$object" "$command" $words 2>&1) && continue
        echo "ip $1 $object $command $words: $message" >&2
        result=1
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

check_routing() {{
    [ -e "$2" ] || return 0
    result=0
    look_at_routing "$1" "$2"
    while read -r object command words; do
        case $object in ''|'#'*) continue ;; esac
        # shellcheck disable=SC2086
        present "$object" "$command" $words && continue
        echo "ip $1 $object: missing: $words"
        result=1
    done <"$2"
    return "$result"
}}

# net.ipv4.ip_forward -> net/ipv4/ip_forward
slashes() {{
    set -f
    IFS=.
    # shellcheck disable=SC2086
    set -- $1
    IFS=/
    path=$*
    unset IFS
    set +f
}}

# FILE FOUND WANTED, separated by tabs, for every value that is not as wanted.
wrong_sysctls() {{
    [ -e "$sysctls" ] || return 0
    while read -r name _ value; do
        case $name in ''|'#'*) continue ;; */*) path=$name ;; *) slashes "$name" ;; esac
        for file in /proc/sys/$path; do
            # An interface that is not there yet takes its values from `default`.
            [ ! -e "$file" ] || echo "$file $value"
        done
    done <"$sysctls" | awk '
        function value_of(file, line) {{
            getline line <file
            close(file)
            gsub(/[ \\t]+/, " ", line)
            return line
        }}
        # Of several lines for a file the last one counts.
        {{
            file = $1
            sub(/^[^ ]+ /, "")
            if (!(file in wanted)) order[++count] = file
            wanted[file] = $0
        }}
        END {{
            for (i = 1; i <= count; i++) {{
                file = order[i]
                found = value_of(file)
                if (found == wanted[file]) continue
                # The kernel takes the greater one of the interface and all.
                upper = file
                if (sub(/[^\\/]+\\/rp_filter$/, "all/rp_filter", upper) && upper != file) {{
                    top = upper in wanted ? wanted[upper] : value_of(upper)
                    if (top > found && top == wanted[file]) continue
                }}
                print file "\\t" found "\\t" wanted[file]
            }}
        }}'
}}

load_sysctls() {{
    wrong_sysctls | {{
        result=0
        while IFS='	' read -r file _ value; do
            echo "$value" >"$file" || result=1
        done
        exit "$result"
    }}
}}

check_sysctls() {{
    wrong_sysctls | {{
        result=0
        while IFS='	' read -r file found value; do
            echo "sysctl ${{file#/proc/sys/}}: found: $found, wanted: $value"
            result=1
        done
        exit "$result"
    }}
}}

start() {{
    result_of_start=0
    load_sysctls || result_of_start=1
    load_routing -4 "$configuration/ip4.batch" || result_of_start=1
    load_routing -6 "$configuration/ip6.batch" || result_of_start=1
    load_firewall "$configuration/iptables.rules" || result_of_start=1
    load_firewall "$configuration/ip6tables.rules" || result_of_start=1
    load_nft "$configuration/nftables.rules" || result_of_start=1
    return "$result_of_start"
}}

check() {{
    result_of_check=0
    check_firewall "$configuration/iptables.rules" || result_of_check=1
    check_firewall "$configuration/ip6tables.rules" || result_of_check=1
    check_nft "$configuration/nftables.rules" || result_of_check=1
    check_routing -4 "$configuration/ip4.batch" || result_of_check=1
    check_routing -6 "$configuration/ip6.batch" || result_of_check=1
    check_sysctls || result_of_check=1
    return "$result_of_check"
}}

# The lines as one.
log() {{
    echo "$1" | awk -v ORS='; ' -v end="$2" 'NF {{ print }} END {{ printf "%s\\n", end }}'
}}

# One line for each repair. What a repair does not help against is said once, and tried again now and then.
guard() {{
    hopeless='' looks=0
    while [ -d "$configuration" ]; do
        if [ ! -e "$stopped" ] && lock -w 2; then
            wrong=$(check)
            looks=$(((looks + 1) % 12))
            if [ -z "$wrong" ]; then
                hopeless=
            elif [ "$wrong" != "$hopeless" ] || [ "$looks" = 0 ]; then
                said=$(start 2>&1)
                left=$(check)
                if [ -z "$left" ]; then
                    log "$wrong" 'put back'
                elif [ "$left" != "$wrong" ]; then
                    log "$wrong" 'partly put back'
                elif [ "$left" != "$hopeless" ]; then
                    hopeless=$left
                    log "$left$newline$said" 'cannot put back'
                fi
            fi
        fi
        exec 9<&-
        sleep "${{2-{GUARD_SECONDS}}}"
    done
}}

case ${{1-}} in
    start)
        lock -w 30
        rm -f "$stopped"
        start || failed=1
        ;;
    stop)
        lock -w 30
        # So that the guard, which may still run, keeps its hands off.
        [ ! -d "${{stopped%/*}}" ] || : >"$stopped"
        remove_firewall "$configuration/iptables.rules" || failed=1
        remove_firewall "$configuration/ip6tables.rules" || failed=1
        remove_nft "$configuration/nftables.rules" || failed=1
        remove_routing -4 "$configuration/ip4.batch" || failed=1
        remove_routing -6 "$configuration/ip6.batch" || failed=1
        ;;
    restore)
        systemctl --quiet is-active {UNIT_NAME} || exit 0
        lock -w 30
        start || failed=1
        ;;
    check)
        lock -n -s || exit 3
        check || failed=1
        ;;
    guard)
        guard "$@"
        ;;
    *)
        echo "usage: tproxy-host start|stop|restore|check|guard" >&2
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
