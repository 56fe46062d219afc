# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what tproxy_info looks at beyond Host.read; changes nothing, raises nothing. Private to the collection."""

from __future__ import annotations

import glob
import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import typing as t
from collections import Counter
from dataclasses import dataclass, field, replace

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_filters as filters
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_haproxy as haproxy
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_parse as parse
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import Error
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_host import Host
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import (
    FAMILIES,
    Address,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Seconds for one program that only prints something.
_DEADLINE = 10
# Servers of one family that are looked at one by one.
_MOST_SERVERS = 16
# A configuration larger than this many bytes is not HAProxy's.
_LARGEST = 16 * 1024 * 1024

DEFAULT_CONFIGURATION = "/etc/haproxy/haproxy.cfg"
DEFAULT_SERVICE = "haproxy.service"

# Documentation addresses (RFC 5737, RFC 3849): clients that no rule was made for.
CLIENTS = {"ipv4": "192.0.2.77", "ipv6": "2001:db8::77"}
_SYSCTLS = (
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/src_valid_mark",
    "net/ipv4/conf/*/send_redirects",
    "net/ipv4/conf/all/forwarding",
    "net/ipv6/conf/all/forwarding",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/ip_local_port_range",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
)


@dataclass(frozen=True)
class Unseen:
    """Why something could not be looked at."""

    reason: str


T = t.TypeVar("T")
Seen = t.Union[T, Unseen]


@dataclass(frozen=True)
class Decision:
    """Where the kernel sends the marked answer of a server to a client."""

    family: str
    server: str
    port: int | None
    client: str
    # The interface at which the answer comes in.
    interface: str
    # local, elsewhere, or invalid: source validation refuses the packet.
    kind: str
    text: str = ""


@dataclass(frozen=True)
class Usage:
    """Ports that one client's connections to one server take."""

    family: str
    client: str
    server: str
    count: int


@dataclass(frozen=True)
class Survey:
    """What was found. None means: looked, and nothing is there."""

    # Empty text: works.
    sockets: t.Mapping[str, Seen[str]] = field(default_factory=dict)
    support: t.Mapping[str, Seen[str]] = field(default_factory=dict)
    binary: Seen[haproxy.Binary | None] = None
    instances: Seen[tuple[haproxy.Instance, ...]] = ()
    configuration: Seen[haproxy.Configuration | None] = None
    rulesets: Seen[tuple[filters.Ruleset, ...]] = ()
    decisions: tuple[Decision, ...] = ()
    sysctls: t.Mapping[str, str] = field(default_factory=dict)
    # family -> the interface of the default route
    default_interfaces: t.Mapping[str, str] = field(default_factory=dict)
    usage: tuple[Usage, ...] = ()
    # (what was asked of systemctl, unit) -> its answer
    units: t.Mapping[tuple[str, str], Seen[str]] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()


class Surveyor:
    """Reads one host. Every method answers, or says in its answer why it cannot."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.unseen: list[str] = []

    def snapshot(self, desired: Desired) -> Seen[Snapshot]:
        try:
            return self.host.read(desired)
        except Error as exc:
            return Unseen(str(exc))
        except OSError as exc:
            return Unseen(f"cannot read this host: {exc}")

    def survey(
        self,
        desired: Desired,
        *,
        haproxy_path: str | None = None,
        config: t.Sequence[str] = (),
        pid_file: str | None = None,
        service: str | None = None,
        clients: t.Sequence[str] = (),
        groups: t.Container[str] = ("kernel", "rules", "filters", "haproxy", "boot", "limits"),
    ) -> Survey:
        """`clients` are addresses that rules of others are looked up for."""
        instances = self.instances(pid_file, service, haproxy_path)
        configuration = self.configuration(config, instances)
        targets = (
            configuration.targets() if isinstance(configuration, haproxy.Configuration) else ()
        )
        addresses = self.addresses()
        kernel = "kernel" in groups
        network = "filters" in groups or "rules" in groups
        found = Survey(
            sockets={family: self.socket(family) for family in desired.families if kernel},
            binary=self.binary(haproxy_path, instances),
            instances=instances,
            configuration=configuration,
            rulesets=self.rulesets() if "filters" in groups else (),
            decisions=self.decisions(desired, targets, clients, addresses) if network else (),
            sysctls=self.sysctls(),
            default_interfaces=self.default_interfaces() if network else {},
            usage=self.usage(addresses) if "limits" in groups else (),
            units={
                (verb, unit): self.unit(verb, unit)
                for unit in render.units(desired)
                for verb in ("is-enabled", "is-active")
                if "boot" in groups
            },
        )
        support = {
            family: self.support(desired, family, found.sockets.get(family, ""))
            for family in desired.families
            if kernel
        }
        said = (*self.host.unseen, *self.unseen)
        return replace(found, support=support, unseen=tuple(dict.fromkeys(said)))

    # Programs and files

    def look(self, *argv: str, seconds: float = _DEADLINE) -> Seen[tuple[int, str, str]]:
        program = argv[0] if argv[0].startswith("/") else shutil.which(argv[0], path=_PATH)
        if program is None:
            return Unseen(f"the program {argv[0]} is not installed")
        try:
            done = subprocess.run(
                [program, *argv[1:]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
                env={"PATH": _PATH, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            return Unseen(f"`{' '.join(argv)}` did not end within {seconds} seconds")
        except OSError as exc:
            return Unseen(f"cannot run {program}: {exc.strerror}")
        return done.returncode, done.stdout, done.stderr

    def text(self, path: str) -> Seen[str]:
        try:
            # Not every file of /proc can be read with a limit.
            if os.path.getsize(path) > _LARGEST:
                return Unseen(f"{path} is larger than {_LARGEST} bytes")
            with open(path, encoding="utf-8", errors="replace") as stream:
                return stream.read()
        except OSError as exc:
            return Unseen(f"cannot read {path}: {exc.strerror}")

    def sysctls(self) -> dict[str, str]:
        values = {}
        for pattern in _SYSCTLS:
            for path in glob.glob(f"/proc/sys/{pattern}"):
                text = self.text(path)
                if isinstance(text, str):
                    values[path[len("/proc/sys/") :]] = " ".join(text.split())
        return values

    # The kernel

    def socket(self, family: str) -> Seen[str]:
        """What is wrong with sockets that take a foreign address; empty if nothing."""
        reason, only_rights = self.host.foreign_address(family)
        return Unseen(f"{reason}; only root may try this") if only_rights else reason

    def support(self, desired: Desired, family: str, sockets: Seen[str]) -> Seen[str]:
        """What the kernel lacks of the very rules; empty if nothing."""
        if sockets:
            return Unseen("not tried, because sockets cannot take a foreign address")
        intercepts = tuple(entry for entry in desired.intercepts if family in entry.families)
        try:
            warnings = self.host.probe(replace(desired, families=(family,), intercepts=intercepts))
        except Error as exc:
            return str(exc)
        return Unseen("; ".join(warnings)) if warnings else ""

    # Routing

    def addresses(self) -> tuple[Address, ...]:
        done = self.look("ip", "-j", "address")
        if isinstance(done, Unseen):
            return ()
        try:
            return parse.addresses(done[1])
        except (Error, ValueError, KeyError):
            return ()

    def default_interfaces(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for family in FAMILIES:
            for entry in self._routes(render.IP_OPTION[family], "route", "show", "default"):
                if "dev" in entry:
                    found.setdefault(family, str(entry["dev"]))
        return found

    def decisions(
        self,
        desired: Desired,
        targets: t.Sequence[tuple[str, str, int | None]],
        clients: t.Sequence[str],
        addresses: t.Sequence[Address],
    ) -> tuple[Decision, ...]:
        """For the servers of the configuration; where it has none, for a neighbour at each interface."""
        found = []
        for family in desired.families:
            given = [client for client in clients if _version(client) == family]
            client = given[0] if given else CLIENTS[family]
            ways: list[tuple[str, int | None, str]] = []
            for target_family, server, port in targets:
                if target_family == family and len(ways) < _MOST_SERVERS:
                    ways += [
                        (server, port, interface) for interface in self._towards(desired, server)
                    ]
            if not ways:
                beside = _neighbours(family, desired.interfaces, addresses)
                ways = [(server, None, interface) for interface, server in beside[:_MOST_SERVERS]]
            for server, port, interface in ways:
                kind, text = self._decide(desired, family, server, client, interface)
                found.append(Decision(family, server, port, client, interface, kind, text))
        return tuple(found)

    def _towards(self, desired: Desired, server: str) -> list[str]:
        """Where the server's answers come in: at an interface of the options, if these are known."""
        routes = self._routes("route", "get", server)
        device = str(routes[0].get("dev", "")) if routes else ""
        if device == "lo":
            return []
        if device and (not desired.interfaces or device in desired.interfaces):
            return [device]
        return list(desired.interfaces)

    def _decide(
        self, desired: Desired, family: str, server: str, client: str, interface: str
    ) -> tuple[str, str]:
        done = self.look(
            *("ip", render.IP_OPTION[family], "route", "get", client, "from", server),
            *("iif", interface, "mark", f"0x{desired.mark:x}"),
        )
        if isinstance(done, Unseen):
            return "unknown", done.reason
        code, answer, error = done
        said = " ".join((answer or error).split())
        if code == 0:
            return ("local" if said.startswith("local ") else "elsewhere"), said
        if "cross-device" in error or "Invalid argument" in error:
            return "invalid", said
        if "unreachable" in error or "No route to host" in error:
            return "elsewhere", said
        return "unknown", said

    def _routes(self, *words: str) -> list[dict[str, t.Any]]:
        done = self.look("ip", "-j", *words)
        if isinstance(done, Unseen) or done[0]:
            return []
        try:
            data = json.loads(done[1] or "[]")
        except ValueError:
            return []
        return [entry for entry in data if isinstance(entry, dict)]

    # The firewall of others

    def rulesets(self) -> Seen[tuple[filters.Ruleset, ...]]:
        found: list[filters.Ruleset] = []
        translated: set[tuple[str, str]] = set()
        try:
            for family in FAMILIES:
                base = render.IPTABLES[family]
                for variant in ("nft", "legacy"):
                    made = self._iptables(base, variant, family)
                    found += made
                    if variant == "nft":
                        table_family = "ip" if family == "ipv4" else "ip6"
                        translated |= {
                            (table_family, ruleset.name.rpartition(" ")[2]) for ruleset in made
                        }
            done = self.look("nft", "-j", "list", "ruleset")
            if isinstance(done, Unseen):
                self.unseen.append(f"rules of nft: {done.reason}")
            elif done[0]:
                return Unseen(f"`nft -j list ruleset` failed: {_first(done[2])}")
            else:
                found += filters.nft_rulesets(done[1], skip=translated)
        except Error as exc:
            return Unseen(str(exc))
        return tuple(found)

    def _iptables(self, base: str, variant: str, family: str) -> tuple[filters.Ruleset, ...]:
        program = f"{base}-{variant}-save"
        if shutil.which(program, path=_PATH) is None:
            # Older packages have one variant only, without a name of its own.
            if variant == "legacy" or shutil.which(f"{base}-save", path=_PATH) is None:
                return ()
            program = f"{base}-save"
        names = self.text(f"/proc/net/{'ip' if family == 'ipv4' else 'ip6'}_tables_names")
        if variant == "legacy" and not (isinstance(names, str) and names.strip()):
            return ()
        done = self.look(program)
        if isinstance(done, Unseen):
            raise Error(done.reason)
        if done[0]:
            raise Error(f"`{program}` failed: {_first(done[2])}")
        return filters.iptables_rulesets(done[1], program[: -len("-save")], family)

    # HAProxy

    def instances(
        self, pid_file: str | None, service: str | None, path: str | None = None
    ) -> Seen[tuple[haproxy.Instance, ...]]:
        """The HAProxy that is meant: of this network namespace, of the pid file or of the service.

        It may be called anything if it is the program at `path`, or the service's.
        """
        wanted: int | None = None
        # A program that is HAProxy's whatever its name is.
        program = os.path.realpath(path) if path is not None else None
        if pid_file is not None:
            text = self.text(pid_file)
            if isinstance(text, Unseen):
                return text
            # Without a master there is one line for every process.
            first = (text.split() or [""])[0]
            wanted = int(first) if first.isdecimal() else 0
        else:
            done = self.look(
                "systemctl", "show", "--property=MainPID", "--value", service or DEFAULT_SERVICE
            )
            pid = "" if isinstance(done, Unseen) or done[0] else done[1].strip()
            if service is not None and not pid.isdecimal():
                return Unseen(
                    f"systemd does not say which process is {service}: "
                    f"{done.reason if isinstance(done, Unseen) else _first(done[2])}"
                )
            if pid.isdecimal() and (service is not None or int(pid)):
                wanted = int(pid)
                # A unit may start a program of any name, and also one that starts HAProxy elsewhere, which
                # takes a word of its own first (`docker run … haproxy -f …`).
                arguments = self._arguments(pid)
                if (
                    arguments[1:2]
                    and arguments[1].startswith("-")
                    and haproxy.Process(wanted, 0, arguments).files
                ):
                    program = program or self._program(pid)
        try:
            processes = self._processes(program)
        except OSError as exc:
            return Unseen(f"cannot read /proc: {exc.strerror}")
        if isinstance(processes, Unseen):
            return processes
        found = haproxy.instances(processes)
        if wanted is None:
            return found
        meant = tuple(entry for entry in found if entry.master.pid == wanted)
        return meant if meant or pid_file is not None or service is not None else found

    def _arguments(self, pid: str) -> tuple[str, ...]:
        """None of a process that has ended and was not collected yet."""
        words = self.text(f"/proc/{pid}/cmdline")
        return tuple(words.rstrip("\0").split("\0")) if isinstance(words, str) and words else ()

    def _program(self, pid: str) -> str | None:
        try:
            return os.readlink(f"/proc/{pid}/exe")
        except OSError:
            return None

    def _processes(self, program: str | None) -> Seen[list[haproxy.Process]]:
        here = os.readlink("/proc/self/ns/net")
        listening = self._listening()
        found: list[haproxy.Process] = []
        hidden: list[str] = []
        for name in os.listdir("/proc"):
            if not name.isdecimal():
                continue
            command = self.text(f"/proc/{name}/comm")
            if not (isinstance(command, str) and haproxy.is_name(command.rstrip("\n"))) and (
                program is None or self._program(name) != program
            ):
                continue
            try:
                if os.readlink(f"/proc/{name}/ns/net") != here:
                    continue
            except PermissionError:
                hidden.append(name)
                continue
            except OSError:
                continue
            text, words = self.text(f"/proc/{name}/status"), self._arguments(name)
            # A process that ends meanwhile.
            if isinstance(text, Unseen) or not words:
                continue
            parent, uid, capabilities = haproxy.status(text)
            found.append(
                haproxy.Process(
                    int(name),
                    parent or 0,
                    words,
                    uid,
                    capabilities,
                    self._accepting(name, listening),
                )
            )
        if hidden and not found:
            return Unseen(
                f"cannot see whether process {hidden[0]} is in this network namespace: run as root"
            )
        return found

    def _listening(self) -> set[str]:
        """Inodes of the sockets in state LISTEN."""
        inodes = set()
        for path in ("/proc/net/tcp", "/proc/net/tcp6"):
            text = self.text(path)
            for line in text.splitlines()[1:] if isinstance(text, str) else ():
                words = line.split()
                if len(words) > 9 and words[3] == "0A":
                    inodes.add(words[9])
        return inodes

    def _accepting(self, pid: str, listening: set[str]) -> int | None:
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            return None
        count = 0
        for number in numbers:
            try:
                link = os.readlink(f"/proc/{pid}/fd/{number}")
            except OSError:
                continue
            found = re.fullmatch(r"socket:\[(\d+)\]", link)
            count += bool(found and found.group(1) in listening)
        return count

    def binary(
        self, path: str | None, instances: Seen[tuple[haproxy.Instance, ...]]
    ) -> Seen[haproxy.Binary | None]:
        if path is None and isinstance(instances, tuple) and instances:
            master = instances[0].master
            try:
                running = os.readlink(f"/proc/{master.pid}/exe")
            except OSError as exc:
                return Unseen(f"cannot see what process {master.pid} runs: {exc.strerror}")
            # A newer one may have taken the place of the one that runs.
            path = running[: -len(" (deleted)")] if running.endswith(" (deleted)") else running
        if not path:
            path = shutil.which("haproxy", path=_PATH)
        if not path:
            return None
        if not os.path.exists(path):
            return None
        done = self.look(path, "-vv")
        if isinstance(done, Unseen):
            return done
        if done[0] or not done[1].strip():
            return Unseen(f"`{path} -vv` failed: {_first(done[2])}")
        return haproxy.binary(done[1], path)

    def configuration(
        self, config: t.Sequence[str], instances: Seen[tuple[haproxy.Instance, ...]]
    ) -> Seen[haproxy.Configuration | None]:
        paths = list(config)
        if not paths and isinstance(instances, tuple) and instances:
            master = instances[0].master
            try:
                directory = os.readlink(f"/proc/{master.pid}/cwd")
            except OSError:
                directory = "/"
            paths = [os.path.join(directory, path) for path in master.files]
        if not paths:
            if not os.path.exists(DEFAULT_CONFIGURATION):
                return None
            paths = [DEFAULT_CONFIGURATION]
        texts = []
        for path in paths:
            # HAProxy reads the files *.cfg of a directory, in the order of their names.
            inside = (
                sorted(glob.glob(f"{glob.escape(path)}/*.cfg")) if os.path.isdir(path) else [path]
            )
            for entry in inside:
                text = self.text(entry)
                if isinstance(text, Unseen):
                    return text
                texts.append((entry, text))
        return haproxy.configuration(texts)

    # What lasts, and what runs out

    def unit(self, verb: str, unit: str) -> Seen[str]:
        done = self.look("systemctl", verb, unit)
        if isinstance(done, Unseen):
            return done
        _code, answer, error = done
        words = answer.split()
        if words:
            return words[0]
        if "No such file" in error or "not found" in error:
            return "not-found"
        return Unseen(f"`systemctl {verb} {unit}`: {_first(error)}")

    def usage(self, addresses: t.Sequence[Address]) -> tuple[Usage, ...]:
        """The client of each family with the most connections to one server."""
        own = {str(entry.address.ip) for entry in addresses}
        bounds = self.text("/proc/sys/net/ipv4/ip_local_port_range")
        words = bounds.split() if isinstance(bounds, str) else []
        low, high = (int(words[0]), int(words[1])) if len(words) == 2 else (0, 65535)
        found = []
        for family, path in (("ipv4", "/proc/net/tcp"), ("ipv6", "/proc/net/tcp6")):
            text = self.text(path)
            if isinstance(text, Unseen):
                continue
            counts: Counter[tuple[str, str]] = Counter()
            for line in text.splitlines()[1:]:
                fields = line.split()
                if len(fields) > 3 and fields[3] != "0A":
                    client, _colon, port = fields[1].partition(":")
                    if low <= int(port, 16) <= high:
                        counts[client, fields[2]] += 1
            for (client, server), count in counts.most_common():
                address = _hexadecimal(client)
                peer, _colon, port = server.partition(":")
                if address not in own:
                    to = f"{_hexadecimal(peer)} port {int(port, 16)}"
                    found.append(Usage(family, address, to, count))
                    break
        return tuple(found)


def _hexadecimal(text: str) -> str:
    """An address of /proc/net/tcp: 32-bit words in the byte order of the host."""
    raw = bytes.fromhex(text)
    words = [raw[index : index + 4] for index in range(0, len(raw), 4)]
    if sys.byteorder == "little":
        words = [word[::-1] for word in words]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _version(address: str) -> str | None:
    try:
        return f"ipv{ipaddress.ip_address(address).version}"
    except ValueError:
        return None


def _neighbours(
    family: str, interfaces: t.Sequence[str], addresses: t.Iterable[Address]
) -> list[tuple[str, str]]:
    """An address beside each of this host's own."""
    found = []
    for entry in addresses:
        ip, network = entry.address.ip, entry.address.network
        if (
            f"ipv{entry.address.version}" != family
            or entry.interface == "lo"
            or not entry.up
            or (interfaces and entry.interface not in interfaces)
            or ip.is_link_local
            or network.num_addresses < 4
        ):
            continue
        beside = network.network_address + (1 if int(ip) != int(network.network_address) + 1 else 2)
        found.append((entry.interface, str(beside)))
    return found


def _first(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")
