# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of features, against what HAProxy lists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from harness import VERSIONS

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _build_features as facts
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_plan import make_plan

# Listed, and no choice of the Makefile's.
NO_CHOICE = re.compile(r"ACME|HAVE_.+")


@pytest.fixture(params=VERSIONS)
def report(request: pytest.FixtureRequest, binaries: Path) -> str:
    command = [str(binaries / request.param / "run"), "-vv"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def version_of(report: str) -> facts.Version:
    version = facts.parse_version(report.split()[2])
    assert version is not None
    return version


def listed(report: str) -> dict[str, bool]:
    found = re.search(r"^Feature list *: *(.+)$", report, re.MULTILINE)
    assert found is not None
    return {
        f"USE_{word[1:]}": word[0] == "+"
        for word in found[1].split()
        if not NO_CHOICE.fullmatch(word[1:])
    }


def test_it_lists_what_the_table_says(report: str) -> None:
    branch = version_of(report).branch
    known = {
        name
        for name in facts.FEATURES
        if facts.knows(branch, name) and not facts.is_unlisted(branch, name)
    }
    assert set(listed(report)) == known


def test_what_debian_built_is_planned_too(report: str) -> None:
    library = re.search(r"^Built with .+ version : OpenSSL (\S+)", report, re.MULTILINE)
    assert library is not None
    plan = make_plan(
        {
            "version": version_of(report).text,
            "features": {name: True for name, on in listed(report).items() if on},
            "openssl": library[1],
        }
    )
    assert plan.refusals == []
    assert set(plan.on) - set(plan.unlisted) <= {n for n, on in listed(report).items() if on} | set(
        facts.BASE
    )
