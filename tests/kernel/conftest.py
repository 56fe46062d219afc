# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One host, or a whole network of them, for each test or for a module of tests."""

from __future__ import annotations

import contextlib
import os
import typing as t
from pathlib import Path

import pytest
from hosts import Host, Network, items


@pytest.fixture
def host(tmp_path: Path) -> t.Iterator[Host]:
    """A host with two interfaces and no neighbours."""
    if os.geteuid() != 0:
        pytest.fail("run as root: these tests make network namespaces")
    made = Host("host", tmp_path)
    made.sh(
        "for i in front back; do ip link add $i type veth peer name $i-end; ip link set $i addrgenmode none up; ip link set $i-end addrgenmode none up; done"
    )
    with contextlib.closing(made):
        yield made


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Network]:
    """A network whose proxy and server were set up by the modules."""
    if os.geteuid() != 0:
        pytest.fail("run as root: these tests make network namespaces")
    made = Network(tmp_path_factory.mktemp("network"))
    with contextlib.closing(made):
        assert items(made.server.module("tproxy_return_path", gateways=made.gateways))
        assert items(made.proxy.module())
        yield made
