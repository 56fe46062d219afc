# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_build_choose import (
    FilterModule as Choose,
)
from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_build_fingerprint import (
    FilterModule as Fingerprint,
)
from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_build_plan import (
    FilterModule as Plan,
)
from ansible_collections.clearproxy.haproxy.plugins.filter.haproxy_build_wanted import (
    FilterModule as Wanted,
)

plan = Plan().filters()["haproxy_build_plan"]
wanted = Wanted().filters()["haproxy_build_wanted"]
fingerprint = Fingerprint().filters()["haproxy_build_fingerprint"]
choose = Choose().filters()["haproxy_build_choose"]


def test_a_plan_is_plain_data() -> None:
    made = plan({"version": "3.2.26", "openssl": None, "tls_library": None})
    assert set(made) == {"make", "packages", "on", "unlisted", "refusals"}
    assert made["refusals"] == []
    assert made["unlisted"] == ["USE_SYSTEMD"]


def test_the_four_work_together() -> None:
    wish = wanted({"platform": "Debian 12 x86_64"})
    made_of = {
        "source_sha256": "a" * 64,
        "patches": [],
        "make": plan({"version": "3.0.11"})["make"],
        "compiler": "gcc 12",
        "libraries": {},
        "platform": "Debian 12 x86_64",
        "libc": "glibc",
    }
    name = f"3.0.11-{fingerprint(made_of)[:12]}"
    release = {"id": name, "usable": True, "wanted": wish, "compiler": "gcc 12", "built": "2026"}
    info = {"releases": [release], "current": name, "compiler": "gcc 12", "libraries": {}}
    assert choose(info, [], wish) == {"release": release, "where": "installed"}
    # What is not given is taken from the host.
    assert choose({**info, "compiler": "gcc 14"}, [], wish)["where"] == "none"
    assert choose(info, [], wish, compiler="gcc 14")["where"] == "none"
    library = {"libraries": {"libssl3": "1"}}
    info = {
        **info,
        "releases": [{**release, **library}],
        "libraries": {"libssl3": {"installed": "2"}},
    }
    assert choose(info, [], wish)["where"] == "none"
    assert choose(info, [], wish, libraries={})["where"] == "installed"


@pytest.mark.parametrize(
    ("function", "bad", "said"),
    [
        (plan, "3.0", "needs a dictionary"),
        (plan, {"version": "?"}, "haproxy_build_plan: version is '?'"),
        (wanted, [], "needs a dictionary"),
        (wanted, {"source": {"kind": "git"}}, "haproxy_build_wanted: the kind of source is 'git'"),
        (fingerprint, None, "needs a dictionary"),
        (fingerprint, {}, "haproxy_build_fingerprint: the fingerprint lacks source_sha256"),
    ],
)
def test_another_form_is_one_sentence(
    function: t.Callable[..., t.Any], bad: t.Any, said: str
) -> None:
    with pytest.raises(AnsibleFilterError, match=r"^[^\n]+$") as failure:
        function(bad)
    assert said in str(failure.value)


def test_choosing_among_something_else_is_one_sentence() -> None:
    with pytest.raises(AnsibleFilterError, match="haproxy_build_info"):
        choose(None, [], {})
    with pytest.raises(AnsibleFilterError, match="cached is not a list of records"):
        choose({"releases": []}, "x", {})
