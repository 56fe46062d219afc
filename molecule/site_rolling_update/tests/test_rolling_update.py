# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A rolling update under load loses no request, and the same update without the drain does."""

from __future__ import annotations

import json
import time
from pathlib import Path

from lab import NUMBER, REPO, SERVERS, SPREAD, WWW, Lab, Loader, Run

COUNT, RATE = 1000, 20.0
PAGE = "/index.php?ms=100"
STOP = REPO / "molecule/resources/tasks/stop_for_three_seconds.yml"


def update(lab: Lab, playbook: str, *arguments: str) -> Run:
    run = lab.play(playbook, *arguments)
    assert run.code == 0, run.output
    return run


def admin_states(lab: Lab) -> dict[str, str]:
    """backend/server -> srv_admin_state, as HAProxy itself says it."""
    script = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/haproxy/admin.sock');"
        "s.sendall(b'show servers state\\n'); print(s.makefile().read())"
    )
    rows = [line.split() for line in lab.run("proxy", f'python3 -c "{script}"').splitlines()]
    return {f"{r[1]}/{r[3]}": r[6] for r in rows if len(r) > 10 and r[0] != "#"}


def test_every_request_is_answered(lab: Lab) -> None:
    load = Loader(SPREAD, PAGE, f"--count={COUNT}", f"--rate={RATE}")
    # Clients whose cookie names the server that is taken out first must not be lost either.
    sticky = Loader(
        WWW,
        PAGE,
        "--count=300",
        "--rate=6",
        "--header=Cookie: SESSION_COOKIE=app1",
        "--kept-connections=8",
    )
    time.sleep(1)
    update(
        lab,
        "clearproxy.haproxy.rolling_update",
        "-e",
        json.dumps({"rolling_update_tasks": str(STOP)}),
    )
    ended = time.time()
    result, sticky_result = load.result(), sticky.result()

    assert ended < max(r["at"] for r in result["requests"]), "the load ended before the update did"
    assert result["sent"] == result["answered"] == COUNT, result["reasons"]
    assert sticky_result["failed"] == 0, sticky_result["reasons"]
    # Each server was really out: there are seconds in which only the other one answered.
    for server in SERVERS:
        times = sorted(r["at"] for r in result["requests"] if r["server"] == server)
        assert max(b - a for a, b in zip(times, times[1:])) > 3
    assert set(admin_states(lab).values()) == {"0"}


def test_the_same_update_without_the_drain_loses_requests(lab: Lab) -> None:
    """The control: without it the test above could pass for no reason."""
    load = Loader(SPREAD, PAGE, f"--count={COUNT // 2}", f"--rate={RATE}")
    time.sleep(1)
    update(lab, str(REPO / "molecule/resources/update_without_drain.yml"))
    result = load.result()
    assert result["sent"] == COUNT // 2
    assert result["failed"] > 0


def test_a_failing_update_stops_there_and_says_how_to_go_on(lab: Lab, tmp_path: Path) -> None:
    tasks = tmp_path / "tasks.yml"
    tasks.write_text(json.dumps([{"name": "Break", "ansible.builtin.fail": {"msg": "it broke"}}]))
    run = lab.play(
        "clearproxy.haproxy.rolling_update", "-e", json.dumps({"rolling_update_tasks": str(tasks)})
    )
    try:
        assert run.code != 0
        assert "it broke" in run.output
        assert "stays in maintenance" in run.output
        states = admin_states(lab)
        assert {s for s, admin in states.items() if admin != "0"} == {
            s for s in states if s.endswith("/app1")
        }
    finally:
        ready = {"servers": ["app1"], "state": "ready", "wait": True, "wait_timeout": 30}
        back = lab.play(
            [
                {
                    "hosts": "haproxy_proxies",
                    "gather_facts": False,
                    "tasks": [{"clearproxy.haproxy.haproxy_server": ready}],
                }
            ]
        )
    assert back.code == 0, back.output


def test_one_proxy_that_refuses_undoes_the_others(lab: Lab, tmp_path: Path) -> None:
    """The second proxy is the first with a socket that has too few rights."""
    inventory = tmp_path / "two.yml"
    weak = {
        "ansible_connection": "containers.podman.podman",
        "ansible_host": f"clearproxy-{NUMBER}-proxy",
        "ansible_python_interpreter": "/usr/bin/python3",
        "rolling_update_socket": "/run/haproxy/user.sock",
    }
    hosts = {"proxy": {}, "weak": weak}
    inventory.write_text(json.dumps({"all": {"children": {"two_proxies": {"hosts": hosts}}}}))
    variables = {"rolling_update_tasks": str(STOP), "rolling_update_proxies": "two_proxies"}
    run = lab.play(
        "clearproxy.haproxy.rolling_update", "-i", str(inventory), "-e", json.dumps(variables)
    )
    assert run.code != 0
    assert "level admin" in run.output
    assert "It is in service again on proxy." in " ".join(run.output.split())
    assert set(admin_states(lab).values()) == {"0"}
    assert "Stop the application" not in run.output


def test_without_the_operators_tasks_it_says_what_is_missing(lab: Lab) -> None:
    run = lab.play("clearproxy.haproxy.rolling_update")
    assert run.code != 0
    assert "rolling_update_tasks" in run.output
    assert run.changed == 0
