# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of everything that runs beside us share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lab import TPROXY_HOSTS, Lab, Run

CLIENTS = ("10.99.1.11", "fd00:99:1::11")


def transparent(lab: Lab, host: str) -> bool:
    """Both families, in one command."""
    ask = "ip netns exec client curl -gsSf --max-time 3 http://10.99.1.2/ http://[fd00:99:1::2]/"
    return tuple(lab.host(host).run(ask).stdout.split()) == CLIENTS


def succeeds(lab: Lab, host: str, command: str) -> bool:
    return bool(lab.host(host).run(command).rc == 0)


def on_each(hosts: Iterable[str], do: Callable[[str], Any]) -> dict[str, Any]:
    """At once: most of the time goes by in waiting."""
    with ThreadPoolExecutor(len(TPROXY_HOSTS)) as pool:
        return dict(zip(hosts, pool.map(do, hosts)))


def role(lab: Lab, *arguments: str, hosts: str = "tproxy_hosts", tasks_from: str = "main") -> Run:
    task = {"name": "clearproxy.haproxy.tproxy_host", "tasks_from": tasks_from}
    plays: list[dict[str, Any]] = [
        {"hosts": hosts, "tasks": [{"ansible.builtin.include_role": task}]}
    ]
    run = lab.play(plays, *arguments)
    assert run.code == 0, run.output
    return run
