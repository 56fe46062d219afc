# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The built collection, installed alone into an empty path: what a user gets."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

INSTALLED = Path(os.environ["ANSIBLE_COLLECTIONS_PATH"]) / "ansible_collections/clearproxy/haproxy"


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=cwd, check=False
    )


def test_only_what_users_need_is_in_it() -> None:
    top = {path.name for path in INSTALLED.iterdir()}
    assert {"plugins", "roles", "playbooks", "meta", "docs", "README.md", "LICENSES"} <= top
    assert not top & {"tests", "molecule", "scripts", ".ci", ".git", "benchmarks"}


def test_every_module_and_role_shows_its_documentation() -> None:
    modules = {p.stem for p in (INSTALLED / "plugins/modules").glob("*.py")}
    listed = json.loads(run("ansible-doc", "--list", "--json", "clearproxy.haproxy").stdout)
    assert {f"clearproxy.haproxy.{name}" for name in modules} == set(listed)
    roles = json.loads(
        run("ansible-doc", "-t", "role", "--list", "--json", "clearproxy.haproxy").stdout
    )
    assert {f"clearproxy.haproxy.{p.name}" for p in (INSTALLED / "roles").iterdir()} == set(roles)


@pytest.mark.parametrize("playbook", ["site", "rolling_update"])
def test_playbooks_are_found_by_name(playbook: str, tmp_path: Path) -> None:
    inventory = tmp_path / "hosts"
    inventory.write_text("[haproxy_proxies]\nproxy\n[app_servers]\napp1\n")
    done = run(
        "ansible-playbook",
        "-i",
        str(inventory),
        "--syntax-check",
        f"clearproxy.haproxy.{playbook}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_play_runs_from_it(tmp_path: Path) -> None:
    """A task of the installed module fails for the right reason: there is no such socket."""
    play = tmp_path / "play.yml"
    play.write_text(
        json.dumps(
            [
                {
                    "hosts": "localhost",
                    "gather_facts": False,
                    "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"},
                    "tasks": [
                        {
                            "clearproxy.haproxy.haproxy_server": {
                                "socket": str(tmp_path / "absent.sock"),
                                "servers": ["app1"],
                                "state": "ready",
                            }
                        }
                    ],
                }
            ]
        )
    )
    done = run("ansible-playbook", "-i", "localhost,", "-c", "local", str(play), cwd=tmp_path)
    assert done.returncode != 0
    assert "absent.sock" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
