# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the guides list is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_probe import HOPS

REPO = Path(__file__).parents[2]
GUIDE = (REPO / "docs/docsite/rst/guide_transparent.rst").read_text(encoding="utf-8")


def test_the_hops() -> None:
    _before, _sign, rest = GUIDE.partition("The hops, in a packet's own order:")
    rows = re.findall(r"^   \* - ``(\w+)``\n     - (.+)$", rest, re.MULTILINE)
    assert rows == list(HOPS.items())


def test_the_classic_values_can_be_set() -> None:
    specs = yaml.safe_load((REPO / "roles/tproxy_host/meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    _before, _sign, rest = GUIDE.partition("As in the recipe")
    rows = re.findall(r"^     - (``tproxy_host_.+)\n     - (.+)$", rest, re.MULTILINE)
    named = set()
    for variables, values in rows:
        for variable, value in zip(
            re.findall("``(.+?)``", variables), re.findall("``(.+?)``", values), strict=True
        ):
            option = options[variable]
            classic = yaml.safe_load(value)
            # Bound to no interface by default: the guard rule is what stands in for it.
            assert classic != option["default"] or variable == "tproxy_host_interfaces", variable
            assert classic in option.get("choices", [classic]), variable
            assert isinstance(classic, {"bool": bool, "str": str, "list": list}[option["type"]])
            named.add(variable)
    assert len(named) == len(options.keys() & named) == 8
