# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Plans for the way back, on a routing table in memory."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_return as way
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_model import Address, Route

ADDRESSES = tuple(
    Address(interface, ipaddress.ip_interface(text))
    for interface, text in (
        ("lo", "127.0.0.1/8"),
        ("back", "10.9.2.11/24"),
        ("wide", "10.9.0.7/16"),
        ("back", "fd09:2::11/64"),
    )
)
FOREIGN = {
    "default via 10.9.2.1 dev back proto boot": Route("unicast", "default", "back", "10.9.2.1", 3),
    "default via 10.9.0.1 dev wide proto dhcp metric 100": Route(
        "unicast", "default", "wide", "10.9.0.1", 16, 100
    ),
    "default via fd09:2::1 dev back proto ra metric 1024": Route(
        "unicast", "default", "back", "fd09:2::1", 9, 1024
    ),
    "default via fd09:2::7 dev back proto boot metric 1": Route(
        "unicast", "default", "back", "fd09:2::7", 3, 1
    ),
}


def family(text: str) -> str:
    return "ipv6" if ":" in text else "ipv4"


def host(texts: list[str]) -> way.Snapshot:
    per_family = {
        name: tuple(text for text in texts if family(text) == name) for name in ("ipv4", "ipv6")
    }
    return way.Snapshot(
        addresses=ADDRESSES,
        defaults={
            name: tuple(FOREIGN[text] for text in entry) for name, entry in per_family.items()
        },
        texts=per_family,
        files=dict.fromkeys((*way.FILES, way.RECORD)),
    )


def parsed(text: str) -> Route:
    """A route of ours."""
    words = text.split()
    gateway, device = words[words.index("via") + 1], words[words.index("dev") + 1]
    metric = int(words[words.index("metric") + 1]) if "metric" in words else 0
    return Route("unicast", "default", device, gateway, 2, metric)


def apply(snapshot: way.Snapshot, plan: way.Plan) -> way.Snapshot:
    """Refuses what the kernel refuses: deleting what is not there, adding what is."""
    defaults, texts = dict(snapshot.defaults), dict(snapshot.texts)
    for name in {**plan.back, **plan.ip}:
        live = dict(zip(texts[name], defaults[name]))
        lines = [f"route append {text}" for text in plan.back.get(name, ())]
        lines += plan.ip.get(name, ())
        for line in lines:
            verb, text = line.removeprefix("route ").split(" ", 1)
            if verb == "del":
                del live[text]
            elif verb == "append":
                assert text not in live
                live[text] = FOREIGN.get(text) or parsed(text)
            else:
                metric = parsed(text).metric
                live = {key: route for key, route in live.items() if route.metric != metric}
                live[text] = parsed(text)
        order = sorted(live.items(), key=lambda item: item[1].metric)
        texts[name] = tuple(text for text, _route in order)
        defaults[name] = tuple(route for _text, route in order)
    files = {**snapshot.files, **plan.files}
    if plan.record is not None:
        files[way.RECORD] = plan.record
    return replace(
        snapshot,
        defaults=defaults,
        texts=texts,
        files=files,
        record=way.Record.load(files[way.RECORD]),
    )


foreign_routes = st.lists(st.sampled_from(sorted(FOREIGN)), unique=True)
wishes = st.sampled_from(
    [{"ipv4": "10.9.2.2"}, {"ipv6": "fd09:2::2"}, {"ipv4": "10.9.2.3", "ipv6": "fd09:2::3"}]
)


@given(foreign_routes, st.lists(wishes, min_size=1, max_size=3))
def test_nothing_left_to_plan_and_absent_ends_where_it_began(
    texts: list[str], desires: list[dict[str, str]]
) -> None:
    before = host(sorted(texts, key=lambda text: FOREIGN[text].metric))
    now = before
    for gateways in desires:
        now = apply(now, way.plan_return_path(now, gateways))
        assert way.plan_return_path(now, gateways).changes == ()
        for name, gateway in gateways.items():
            assert now.defaults[name][0].gateway == gateway
    gone = apply(now, way.plan_return_path(now, None))
    assert way.plan_return_path(gone, None).changes == ()
    assert {name: set(entry) for name, entry in gone.texts.items()} == {
        name: set(entry) for name, entry in before.texts.items()
    }
    assert gone.files == before.files


def test_the_nearest_subnet_gives_the_interface() -> None:
    (line,) = way.plan_return_path(host([]), {"ipv4": "10.9.2.2"}).ip["ipv4"]
    assert line == "route append default via 10.9.2.2 dev back proto kernel"
    (line,) = way.plan_return_path(host([]), {"ipv4": "10.9.7.2"}).ip["ipv4"]
    assert line == "route append default via 10.9.7.2 dev wide proto kernel"


def test_a_gateway_elsewhere_is_refused_with_what_was_found() -> None:
    with pytest.raises(
        InputError, match=r"no subnet .*10\.9\.2\.11/24 on back, 10\.9\.0\.7/16 on wide\)"
    ):
        way.plan_return_path(host([]), {"ipv4": "192.0.2.1"})


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}", '{"gateways": 1, "replaced": {}}'])
def test_an_unreadable_record_is_none(text: str | None) -> None:
    assert way.Record.load(text) == way.Record()
