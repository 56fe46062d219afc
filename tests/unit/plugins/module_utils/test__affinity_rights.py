# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_config import (
    Plan,
    make_plan,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._affinity_rights import (
    NUMBERS,
    features,
    restart_reason,
    worker_problems,
)

SERVERS = [{"name": "s1", "address": "10.1.0.1", "port": 80}]
# What systemctl says of Debian's unit, and of haproxy_build's.
DEBIAN: dict[str, t.Any] = {
    "ExecStart": "{ path=/usr/sbin/haproxy ; argv[]=/usr/sbin/haproxy -Ws -f $CONFIG -p $PIDFILE $EXTRAOPTS"
    " ; ignore_errors=no ; start_time=[n/a] ; pid=0 ; code=(null) ; status=0/0 }",
    "Environment": 'CONFIG=/etc/haproxy/haproxy.cfg PIDFILE=/run/haproxy.pid "EXTRAOPTS=-S /run/haproxy-master.sock"',
    "environment_files": [],
    "drop_in": "",
}
AMBIENT = {
    **DEBIAN,
    "Environment": 'PIDFILE=/run/haproxy/haproxy.pid "EXTRAOPTS=-S /run/haproxy/master.sock,mode,600"',
    "drop_in": "[Service]\nUser=haproxy\n",
}
FIXED = {**DEBIAN, "ExecStart": DEBIAN["ExecStart"].replace("$PIDFILE", "/run/haproxy.pid")}
BUILT = frozenset({"TPROXY", "LINUX_TPROXY", "LINUX_CAP"})
WITHOUT_CAP = BUILT - {"LINUX_CAP"}


def plan(
    rights: str = "auto",
    version: tuple[int, int] = (2, 6),
    host: dict[str, t.Any] | None = None,
    transparent: str = "clientip",
    **variables: t.Any,
) -> Plan:
    variables.setdefault("frontends", [{"name": "www", "binds": [{"port": 80}]}])
    variables.setdefault(
        "backends", [{"name": "app", "transparent": transparent, "servers": SERVERS}]
    )
    built = WITHOUT_CAP if version < (2, 9) else BUILT
    seen = {"features": built, "unit": DEBIAN, "config_mode": "0640", **(host or {})}
    return make_plan({**variables, "rights": rights}, {}, version, seen)


def right(*arguments: t.Any, **options: t.Any) -> str:
    made = plan(*arguments, **options)
    assert made.problems == []
    return made.rights.right


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((2, 2), "ambient"),
        ((2, 6), "ambient"),
        ((2, 9), "ambient"),  # knows setcap and refuses to start with it
        ((3, 0), "setcap"),
        ((3, 4), "setcap"),
    ],
)
def test_auto_is_the_least_that_the_binary_can(version: tuple[int, int], expected: str) -> None:
    assert right("auto", version) == expected
    assert right("root", version) == "root"
    assert right("ambient", version) == "ambient"


def test_the_feature_counts_not_only_the_version() -> None:
    host = {"features": WITHOUT_CAP}
    assert right("auto", (3, 2), host) == "ambient"
    (problem,) = plan("setcap", (3, 2), host).problems
    assert problem == (
        "haproxy_affinity_rights is setcap, but HAProxy 3.2 was built without LINUX_CAP; choose auto, ambient or root."
    )


@pytest.mark.parametrize("version", [(2, 2), (2, 9)])
def test_setcap_needs_3_0(version: tuple[int, int]) -> None:
    (problem,) = plan("setcap", version).problems
    assert "before 3.0 cannot keep it" in problem


def test_a_binary_without_tproxy_is_refused() -> None:
    (problem,) = plan("auto", (3, 2), {"features": {"LINUX_CAP", "TPROXY"}}).problems
    assert "without TPROXY and LINUX_TPROXY" in problem
    assert right("auto", (3, 2), {"features": set()}, transparent="none") == "none"


def test_features_are_what_the_binary_lists() -> None:
    assert features("HAProxy version 3.0.1\nFeature list : -51DEGREES +LINUX_CAP +TPROXY\n") == {
        "LINUX_CAP",
        "TPROXY",
    }
    assert features("HAProxy version 3.0.1\n") is None


def global_lines(made: Plan) -> list[str]:
    return [
        line
        for line in made.sections[0]["lines"]
        if line.split()[0] in ("user", "group", "setcap", "chroot")
    ]


def test_each_right_has_its_lines() -> None:
    assert global_lines(plan("setcap", (3, 0))) == [
        "user haproxy",
        "group haproxy",
        "setcap cap_net_raw",
    ]
    assert global_lines(plan("root", (3, 0))) == ["user root", "group root"]
    assert global_lines(plan("ambient", (3, 0))) == []
    assert global_lines(plan("root", (3, 0), transparent="none")) == [
        "user haproxy",
        "group haproxy",
    ]


def test_an_unprivileged_start_has_two_capabilities_and_writes_below_run() -> None:
    admin = {"path": "/run/lb/admin.sock"}
    account: dict[str, t.Any] = {"global": {"user": "lb", "group": "proxies"}}
    made = plan("ambient", admin_socket=admin, **account)
    assert made.rights.drop_in == [
        "User=lb",
        "Group=proxies",
        "AmbientCapabilities=CAP_NET_BIND_SERVICE CAP_NET_RAW",
        "CapabilityBoundingSet=",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_NET_RAW",
        "RuntimeDirectory=lb",
        "RuntimeDirectoryPreserve=yes",
        'Environment="PIDFILE=/run/lb/haproxy.pid" "EXTRAOPTS=-S /run/lb/master.sock,mode,600"',
        "ExecStartPre=+/bin/rm -f /run/lb/admin.sock /run/lb/admin.sock.peers",
    ]


def test_a_start_as_root_keeps_what_ends_old_workers() -> None:
    for word in ("root", "setcap"):
        (line,) = plan(word, (3, 0)).rights.drop_in
        assert line.startswith("CapabilityBoundingSet=CAP_CHOWN ")
        assert {"CAP_KILL", "CAP_NET_RAW", "CAP_SETUID", "CAP_SYS_CHROOT"} <= set(line[22:].split())
        assert "CAP_SYS_ADMIN" not in line
    assert plan("auto", (3, 0), transparent="none").rights.drop_in == []


def test_more_capabilities() -> None:
    extra = ["CAP_NET_ADMIN", "CAP_IPC_LOCK"]
    setcap = plan("setcap", (3, 0), capabilities=extra)
    assert global_lines(setcap)[-1] == "setcap cap_net_raw,cap_net_admin"
    assert "CAP_IPC_LOCK" in setcap.rights.drop_in[0]
    assert "AmbientCapabilities=CAP_IPC_LOCK CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_RAW" in (
        plan("ambient", capabilities=extra).rights.drop_in
    )
    (problem,) = plan(capabilities=["net_admin"]).problems
    assert problem.startswith(
        "haproxy_affinity_capabilities has 'net_admin'; give some of CAP_CHOWN,"
    )


OBSTACLES: list[tuple[dict[str, t.Any], dict[str, t.Any], str]] = [
    ({}, {"unit": None}, "the service is not there"),
    (
        {},
        {"unit": FIXED},
        "the service starts HAProxy with -p /run/haproxy.pid, outside /run/haproxy",
    ),
    (
        {},
        {"unit": {**DEBIAN, "environment_files": ['EXTRAOPTS="-S /run/m.sock"']}},
        "the service starts HAProxy with -S /run/m.sock, outside /run/haproxy",
    ),
    ({}, {"unit": {**DEBIAN, "ExecStart": ""}}, "no command line that could be read"),
    ({}, {"config_mode": "0600"}, "haproxy_affinity_config_mode 0600 lets nobody but root read"),
    ({}, {"account_problem": "its user cannot load it: no"}, "its user cannot load it: no"),
    ({"global": {"chroot": "/x"}}, {}, "haproxy_affinity_global.chroot needs root"),
    ({"global": {"raw": "uid 5"}}, {}, "haproxy_affinity_global.raw has 'uid', which needs root"),
    (
        {"global": {"raw": "stats socket /run/haproxy/x.sock mode 600 user admin"}},
        {},
        "the socket /run/haproxy/x.sock is for user admin, and only root gives files away",
    ),
    (
        {"global": {"raw": "stats socket unix@/var/lib/x.sock"}},
        {},
        "the socket /var/lib/x.sock is outside /run/haproxy, where haproxy can make none",
    ),
    (
        {"admin_socket": {"path": "/var/lib/haproxy/s"}},
        {},
        "is in no directory of its own under /run",
    ),
    ({"admin_socket": {"path": "/run/s"}}, {}, "is in no directory of its own under /run"),
    ({"admin_socket": {"path": "/run/../s"}}, {}, "is in no directory of its own under /run"),
    ({"admin_socket": {"group": "adm"}}, {}, "haproxy_affinity_admin_socket.group is 'adm'"),
    (
        {"frontends": [{"name": "f", "binds": [{"address": "/srv/f.sock"}]}]},
        {},
        "the socket /srv/f.sock is outside /run/haproxy",
    ),
    ({"raw": ["frontend x", "bind 10.0.0.1:80 namespace blue"]}, {}, "a network namespace is used"),
]


@pytest.mark.parametrize(("variables", "host", "reason"), OBSTACLES)
def test_what_stands_against_an_unprivileged_start(
    variables: dict[str, t.Any], host: dict[str, t.Any], reason: str
) -> None:
    (problem,) = plan("ambient", host=host, **variables).problems
    assert problem.startswith("haproxy_affinity_rights is ambient, but ")
    assert reason in problem
    # with "auto" it is root then, and that is said
    made = plan("auto", host=host, **variables)
    assert (made.problems, made.rights.right) == ([], "root")
    said = [each for each in made.warnings if reason in each]
    assert [each.startswith("HAProxy 2.6 is to run as root: ") for each in said] == [True]
    # setcap has no such needs
    assert right("auto", (3, 0), host, **variables) == "setcap"


def test_what_does_not_stand_against_it() -> None:
    variables: dict[str, t.Any] = {
        "global": {
            "raw": ["stats socket /run/haproxy/user.sock mode 660 level user group haproxy"]
        },
        "admin_socket": {"user": "haproxy", "path": "/var/run/haproxy/admin.sock"},
        "frontends": [{"name": "f", "binds": [{"address": "/run/haproxy/f.sock"}]}],
    }
    assert right("ambient", **variables) == "ambient"
    assert right("ambient", host={"unit": AMBIENT}) == "ambient"
    files = {**DEBIAN, "environment_files": ["# x\nEXTRAOPTS='-S /run/haproxy/own.sock'\n"]}
    assert right("ambient", host={"unit": files}) == "ambient"
    odd = {**DEBIAN, "environment_files": ["PIDFILE=/run/haproxy/don't.pid"]}
    assert right("ambient", host={"unit": odd}) == "ambient"


def test_root_and_another_right_contradict_each_other() -> None:
    account: dict[str, t.Any] = {"global": {"user": "root"}}
    for word in ("setcap", "ambient"):
        (problem,) = plan(word, (3, 0), **account).problems
        assert (
            problem
            == f"haproxy_affinity_rights is {word}, but haproxy_affinity_global.user is root; remove one."
        )


def test_another_account_than_the_default_is_not_given_root() -> None:
    account: dict[str, t.Any] = {"global": {"user": "lb", "group": "lb"}}
    assert right("auto", **account) == "ambient"
    (problem,) = plan("root", **account).problems
    assert "haproxy_affinity_global.user is 'lb'" in problem
    assert "haproxy_affinity_rights is root" in problem


@pytest.mark.parametrize(
    "variables",
    [
        {
            "backends": [
                {"name": "app", "servers": SERVERS, "raw": "source 0.0.0.0 usesrc clientip"}
            ]
        },
        {
            "backends": [
                {
                    "name": "app",
                    "servers": [{**SERVERS[0], "options": "source 0.0.0.0 usesrc client"}],
                }
            ]
        },
        {"raw": ["backend x", "  source 0.0.0.0 usesrc clientip"]},
    ],
)
def test_addresses_used_in_raw_lines_need_the_right_too(variables: dict[str, t.Any]) -> None:
    assert right("auto", (3, 0), **variables) == "setcap"


def test_transparent_binds_do_not() -> None:
    bind = {"address": "10.9.9.9", "port": 80, "options": "transparent"}
    frontends = [{"name": "f", "binds": [bind]}]
    assert right("auto", (3, 0), transparent="none", frontends=frontends) == "none"


@pytest.mark.parametrize(
    ("unit", "word", "expected"),
    [
        (DEBIAN, "ambient", ["/run/haproxy.pid", "/run/haproxy-master.sock"]),
        (AMBIENT, "ambient", []),
        (AMBIENT, "root", ["/run/haproxy/haproxy.pid", "/run/haproxy/master.sock"]),
        (DEBIAN, "root", []),
    ],
)
def test_what_the_former_rights_left(
    unit: dict[str, t.Any], word: str, expected: list[str]
) -> None:
    assert plan(word, host={"unit": unit}).rights.leftovers == expected


# --- what runs


def bits(*names: str) -> int:
    return sum(1 << NUMBERS[name] for name in names)


ROOT = bits("CAP_KILL", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID")
RAW = bits("CAP_NET_RAW")


def master(uid: int = 0, bounding: int = ROOT, ambient: int = 0) -> dict[str, int]:
    return {"pid": 7, "uid": uid, "bounding": bounding, "ambient": ambient}


def worker(uid: int = 104, effective: int = RAW, **values: t.Any) -> dict[str, t.Any]:
    return {
        "pid": 9,
        "uid": uid,
        "effective": effective,
        "current": True,
        "listening": ["0.0.0.0 port 80"],
        "connections": 0,
        **values,
    }


def seen(
    leader: dict[str, int] | None, *workers: dict[str, t.Any], uid: int = 104
) -> dict[str, t.Any]:
    return {"unit": "haproxy.service", "wanted_uid": uid, "master": leader, "workers": workers}


def wanted(word: str) -> dict[str, t.Any]:
    return {
        "setcap": {
            "right": "setcap",
            "user": "haproxy",
            "capabilities": ["CAP_KILL", "CAP_NET_RAW"],
        },
        "root": {"right": "root", "user": "root", "capabilities": ["CAP_KILL", "CAP_NET_RAW"]},
        "ambient": {"right": "ambient", "user": "haproxy", "capabilities": ["CAP_NET_RAW"]},
        "none": {"right": "none", "user": "haproxy", "capabilities": []},
    }[word]


@pytest.mark.parametrize(
    ("leader", "word", "reason"),
    [
        (None, "ambient", ""),
        (master(), "setcap", ""),
        (master(bounding=0), "none", ""),
        (master(), "ambient", "its master, 7, runs as uid 0 instead of 104"),
        (master(104, RAW, RAW), "ambient", ""),
        (master(104, RAW, 0), "ambient", "its master, 7, lacks CAP_NET_RAW in its ambient set"),
        (master(104, RAW, RAW), "root", "its master, 7, runs as uid 104 instead of 0"),
        (master(104, RAW, RAW), "none", "its master, 7, runs as uid 104 instead of 0"),
        (master(bounding=RAW), "root", "its master, 7, lacks CAP_KILL in its bounding set"),
    ],
)
def test_a_restart_only_where_a_reload_cannot_do_it(
    leader: dict[str, int] | None, word: str, reason: str
) -> None:
    assert restart_reason(seen(leader), wanted(word)) == reason


def test_workers_as_they_should_be() -> None:
    assert worker_problems(seen(master(), worker()), wanted("setcap")) == []
    assert worker_problems(seen(master(), worker(0), uid=0), wanted("root")) == []
    assert worker_problems(seen(master(), worker(effective=0)), wanted("none")) == []
    leaving = worker(current=False, listening=[], connections=2)
    assert worker_problems(seen(master(), worker(), leaving), wanted("setcap")) == []


@pytest.mark.parametrize(
    ("leader", "process", "sentence"),
    [
        (
            master(),
            worker(effective=0),
            "The worker 9 of haproxy.service lacks CAP_NET_RAW (CapEff 0000000000000000)",
        ),
        (
            master(),
            worker(0),
            "The worker 9 of haproxy.service runs as uid 0 instead of haproxy (104)",
        ),
        (
            master(bounding=ROOT - bits("CAP_KILL")),
            worker(current=False),
            "still listens on 0.0.0.0 port 80: the master, which lacks CAP_KILL, did not end it at a reload",
        ),
        (
            master(),
            worker(current=False),
            "still listens on 0.0.0.0 port 80: the master did not end it at a reload",
        ),
        (
            master(),
            worker(current=False, listening=[]),
            "The old worker 9 of haproxy.service still runs, though it has no connection left",
        ),
    ],
)
def test_workers_that_are_not(
    leader: dict[str, int], process: dict[str, t.Any], sentence: str
) -> None:
    right_ = {**wanted("setcap"), "capabilities": []}
    (said,) = worker_problems(seen(leader, process), right_)
    assert sentence in said


def test_a_master_that_is_not() -> None:
    said = worker_problems(seen(master(), worker()), wanted("ambient"))
    assert said == [
        "haproxy.service does not have the right 'ambient': its master, 7, runs as uid 0 instead of 104; restart it."
    ]
