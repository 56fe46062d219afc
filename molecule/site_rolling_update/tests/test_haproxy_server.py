# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""haproxy_server on a real proxy: what it refuses, it refuses in one sentence."""

from __future__ import annotations

from typing import Any

from lab import Lab, Run


def task(lab: Lab, options: dict[str, Any], *arguments: str) -> Run:
    return lab.play(
        [
            {
                "hosts": "haproxy_proxies",
                "gather_facts": False,
                "tasks": [{"clearproxy.haproxy.haproxy_server": options}],
            }
        ],
        *arguments,
    )


def refused(run: Run, *words: str) -> None:
    assert run.code != 0
    assert run.changed == 0
    assert "Traceback" not in run.output
    for word in words:
        assert word in run.output, run.output


def test_an_unknown_server_fails(lab: Lab) -> None:
    refused(task(lab, {"servers": ["app9"], "state": "drain"}), "app9")


def test_a_missing_socket_fails(lab: Lab) -> None:
    options = {"socket": "/run/haproxy/nobody.sock", "servers": ["app1"], "state": "drain"}
    refused(task(lab, options), "/run/haproxy/nobody.sock")


def test_a_socket_of_level_user_fails(lab: Lab) -> None:
    """haproxy_affinity's second socket of the lab has level user."""
    options = {"socket": "/run/haproxy/user.sock", "servers": ["app1"], "state": "drain"}
    refused(task(lab, options), "level", "admin", "/run/haproxy/user.sock")


def test_drained_and_back_twice_each(lab: Lab) -> None:
    for state in ("drain", "ready"):
        options = {"servers": ["app2"], "state": state, "wait": True, "wait_timeout": 30}
        ahead, done, again = task(lab, options, "--check"), task(lab, options), task(lab, options)
        assert [ahead.code, done.code, again.code] == [0, 0, 0], ahead.output + done.output
        assert [ahead.changed, done.changed, again.changed] == [1, 1, 0]
