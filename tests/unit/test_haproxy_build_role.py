# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the role haproxy_build repeats of its modules is what they say, and each of its own variables comes from somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _build_choice, _build_tls
from ansible_collections.clearproxy.haproxy.plugins.module_utils._build_features import TARGETS
from ansible_collections.clearproxy.haproxy.plugins.modules import haproxy_build_source

ROLE = Path(__file__).resolve().parent.parent.parent / "roles/haproxy_build"
VARIABLES: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text())
OPTIONS: dict[str, Any] = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())[
    "argument_specs"
]["main"]["options"]


def tasks(found: Any) -> Iterator[dict[str, Any]]:
    for task in found:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part, []))


def test_the_headers_that_tell_a_tls_library_are_those_that_are_read() -> None:
    assert tuple(VARIABLES["__haproxy_build_tls_header_files"]) == _build_tls.HEADERS
    names = OPTIONS["haproxy_build_tls_library"]["options"]["name"]["choices"]
    assert set(names) == {name for name, kind in _build_tls.KINDS.items() if kind.since}


def test_sources_targets_and_mirror_are_those_of_the_modules() -> None:
    assert tuple(OPTIONS["haproxy_build_source"]["choices"]) == tuple(_build_choice.SOURCES)
    assert tuple(OPTIONS["haproxy_build_target"]["choices"]) == ("", *TARGETS)
    assert OPTIONS["haproxy_build_mirror"]["default"] == haproxy_build_source.MIRROR


def test_what_is_asked_for_has_all_that_a_release_is_chosen_by() -> None:
    asked = VARIABLES["__haproxy_build_asked"]
    assert set(asked) == set(_build_choice.make_wanted({}))
    for source in _build_choice.SOURCES.values():
        assert set(source) <= set(asked["source"])


def test_every_variable_of_its_own_comes_from_somewhere_and_goes_somewhere() -> None:
    name = re.compile(r"\b__haproxy_build_[a-z0-9_]+")
    made, used = set(VARIABLES), set()
    texts = [(ROLE / "vars/main.yml").read_text()]
    for path in sorted((ROLE / "tasks").glob("*.yml")):
        text = path.read_text()
        texts.append(text)
        for task in tasks(yaml.safe_load(text)):
            made.update(task.get("ansible.builtin.set_fact", {}))
            made.add(task.get("register", ""))
    texts += [path.read_text() for path in (ROLE / "templates").rglob("*.j2")]
    defined = re.compile(r"^ *(?:register: )?(__haproxy_build_[a-z0-9_]+)(?::| *$)", re.M)
    for text in texts:
        used.update(name.findall(defined.sub("", text)))
    assert used - made == set()
    assert made - used - {""} == set()
