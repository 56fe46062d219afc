# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel side's only I/O: reads, probes, applies. Private to the collection."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
import typing as t
from dataclasses import replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_nft as nft
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_parse as parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_return_model as return_model,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils import (
    _kernel_return_render as return_render,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error, InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    IPTABLES_BACKENDS,
    Desired,
    sysctl_name,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_firewall import (
    choose_backend,
    signs_of,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    BRIDGE_CALLS,
    BUILTIN_CHAINS,
    FAMILIES,
    FilterTable,
    IpRule,
    NftTable,
    Route,
    TableName,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import (
    Plan,
    Record,
    Snapshot,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_sysctls import above

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds for one program. iptables waits for its lock, everything else answers at once.
_TIMEOUT = 60

# ip(7), ipv6(7); Python 3.9's socket module does not know them.
_TRANSPARENT = {
    "ipv4": (socket.AF_INET, socket.IPPROTO_IP, 19, "IP_TRANSPARENT"),
    "ipv6": (socket.AF_INET6, socket.IPPROTO_IPV6, 75, "IPV6_TRANSPARENT"),
}
# Documentation addresses (RFC 5737, RFC 3849): on no host of anybody.
_FOREIGN = {"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}

# How `systemctl enable nftables` shows.
_NFTABLES_ENABLED = "/etc/systemd/system/*.wants/nftables.service"
# The tables that iptables-legacy has in this network namespace.
_LEGACY_TABLES = {"ipv4": "/proc/net/ip_tables_names", "ipv6": "/proc/net/ip6_tables_names"}

_RT_TABLES = (
    "/etc/iproute2/rt_tables",
    "/etc/iproute2/rt_tables.d/*.conf",
    "/usr/share/iproute2/rt_tables",
    "/usr/share/iproute2/rt_tables.d/*.conf",
    "/usr/lib/iproute2/rt_tables",
)


# Debian's, of programs that are called otherwise.
_PACKAGES = {"ip": "iproute2", "nft": "nftables", "unshare": "util-linux"}


class ProgramMissing(Error):
    """A program that the task needs is not installed."""


class Host:
    """The host that this runs on, or rather the network namespace that this runs in."""

    def __init__(self, *, missing_programs_ok: bool = False) -> None:
        # Check mode on a fresh host comes before the packages: what cannot be looked at is listed,
        # not refused.
        self.missing_programs_ok = missing_programs_ok
        self.unseen: list[str] = []
        self._own_kind: str | None = None

    # Programs

    def find(self, program: str) -> str | None:
        return shutil.which(program, path=_PATH)

    def run(self, *argv: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        program = self.find(argv[0])
        if program is None:
            raise ProgramMissing(
                f"the program {argv[0]} is not installed on this host; install its package "
                f"(Debian: {_PACKAGES.get(argv[0], 'iptables' if 'tables' in argv[0] else argv[0])})"
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
        tables = {entry.table for entry in (options, *record.known)}
        names = self.table_names()
        links = self.links()
        return Snapshot(
            **self.firewalls(options),
            rules={family: self.rules(family, names) for family in FAMILIES},
            routes={
                family: {table: self.routes(family, table) for table in tables}
                for family in FAMILIES
            },
            sysctls=self.sysctls(options, record),
            interfaces=parse.link_names(links),
            parts=parse.link_parts(links),
            bridges=parse.bridges(links),
            advertised=self.advertised(),
            table_names=names,
            files={path: self.file(path) for path in (*render.FILES, render.RECORD)},
            missing_directories=self.missing_directories((*render.FILES, render.RECORD)),
            record=record,
        )

    def settled(self, options: Desired) -> Desired:
        """The options with a backend in the place of `auto`."""
        if options.firewall != "auto":
            return options
        snapshot = Snapshot(**self.firewalls(options), record=Record.load(self.file(render.RECORD)))
        signs = signs_of(
            snapshot,
            [program for program in ("iptables", "nft") if self.find(program)],
            service=bool(glob.glob(_NFTABLES_ENABLED)),
        )
        return replace(options, firewall=choose_backend(signs))

    def firewalls(self, options: Desired) -> dict[str, t.Any]:
        """The part of a snapshot that is about firewalls: everything that the kernel runs."""
        wanted = options.firewall in IPTABLES_BACKENDS
        variant = options.firewall if wanted else "iptables"
        others = self._other_variants(variant)
        return {
            "variant": variant,
            "own_kind": self._kind("iptables"),
            "firewall": {
                family: self.firewall(family, variant, needed=wanted and family in options.families)
                for family in FAMILIES
            },
            "other_variants": {
                other: {family: self.firewall(family, other, needed=False) for family in FAMILIES}
                for other in others
            },
            "nft_variant": next(
                (name for name in (variant, *others) if self._kind(name) == "nft"), None
            ),
            "nft": self.nft(needed=options.firewall == "nftables"),
        }

    def _kind(self, variant: str) -> str | None:
        """nft or legacy: what iptables' own version says in brackets; before 1.8 there was only the latter."""
        if variant != "iptables":
            return variant.partition("-")[2]
        if not self.find(variant):
            return None
        if self._own_kind is None:
            version = self.run(variant, "--version").stdout
            self._own_kind = "nft" if "nf_tables" in version else "legacy"
        return self._own_kind

    def _other_variants(self, variant: str) -> tuple[str, ...]:
        kind = self._kind(variant)
        return tuple(
            f"iptables-{other}"
            for other in ("nft", "legacy")
            if other != kind and self.find(f"iptables-{other}-save")
        )

    def firewall(self, family: str, variant: str, *, needed: bool) -> dict[str, FilterTable]:
        program = render.program(variant, family, "-save")
        if not self.has_family(family) or not (needed or self.find(program)):
            return {}
        if variant == "iptables-legacy" and not needed and not self._legacy_tables(family):
            return {}
        # Without -t: naming a table would make iptables-legacy load it.
        try:
            text = self._see(program) or ""
        except Error:
            if needed:
                raise
            return {}
        if needed and "# Table `mangle' is incompatible" in text:
            raise InputError(
                f"firewall: nft has put rules into the {family} table mangle that {variant} cannot "
                "work with; choose nftables, or move those rules to a table of their own",
                option="firewall",
            )
        return parse.iptables_save(text)

    def _legacy_tables(self, family: str) -> bool:
        try:
            return bool((self.file(_LEGACY_TABLES[family]) or "").strip())
        except Error:
            return True

    def nft(self, *, needed: bool) -> tuple[NftTable, ...]:
        if not needed and not self.find("nft"):
            return ()
        # -n: names of protocols and marks depend on the host's files. -t: no elements of sets.
        try:
            return nft.ruleset(self._see("nft", "-j", "-n", "-t", "list", "ruleset") or "")
        except ProgramMissing:
            raise
        except Error:
            if needed:
                raise
            return ()

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
        show = ("ip", "-6", "-N", "-d", "-j", "route", "show", "proto")
        names = {
            *parse.advertised_routes(self._see(*show, "ra") or ""),
            *parse.advertised_routes(self._see(*show, "kernel") or ""),
            *parse.advertised_addresses(self._see("ip", "-6", "-j", "address") or ""),
        }
        return tuple(sorted(names))

    def links(self) -> str:
        """What `ip` says of the interfaces, in detail."""
        return self._see("ip", "-d", "-j", "link") or json.dumps(
            [{"ifname": name} for name in sorted(os.listdir("/sys/class/net"))]
        )

    def has_family(self, family: str) -> bool:
        return os.path.isdir(f"/proc/sys/net/{family}")

    def sysctls(self, options: Desired, record: Record) -> dict[str, str]:
        patterns = [
            "net/ipv4/conf/*/forwarding",
            "net/ipv4/conf/*/send_redirects",
            "net/ipv4/conf/*/rp_filter",
            "net/ipv4/conf/all/accept_redirects",
            "net/ipv6/conf/*/forwarding",
            "net/ipv6/conf/*/accept_ra",
            *BRIDGE_CALLS.values(),
            *(path for path, _value in options.sysctls),
            *(above(path) or path for path, _value in options.sysctls),
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

    def missing_directories(self, paths: t.Iterable[str]) -> tuple[str, ...]:
        """Those that our files need, parents first."""
        missing: list[str] = []
        for path in paths:
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
        if desired.firewall == "nftables":
            self._probe_nft(scratch, desired)
        for family in desired.families:
            routing = render.routing_file(desired, family)
            rules, load = "", "cat"
            if desired.firewall != "nftables":
                rules = render.firewall_file(desired, family)
                load = render.program(desired.firewall, family, "-restore --noflush --wait=10")
            done = self.run(
                *(*scratch, "sh", "-c"),
                f'ip link set lo up && printf "%s" "$1" | ip "$2" -batch - && printf "%s" "$3" | {load}',
                *("probe", routing, render.IP_OPTION[family], rules),
            )
            if done.returncode:
                raise self._diagnosis(scratch, desired, family, done.stderr)
        return []

    def _probe_nft(self, scratch: tuple[str, ...], desired: Desired) -> None:
        """Tries the file of the boot unit, and if that fails its pieces, to name the one that is missing."""
        if self.run(*scratch, "nft", "-f", "-", text=render.nft_file(desired)).returncode == 0:
            return
        chain = f"{{ type filter hook prerouting priority {render.NFT_PRIORITY}; policy accept; "
        family = desired.families[0]
        pieces = (
            (
                "nft_table",
                "tables of the family inet",
                "NF_TABLES_INET",
                f"table inet {desired.nft_table} {{ }}",
            ),
            (
                "chain",
                "base chains",
                "NF_TABLES",
                f"table inet a {{ chain {desired.chain} {chain} }}; }}",
            ),
            (
                "firewall",
                "the socket expression",
                f"NFT_SOCKET and NF_SOCKET_{family.upper()}",
                f"table inet a {{ chain a {chain} meta nfproto {family} socket transparent 1; }}; }}",
            ),
            (
                "firewall",
                "counters",
                "NFT_COUNTER",
                f"table inet a {{ chain a {chain} counter; }}; }}",
            ),
            *(
                ("firewall", name, symbol, f"table inet a {{ chain a {chain} {words}; }}; }}")
                for name, symbol, words in (
                    (
                        "the tproxy expression",
                        f"NFT_TPROXY and NF_TPROXY_{family.upper()}",
                        f"meta nfproto {family} tcp dport 1 tproxy to :1",
                    ),
                    ("the fib expression", "NFT_FIB_INET", "fib daddr type != local"),
                    (
                        "wildcard (nft 0.9.7) of the socket expression",
                        "NFT_SOCKET (Linux 5.10 or newer)",
                        "meta l4proto tcp socket wildcard 1",
                    ),
                )
                if desired.intercepts
            ),
            ("firewall", "a rule", "NF_TABLES", render.nft_file(desired)),
        )
        for option, name, symbol, text in pieces:
            done = self.run(*scratch, "nft", "-f", "-", text=text)
            if done.returncode == 0:
                continue
            said = _first_line(done.stderr)
            if "syntax error" not in said:
                raise InputError(
                    f"kernel support: the kernel of this host lacks {name} ({said}); use a kernel "
                    f"with CONFIG_{symbol}, or load its module (in a container: on the machine "
                    "that runs it)",
                    option="firewall",
                    missing=symbol,
                )
            if option == "firewall":
                raise InputError(
                    f"kernel support: the nft program of this host is too old for {name} ({said}); "
                    "install a newer one, 0.9.3 or later, or choose iptables",
                    option="firewall",
                )
            raise InputError(
                f"{option}: '{getattr(desired, option)}' is a word of nft's own language; choose "
                "another name",
                option=option,
            )

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

    def foreign_address(self, family: str) -> tuple[str, bool]:
        """Why a socket cannot take a foreign address, and whether only rights are missing; no words if it can."""
        kind, level, option, name = _TRANSPARENT[family]
        try:
            with socket.socket(kind, socket.SOCK_STREAM) as probe:
                probe.setsockopt(level, option, 1)
                probe.bind((_FOREIGN[family], 0))
        except OSError as exc:
            return f"{name}: {exc.strerror}", exc.errno in (errno.EPERM, errno.EACCES)
        return "", False

    def _probe_transparent(self, family: str) -> None:
        reason, only_rights = self.foreign_address(family)
        if not reason:
            return
        if only_rights:
            remedy = (
                "run the task as root (become: true); a container needs the capability NET_ADMIN"
            )
        else:
            remedy = f"boot a kernel that has it, or take {family} out"
        raise InputError(
            f"families: a socket cannot take a foreign {family} address on this host ({reason}); "
            f"{remedy}",
            option="families",
        )

    def _scratch(self) -> tuple[str, ...] | None:
        for command in (("unshare", "--net"), ("unshare", "--user", "--map-root-user", "--net")):
            try:
                if self.run(*command, "true").returncode == 0:
                    return command
            except ProgramMissing:
                return None
        return None

    def _diagnosis(
        self, scratch: tuple[str, ...], desired: Desired, family: str, stderr: str
    ) -> InputError:
        """Tries the pieces one by one, to name the one that is missing."""
        variant = desired.firewall if desired.firewall != "nftables" else "iptables"
        command, icmp = render.program(variant, family), render.protocols(family)[1]
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
            (
                "the TPROXY target",
                "NETFILTER_XT_TARGET_TPROXY",
                (*append, "-p", "tcp", "-j", "TPROXY", "--on-port", "1", "--tproxy-mark", "1/1"),
            ),
            (
                "the addrtype match",
                "NETFILTER_XT_MATCH_ADDRTYPE",
                (*append, "-m", "addrtype", "!", "--dst-type", "LOCAL", "-j", "ACCEPT"),
            ),
        )[: None if desired.intercepts else -2]
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

    @contextlib.contextmanager
    def alone(self, configuration: str = render.CONFIGURATION) -> t.Iterator[None]:
        """Keeps others who would change the same waiting, so that what was read is still true when it is changed.

        Other runs by the directory above, which is there before the first one; the boot unit and the guard, which come with the
        configuration, by its own directory.
        """
        deadline = time.monotonic() + _TIMEOUT
        with contextlib.ExitStack() as held:
            for directory in (os.path.dirname(configuration), configuration):
                try:
                    descriptor = os.open(directory, os.O_RDONLY)
                except OSError:
                    # Then there is neither unit nor guard, or this will fail with a better message.
                    break
                held.callback(os.close, descriptor)
                _lock(descriptor, configuration, deadline)
            yield

    def apply(self, plan: Plan) -> list[str]:
        """Carries out a plan; there are no warnings. Until the firewall step packets are treated as before, so a failure before it
        changes nothing for anybody; the next run goes on from wherever this one ended."""
        if plan.record_meanwhile is not None:
            self.write(render.RECORD, plan.record_meanwhile)
        steps = [
            lambda: self._apply_sysctls(plan.sysctls),
            lambda: self._apply_ip(plan.ip),
            lambda: self._apply_firewall(plan),
            lambda: self._apply_ip(plan.ip_after),
        ]
        # When all goes, the kernel's own settings go last.
        for step in [*steps[1:], steps[0]] if plan.firewall_first else steps:
            step()
        self._apply_files(plan.files, plan.remove_directories)
        if plan.record is not None and plan.record != plan.record_meanwhile:
            self.write(render.RECORD, plan.record)
        return []

    def _apply_files(
        self, files: t.Mapping[str, str | None], remove_directories: t.Iterable[str]
    ) -> None:
        for path, content in files.items():
            if content is None:
                self.remove(path)
            else:
                self.write(path, content)
        for directory in sorted(remove_directories, key=len, reverse=True):
            try:
                os.rmdir(directory)
            except OSError:
                # Others keep something there now.
                continue

    def _apply_sysctls(self, sysctls: t.Iterable[tuple[str, str]]) -> None:
        for path, value in sysctls:
            try:
                with open(f"/proc/sys/{path}", "w", encoding="ascii") as stream:
                    stream.write(value + "\n")
            except OSError as exc:
                raise Error(
                    f"cannot set the sysctl {sysctl_name(path)} to {value}: {exc.strerror}"
                ) from None

    def _apply_ip(self, lines: t.Mapping[str, t.Iterable[str]]) -> None:
        for family in lines:
            self.batch(family, lines[family])

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
        for step in plan.firewall:
            options = ("-f", "-") if step.program == "nft" else ("--noflush", "--wait=10")
            done = self.run(step.program, *options, text=step.text)
            if done.returncode:
                raise Error(
                    f"{step.program} refused the transaction, so none of its firewall rules was "
                    f"changed: {_first_line(done.stderr)}",
                    lines=step.text.splitlines(),
                    stderr=done.stderr,
                )
        for family in plan.drop_tables:
            self._drop_empty_table(family)

    def _drop_empty_table(self, family: str) -> None:
        """iptables-nft makes the table with the first rule and never removes it.

        It was not there before us.
        """
        variant = "iptables-nft" if self.find("iptables-nft") else "iptables"
        save = render.program(variant, family, "-save")
        saved = self.run(save, "-t", "mangle").stdout.splitlines()
        bare = re.compile(rf"\*mangle|COMMIT|:({'|'.join(BUILTIN_CHAINS)}) ACCEPT .*|#.*|")
        if not all(bare.fullmatch(line) for line in saved):
            return
        table = ("table", "ip" if family == "ipv4" else "ip6", "mangle")
        if not self.find("nft"):
            # Takes the hook away, which is what costs; an empty table stays. The legacy variant
            # refuses.
            self.run(render.program(variant, family), "-t", "mangle", "-X", "PREROUTING")
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
                os.chmod(
                    temporary,
                    0o755 if path in (*render.EXECUTABLES, return_render.LOADER) else 0o644,
                )
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

    def read_return_path(
        self, desired: return_model.Desired | None = None
    ) -> return_model.Snapshot:
        """Everything that a plan for these options looks at; None for the end of ours."""
        files = {path: self.file(path) for path in (*return_render.FILES, return_render.RECORD)}
        record = return_model.Record.load(
            files[return_render.RECORD],
            {family: files[path] for family, path in return_render.BATCHES.items()},
        )
        names = self.table_names()
        tables = {
            table
            for table in (desired.table if desired is not None else None, *record.tables)
            if table is not None
        }
        marks = (
            record.firewall
            or files[return_render.MARKS] is not None
            or (desired is not None and desired.marks)
        )
        families = [family for family in FAMILIES if self.has_family(family)]
        main = ("route", "show", "default")
        return return_model.Snapshot(
            addresses=parse.addresses(self._see("ip", "-j", "address") or ""),
            defaults={
                family: parse.ip_routes(
                    self._see("ip", render.IP_OPTION[family], "-N", "-d", "-j", *main) or ""
                )
                for family in families
            },
            texts={
                family: parse.route_texts(
                    self._see("ip", render.IP_OPTION[family], "-o", *main) or ""
                )
                for family in families
            },
            rules={family: self.rules(family, names) for family in families},
            routes={
                family: {table: self.routes(family, table) for table in tables}
                for family in families
            },
            table_names=names,
            marks=self._return_marks() if marks else None,
            sysctls={
                path[len("/proc/sys/") :]: (self.file(path) or "").strip()
                for path in sorted(glob.glob("/proc/sys/net/ipv4/conf/*/rp_filter"))
            },
            files=files,
            missing_directories=self.missing_directories(tuple(files)),
            record=record,
        )

    def _return_marks(self) -> dict[str, tuple[str, ...]] | None:
        try:
            text = self._see("nft", "list", "table", *return_render.NFT_TABLE.split())
        except ProgramMissing:
            raise
        except Error as exc:
            if "No such file" not in str(exc):
                raise
            text = None
        return None if text is None else parse.nft_table(text)

    def probe_return_path(self, plan: return_model.Plan) -> list[str]:
        """Has the kernel look at what the plan will load, and load nothing.

        Raises InputError with what it lacks.
        """
        if plan.firewall is None or not self.find("nft"):
            return []
        done = self.run("nft", "--check", "-f", "-", text=plan.firewall)
        if done.returncode:
            raise InputError(
                f"mode: this host cannot mark connections ({_first_line(done.stderr)}); use a "
                "kernel with CONFIG_NF_TABLES, CONFIG_NFT_CT and CONFIG_NF_CONNTRACK_MARK, or "
                "choose the mode source_address",
                option="mode",
            )
        return []

    def apply_return_path(self, plan: return_model.Plan) -> list[str]:
        """Returns warnings: which routes of others could not be put back."""
        if plan.record_meanwhile is not None:
            self.write(return_render.RECORD, plan.record_meanwhile)
        self._apply_sysctls(plan.sysctls)
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
        if plan.firewall is not None:
            done = self.run("nft", "-f", "-", text=plan.firewall)
            if done.returncode:
                raise Error(
                    "nft refused the transaction, so no mark was changed: "
                    f"{_first_line(done.stderr)}",
                    lines=plan.firewall.splitlines(),
                    stderr=done.stderr,
                )
        self._apply_files(plan.files, plan.remove_directories)
        if plan.record is not None and plan.record != plan.record_meanwhile:
            self.write(return_render.RECORD, plan.record)
        return warnings

    def _append(self, family: str, route: str) -> str | None:
        """What `ip` says if it refuses the route."""
        done = self.run("ip", render.IP_OPTION[family], "route", "append", *route.split())
        return _first_line(done.stderr) if done.returncode else None


def _lock(descriptor: int, configuration: str, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Error(
                    f"somebody else has kept {configuration} locked for {_TIMEOUT} "
                    f"seconds; look for a `{os.path.basename(configuration)}` that hangs"
                ) from None
            time.sleep(0.1)


def _first_line(text: str) -> str:
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            return line.strip()
    return "no message"
