# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Transparent beside the real firewalld, ufw, Docker, netfilter-persistent and nftables, whose rules stay their own.

All of them come after us: the role ran before they were there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from beside import on_each, role, succeeds, transparent
from lab import FULL, TPROXY_HOSTS, Lab
from real_neighbours import NEIGHBOURS, Neighbour

# Of their host variables: the one with a table of its own, and the one with a guard.
NFT, GUARDED = "debian12", "debian13"
ROUNDS = [
    {"debian11": "netfilter-persistent", "debian12": "firewalld", "debian13": "ufw"},
    {"debian11": "ufw", "debian12": "docker", "debian13": "nftables"},
]
if FULL:
    names = list(NEIGHBOURS)
    ROUNDS = [
        {host: names[(first + place) % len(names)] for place, host in enumerate(TPROXY_HOSTS)}
        for first in range(len(names))
    ]
# A SYN that met no rule is sent again after one second, the next one after two more; and machines are busy.
LONGEST = 8.0


def install(lab: Lab, host: str, neighbour: Neighbour) -> None:
    """Those that this Debian has. Prepare has installed what the gate needs."""
    lab.run(
        host,
        f"for name in {' '.join(neighbour.packages)}; do"
        ' apt-cache show $name >/dev/null 2>&1 && names="$names $name"; done;'
        " DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $names 2>&1",
    )


@pytest.fixture(scope="module", params=ROUNDS, ids=lambda names: "+".join(names.values()))
def beside(request: pytest.FixtureRequest, lab: Lab) -> Iterator[dict[str, Neighbour]]:
    found = {host: NEIGHBOURS[name] for host, name in request.param.items()}

    def set_up(host: str) -> None:
        assert transparent(lab, host), f"{host} was not transparent without any neighbour"
        install(lab, host, found[host])
        lab.run(host, found[host].set_up)

    def remove(host: str) -> None:
        lab.host(host).run(found[host].remove)
        lab.host(host).run("systemctl restart tproxy-host")

    try:
        on_each(found, set_up)
        yield found
    finally:
        on_each(found, remove)


def test_traffic_flows_as_soon_as_it_runs(lab: Lab, beside: dict[str, Neighbour]) -> None:
    """No run of the role, no second in between; and without us nothing flows."""

    def look(host: str) -> None:
        assert transparent(lab, host), host
        lab.run(host, beside[host].at_work)
        lab.run(host, "systemctl stop tproxy-host")
        assert not transparent(lab, host), host
        lab.run(host, "systemctl start tproxy-host")
        assert transparent(lab, host), host

    on_each(beside, look)


def during(lab: Lab, host: str, command: str) -> dict[str, dict[str, Any]]:
    """What steady requests met while the command ran and a little later."""
    words = lab.run(
        host,
        "ip netns exec client python3 /srv/steady.py & pid=$!; sleep 0.5;"
        f" ({command}) >/srv/said 2>&1; code=$?; sleep 1.5; kill -TERM $pid; wait $pid;"
        " [ $code = 0 ] || { cat /srv/said >&2; exit $code; }",
    )
    return dict(json.loads(words))


def test_whatever_it_is_told_traffic_goes_on(lab: Lab, beside: dict[str, Neighbour]) -> None:
    told: list[str] = []
    broken: list[str] = []

    def tell(host: str) -> None:
        neighbour = beside[host]
        commands = neighbour.commands
        if host == NFT and neighbour.spares_nft:
            commands += neighbour.silent
        # The drop-ins have to do without the guard.
        if host == GUARDED:
            lab.run(host, "systemctl stop tproxy-host-guard")
        for command in commands:
            for family, met in during(lab, host, command).items():
                told.append(f"{host}: {command}: {family}: {met}")
                if met["seen"] or met["longest"] > LONGEST:
                    broken.append(told[-1])
            if not transparent(lab, host):
                broken.append(f"{host}: {command}: dead afterwards")
        if host == GUARDED:
            lab.run(host, "systemctl start tproxy-host-guard")
        lab.run(host, neighbour.at_work)

    on_each(beside, tell)
    print("\n".join(told))
    assert not broken, "\n".join(broken)


def test_what_systemd_is_not_told_the_guard_repairs(lab: Lab, beside: dict[str, Neighbour]) -> None:
    # Debian 13's firewalld spares rules of iptables.
    removes = beside[GUARDED] is not NEIGHBOURS["firewalld"]
    for command in beside[GUARDED].silent if removes else ():
        # Now and then the guard is quicker than this look.
        gone = f"{command}; tproxy-host check >/dev/null; [ $? = 1 ]"
        lab.wait(partial(succeeds, lab, GUARDED, gone), "the command to remove anything of ours")
        lab.wait(partial(transparent, lab, GUARDED), "the guard", seconds=10)
    assert transparent(lab, GUARDED)


OURS = re.compile(r"clearproxy-tproxy-host|DIVERT|haproxy_tproxy|fwmark 0x1/0x1 iif lo")
IPTABLES = re.compile(r"table ip6? (filter|nat|mangle|raw|security) {")


def rules_of_others(lab: Lab, host: str) -> list[str]:
    """Every rule that is not ours, without counters; those of one table in order. iptables' own tables as iptables shows them."""
    blocks = []
    for program in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
        saved = lab.host(host).run(f"{program}-save").stdout
        for table in re.findall(r"(?ms)^\*.*?^COMMIT$", re.sub(r"\[\d+:\d+\]", "", saved)):
            lines = [line for line in table.splitlines() if not OURS.search(line)]
            # A table without rules may come and go with ours.
            if any(not re.fullmatch(r"\*.*|:[A-Z]+ ACCEPT *|COMMIT", line) for line in lines):
                blocks.append("\n".join([program, *lines]))
    nft = lab.host(host).run("nft -s list ruleset 2>/dev/null").stdout
    for table in re.findall(r"(?ms)^table .*?^}$", nft):
        if not IPTABLES.match(table) and not table.startswith("table inet haproxy_tproxy "):
            blocks.append(table)
    rules = lab.run(host, "ip rule; ip -6 rule").splitlines()
    blocks.append("\n".join(line for line in rules if not OURS.search(line)))
    return "\n".join(sorted(blocks)).splitlines()


def test_its_rules_stay_its_own(lab: Lab, beside: dict[str, Neighbour]) -> None:
    look = partial(rules_of_others, lab)
    before = on_each(beside, look)
    # Would a rule that is missing be seen?
    assert all(len(rules) > 10 for rules in before.values())

    try:
        # The part that touches rules; tproxy_hosts shows the whole of it.
        role(lab, "-e", "tproxy_host_state=absent", tasks_from="configure")
        assert on_each(beside, partial(transparent, lab)) == dict.fromkeys(beside, False)
        without = on_each(beside, look)
    finally:
        role(lab, tasks_from="configure")
        on_each(beside, lambda host: lab.run(host, "systemctl daemon-reload"))
    assert on_each(beside, partial(transparent, lab)) == dict.fromkeys(beside, True)
    again = on_each(beside, look)
    for host in beside:
        assert without[host] == before[host], host
        assert again[host] == before[host], host


def test_after_a_reboot_all_are_there(lab: Lab, beside: dict[str, Neighbour]) -> None:
    lab.restart(*beside)

    def look(host: str) -> None:
        lab.wait(partial(transparent, lab, host), f"{host} after the reboot")
        lab.wait(partial(succeeds, lab, host, beside[host].at_work), "the neighbour")
        assert transparent(lab, host), f"{host}: the neighbour came later and broke it"

    on_each(beside, look)
