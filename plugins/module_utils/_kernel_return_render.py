# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: the wanted rules and routes of the servers' way back, and the files that load them at boot. Private to the collection."""

from __future__ import annotations

import ipaddress
import os
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import sysctl_name
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_loader import loader
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    IpRule,
    Route,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_render import (
    FLUSHERS,
    GUARD_SECONDS,
    IP_OPTION,
    drop_in,
    guard_unit_file,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_return_model import (
    Desired,
    Way,
)

HEADER = "# Written by clearproxy.haproxy.tproxy_return_path; changes made here are undone by its next run."
# On every firewall rule of ours.
OWNER = "clearproxy-tproxy-backend"

CONFIGURATION = "/etc/tproxy-backend"
BATCHES = {"ipv4": f"{CONFIGURATION}/ip4.batch", "ipv6": f"{CONFIGURATION}/ip6.batch"}
MARKS = f"{CONFIGURATION}/nft.rules"
SYSCTLS = "/etc/sysctl.d/99-tproxy-backend.conf"
TABLE_NAME = "/etc/iproute2/rt_tables.d/tproxy-backend.conf"
LOADER = "/usr/local/sbin/tproxy-backend"
UNIT_NAME = "tproxy-backend.service"
UNIT = f"/etc/systemd/system/{UNIT_NAME}"
GUARD_UNIT = "/etc/systemd/system/tproxy-backend-guard.service"
DROP_INS = {unit: f"/etc/systemd/system/{unit}.d/tproxy-backend.conf" for unit in FLUSHERS}
# Is there while the unit is stopped by hand.
STOPPED = "/var/lib/tproxy-backend/stopped"
FILES = (
    *BATCHES.values(),
    MARKS,
    SYSCTLS,
    TABLE_NAME,
    UNIT,
    GUARD_UNIT,
    *DROP_INS.values(),
    LOADER,
    STOPPED,
)
RECORD = "/var/lib/tproxy-backend/state.json"

NFT_TABLE = "inet tproxy_backend"

# Units that set up interfaces, and take our routes with them when they are restarted.
_MANAGERS = ("systemd-networkd.service", "networking.service", "NetworkManager.service")

# The smallest metric of a default route: in each family one that wins over whatever DHCP or router
# advertisements bring. In IPv6 0 would mean 1024.
_METRIC = {"ipv4": 0, "ipv6": 1}
# What the kernel makes of a route without a metric.
_PLAIN_METRIC = {"ipv4": 0, "ipv6": 1024}


def way(desired: Desired, family: str, device: str, addresses: t.Iterable[str]) -> Way:
    """`addresses`: the service addresses of the family."""
    gateway = desired.gateways[family].address
    if not desired.own_table:
        route = Route("unicast", "default", device, gateway, metric=_METRIC[family])
        return Way(device, default=route)
    metric = _PLAIN_METRIC[family]
    # `throw` ends the lookup in this table: what follows is as if it were not there.
    thrown = (
        Route("throw", network, "lo" if family == "ipv6" else None, metric=metric)
        for network in desired.direct
        if f"ipv{ipaddress.ip_network(network).version}" == family
    )
    default = Route("unicast", "default", device, gateway, metric=metric)
    return Way(device, rules=_rules(desired, addresses), routes=(*thrown, default))


def _rules(desired: Desired, addresses: t.Iterable[str]) -> tuple[IpRule, ...]:
    """Protocol kernel: systemd-networkd removes any other."""
    priority, table = desired.rule_priority, desired.table
    if desired.marks:
        # iif lo: what this host itself sends. A packet that comes in with such a mark is not meant.
        return (IpRule(priority, table, desired.mark, desired.mask, iif="lo"),)
    return tuple(IpRule(priority, table, source=address) for address in addresses)


def batch(desired: Desired, found: Way) -> str:
    """Lines for ip: as the module sets them, in its order."""
    lines = [HEADER]
    if found.default is not None:
        lines.append(f"route replace {found.default}")
    lines += [f"route replace {route} table {desired.table}" for route in found.routes]
    lines += [f"rule add {rule}" for rule in found.rules]
    return "\n".join(lines) + "\n"


def marks(desired: Desired, ways: t.Mapping[str, Way]) -> dict[str, tuple[str, ...]]:
    """The blocks of the nftables table in the words that `nft list` answers, see parse.nft_table().

    A connection is told by the interface that it came in by, and by the proxy's hardware address
    where that is given; the bits of others stay in both marks.
    """
    kept = 0xFFFFFFFF & ~desired.mask | desired.mark
    change = f"| 0x{desired.mark:x}"
    if desired.mark != desired.mask:
        change = f"& 0x{kept:x} {change}"
    comment = f'comment "{OWNER}"'
    senders = [f"ether saddr {mac} " for mac in desired.mac_addresses] or [""]
    return {
        "chain prerouting": (
            "type filter hook prerouting priority mangle; policy accept;",
            *(
                f'iifname "{ways[family].device}" meta nfproto {family} {sender}ct state new '
                f"ct mark set ct mark {change} {comment}"
                for family in FAMILIES
                if family in ways
                for sender in senders
            ),
        ),
        "chain output": (
            # A route chain: the kernel routes again what is marked here.
            "type route hook output priority mangle; policy accept;",
            f"ct direction reply ct mark & 0x{desired.mask:x} == 0x{desired.mark:x} "
            f"meta mark set meta mark {change} {comment}",
        ),
    }


def marks_file(blocks: t.Mapping[str, tuple[str, ...]]) -> str:
    """One transaction: the table is there as wanted, or as it was."""
    lines = [HEADER, f"table {NFT_TABLE}", f"delete table {NFT_TABLE}", f"table {NFT_TABLE} {{"]
    for name, content in blocks.items():
        lines += [f"\t{name} {{", *(f"\t\t{line}" for line in content), "\t}"]
    return "\n".join([*lines, "}"]) + "\n"


def sysctls(desired: Desired, ways: t.Mapping[str, Way]) -> dict[str, str]:
    """Path below /proc/sys -> value. There is no rp_filter in IPv6.

    The larger of `all` and the interface's counts, so the interface's 2 is loose whatever `all` says
    (Documentation/networking/ip-sysctl).
    """
    if not desired.loose_rp_filter or "ipv4" not in ways:
        return {}
    return {rp_filter_path(ways["ipv4"].device): "2"}


def rp_filter_path(interface: str) -> str:
    return f"net/ipv4/conf/{interface}/rp_filter"


def files(desired: Desired, ways: t.Mapping[str, Way]) -> dict[str, str | None]:
    """Every file of ours; None for one that shall not be there."""
    wanted: dict[str, str | None] = dict.fromkeys(FILES)
    for family, found in ways.items():
        wanted[BATCHES[family]] = batch(desired, found)
    values = sysctls(desired, ways)
    if values:
        lines = [HEADER, *(f"{sysctl_name(path)} = {value}" for path, value in values.items())]
        wanted[SYSCTLS] = "\n".join(lines) + "\n"
    if desired.marks:
        wanted[MARKS] = marks_file(marks(desired, ways))
    if desired.own_table:
        wanted[TABLE_NAME] = f"{HEADER}\n{desired.table} {desired.table_name}\n"
    wanted[UNIT] = _unit()
    if desired.guard:
        wanted[GUARD_UNIT] = guard_unit_file(UNIT_NAME, LOADER, HEADER, "the way back to the proxy")
    for unit, path in DROP_INS.items() if desired.marks else ():
        wanted[path] = drop_in(unit, f"{LOADER} restore", HEADER)
    wanted[LOADER] = _loader()
    return wanted


def _unit() -> str:
    flushers, managers = " ".join(FLUSHERS), " ".join(_MANAGERS)
    return f"""\
{HEADER}
[Unit]
Description=Return path through the transparent proxy
Wants=network-online.target
# After whatever sets routes of its own, or flushes the firewall.
After=network.target network-online.target {managers} {flushers}
# They take our routes away when they are restarted. Wanted by them below, so that starting them brings these back.
PartOf={managers}
# An interface may get its address late, however late.
StartLimitIntervalSec=0

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={LOADER} start
ExecReload={LOADER} start
ExecStop={LOADER} stop
Restart=on-failure
RestartSec=2

[Install]
WantedBy=multi-user.target {managers}
"""


def _loader() -> str:
    return loader(
        program=os.path.basename(LOADER),
        usage=(
            f"start: load the files of {CONFIGURATION} and {SYSCTLS}; what is there already stays, and "
            "what fails does not keep the rest from being loaded.",
            "stop: only note that what is gone shall not be put back; nothing is taken away.",
        ),
        header=HEADER,
        owner=OWNER,
        configuration=CONFIGURATION,
        sysctls=SYSCTLS,
        table_name=TABLE_NAME,
        stopped=STOPPED,
        guard_seconds=GUARD_SECONDS,
        nft=os.path.basename(MARKS),
        routing={IP_OPTION[family]: os.path.basename(path) for family, path in BATCHES.items()},
        removes=False,
    )
