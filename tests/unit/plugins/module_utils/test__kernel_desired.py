# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options: what is refused before any host is looked at; records and names of sysctls."""

from __future__ import annotations

import json
import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    Desired,
    sysctl_name,
    sysctl_path,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Record

OPTIONS: dict[str, t.Any] = {
    "firewall": "iptables",
    "families": ["ipv4", "ipv6"],
    "mark": "0x1",
    "mask": "0x1",
    "table": 100,
    "table_name": "haproxy_tproxy",
    "rule_priority": 100,
    "chain": "DIVERT",
    "interfaces": [],
    "forwarding": None,
    "send_redirects": None,
    "sysctls": {},
}


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("families", [], "at least one"),
        ("families", ["ipv4", "ipv5"], "'ipv5'"),
        ("firewall", "pf", "'pf'"),
        ("nft_table", "", "cannot be the name"),
        ("nft_table", "7x", "cannot be the name"),
        ("nft_table", "a{}", "cannot be the name"),
        ("nft_table", "x" * 65, "cannot be the name"),
        ("position", "middle", "'middle' is none of first, last"),
        ("socket_match", "wildcard", "'wildcard' is none of transparent, any"),
        ("rule_protocol", "zebra", "'zebra' is none of kernel, boot, static"),
        ("mark", "one", "'one' is not a 32-bit number"),
        ("mark", "0x100000000", "not a 32-bit number"),
        ("mark", "-1", "not a 32-bit number"),
        ("mark", True, "not a 32-bit number"),
        ("mark", "0", "0 is what every unmarked packet has"),
        ("mark", "0x3", "0x3 has bits outside the mask 0x1"),
        ("mask", "0", "0 selects no bit"),
        ("mask", "x", "not a 32-bit number"),
        ("table", 0, "belong to the kernel"),
        ("table", 253, "belong to the kernel"),
        ("table", 254, "belong to the kernel"),
        ("table", 255, "belong to the kernel"),
        ("table", -5, "cannot be used"),
        ("table", 1 << 32, "cannot be used"),
        ("table_name", "main", "cannot be used"),
        ("table_name", "a b", "cannot be used"),
        ("table_name", "7", "cannot be used"),
        ("table_name", "all", "cannot be used"),
        ("rule_priority", 0, "not between 1 and 32764"),
        ("rule_priority", 32765, "not between 1 and 32764"),
        ("chain", "PREROUTING", "a name of iptables itself"),
        ("chain", "ACCEPT", "a name of iptables itself"),
        ("chain", "", "cannot be the name"),
        ("chain", "-j", "cannot be the name"),
        ("chain", "x\nCOMMIT", "cannot be the name"),
        ("chain", "x" * 29, "cannot be the name"),
        ("interfaces", ["eth0", "eth+"], "'eth+'"),
        ("interfaces", ["x" * 16], "cannot be the name"),
        ("interfaces", ["a b"], "cannot be the name"),
        ("interfaces", ["a#b"], "cannot be the name"),
        ("interfaces", ["../x"], "cannot be the name"),
        ("interfaces", [""], "cannot be the name"),
        ("interfaces", ["lo"], "cannot lead to servers"),
        ("sysctls", {"kernel.panic": 1}, "not a name below net"),
        ("sysctls", {"net/../kernel/panic": 1}, "not a name below net"),
        ("sysctls", {"net.ipv4.x\ny": 1}, "not a name below net"),
    ],
)
def test_refused_with_the_options_name(option: str, value: t.Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Desired.from_options({**OPTIONS, option: value})
    assert caught.value.details["option"] == option
    assert str(caught.value).startswith(f"{option}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value).replace("x\nCOMMIT", "").replace("x\ny", "")


def test_marks_are_32_bit_numbers_in_any_notation() -> None:
    for text in ("256", "0x100", " 0x0100 ", 256):
        assert Desired.from_options({**OPTIONS, "mark": text, "mask": "0xffffffff"}).mark == 256


def test_a_chain_of_nft_begins_with_a_letter() -> None:
    for firewall in ("nftables", "auto"):
        with pytest.raises(InputError, match=r"^chain: '_x': nft wants a letter"):
            Desired.from_options({**OPTIONS, "firewall": firewall, "chain": "_x"})
    assert Desired.from_options({**OPTIONS, "chain": "_x"}).chain == "_x"


def test_what_is_not_given_is_the_default() -> None:
    assert Desired.from_options({}) == Desired.from_options(OPTIONS) == Desired()


def test_order_and_repetition_of_families_and_interfaces_do_not_matter() -> None:
    desired = Desired.from_options(
        {**OPTIONS, "families": ["ipv6", "ipv4", "ipv6"], "interfaces": ["b", "a", "b"]}
    )
    assert desired.families == ("ipv4", "ipv6")
    assert desired.interfaces == ("b", "a")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.tcp_mtu_probing", "net/ipv4/tcp_mtu_probing"),
        ("net/ipv4/conf/eth0.7/rp_filter", "net/ipv4/conf/eth0.7/rp_filter"),
        ("net.ipv4.conf.eth0/7.rp_filter", "net/ipv4/conf/eth0.7/rp_filter"),
        ("net.ipv4.conf.*.rp_filter", "net/ipv4/conf/*/rp_filter"),
        ("net.ipv4.ip_forward", "net/ipv4/conf/all/forwarding"),
    ],
)
def test_names_of_sysctls(name: str, path: str) -> None:
    assert sysctl_path(name) == path
    assert sysctl_path(sysctl_name(path)) == path


def test_records_survive_the_file() -> None:
    record = Record(
        desired=Desired(interfaces=("a", "b"), sysctls=(("net/ipv4/x", "1"),), forwarding=True),
        earlier=(Desired(mark=2, mask=2), Desired(families=("ipv6",))),
        sysctls=(("net/ipv4/x", "0", "net/ipv4/x"),),
        directories=("/etc/tproxy-host",),
        tables=("ipv6",),
        advertised=("a",),
    )
    assert Record.load(record.dump()) == record
    assert Record.load(Record().dump()) == Record()


def test_a_record_of_one_run_alone_is_read_too() -> None:
    record = Record(desired=Desired(table=7))
    data = json.loads(record.dump())
    del data["earlier"]
    assert Record.load(json.dumps(data)) == record


def test_what_is_remembered_meanwhile_is_all_of_both() -> None:
    old = Record(
        desired=Desired(table=1),
        earlier=(Desired(table=2), Desired(table=3)),
        sysctls=(("net/a", "0", "net/a"), ("net/b", "0", "net/a")),
        directories=("/a",),
        tables=("ipv6",),
        advertised=("x",),
    )
    new = Record(
        desired=Desired(table=3),
        sysctls=(("net/b", "1", "net/b"), ("net/c", "1", "net/c")),
        directories=("/a", "/b"),
        tables=("ipv4",),
    )
    assert old.before(new) == Record(
        desired=Desired(table=3),
        earlier=(Desired(table=1), Desired(table=2)),
        sysctls=(("net/a", "0", "net/a"), ("net/b", "0", "net/a"), ("net/c", "1", "net/c")),
        directories=("/a", "/b"),
        tables=("ipv4", "ipv6"),
        advertised=("x",),
    )
    assert new.before(new) == new


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"desired": 1}', "null"])
def test_an_unreadable_record_is_none(text: str | None) -> None:
    assert Record.load(text) == Record()
