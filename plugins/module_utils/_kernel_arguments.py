# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of tproxy_rules, which tproxy_info has too, as its option `rules`. Private to the collection."""

from __future__ import annotations

import typing as t

RULES: dict[str, dict[str, t.Any]] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "firewall": {
        "type": "str",
        "choices": ["iptables", "iptables-nft", "iptables-legacy", "nftables", "auto"],
        "default": "iptables",
    },
    "families": {
        "type": "list",
        "elements": "str",
        "choices": ["ipv4", "ipv6"],
        "default": ["ipv4", "ipv6"],
    },
    "mark": {"type": "str", "default": "0x1"},
    "mask": {"type": "str", "default": "0x1"},
    "table": {"type": "int", "default": 100},
    "table_name": {"type": "str", "default": "haproxy_tproxy"},
    "rule_priority": {"type": "int", "default": 100},
    "chain": {"type": "str", "default": "DIVERT"},
    "nft_table": {"type": "str", "default": "haproxy_tproxy"},
    "position": {"type": "str", "choices": ["first", "last"], "default": "first"},
    "socket_match": {
        "type": "str",
        "choices": ["transparent", "any"],
        "default": "transparent",
    },
    "icmp": {"type": "bool", "default": True},
    "guard_rule": {"type": "bool", "default": True},
    "rule_protocol": {
        "type": "str",
        "choices": ["kernel", "boot", "static"],
        "default": "kernel",
    },
    "interfaces": {"type": "list", "elements": "str", "default": []},
    "forwarding": {"type": "bool"},
    "send_redirects": {"type": "bool"},
    "rp_filter": {"type": "int", "choices": [0, 1, 2]},
    "guard": {"type": "bool", "default": False},
    "intercepts": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "ports": {
                "type": "list",
                "elements": "str",
                "required": True,
                "aliases": ["port"],
            },
            "to_port": {"type": "int", "required": True},
            "protocol": {"type": "str", "choices": ["tcp"], "default": "tcp"},
            "families": {"type": "list", "elements": "str", "choices": ["ipv4", "ipv6"]},
            "destinations": {"type": "list", "elements": "str", "default": []},
            "sources": {"type": "list", "elements": "str", "default": []},
            "interfaces": {"type": "list", "elements": "str", "default": []},
        },
    },
    "sysctls": {"type": "dict", "default": {}},
}
