# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: HAProxy's build, processes and configuration as checks. Private to the collection."""

from __future__ import annotations

import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_haproxy as haproxy
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_check import (
    FAILED,
    OK,
    UNKNOWN,
    Check,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import Desired
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_survey import (
    Survey,
    Unseen,
)

# HAProxy


def haproxy_checks(survey: Survey, desired: Desired) -> t.Iterator[Check]:
    yield _binary(survey)
    yield _running(survey)
    yield from _workers(survey)
    config = survey.configuration
    if isinstance(config, Unseen) or config is None:
        reason = "there is no configuration" if config is None else config.reason
        for name in ("config_usesrc", "config_source", "config_families", "config_user"):
            yield Check(name, UNKNOWN, "", "", reason)
        yield Check("families", UNKNOWN, "", "", reason)
        return
    yield _usesrc(config)
    yield _sources(config)
    yield _mixed(config)
    yield _user(survey, config)
    yield from _families(config, desired)


def _binary(survey: Survey) -> Check:
    expected = "a HAProxy built with USE_LINUX_TPROXY"
    remedy = "install or build HAProxy with USE_LINUX_TPROXY=1 (role haproxy_build)"
    found = survey.binary
    if isinstance(found, Unseen):
        return Check("haproxy_binary", UNKNOWN, "", "", found.reason, expected)
    if found is None:
        return Check("haproxy_binary", FAILED, "", "", "there is no HAProxy", expected, remedy)
    if found.transparent is None:
        said = f"version {found.version or 'unknown'}, `-vv` lists no features"
        return Check("haproxy_binary", UNKNOWN, "", found.path, said, expected)
    said = f"version {found.version}, with{'' if found.transparent else 'out'} LINUX_TPROXY"
    return Check(
        "haproxy_binary",
        OK if found.transparent else FAILED,
        "",
        found.path,
        said,
        expected,
        "" if found.transparent else remedy,
    )


def _running(survey: Survey) -> Check:
    expected = "a HAProxy process in this network namespace"
    if isinstance(survey.instances, Unseen):
        return Check("haproxy_running", UNKNOWN, "", "", survey.instances.reason, expected)
    if not survey.instances:
        return Check(
            "haproxy_running",
            FAILED,
            "",
            "",
            "none",
            expected,
            "start HAProxy; its log says why it does not start, which `haproxy -c` may not know",
        )
    pids = ", ".join(
        f"{entry.master.pid} (workers {', '.join(str(one.pid) for one in entry.workers)})"
        for entry in survey.instances
    )
    return Check("haproxy_running", OK, "", "", pids, expected)


def _workers(survey: Survey) -> t.Iterator[Check]:
    expected = "CAP_NET_RAW or CAP_NET_ADMIN in the effective set"
    if isinstance(survey.instances, Unseen) or not survey.instances:
        reason = (
            survey.instances.reason
            if isinstance(survey.instances, Unseen)
            else "HAProxy does not run"
        )
        yield Check("worker_capability", UNKNOWN, "", "", reason, expected)
        yield Check("old_workers", UNKNOWN, "", "", reason)
        return
    for entry in survey.instances:
        for worker in entry.workers:
            may = worker.may_be_transparent
            status = UNKNOWN if may is None else OK if may else FAILED
            shown = "unreadable" if worker.capabilities is None else f"0x{worker.capabilities:x}"
            yield Check(
                "worker_capability",
                status,
                "",
                f"process {worker.pid}",
                f"CapEff {shown}, uid {'unknown' if worker.uid is None else worker.uid}",
                expected,
                "from HAProxy 3.0 on `setcap cap_net_raw` in global; before, AmbientCapabilities="
                "CAP_NET_RAW in the unit without a `user` line, or `user root`"
                if status == FAILED
                else "",
            )
    old = [process for entry in survey.instances for process in entry.old]
    still = [process for process in old if process.listening]
    unclear = [process for process in old if process.listening is None]
    status = FAILED if still else UNKNOWN if unclear else OK
    pids = ", ".join(str(process.pid) for process in still or old)
    if still:
        said = "accepts connections although it was told to finish, or its master is gone"
    else:
        said = "finishing its last connections" if old else "none"
    yield Check(
        "old_workers",
        status,
        "",
        f"process {pids}" if old else "",
        said,
        "processes of earlier generations have stopped listening",
        "end these processes; keep CAP_KILL in the unit's CapabilityBoundingSet, without which "
        "a reload cannot end workers"
        if still
        else "",
    )


def _usesrc(config: haproxy.Configuration) -> Check:
    expected = "at least one backend with `source … usesrc clientip` (or client, hdr_ip, …)"
    transparent = [proxy.name for proxy in config.transparent]
    plain = [proxy.name for proxy in config.backends if proxy.name not in transparent]
    paths = ", ".join(config.paths)
    if not transparent:
        said = f"none of the backends {', '.join(plain)}" if plain else "no backend"
        return Check(
            "config_usesrc",
            FAILED,
            "",
            paths,
            said,
            expected,
            "add `source 0.0.0.0 usesrc clientip` (IPv6: `source [::] usesrc clientip`) to the "
            "backends",
        )
    said = f"transparent: {', '.join(transparent)}"
    if plain:
        said += f"; not: {', '.join(plain)}"
    return Check("config_usesrc", OK, "", paths, said, expected)


def _sources(config: haproxy.Configuration) -> Check:
    """A server's own source takes the place of the backend's."""
    expected = "servers of a transparent backend have no source of their own without usesrc"
    for proxy in config.transparent:
        for server in proxy.servers:
            source = proxy.source_of(server)
            if source is not None and not source.usesrc:
                return Check(
                    "config_source",
                    FAILED,
                    "",
                    f"{proxy.name}/{server.name}",
                    f"source {source.address}: the server sees this address, not the client's",
                    expected,
                    "remove `source` from the server's line, or add `usesrc clientip` to it",
                )
    return Check("config_source", OK, "", "", "none has", expected)


def _mixed(config: haproxy.Configuration) -> Check:
    expected = "servers, their source and their clients are of one address family"
    for proxy in config.transparent:
        families = {server.family for server in proxy.servers} - {None}
        if len(families) > 1:
            return Check(
                "config_families",
                FAILED,
                "",
                proxy.name,
                "has IPv4 and IPv6 servers, so that each client can reach only some of them",
                expected,
                "make one backend for each family, and choose it with `use_backend … if { src … }` "
                "or by the bind line",
            )
        for server in proxy.servers:
            source = proxy.source_of(server)
            if source is None or not source.usesrc or server.family is None:
                continue
            if server.family == "ipv4" and source.address.strip("[]").count(":") > 1:
                return Check(
                    "config_families",
                    FAILED,
                    "",
                    f"{proxy.name}/{server.name}",
                    f"source {source.address} towards the IPv4 server {server.address}",
                    expected,
                    "write `source 0.0.0.0 usesrc …` for IPv4 servers",
                )
    transparent = {proxy.name: proxy for proxy in config.transparent}
    for proxy in config.proxies:
        target = transparent.get(proxy.default_backend or "")
        if proxy.kind == "listen" and proxy.servers:
            target = transparent.get(proxy.name)
        if proxy.switches or target is None:
            continue
        clients = {family for bind in proxy.binds for family in haproxy.bind_families(bind)}
        servers = {server.family for server in target.servers} - {None}
        lost = sorted(clients - servers) if servers else []
        if lost:
            return Check(
                "config_families",
                FAILED,
                lost[0],
                proxy.name,
                f"accepts {lost[0]} clients, and {target.name} has no {lost[0]} server: they get "
                "503",
                expected,
                f"give {lost[0]} clients a backend with {lost[0]} servers, or one without usesrc",
            )
    return Check("config_families", OK, "", "", "no mixture", expected)


def _user(survey: Survey, config: haproxy.Configuration) -> Check:
    """Mirrors HAProxy's own refusal, which `haproxy -c` does not make."""
    expected = "HAProxy can start with usesrc and this user"
    if not config.transparent or config.user in (None, "root", "0"):
        return Check(
            "config_user", OK, "", "", f"user {config.user}" if config.user else "no user", expected
        )
    version = (0, 0)
    if isinstance(survey.binary, haproxy.Binary):
        version = survey.binary.branch
    uids = (
        {entry.master.uid for entry in survey.instances}
        if not isinstance(survey.instances, Unseen)
        else set()
    )
    unprivileged = bool(uids - {None, 0})
    setcap = {"cap_net_raw", "cap_net_admin"} & {word.lower() for word in config.setcap}
    said = f"user {config.user}, " + (
        f"setcap {','.join(config.setcap)}" if setcap else "no setcap"
    )
    if unprivileged:
        return Check(
            "config_user",
            FAILED,
            "",
            config.user or "",
            f"{said}, and HAProxy is started without root's rights",
            expected,
            "remove the lines user, group and chroot: the unit's User= says it already",
        )
    if setcap and version == (0, 0):
        return Check(
            "config_user", UNKNOWN, "", config.user or "", f"{said}, version unknown", expected
        )
    if setcap and version >= (3, 0):
        return Check("config_user", OK, "", config.user or "", said, expected)
    old = version != (0, 0) and version < (3, 0)
    return Check(
        "config_user",
        FAILED,
        "",
        config.user or "",
        f"{said}: the next start ends with 'require full privileges', although `haproxy -c` says "
        "valid",
        expected,
        "this version needs `user root`, or a unit with User= and AmbientCapabilities=CAP_NET_RAW "
        "and no user line"
        if old
        else "add `setcap cap_net_raw` to global",
    )


def _families(config: haproxy.Configuration, desired: Desired) -> t.Iterator[Check]:
    """The half that was forgotten: servers of a family that the kernel side does not do."""
    wanted = sorted({family for family, _address, _port in config.targets()})
    missing = [family for family in wanted if family not in desired.families]
    yield Check(
        "families",
        FAILED if missing else OK,
        missing[0] if missing else "",
        "",
        f"transparent servers: {', '.join(wanted) or 'none with an address'}; rules: "
        f"{', '.join(desired.families)}",
        "rules for every family that transparent servers have",
        f"run tproxy_rules with families: [{', '.join(wanted)}]" if missing else "",
    )
