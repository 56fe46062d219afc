# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel side's only I/O: reads, probes, applies. Private to the collection."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import socket
import subprocess
import tempfile
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_parse as parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_return as return_path,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error, InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    BUILTIN_CHAINS,
    FAMILIES,
    RTPROT_NAMES,
    Desired,
    FilterTable,
    IpRule,
    Plan,
    Record,
    Route,
    Snapshot,
    TableName,
    sysctl_name,
)

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds for one program. iptables waits for its lock, everything else answers at once.
_TIMEOUT = 60

# ip(7), ipv6(7); Python 3.9's socket module does not know them.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
# Documentation addresses (RFC 5737, RFC 3849): on no host of anybody.
_FOREIGN = {"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}

_RT_TABLES = (
    "/etc/iproute2/rt_tables",
    "/etc/iproute2/rt_tables.d/*.conf",
    "/usr/share/iproute2/rt_tables",
    "/usr/share/iproute2/rt_tables.d/*.conf",
    "/usr/lib/iproute2/rt_tables",
)


class ProgramMissing(Error):
    """A program that the task needs is not installed."""


class Host:
    """The host that this runs on, or rather the network namespace that this runs in."""

    def __init__(self, *, missing_programs_ok: bool = False) -> None:
        # Check mode on a fresh host comes before the packages: what cannot be looked at is listed,
        # not refused.
        self.missing_programs_ok = missing_programs_ok
        self.unseen: list[str] = []

    # Programs

    def find(self, program: str) -> str | None:
        return shutil.which(program, path=_PATH)

    def run(self, *argv: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        program = self.find(argv[0])
        if program is None:
            raise ProgramMissing(
                f"the program {argv[0]} is not installed on this host; install its package "
                "(Debian: "
                f"{'iproute2' if argv[0] == 'ip' else 'iptables' if 'tables' in argv[0] else argv[0]})"
            )
        try:
            return subprocess.run(
                [program, *argv[1:]],
                input=text,
                stdin=subprocess.DEVNULL if text is None else None,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
                env={"PATH": _PATH, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise Error(f"`{' '.join(argv)}` did not end within {_TIMEOUT} seconds") from None
        except OSError as exc:
            raise Error(f"cannot run {program}: {exc.strerror}") from None

    def answer(self, *argv: str) -> str:
        """What a reading program prints; an Error with its own words if it fails."""
        done = self.run(*argv)
        if done.returncode:
            remedy = (
                "; install the complete iptables package, which can read every rule of this host"
                if "tables" in argv[0]
                else ""
            )
            raise Error(f"`{' '.join(argv)}` failed: {_first_line(done.stderr)}{remedy}")
        return done.stdout

    def _see(self, *argv: str) -> str | None:
        try:
            return self.answer(*argv)
        except ProgramMissing as exc:
            if not self.missing_programs_ok:
                raise
            if str(exc) not in self.unseen:
                self.unseen.append(str(exc))
            return None

    # Reading

    def read(self, options: Desired) -> Snapshot:
        """Everything that a plan for these options looks at."""
        record = Record.load(self.file(render.RECORD))
        tables = {options.table} | ({record.desired.table} if record.desired else set())
        names = self.table_names()
        return Snapshot(
            firewall={
                family: self.firewall(family, needed=family in options.families)
                for family in FAMILIES
            },
            rules={family: self.rules(family, names) for family in FAMILIES},
            routes={
                family: {table: self.routes(family, table) for table in tables}
                for family in FAMILIES
            },
            sysctls=self.sysctls(options, record),
            interfaces=self.interfaces(),
            advertised=self.advertised(),
            table_names=names,
            files={path: self.file(path) for path in (*render.FILES, render.RECORD)},
            missing_directories=self.missing_directories(),
            record=record,
        )

    def firewall(self, family: str, *, needed: bool) -> dict[str, FilterTable]:
        # Without -t: naming a table would make iptables-legacy load it.
        try:
            text = self._see(f"{render.IPTABLES[family]}-save") if self.has_family(family) else None
        except Error:
            if needed:
                raise
            text = None
        return parse.iptables_save(text or "")

    def rules(self, family: str, names: t.Iterable[TableName]) -> tuple[IpRule, ...]:
        if not self.has_family(family):
            return ()
        return parse.ip_rules(
            self._see("ip", render.IP_OPTION[family], "-N", "-d", "-j", "rule") or "", names
        )

    def routes(self, family: str, table: int) -> tuple[Route, ...]:
        if not self.has_family(family):
            return ()
        try:
            text = self._see(
                "ip",
                render.IP_OPTION[family],
                "-N",
                "-d",
                "-j",
                "route",
                "show",
                "table",
                str(table),
            )
        except ProgramMissing:
            raise
        except Error as exc:
            # The kernel makes a table with its first route.
            if "table does not exist" not in str(exc):
                raise
            text = None
        return parse.ip_routes(text or "")

    def advertised(self) -> tuple[str, ...]:
        if not self.has_family("ipv6"):
            return ()
        routes = parse.ip_routes(
            self._see("ip", "-6", "-N", "-d", "-j", "route", "show", "default") or ""
        )
        learned = [route.device for route in routes if RTPROT_NAMES.get(route.protocol) == "ra"]
        return tuple(sorted({device for device in learned if device is not None}))

    def interfaces(self) -> tuple[str, ...]:
        return (
            tuple(sorted(os.listdir("/sys/class/net")))
            if not self.find("ip")
            else parse.link_names(self.answer("ip", "-j", "link"))
        )

    def has_family(self, family: str) -> bool:
        return os.path.isdir(f"/proc/sys/net/{family}")

    def sysctls(self, options: Desired, record: Record) -> dict[str, str]:
        patterns = [
            "net/ipv4/conf/*/forwarding",
            "net/ipv4/conf/*/send_redirects",
            "net/ipv4/conf/all/accept_redirects",
            "net/ipv6/conf/*/forwarding",
            "net/ipv6/conf/*/accept_ra",
            *(path for path, _value in options.sysctls),
            *(path for path, _value, _cause in record.sysctls),
        ]
        values: dict[str, str] = {}
        for pattern in patterns:
            for path in sorted(glob.glob(f"/proc/sys/{pattern}")):
                text = self.file(path)
                if text is not None:
                    values[path[len("/proc/sys/") :]] = " ".join(text.split())
        return values

    def table_names(self) -> tuple[TableName, ...]:
        names: list[TableName] = []
        for pattern in _RT_TABLES:
            for path in sorted(glob.glob(pattern)):
                names += parse.rt_tables(self.file(path) or "", path)
        return tuple(names)

    def file(self, path: str) -> str | None:
        try:
            with open(path, encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise Error(f"cannot read {path}: {exc.strerror}") from None

    def missing_directories(self) -> tuple[str, ...]:
        """Those that our files need, parents first."""
        missing: list[str] = []
        for path in (*render.FILES, render.RECORD):
            parents = []
            parent = os.path.dirname(path)
            while not os.path.isdir(parent):
                parents.append(parent)
                parent = os.path.dirname(parent)
            missing += [entry for entry in reversed(parents) if entry not in missing]
        return tuple(missing)

    # Probing

    def probe(self, desired: Desired) -> list[str]:
        """Tries the very files of the boot unit in a scratch network namespace, and a foreign source address.

        Raises InputError naming what the kernel or the programs lack. Returns warnings: what could not be tried.
        """
        for family in desired.families:
            self._probe_family(family)
            self._probe_transparent(family)
        if self.missing_programs_ok and self.unseen:
            return [
                "the kernel's support of the firewall rules was not probed, because programs "
                "are missing"
            ]
        scratch = self._scratch()
        if scratch is None:
            return [
                "the kernel's support was not probed, because this host allows no scratch "
                "network namespace"
            ]
        for family in desired.families:
            done = self.run(
                *(*scratch, "sh", "-c"),
                'ip link set lo up && printf "%s" "$1" | ip "$2" -batch - && printf "%s" "$3" | "$4-restore" --noflush --wait=10',
                *("probe", render.routing_file(desired, family), render.IP_OPTION[family]),
                *(render.firewall_file(desired, family), render.IPTABLES[family]),
            )
            if done.returncode:
                raise self._diagnosis(scratch, family, done.stderr)
        return []

    def _probe_family(self, family: str) -> None:
        if not self.has_family(family):
            raise InputError(
                f"families: the kernel of this host has no {family} (/proc/sys/net/{family} is "
                "missing); "
                f"take {family} out, or boot a kernel with it",
                option="families",
            )
        if (
            family == "ipv6"
            and (self.file("/proc/sys/net/ipv6/conf/lo/disable_ipv6") or "").strip() == "1"
        ):
            raise InputError(
                "families: ipv6 is switched off on this host (net.ipv6.conf.lo.disable_ipv6 is "
                "1); take ipv6 out, or switch it on",
                option="families",
            )

    def _probe_transparent(self, family: str) -> None:
        kind, level, option, name = (
            (socket.AF_INET, socket.IPPROTO_IP, _IP_TRANSPARENT, "IP_TRANSPARENT")
            if family == "ipv4"
            else (socket.AF_INET6, socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, "IPV6_TRANSPARENT")
        )
        try:
            with socket.socket(kind, socket.SOCK_STREAM) as probe:
                probe.setsockopt(level, option, 1)
                probe.bind((_FOREIGN[family], 0))
        except OSError as exc:
            if exc.errno in (errno.EPERM, errno.EACCES):
                remedy = "run the task as root (become: true); a container needs the capability NET_ADMIN"
            else:
                remedy = f"boot a kernel that has it, or take {family} out"
            raise InputError(
                f"families: a socket cannot take a foreign {family} address on this host "
                f"({name}: {exc.strerror}); {remedy}",
                option="families",
            ) from None

    def _scratch(self) -> tuple[str, ...] | None:
        for command in (("unshare", "--net"), ("unshare", "--user", "--map-root-user", "--net")):
            try:
                if self.run(*command, "true").returncode == 0:
                    return command
            except ProgramMissing:
                return None
        return None

    def _diagnosis(self, scratch: tuple[str, ...], family: str, stderr: str) -> InputError:
        """Tries the pieces one by one, to name the one that is missing."""
        command, icmp = render.IPTABLES[family], render.protocols(family)[1]
        append = (command, "-t", "mangle", "-A", "PREROUTING")
        ip = ("ip", render.IP_OPTION[family])
        generation = "IP" if family == "ipv4" else "IPV6"
        pieces: tuple[tuple[str, str, tuple[str, ...]], ...] = (
            (
                "policy routing by mark",
                f"{generation}_MULTIPLE_TABLES",
                (*ip, "rule", "add", "fwmark", "0x1/0x1", "lookup", "100"),
            ),
            (
                "the mangle table",
                "NF_TABLES with NFT_COMPAT, or IP_NF_MANGLE",
                (*append, "-j", "ACCEPT"),
            ),
            (
                "the comment match",
                "NETFILTER_XT_MATCH_COMMENT",
                (*append, "-m", "comment", "--comment", "x", "-j", "ACCEPT"),
            ),
            (
                "the socket match",
                "NETFILTER_XT_MATCH_SOCKET",
                (*append, "-p", "tcp", "-m", "socket", "--transparent", "-j", "ACCEPT"),
            ),
            (
                f"the socket match for {icmp}",
                "NETFILTER_XT_MATCH_SOCKET",
                (*append, "-p", icmp, "-m", "socket", "--transparent", "-j", "ACCEPT"),
            ),
            (
                "the MARK target",
                "NETFILTER_XT_TARGET_MARK",
                (*append, "-j", "MARK", "--set-xmark", "0x1/0x1"),
            ),
        )
        for name, symbol, argv in pieces:
            done = self.run(*scratch, *argv)
            if done.returncode:
                said = _first_line(done.stderr)
                if "Couldn't load" in said or "not found" in said:
                    whose = f"the {command} program of this host lacks {name} ({said}); install the complete iptables package"
                else:
                    whose = (
                        f"the kernel of this host lacks {name} for {family} ({said}); use a "
                        f"kernel with CONFIG_{symbol}, "
                        "or load its module (in a container: on the machine that runs it)"
                    )
                return InputError(f"kernel support: {whose}", option="firewall", missing=symbol)
        return InputError(
            f"kernel support: the {family} rules cannot be loaded in a scratch network "
            f"namespace: {_first_line(stderr)}",
            option="firewall",
        )

    # Applying

    def apply(self, plan: Plan) -> list[str]:
        """Carries out a plan; there are no warnings. Until the firewall step packets are treated as before, so a failure before it
        changes nothing for anybody; the next run goes on from wherever this one ended."""
        if plan.record is not None:
            self.write(render.RECORD, plan.record)
        steps = [
            lambda: self._apply_sysctls(plan),
            lambda: self._apply_ip(plan),
            lambda: self._apply_firewall(plan),
        ]
        for step in reversed(steps) if plan.firewall_first else steps:
            step()
        for path, content in plan.files.items():
            if content is None:
                self.remove(path)
            else:
                self.write(path, content)
        for directory in sorted(plan.remove_directories, key=len, reverse=True):
            try:
                os.rmdir(directory)
            except OSError:
                # Others keep something there now.
                continue
        return []

    def _apply_sysctls(self, plan: Plan) -> None:
        for path, value in plan.sysctls:
            try:
                with open(f"/proc/sys/{path}", "w", encoding="ascii") as stream:
                    stream.write(value + "\n")
            except OSError as exc:
                raise Error(
                    f"cannot set the sysctl {sysctl_name(path)} to {value}: {exc.strerror}"
                ) from None

    def _apply_ip(self, plan: Plan) -> None:
        for family, lines in plan.ip.items():
            self.batch(family, lines)

    def batch(self, family: str, lines: t.Iterable[str]) -> None:
        text = "\n".join(lines) + "\n"
        done = self.run("ip", render.IP_OPTION[family], "-batch", "-", text=text)
        if done.returncode:
            raise Error(
                f"`ip -batch` refused one of the {family} lines: {_first_line(done.stderr)}",
                lines=text.splitlines(),
                stderr=done.stderr,
            )

    def _apply_firewall(self, plan: Plan) -> None:
        for family, text in plan.firewall.items():
            command = f"{render.IPTABLES[family]}-restore"
            done = self.run(command, "--noflush", "--wait=10", text=text)
            if done.returncode:
                raise Error(
                    f"{command} refused the transaction, so no {family} firewall rule was "
                    f"changed: {_first_line(done.stderr)}",
                    lines=text.splitlines(),
                    stderr=done.stderr,
                )
        for family in plan.drop_tables:
            self._drop_empty_table(family)

    def _drop_empty_table(self, family: str) -> None:
        """iptables-nft makes the table with the first rule and never removes it.

        It was not there before us.
        """
        saved = self.run(f"{render.IPTABLES[family]}-save", "-t", "mangle").stdout.splitlines()
        bare = re.compile(rf"\*mangle|COMMIT|:({'|'.join(BUILTIN_CHAINS)}) ACCEPT .*|#.*|")
        if not all(bare.fullmatch(line) for line in saved):
            return
        table = ("table", "ip" if family == "ipv4" else "ip6", "mangle")
        if not self.find("nft"):
            # Takes the hook away, which is what costs; an empty table stays. The legacy variant
            # refuses.
            self.run(render.IPTABLES[family], "-t", "mangle", "-X", "PREROUTING")
            return
        done = self.run("nft", "list", *table)
        inside = [line.strip() for line in done.stdout.splitlines() if line.strip()][1:]
        harmless = re.compile(
            rf"}}|chain ({'|'.join(BUILTIN_CHAINS)}) {{|type (filter|route) hook .* policy accept;"
        )
        if done.returncode == 0 and all(harmless.fullmatch(line) for line in inside):
            self.run("nft", "delete", *table)

    def write(self, path: str, content: str) -> None:
        """All or nothing: the file is complete or as it was."""
        directory = os.path.dirname(path)
        try:
            os.makedirs(directory, mode=0o755, exist_ok=True)
            handle, temporary = tempfile.mkstemp(
                dir=directory, prefix=f".{os.path.basename(path)}."
            )
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.chmod(temporary, 0o755 if path in render.EXECUTABLES else 0o644)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as exc:
            raise Error(f"cannot write {path}: {exc.strerror}") from None

    def remove(self, path: str) -> None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise Error(f"cannot remove {path}: {exc.strerror}") from None

    # The servers' return path

    def read_return_path(self) -> return_path.Snapshot:
        families = [family for family in FAMILIES if self.has_family(family)]
        return return_path.Snapshot(
            addresses=parse.addresses(self._see("ip", "-j", "address") or ""),
            defaults={
                family: parse.ip_routes(
                    self._see(
                        "ip", render.IP_OPTION[family], "-N", "-d", "-j", "route", "show", "default"
                    )
                    or ""
                )
                for family in families
            },
            texts={
                family: parse.route_texts(
                    self._see("ip", render.IP_OPTION[family], "-o", "route", "show", "default")
                    or ""
                )
                for family in families
            },
            files={path: self.file(path) for path in (*return_path.FILES, return_path.RECORD)},
            record=return_path.Record.load(self.file(return_path.RECORD)),
        )

    def apply_return_path(self, plan: return_path.Plan) -> list[str]:
        """Returns warnings: which routes of others could not be put back."""
        if plan.record is not None:
            self.write(return_path.RECORD, plan.record)
        refused = {
            family: [text for text in texts if self._append(family, text)]
            for family, texts in plan.back.items()
        }
        for family, lines in plan.ip.items():
            self.batch(family, lines)
        warnings = []
        for family, texts in refused.items():
            for text in texts:
                # Two IPv6 routes with the same next hop cannot be there at once; ours is gone now.
                said = self._append(family, text)
                if said:
                    warnings.append(
                        f"the old {family} route '{text}' cannot be put back ({said}); "
                        "give this host the default route that it needs now"
                    )
        for path, content in plan.files.items():
            if content is None:
                self.remove(path)
            else:
                self.write(path, content)
        for directory in return_path.DIRECTORIES if plan.removes_all else ():
            try:
                os.rmdir(directory)
            except OSError:
                continue
        return warnings

    def _append(self, family: str, route: str) -> str | None:
        """What `ip` says if it refuses the route."""
        done = self.run("ip", render.IP_OPTION[family], "route", "append", *route.split())
        return _first_line(done.stderr) if done.returncode else None


def _first_line(text: str) -> str:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            return line.strip()
    return "no message"
