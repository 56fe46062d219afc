# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Choose by which right HAProxy uses clients' addresses, and judge the processes that run; private to the collection, pure."""

from __future__ import annotations

import dataclasses
import re
import shlex
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_model import (
    VAR,
    Site,
)

WORDS = ("auto", "setcap", "ambient", "root")

# capabilities(7): their numbers, for those that are looked for in /proc/PID/status.
NUMBERS = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
    "CAP_BPF": 39,
}
# What an unprivileged start has: clients' addresses (IP_TRANSPARENT, ip(7)) and ports below 1024.
AMBIENT = ("CAP_NET_BIND_SERVICE", "CAP_NET_RAW")
# What a start as root may use. CAP_KILL: without it the master cannot end workers of another user,
# and every reload leaves one behind that still listens (measured).
BOUNDING = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
    "CAP_SYS_RESOURCE",
)
# Of these a start as root cannot do without.
NEEDED = ("CAP_KILL", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID")
# What HAProxy 3.0's setcap knows beside cap_net_raw.
SETCAP = ("CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE")

_ROOT_ONLY = ("chroot", "user", "group", "uid", "gid", "setcap")


@dataclasses.dataclass(frozen=True)
class Choice:
    """C(right) is setcap, ambient, root, or none where no source address but the proxy's own is used."""

    right: str = "none"
    user: str = ""
    lines: list[str] = dataclasses.field(default_factory=list)
    drop_in: list[str] = dataclasses.field(default_factory=list)
    # What the processes must have: the master in its bounding set, or with "ambient" in its ambient set.
    capabilities: list[str] = dataclasses.field(default_factory=list)
    warning: str = ""
    # Files that HAProxy leaves where it no longer writes them, once the service is restarted.
    leftovers: list[str] = dataclasses.field(default_factory=list)


def features(text: str) -> frozenset[str] | None:
    """Return what C(haproxy -vv) lists as built in (LINUX_CAP, TPROXY, ...), None if it lists nothing."""
    match = re.search(r"^Feature list *: *(.+)$", text, re.MULTILINE)
    if not match:
        return None
    return frozenset(word[1:] for word in match.group(1).split() if word.startswith("+"))


def needs_rights(site: Site) -> bool:
    """Tell whether connections to servers come from other addresses than the proxy's own.

    C(bind ... transparent) is no such case: HAProxy binds before it gives up root.
    """
    return site.transparent or any("usesrc" in line.split() for line in _lines(site))


class Refusal(Exception):
    """Why the right that is wanted cannot be had: one sentence."""


def choose(
    site: Site,
    variables: t.Mapping[str, t.Any],
    version: tuple[int, int],
    host: t.Mapping[str, t.Any],
) -> Choice:
    """Return the choice, or raise Refusal.

    C(host) says what the role saw: C(features) of the binary, C(unit) that starts it (as the probe has it), C(config_mode) and
    C(account_problem), why the account cannot load the configuration.
    """
    wanted, extra = _wanted(variables)
    name = f"HAProxy {version[0]}.{version[1]}"
    built = host.get("features")
    needed = needs_rights(site)
    if needed and built is not None and not {"TPROXY", "LINUX_TPROXY"} <= set(built):
        raise Refusal(
            f"The installed {name} was built without TPROXY and LINUX_TPROXY ('haproxy -vv'), so it cannot use"
            " clients' addresses; install one that was, for example by the role clearproxy.haproxy.haproxy_build."
        )
    choice = _choose(site, wanted, extra, (version, built), host)
    return dataclasses.replace(choice, leftovers=_leftovers(choice.right, host))


def _wanted(variables: t.Mapping[str, t.Any]) -> tuple[str, list[str]]:
    wanted = variables.get("rights") or "auto"
    if wanted not in WORDS:
        raise Refusal(f"{VAR}_rights is {wanted!r}; give one of {', '.join(WORDS)}.")
    extra = [str(name) for name in variables.get("capabilities") or []]
    for name in extra:
        if name not in NUMBERS:
            raise Refusal(f"{VAR}_capabilities has {name!r}; give some of {', '.join(NUMBERS)}.")
    return wanted, extra


def _choose(
    site: Site,
    wanted: str,
    extra: list[str],
    binary: tuple[tuple[int, int], t.Collection[str] | None],
    host: t.Mapping[str, t.Any],
) -> Choice:
    version, built = binary
    name = f"HAProxy {version[0]}.{version[1]}"
    user = site.settings.user
    needed = needs_rights(site)
    if user == "root":
        if wanted in ("setcap", "ambient"):
            raise Refusal(f"{VAR}_rights is {wanted}, but {VAR}_global.user is root; remove one.")
        return _as_root(extra, needed)
    obstacle = ambient_obstacle(site, host)
    if wanted == "ambient":
        if obstacle:
            raise Refusal(f"{VAR}_rights is ambient, but {obstacle}; change that or the right.")
        return _ambient(site, extra)
    if not needed:
        return Choice("none", user, _account(site))
    # 2.9 knows the word and refuses to start all the same (measured)
    setcap = version >= (3, 0) and (built is None or "LINUX_CAP" in built)
    if wanted == "setcap" and not setcap:
        why = "before 3.0 cannot keep it" if version < (3, 0) else "was built without LINUX_CAP"
        raise Refusal(f"{VAR}_rights is setcap, but {name} {why}; choose auto, ambient or root.")
    if wanted != "root" and setcap:
        words = ["cap_net_raw", *(each.lower() for each in extra if each in SETCAP)]
        lines = [*_account(site), f"setcap {','.join(words)}"]
        return _from_root("setcap", user, lines, extra)
    if wanted == "auto" and not obstacle:
        return _ambient(site, extra)
    reason = f"{VAR}_rights is root"
    if wanted == "auto":
        reason = f"ambient capabilities cannot be had, because {obstacle}"
    if user != "haproxy":
        raise Refusal(
            f"{VAR}_global.user is {user!r}, but {name} with a transparent backend is to run as root:"
            f" {reason}; remove user, change that, or install HAProxy 3.0 or newer."
        )
    choice = _as_root(extra, needed)
    if wanted == "auto":
        said = f"{name} is to run as root: {reason}. {VAR}_rights: root says that this is meant."
        choice = dataclasses.replace(choice, warning=said)
    return choice


def _account(site: Site) -> list[str]:
    return [f"user {site.settings.user}", f"group {site.settings.group}"]


def _as_root(extra: list[str], needed: bool) -> Choice:
    # said in so many words, because 3.3 and newer warn about root that nobody asked for
    lines = ["user root", "group root"]
    return _from_root("root", "root", lines, extra) if needed else Choice("none", "root", lines)


def _from_root(right: str, user: str, lines: list[str], extra: list[str]) -> Choice:
    bounding = " ".join(sorted({*BOUNDING, *extra}))
    return Choice(
        right=right,
        user=user,
        lines=lines,
        # Units are merged: what another file allows stays allowed.
        drop_in=[f"CapabilityBoundingSet={bounding}"],
        capabilities=sorted({*NEEDED, *extra}),
    )


def _ambient(site: Site, extra: list[str]) -> Choice:
    capabilities = sorted({*AMBIENT, *extra})
    words = " ".join(capabilities)
    directory = runtime_directory(site)
    # HAProxy keeps the socket that it replaces by a hard link, which the kernel allows to its owner only
    # (fs.protected_hardlinks): one that root left would end every start.
    sockets = sorted({path for path, _options in _sockets(site)})
    return Choice(
        right="ambient",
        user=site.settings.user,
        drop_in=[
            f"User={site.settings.user}",
            f"Group={site.settings.group}",
            f"AmbientCapabilities={words}",
            "CapabilityBoundingSet=",
            f"CapabilityBoundingSet={words}",
            f"RuntimeDirectory={directory}",
            "RuntimeDirectoryPreserve=yes",
            f'Environment="PIDFILE=/run/{directory}/haproxy.pid" "EXTRAOPTS=-S /run/{directory}/master.sock,mode,600"',
            f"ExecStartPre=+/bin/rm -f {' '.join(sockets)}",
        ],
        capabilities=capabilities,
    )


def runtime_directory(site: Site) -> str:
    """Return the directory under /run that the admin socket is in, empty if there is none of its own."""
    match = re.fullmatch(r"(?:/var)?/run/([A-Za-z0-9_.-]+)/[^/\s]+", site.socket.path)
    return match.group(1) if match and match.group(1).strip(".") else ""


def ambient_obstacle(site: Site, host: t.Mapping[str, t.Any]) -> str:
    """Return why HAProxy cannot start as its user, as a clause without a full stop; empty if nothing is known against it."""
    directory = runtime_directory(site)
    user, group = site.settings.user, site.settings.group
    if not directory:
        return (
            f"the admin socket {site.socket.path} is in no directory of its own under /run"
            f" ({VAR}_admin_socket.path)"
        )
    unit = host.get("unit")
    found = unit_obstacle(unit, directory) if unit else "the service is not there"
    if found:
        return found
    if site.settings.chroot:
        return f"{VAR}_global.chroot needs root"
    for line in site.settings.raw:
        word = line.split()[0]
        if word in _ROOT_ONLY:
            return f"{VAR}_global.raw has {word!r}, which needs root"
    owners = (("user", site.socket.user, user), ("group", site.socket.group, group))
    for word, value, own in owners:
        if value not in (None, own):
            return f"{VAR}_admin_socket.{word} is {value!r}, and only root gives files away"
    for path, options in _sockets(site):
        if not re.match(rf"(?:/var)?/run/{re.escape(directory)}/[^/]+\Z", path):
            return f"the socket {path} is outside /run/{directory}, where {user} can make none"
        for before, word, value in zip(["", *options], options, options[1:]):
            if word not in ("user", "group", "uid", "gid") or before == "level":
                continue
            if value != {"user": user, "group": group}.get(word):
                return f"the socket {path} is for {word} {value}, and only root gives files away"
    if any("namespace" in line.split() for line in _lines(site)):
        return "a network namespace is used, which needs root"
    mode = str(host.get("config_mode") or "0640")
    if re.fullmatch("[0-7]{3,4}", mode) and not int(mode, 8) & 0o044:
        return f"{VAR}_config_mode {mode} lets nobody but root read the configuration"
    return str(host.get("account_problem") or "")


def unit_obstacle(unit: t.Mapping[str, t.Any], directory: str) -> str:
    """Return why the unit's command line does not suit an unprivileged start."""
    wanted = {
        "PIDFILE": f"/run/{directory}/haproxy.pid",
        "EXTRAOPTS": f"-S /run/{directory}/master.sock",
    }
    paths = _written(unit, wanted)
    if paths is None:
        return "the service has no command line that could be read"
    for option, path in paths:
        if not path.startswith(f"/run/{directory}/"):
            return (
                f"the service starts HAProxy with {option} {path}, outside /run/{directory}, and not by way of"
                " $PIDFILE and $EXTRAOPTS"
            )
    return ""


def _leftovers(right: str, host: t.Mapping[str, t.Any]) -> list[str]:
    """Return what the unit, as it is now, lets HAProxy write and will not any more."""
    unit = host.get("unit") or {}
    if ("User=" in str(unit.get("drop_in"))) == (right == "ambient"):
        return []
    return [path for _option, path in _written(unit, {}) or ()]


def _written(
    unit: t.Mapping[str, t.Any], ours: t.Mapping[str, str]
) -> list[tuple[str, str]] | None:
    """Return the options and paths of the pid file and the master's socket, None without a command line."""
    match = re.search(r"argv\[\]=(.*?) ;", str(unit.get("ExecStart") or ""))
    if not match:
        return None
    environment = {**_assignments(str(unit.get("Environment") or "")), **ours}
    for text in unit.get("environment_files") or ():
        environment.update(_assignments(text))
    words = re.sub(
        r"\$\{?(\w+)\}?", lambda found: environment.get(found.group(1), ""), match.group(1)
    ).split()
    return [
        (option, value.split(",")[0])
        for option, value in zip(words, words[1:])
        if option in ("-p", "-S")
    ]


def _assignments(text: str) -> dict[str, str]:
    """Read what environment files and C(systemctl show) have in common; C(ValueError) of odd quotes is no reason to fail."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = text.split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def _sockets(site: Site) -> list[tuple[str, list[str]]]:
    """Return the unix sockets that HAProxy makes, each with the words that follow its path."""
    # the second one is for the peers section, where there is one
    found = [(site.socket.path, list[str]()), (f"{site.socket.path}.peers", list[str]())]
    for frontend in site.frontends:
        for bind in frontend.binds:
            found += _unix(bind.other, bind.options.split())
    for line in _lines(site):
        words = line.split()
        if words[:2] == ["stats", "socket"] and len(words) > 2:
            found += _unix(words[2], words[3:])
        elif words[0] == "bind" and len(words) > 1:
            found += _unix(words[1], words[2:])
    return found


def _unix(address: str, options: list[str]) -> list[tuple[str, list[str]]]:
    paths = [each[5:] if each.startswith("unix@") else each for each in address.split(",")]
    return [(path, options) for path in paths if path.startswith("/")]


def _lines(site: Site) -> list[str]:
    """Return what the user wrote in HAProxy's own words."""
    found = [*site.settings.raw, *site.defaults.raw, *site.raw]
    for frontend in site.frontends:
        found += frontend.raw
    for backend in site.backends:
        found += [*backend.raw, backend.default_server]
        found += [server.words for server in backend.servers]
    return [line for line in found if line.split()]


# --- what runs


def restart_reason(seen: t.Mapping[str, t.Any], right: t.Mapping[str, t.Any]) -> str:
    """Return why the master cannot have the right by a reload, as a clause; empty if it can or nothing runs."""
    master = seen.get("master")
    if not master or (right["right"] == "none" and master["uid"] == 0):
        return ""
    ambient = right["right"] == "ambient"
    uid = seen.get("wanted_uid") if ambient else 0
    if master["uid"] != uid:
        return f"its master, {master['pid']}, runs as uid {master['uid']} instead of {uid}"
    have = master["ambient" if ambient else "bounding"]
    missing = [name for name in right["capabilities"] if not have >> NUMBERS[name] & 1]
    if missing:
        kind = "ambient" if ambient else "bounding"
        return f"its master, {master['pid']}, lacks {' and '.join(missing)} in its {kind} set"
    return ""


def worker_problems(seen: t.Mapping[str, t.Any], right: t.Mapping[str, t.Any]) -> list[str]:
    """Return one sentence for each process of the service that is not as it should be."""
    unit = seen["unit"]
    found = []
    reason = restart_reason(seen, right)
    if reason:
        found.append(f"{unit} does not have the right {right['right']!r}: {reason}; restart it.")
    for worker in seen["workers"]:
        pid = worker["pid"]
        if worker["current"]:
            if right["right"] != "none" and not worker["effective"] >> NUMBERS["CAP_NET_RAW"] & 1:
                found.append(
                    f"The worker {pid} of {unit} lacks CAP_NET_RAW (CapEff {worker['effective']:016x}), so servers cannot see"
                    f" clients' addresses; see {VAR}_rights."
                )
            if worker["uid"] != seen.get("wanted_uid"):
                found.append(
                    f"The worker {pid} of {unit} runs as uid {worker['uid']} instead of {right['user']}"
                    f" ({seen.get('wanted_uid')}); see {VAR}_rights."
                )
        elif worker["listening"]:
            lacks = (
                ""
                if seen["master"]["bounding"] >> NUMBERS["CAP_KILL"] & 1
                else ", which lacks CAP_KILL,"
            )
            found.append(
                f"The old worker {pid} of {unit} still listens on {', '.join(worker['listening'])}: the master"
                f"{lacks} did not end it at a reload; restart the service."
            )
        elif not worker["connections"]:
            found.append(
                f"The old worker {pid} of {unit} still runs, though it has no connection left;"
                " restart the service."
            )
    return found
