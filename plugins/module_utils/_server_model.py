# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: records of what HAProxy has, and normalisers of values. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import functools
import ipaddress
import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import InputError

READY = "ready"
DRAIN = "drain"
MAINT = "maint"

# The words of community.general.haproxy and of HAProxy's enable/disable commands.
_STATE_WORDS = {READY: READY, DRAIN: DRAIN, MAINT: MAINT, "enabled": READY, "disabled": MAINT}

# Bits of srv_admin_state (HAProxy's server-t.h, unchanged from 2.2 to 3.4).
_FORCED_MAINT = 0x01
_INHERITED_MAINT = 0x02
_CONFIG_MAINT = 0x04
_FORCED_DRAIN = 0x08
_INHERITED_DRAIN = 0x10
_UNRESOLVED = 0x20
_ANY_MAINT = _FORCED_MAINT | _INHERITED_MAINT | _UNRESOLVED
_ANY_DRAIN = _FORCED_DRAIN | _INHERITED_DRAIN

# Bits of srv_check_state and srv_agent_state: a check is on its way, the configuration has one, it
# is switched on.
_CHECK_IN_PROGRESS = 0x01
_CHECK_CONFIGURED = 0x02
_CHECK_ENABLED = 0x04

_OPERATIONAL = ("stopped", "starting", "running", "stopping")

WEIGHT_MAX = 256
PORT_MAX = 65535
# What `set maxconn server` holds; more wraps.
MAXCONN_MAX = 2**31 - 1
# What checks go to a server's own address with: HAProxy treats it as no address at all.
OWN_ADDRESS = "0.0.0.0"
_NO_ADDRESSES = (None, OWN_ADDRESS, "::")
_TEXT_MAX = 1024


_new = object.__new__
_put = object.__setattr__


def _unknown() -> t.Any:
    # As a plain default it would be an attribute of the class, and hide that it is to be read.
    return None


@dataclasses.dataclass(frozen=True)
class Server:
    """A server as `show servers state` tells it."""

    backend: str
    backend_id: int
    name: str
    id: int
    address: str | None
    port: int
    fqdn: str | None
    operational: str
    admin: int
    weight: int
    initial_weight: int
    last_change: int
    check_health: int
    check_state: int
    agent_state: int
    # Columns that HAProxy has since 2.4; None before. Addresses are None where there is none, too.
    ssl: bool | None = dataclasses.field(default_factory=_unknown)
    check_address: str | None = dataclasses.field(default_factory=_unknown)
    check_port: int | None = dataclasses.field(default_factory=_unknown)
    agent_address: str | None = dataclasses.field(default_factory=_unknown)
    agent_port: int | None = dataclasses.field(default_factory=_unknown)
    srv_record: str | None = dataclasses.field(default_factory=_unknown)
    # `show stat` tells it; None where that was not asked for.
    maxconn: int | None = dataclasses.field(default_factory=_unknown)

    @classmethod
    def read_later(cls, known: dict[str, t.Any]) -> Server:
        """A server with the fields in `known`; the others are read when one of them is needed.

        Its `_source` is what reads all of them, and from what. Of 10,000 servers, most are only found to
        be in the right state already.
        """
        server = _new(cls)
        _put(server, "__dict__", known)
        return t.cast("Server", server)

    @staticmethod
    def read_now(servers: c.Iterable[Server]) -> None:
        """Read whatever is left of these, all at once."""
        waiting: dict[t.Any, list[Server]] = {}
        for server in servers:
            if "_source" in server.__dict__:
                waiting.setdefault(server.__dict__["_source"][0], []).append(server)
        for reader, some in waiting.items():
            texts = [server.__dict__.pop("_source")[1] for server in some]
            for server, fields in zip(some, reader.fields(texts)):
                server._complete(fields)

    def _complete(self, fields: dict[str, t.Any]) -> None:
        # What was changed since is not read over.
        fields.update(self.__dict__)
        _put(self, "__dict__", fields)

    if not t.TYPE_CHECKING:

        def __getattr__(self, name: str) -> t.Any:
            source = self.__dict__.pop("_source", None)
            if source is None:
                raise AttributeError(name)
            reader, text = source
            self._complete(reader.fields([text])[0])
            return getattr(self, name)

    @functools.cached_property
    def key(self) -> tuple[str, str]:
        return (self.backend, self.name)

    @property
    def label(self) -> str:
        return f"{self.backend}/{self.name}"

    @property
    def state(self) -> str:
        """The state that `set server … state` sets; inherited states do not count."""
        if self.admin & _FORCED_MAINT:
            return MAINT
        return DRAIN if self.admin & _FORCED_DRAIN else READY

    @property
    def inherited_maint(self) -> bool:
        return bool(self.admin & _INHERITED_MAINT)

    @property
    def inherited_drain(self) -> bool:
        return bool(self.admin & _INHERITED_DRAIN)

    @property
    def unresolved(self) -> bool:
        return bool(self.admin & _UNRESOLVED)

    @property
    def disabled_in_configuration(self) -> bool:
        return bool(self.admin & _CONFIG_MAINT)

    @property
    def health_checks(self) -> bool:
        return bool(self.check_state & _CHECK_ENABLED)

    @property
    def agent_checks(self) -> bool:
        return bool(self.agent_state & _CHECK_ENABLED)

    @property
    def tells_everything(self) -> bool:
        """Whether HAProxy has the columns that came with 2.4."""
        return self.check_port is not None

    @property
    def has_health_check(self) -> bool:
        """Whether the configuration gives it one, switched on or not."""
        return bool(self.check_state & _CHECK_CONFIGURED)

    @property
    def has_agent_check(self) -> bool:
        return bool(self.agent_state & _CHECK_CONFIGURED)

    @property
    def checking(self) -> bool:
        """Whether a health check is on its way at this moment."""
        return bool(self.check_state & _CHECK_IN_PROGRESS)

    @property
    def running(self) -> bool:
        return self.operational in ("starting", "running")

    @property
    def usable(self) -> bool:
        """Whether load balancing sends new clients there."""
        return not self.admin & (_ANY_MAINT | _ANY_DRAIN) and self.running and self.weight > 0

    def with_state(self, state: str) -> Server:
        """The same server after `set server … state`."""
        bits = {READY: 0, DRAIN: _FORCED_DRAIN, MAINT: _FORCED_MAINT}[state]
        admin = self.admin & ~(_FORCED_MAINT | _FORCED_DRAIN) | bits
        # What is still to be read stays so.
        return Server.read_later({**self.__dict__, "admin": admin})

    def with_changes(self, **values: t.Any) -> Server:
        """The same server after these values, named like its attributes, were set."""
        fields = dict(values)
        state = fields.pop("state", None)
        for name, field in (("health_checks", "check_state"), ("agent_checks", "agent_state")):
            if (on := fields.pop(name, None)) is not None:
                before = getattr(self, field)
                fields[field] = before | _CHECK_ENABLED if on else before & ~_CHECK_ENABLED
        server = self if state is None else self.with_state(state)
        return Server.read_later({**server.__dict__, **fields}) if fields else server

    def as_dict(self) -> dict[str, t.Any]:
        """The shape in which every module of the collection returns a server."""
        admin = self.admin
        return {
            "backend": self.backend,
            "backend_id": self.backend_id,
            "name": self.name,
            "id": self.id,
            "address": self.address,
            "port": self.port,
            "fqdn": self.fqdn,
            "state": self.state,
            "operational": self.operational,
            "inherited_maint": admin & _INHERITED_MAINT != 0,
            "inherited_drain": admin & _INHERITED_DRAIN != 0,
            "unresolved": admin & _UNRESOLVED != 0,
            "disabled_in_configuration": admin & _CONFIG_MAINT != 0,
            "usable": self.usable,
            "weight": self.weight,
            "initial_weight": self.initial_weight,
            "health_checks": self.check_state & _CHECK_ENABLED != 0,
            "agent_checks": self.agent_state & _CHECK_ENABLED != 0,
            "check_address": self.check_address,
            "check_port": self.check_port,
            "agent_address": self.agent_address,
            "agent_port": self.agent_port,
            "ssl": self.ssl,
            "maxconn": self.maxconn,
            "last_change": self.last_change,
        }


def backend_ids(servers: c.Iterable[Server]) -> dict[str, int]:
    """The numbers of these servers' backends."""
    one_of = {server.backend: server for server in servers}
    return {backend: server.backend_id for backend, server in one_of.items()}


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What is still going on at a server: streams, queued requests, connections to it."""

    streams: int = 0
    queued: int = 0
    used: int = 0
    idle: int = 0

    @property
    def drained(self) -> bool:
        # Idle pooled connections carry nothing, and HAProxy gives a drained server nothing new over
        # them (seen with every reuse mode of 2.2 to 3.4), so they do not count.
        return not (self.streams or self.queued or self.used)

    def __str__(self) -> str:
        return f"{self.streams} streams, {self.queued} queued, {self.used} connections in use"


@dataclasses.dataclass(frozen=True)
class Check:
    """How a server's health is counted: `show stat`'s view."""

    rise: int
    fall: int
    tracked: str

    @property
    def full(self) -> int:
        """The health counter after a passed check; anything less is `UP n/m` or `DOWN`."""
        return self.rise + self.fall - 1

    def passed(self, health: int) -> bool:
        """Whether the counter says that the last check passed; no rise means that it is hidden."""
        return self.rise > 0 and health >= self.full


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight as asked for: absolute, or percent of the configured weight."""

    text: str
    value: int
    percent: bool

    def of(self, initial: int) -> int:
        """What HAProxy will make of it, given the configured weight."""
        return min(initial * self.value // 100, WEIGHT_MAX) if self.percent else self.value


def operational(number: int) -> str:
    """The word for srv_op_state."""
    return _OPERATIONAL[number]


# CONTRACT: a normaliser is idempotent: applied to its own result it changes nothing.


def normal_state(text: str) -> str:
    """HAProxy's own word for a state."""
    try:
        return _STATE_WORDS[text]
    except KeyError:
        raise InputError(f"state {text!r}: must be one of {', '.join(_STATE_WORDS)}") from None


def parse_weight(text: str) -> Weight:
    """`0` to `256`, or percent of the configured weight.

    HAProxy takes numbers with trailing garbage or out of range in ways that differ by version, so
    they are refused here.
    """
    match = re.fullmatch(r"([0-9]{1,5})(%?)", text.strip(), re.ASCII)
    if match is None or (not match.group(2) and int(match.group(1)) > WEIGHT_MAX):
        raise InputError(
            f"weight {text!r}: must be a whole number from 0 to {WEIGHT_MAX}, or a percentage "
            "of the configured weight such as 50%"
        )
    return Weight(
        f"{int(match.group(1))}{match.group(2)}", int(match.group(1)), bool(match.group(2))
    )


def normal_address(text: str, what: str) -> str:
    """An IP address as HAProxy writes it; names and `host:port` are not taken at run time."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text:
        raise InputError(
            f"{what} {text!r}: must be an IPv4 or IPv6 address without port, brackets or scope"
        )
    mapped = getattr(address, "ipv4_mapped", None)
    return f"::ffff:{mapped}" if mapped is not None else str(address)


def same_address(one: str | None, other: str | None) -> bool:
    """Whether two spellings name one address; none and the unspecified one are the same."""
    if one == other:
        return True
    if one in _NO_ADDRESSES or other in _NO_ADDRESSES:
        return one in _NO_ADDRESSES and other in _NO_ADDRESSES
    try:
        return ipaddress.ip_address(one or "") == ipaddress.ip_address(other or "")
    except ValueError:
        return False


def check_target(text: str | None) -> str | None:
    """The address that checks go to instead of the server's, or None."""
    return None if text in _NO_ADDRESSES else text


def normal_number(value: int, what: str, least: int, most: int) -> int:
    """HAProxy wraps what is out of range."""
    if not least <= value <= most:
        raise InputError(f"{what} {value}: must be a whole number from {least} to {most}")
    return value


def normal_fqdn(text: str, what: str) -> str:
    """A name for DNS, in lower case, in which HAProxy 2.6 and later keep it."""
    labels = text.lower().rstrip(".").split(".")
    if len(text) > 253 or not all(
        re.fullmatch(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", label, re.ASCII) for label in labels
    ):
        raise InputError(f"{what} {text!r}: must be a name that DNS can resolve, like app.example")
    return ".".join(labels)


def normal_text(text: str, what: str) -> str:
    """Text of one line that HAProxy passes on."""
    if not text or re.search(r"[\n\r\0]", text) or len(text.encode("utf-8", "replace")) > _TEXT_MAX:
        raise InputError(
            f"{what} {text[:60]!r}: must be text of 1 to {_TEXT_MAX} bytes without line breaks and "
            "NULs, which the admin socket cannot carry"
        )
    return text


def floor_of(text: str, total: int) -> int:
    """How many servers `min_ready` demands of `total`: a count, or percent rounded up."""
    match = re.fullmatch(r"([0-9]{1,9})(%?)", text.strip(), re.ASCII)
    if match is None or (match.group(2) and int(match.group(1)) > 100):
        raise InputError(
            f"min_ready {text!r}: must be a number of servers, or a percentage from 0% to 100%"
        )
    number = int(match.group(1))
    return -(-total * number // 100) if match.group(2) else number
