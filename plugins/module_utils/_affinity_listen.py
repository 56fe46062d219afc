# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Judge what the probe saw on the ports that HAProxy is to have; private to the collection, pure.

An observation is what the role's probe returns for one wanted bind:
C({address, port, where, state: free|busy|absent|unknown, listeners: [{address, port, pid, command, unit}]}).
C(busy) is the kernel's own answer to a trial bind(2), so wildcards and IPv6-only sockets need no guessing here.
"""

from __future__ import annotations

import typing as t


def conflicts(observations: t.Iterable[t.Mapping[str, t.Any]], unit: str) -> list[str]:
    """Return one sentence for each wanted bind that something other than the service C(unit) holds."""
    found = []
    for seen in observations:
        if seen["state"] != "busy":
            continue
        others = [entry for entry in seen["listeners"] if entry.get("unit") != unit]
        if seen["listeners"] and not others:
            continue
        if others:
            first = others[0]
            who = f"{first.get('command') or 'a process'} (pid {first.get('pid') or 'unknown'}"
            who += f", {first['unit']})" if first.get("unit") else ")"
            who += f" listening on {_pair(first['address'], first['port'])}"
        else:
            who = "a process that cannot be seen from here"
        found.append(
            f"{seen['where']}: {_pair(seen['address'], seen['port'])} is in use by {who};"
            " stop it or choose another port."
        )
    return found


def missing_addresses(observations: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    """Return one sentence for each wanted bind whose address the host does not have and would need."""
    return [
        f"{seen['where']}: {_pair(seen['address'], seen['port'])} cannot be bound now, the host does not"
        " have that address (yet)."
        for seen in observations
        if seen["state"] == "absent" and not seen.get("transparent")
    ]


def not_listening(observations: t.Iterable[t.Mapping[str, t.Any]], unit: str) -> list[str]:
    """Return one sentence for each wanted bind on which the service C(unit) does not listen."""
    found = []
    for seen in observations:
        if not any(entry.get("unit") == unit for entry in seen["listeners"]):
            found.append(
                f"{seen['where']}: {unit} does not listen on {_pair(seen['address'], seen['port'])}."
            )
    return found


def _pair(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
