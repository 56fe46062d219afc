# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Socket options, as in doc_fragments/_socket.py, and clients. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import contextlib
import gc
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError
from ansible_collections.clearproxy.haproxy.plugins.module_utils._transport import (
    Address,
    Connection,
    Tls,
    parse_address,
    usual_address,
)

# A day. What the system is asked to wait for has a limit, too.
LONGEST_TIMEOUT = 86400


def socket_spec() -> dict[str, t.Any]:
    """The options that every module of the admin socket has."""
    return {
        "socket": {"type": "list", "elements": "str"},
        "timeout": {"type": "float", "default": 10.0},
        "client_cert": {"type": "path"},
        # A path, not the key itself.
        "client_key": {"type": "path", "no_log": False},
        "ca_path": {"type": "path"},
        "validate_certs": {"type": "bool", "default": True},
    }


def addresses(params: c.Mapping[str, t.Any]) -> list[Address]:
    """Where to talk to; the first usual path that exists if nothing was named."""
    timeout = params["timeout"]
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise InputError(
            f"timeout {timeout}: must be a number of seconds above 0, and at most {LONGEST_TIMEOUT}"
        )
    named = params["socket"]
    if named is None:
        return [usual_address()]
    if not named:
        raise InputError(
            "socket: the list is empty; name a socket, or leave the option out for the usual paths"
        )
    found = [parse_address(text) for text in named]
    if len({str(address) for address in found}) < len(found):
        raise InputError(f"socket: a socket is named twice in {', '.join(named)}")
    return found


def tls_of(params: c.Mapping[str, t.Any], found: c.Iterable[Address]) -> Tls:
    """How `tls://` sockets are talked to; refuses what would be left unused."""
    given = [name for name in ("client_cert", "client_key", "ca_path") if params[name] is not None]
    if given and not any(address.kind == "tls" for address in found):
        raise InputError(
            f"{given[0]}: goes with a tls://host:port socket only, and there is none; nothing "
            "encrypts the others"
        )
    if params["client_key"] is not None and params["client_cert"] is None:
        raise InputError("client_key: goes with client_cert only")
    return Tls(
        params["client_cert"], params["client_key"], params["ca_path"], params["validate_certs"]
    )


@contextlib.contextmanager
def clients_from(params: c.Mapping[str, t.Any]) -> c.Iterator[list[Client]]:
    """A client for each socket, closed afterwards; a connection is made with the first command."""
    found = addresses(params)
    tls = tls_of(params, found)
    clients = [Client(Connection(address, params["timeout"], tls)) for address in found]
    # Tens of thousands of records, and not one cycle among them that Python should look for.
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield clients
    finally:
        if collecting:
            gc.enable()
        for client in clients:
            client.close()
