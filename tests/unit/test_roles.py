# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every role promises: its variables are typed, documented and have the defaults that they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).resolve().parent.parent.parent / "roles"
ROLE_NAMES = sorted(path.name for path in ROLES.iterdir())


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(params=ROLE_NAMES)
def role(request: pytest.FixtureRequest) -> Path:
    return ROLES / request.param


def entry_points(role: Path) -> dict[str, dict[str, Any]]:
    return dict(load(role / "meta/argument_specs.yml")["argument_specs"])


def test_all_four_roles_are_there() -> None:
    assert ROLE_NAMES == ["haproxy_affinity", "haproxy_build", "tproxy_backend", "tproxy_host"]


def test_defaults_are_the_argument_specs(role: Path) -> None:
    defaults = load(role / "defaults/main.yml")
    options = entry_points(role)["main"]["options"]
    assert list(options) == list(defaults)
    for name, option in options.items():
        assert name.startswith(f"{role.name}_")
        assert option["type"]
        assert option["description"]
        # A default that is an expression is described, not repeated.
        if "default" in option:
            assert option["default"] == defaults[name], name


def test_every_entry_point_has_its_tasks_and_every_option_is_typed(role: Path) -> None:
    points = entry_points(role)
    assert {"main", "preflight"} <= set(points)

    def check(options: dict[str, Any], where: str) -> None:
        for name, option in options.items():
            assert "type" in option, f"{where}.{name}"
            check(option.get("options", {}), f"{where}.{name}")

    for name, point in points.items():
        assert (role / "tasks" / f"{name}.yml").is_file()
        assert point["short_description"]
        check(point.get("options", {}), name)


def test_the_readme_has_a_heading_for_every_variable(role: Path) -> None:
    headings = {
        line.lstrip("# ").strip().strip("`")
        for line in (role / "README.md").read_text().splitlines()
        if line.startswith("#")
    }
    assert set(load(role / "defaults/main.yml")) <= headings


def test_every_default_has_a_comment(role: Path) -> None:
    paragraphs = (role / "defaults/main.yml").read_text().split("\n\n")
    for paragraph in paragraphs:
        if f"\n{role.name}_" in f"\n{paragraph}":
            assert paragraph.lstrip().startswith("#"), paragraph
