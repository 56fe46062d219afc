# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every module of the admin socket: the least it needs to do something, and where its texts go."""

from __future__ import annotations

import dataclasses
import importlib
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import MODULES, REPO, Certificates

# Those that never talk to HAProxy.
OTHERS = {"haproxy_build_info", "haproxy_build_release", "haproxy_build_source"}
NAMES = sorted(
    path.stem
    for path in (REPO / "plugins" / "modules").glob("haproxy_*.py")
    if path.stem not in OTHERS
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What the modules work on; its files lie beside HAProxy's configuration."""

    directory: Path
    certificate: str

    @property
    def map(self) -> str:
        return str(self.directory / "hosts.map")

    @property
    def acl(self) -> str:
        return str(self.directory / "blocked.lst")

    @property
    def pem(self) -> str:
        return str(self.directory / "www.pem")

    @property
    def crt_list(self) -> str:
        return str(self.directory / "list.txt")

    def config(self, port: int) -> str:
        """Writes the files, and returns the sections. Nothing may change what is named canary."""
        Path(self.map).write_text("one 1\ntwo 2\n")
        Path(self.acl).write_text("one\n")
        Path(self.pem).write_text(self.certificate)
        Path(self.crt_list).write_text(f"{self.pem}\n")
        return (
            "backend app\n"
            "    server s1 127.0.0.1:1 cookie c1\n"
            "    server s2 127.0.0.1:1\n"
            f"    http-request set-header x %[path,map({self.map})]\n"
            f"    http-request deny if {{ path -f {self.acl} }}\n"
            "    cookie C insert\n"
            "backend canary\n    server s1 127.0.0.1:1 weight 100\n"
            "backend users\n    stick-table type string len 2000 size 10k expire 1h store gpc0\n"
            f"frontend secured\n    bind 127.0.0.1:{port} ssl crt-list {self.crt_list}\n"
        )

    def arguments(self, module: str) -> dict[str, t.Any]:
        """What makes the module send at least one command, or at least read."""
        known: dict[str, dict[str, t.Any]] = {
            "haproxy_acl": {"acl": self.acl, "entries": ["two"]},
            "haproxy_backend": {"backend": "app", "dynamic_cookie_key": "secret"},
            "haproxy_certificate": {"name": self.pem, "content": self.certificate, "force": True},
            "haproxy_command": {"commands": ["set server app/s1 weight 2"]},
            "haproxy_dynamic_server": {
                "backend": "app",
                "name": "new",
                "address": "127.0.0.1",
                "port": 1,
            },
            "haproxy_frontend": {"frontends": ["front"], "maxconn": 100},
            "haproxy_global": {"maxconn": 100},
            "haproxy_info": {"gather": ["all"]},
            "haproxy_map": {"map": self.map, "entries": {"three": "3"}},
            "haproxy_server": {"backend": "app", "servers": ["s1"], "weight": "7"},
            "haproxy_stick_table": {
                "table": "users",
                "entries": [{"key": "k", "data": {"gpc0": 1}}],
            },
        }
        return known[module]


def scene(directory: Path, certificates: Certificates) -> Scene:
    return Scene(directory, certificates.server.read_text())


Setter = Callable[[str], dict[str, t.Any]]

# Options whose form no argument spec tells: what each may hold, with the text in it.
FORMS: dict[tuple[str, str], dict[str, Callable[[str], t.Any]]] = {
    ("haproxy_acl", "entries"): {"entry": lambda text: [text]},
    ("haproxy_map", "entries"): {
        "key": lambda text: [{"key": text, "value": "v"}],
        "value": lambda text: [{"key": "k", "value": text}],
        "name": lambda text: {text: "v"},
        "absent": lambda text: [text],
    },
    ("haproxy_command", "commands"): {
        "command": lambda text: [text],
        "payload": lambda text: [{"command": "add map m", "payload": text}],
    },
    ("haproxy_stick_table", "entries.data"): {"name": lambda text: {text: 1}},
    ("haproxy_stick_table", "where.value"): {"value": lambda text: text},
}


def spec(module: str) -> dict[str, t.Any]:
    found = importlib.import_module(f"{MODULES}.{module}").argument_spec()
    return t.cast("dict[str, t.Any]", found)


def texts(module: str) -> Iterator[tuple[str, Callable[[str], t.Any], str]]:
    """Every place for a text in the module's options: its name, how to fill it, the option."""
    for option, described in spec(module).items():
        for place, fill in _places(module, option, described):
            yield place, fill, option


def _places(
    module: str, option: str, described: dict[str, t.Any]
) -> Iterator[tuple[str, Callable[[str], t.Any]]]:
    kind, elements = described.get("type", "str"), described.get("elements")
    if "choices" in described:
        return
    if kind in ("raw", "dict") and "options" not in described:
        for name, form in FORMS[module, option].items():
            yield f"{option}:{name}", form
    elif kind in ("str", "path", "json", "jsonarg"):
        yield option, lambda text: text
    elif kind == "list" and elements in ("str", "path", "raw"):
        yield option, lambda text: [text]
    elif "options" in described:
        needed = {
            name: _example(inner)
            for name, inner in described["options"].items()
            if inner.get("required")
        }
        for name, inner in described["options"].items():
            for place, fill in _places(module, f"{option}.{name}", inner):

                def whole(
                    text: str,
                    name: str = name,
                    fill: Callable[[str], t.Any] = fill,
                    needed: dict[str, t.Any] = needed,
                ) -> t.Any:
                    entry = {**needed, name: fill(text)}
                    return [entry] if kind == "list" else entry

                yield place, whole


def _example(described: dict[str, t.Any]) -> t.Any:
    if "choices" in described:
        return described["choices"][0]
    return 1 if described.get("type") in ("int", "float") else "x"
