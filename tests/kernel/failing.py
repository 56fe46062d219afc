# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Programs that fail just once, so that a run ends in the middle of its steps."""

from __future__ import annotations

import contextlib
import typing as t

from hosts import Host

_COUNT = "/var/tmp/calls"
# What changes the kernel. `ip` keeps what it did until then, all others do nothing or everything.
_PROGRAM = """#!/bin/sh
number=0
case "$(readlink /proc/self/ns/net) $*" in '{namespace} '*'{arguments}'*)
    number=$(($(cat {count}) + 1))
    echo $number >{count}
esac
[ "$number" -ne {failing} ] || {{ {part}; echo 'no more' >&2; exit 1; }}
exec {real} "$@"
"""


@contextlib.contextmanager
def failing(host: Host, number: int) -> t.Iterator[t.Callable[[], int]]:
    """The NUMBERth call that changes the kernel fails, 0 for none; gives how many there have been."""
    namespace = host.sh("readlink /proc/self/ns/net").strip()
    programs = {"ip": "-batch", "nft": "-f"}
    for name in ("iptables", "ip6tables", "iptables-legacy", "ip6tables-legacy"):
        programs[f"{name}-restore"] = "--noflush"
    host.sh(f"mkdir -p /usr/local/sbin; echo 0 >{_COUNT}")
    script = []
    for program, arguments in programs.items():
        real = host.sh(f"command -v {program}").strip()
        text = _PROGRAM.format(
            namespace=namespace,
            arguments=arguments,
            count=_COUNT,
            failing=number or -1,
            part=f'head -n 1 | {real} "$@"' if program == "ip" else ":",
            real=real,
        )
        path = f"/usr/local/sbin/{program}"
        script.append(f"cat >{path} <<'END'\n{text}END\nchmod +x {path}")
    host.sh("\n".join(script))
    try:
        yield lambda: int(host.sh(f"cat {_COUNT}"))
    finally:
        host.sh(f"rm {_COUNT} " + " ".join(f"/usr/local/sbin/{name}" for name in programs))
