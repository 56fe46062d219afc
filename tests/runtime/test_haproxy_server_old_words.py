# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks that community.general.haproxy documents as examples, and the outcome they promise.

Only the options are repeated; what they must lead to is asserted here.
"""

from __future__ import annotations

import contextlib
import socket
import typing as t

import pytest
from harness import Haproxy, run_module

Start = t.Callable[..., Haproxy]

WWW = {"backend": "www"}
LONG = {"wait": True, "drain": True, "wait_interval": 60, "wait_retries": 60}

# Options besides host and socket; what web1 is before; then its state in www and in other; its
# health and agent checks in www; whether a session with it survives.
EXAMPLES: dict[str, tuple[dict[str, t.Any], str, tuple[str, str], tuple[bool, bool], bool]] = {
    "disable in a pool": (
        {"state": "disabled", **WWW},
        "ready",
        ("maint", "ready"),
        (True, True),
        True,
    ),
    "disable, also the checks": (
        {"state": "disabled", "health": True, "agent": True},
        "ready",
        ("maint", "maint"),
        (False, False),
        True,
    ),
    "disable in all pools": (
        {"state": "disabled"},
        "ready",
        ("maint", "maint"),
        (True, True),
        True,
    ),
    "disable and wait": (
        {"state": "disabled", "wait": True, **WWW},
        "idle",
        ("maint", "ready"),
        (True, True),
        True,
    ),
    "disable, drain and wait": (
        {"state": "disabled", **WWW, **LONG},
        "idle",
        ("maint", "ready"),
        (True, True),
        True,
    ),
    "disable and drop sessions": (
        {"state": "disabled", "shutdown_sessions": True, **WWW},
        "ready",
        ("maint", "ready"),
        (True, True),
        False,
    ),
    "disable what must exist": (
        {"state": "disabled", "fail_on_not_found": True},
        "ready",
        ("maint", "maint"),
        (True, True),
        True,
    ),
    "enable": ({"state": "enabled", **WWW}, "maint", ("ready", "maint"), (True, True), True),
    "enable and wait": (
        {"state": "enabled", "wait": True, **WWW},
        "maint",
        ("ready", "maint"),
        (True, True),
        True,
    ),
    "enable and wait for a while": (
        {"state": "enabled", "wait": True, "wait_retries": 10, "wait_interval": 5, **WWW},
        "maint",
        ("ready", "maint"),
        (True, True),
        True,
    ),
    "enable with a weight": (
        {"state": "enabled", "weight": 10, **WWW},
        "maint",
        ("ready", "maint"),
        (True, True),
        True,
    ),
    "drain": ({"state": "drain", **WWW}, "ready", ("drain", "ready"), (True, True), True),
}


@pytest.mark.parametrize("case", EXAMPLES)
def test_documented_examples(start_haproxy: Start, echo: int, case: str) -> None:
    options, before, states, checks, survives = EXAMPLES[case]
    line = f"    server web1 127.0.0.1:{echo} check inter 100ms agent-check agent-port 9 agent-inter 1s\n"
    hap = start_haproxy(f"backend www\n{line}backend other\n{line}", default="www", mode="tcp")
    hap.until_up("www/web1", "other/web1")
    if before == "maint":
        for backend in ("www", "other"):
            hap.ask(f"set server {backend}/web1 state maint")
    args = {"socket": str(hap.admin), "host": "web1", **options}
    with contextlib.ExitStack() as stack:
        client = None
        if before == "ready":
            client = stack.enter_context(socket.create_connection(("127.0.0.1", hap.port), 10))
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"
        done = run_module("haproxy_server", args)
        assert done.get("failed") is None, done
        assert done["changed"] is True
        assert (hap.state("www", "web1"), hap.state("other", "web1")) == states
        row = hap.row("www", "web1")
        found = bool(int(row["srv_check_state"]) & 4), bool(int(row["srv_agent_state"]) & 4)
        assert found == checks
        if client is not None:
            alive = b""
            with contextlib.suppress(ConnectionError):
                client.sendall(b"again")
                alive = client.recv(5)
            assert (alive == b"again") is survives
    if options.get("wait") and options["state"] == "enabled":
        assert hap.status("www", "web1") == "UP"
    if "weight" in options:
        assert hap.weight("www", "web1") == 10
    # Other than the old module: the same again is no change.
    assert run_module("haproxy_server", args)["changed"] is False
