# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the plan says of other software that could get in the way later."""

from __future__ import annotations

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_parse as parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_firewall import (
    flush_warnings,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FilterTable,
    NftTable,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_routing import warnings_of
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot

# As `ip -N -d -j rule` shows what wg-quick makes.
WG_QUICK = """[
 {"priority": 0, "src": "all", "table": "255", "protocol": "2"},
 {"priority": 98, "src": "all", "table": "254", "suppress_prefixlen": 0, "protocol": "3"},
 {"priority": 99, "not": null, "src": "all", "fwmark": "0xca6c", "table": "51820", "protocol": "3"}
]"""


def test_both_rules_of_a_vpn_before_ours_are_warned_of() -> None:
    rules = {"ipv4": parse.ip_rules(WG_QUICK)}
    suppressing, inverted = warnings_of(Snapshot(rules=rules), Desired(families=("ipv4",)))
    assert "suppress_prefixlen 0" in suppressing
    assert suppressing.endswith("choose a rule_priority below 97")
    assert "not fwmark 0xca6c" in inverted
    assert warnings_of(Snapshot(rules=rules), Desired(families=("ipv4",), rule_priority=50)) == ()


@pytest.mark.parametrize(
    ("tables", "options", "expected"),
    [
        (("firewalld",), {}, 1),
        (("firewalld",), {"guard": True}, 0),
        (("firewalld",), {"firewall": "nftables"}, 0),
        (("firewalld",), {"firewall": "iptables-nft"}, 1),
        (("firewalld",), {"firewall": "iptables-legacy"}, 0),
        (("chains",), {}, 1),
        (("chains",), {"guard": True}, 0),
        (("theirs",), {}, 0),
        (("owned",), {}, 0),
    ],
)
def test_firewalld_flushes_iptables_when_it_loads(
    tables: tuple[str, ...], options: dict[str, object], expected: int
) -> None:
    known = {"owned": NftTable("inet", "firewalld", others=("flag owner", "flag persist"))}
    nft = tuple(known.get(name, NftTable("inet", name)) for name in tables if name != "chains")
    # Its own backend may be iptables.
    chains = FilterTable(("INPUT", "INPUT_ZONES") if "chains" in tables else ("INPUT",))
    snapshot = Snapshot(nft=nft, firewall={"ipv4": {"filter": chains}}, own_kind="nft")
    assert len(flush_warnings(snapshot, Desired(**options))) == expected  # type: ignore[arg-type]
    assert flush_warnings(snapshot, None) == ()


def test_a_drop_in_never_fails_its_unit_and_waits_for_firewalld() -> None:
    for unit in render.FLUSHERS:
        lines = render.drop_in(unit, "/bin/restore").splitlines()
        assert lines[:2] == [render.HEADER, "[Service]"]
        settings = [line.partition("=") for line in lines[2:]]
        assert all(command.startswith("-") for _name, _equals, command in settings)
        waits = [command for _name, _equals, command in settings if "firewall-cmd" in command]
        assert bool(waits) == (unit == "firewalld.service")
        # A unit that cannot be reloaded does not become one that can.
        reloads = any(name == "ExecReload" for name, _equals, _command in settings)
        assert reloads == (unit != "netfilter-persistent.service")
