# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out commands of the user's own at each HAProxy. Private to the collection."""

from __future__ import annotations

import collections.abc as c
import dataclasses
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _reply
from ansible_collections.clearproxy.haproxy.plugins.module_utils._client import Client, one_line
from ansible_collections.clearproxy.haproxy.plugins.module_utils._errors import (
    CommandError,
    Error,
    InputError,
    SocketError,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._transport import BrokenOff

_LEVELS = ("user", "operator", "admin")
# Since which version a mode exists.
_MODES = {"expert_mode": (2, 2), "experimental_mode": (2, 4)}


@dataclasses.dataclass
class Script:
    """Commands in their order, and the modes that they need."""

    commands: list[_reply.Raw]
    modes: tuple[str, ...]
    # One record for each command and socket, as far as it came.
    replies: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def from_params(cls, params: c.Mapping[str, t.Any]) -> Script:
        return cls(
            _reply.raw_commands(params["commands"]),
            tuple(option for option in _MODES if params[option]),
        )

    @property
    def secret(self) -> bool:
        """Whether a payload holds a private key."""
        return any(
            "PRIVATE KEY-----" in line
            for raw in self.commands
            for line in raw.command.payload or ()
        )

    def run(self, clients: c.Sequence[Client], *, check: bool) -> list[str]:
        """Send the commands one by one, each after the one before was accepted.

        Returns those that changed something; in check mode only the reading ones are sent.
        """
        for client in clients:
            self._prepare(client)
        foreseen: list[str] = []
        try:
            for client in clients:
                self._begin(client)
                for number, raw in enumerate(self.commands):
                    if check and raw.kind in (_reply.CHANGE, _reply.WAIT):
                        self._record(client, raw, None)
                        foreseen += [raw.shown] if raw.changes else []
                    else:
                        self._send(client, number)
                if client.applied:
                    client.require_current()
        except Error as exc:
            done = [command for client in clients for command in client.applied]
            exc.details.update(commands=done, changed=bool(done), replies=self.replies)
            raise
        return foreseen + [command for client in clients for command in client.applied]

    def _prepare(self, client: Client) -> None:
        """Whatever can be known before the first command is sent to any HAProxy."""
        for raw in self.commands:
            reason = _reply.refuse_at(raw, master=client.is_master)
            if reason is not None:
                raise InputError(
                    f"commands: '{raw.shown}' cannot be sent to {client.where}: {reason}"
                )
        levels = [raw.level for raw in self.commands]
        if self.modes:
            levels.append("admin")
            if client.is_master:
                raise InputError(
                    f"{self.modes[0]}: goes with the worker's own socket only, not with the master "
                    f"process at {client.where}"
                )
        client.require_level(max(levels, key=_LEVELS.index))
        for option in self.modes:
            client.require_version(_MODES[option], option)

    def _begin(self, client: Client) -> None:
        """What the conversation needs; anew, because HAProxy may have closed an idle one."""
        # Through the master process every command would lose it again.
        client.read("show cli level")
        setup = [] if client.is_master else ["set severity-output number"]
        setup += [f"{option.replace('_', '-')} on" for option in self.modes]
        for command in setup:
            reply = client.say(command).strip()
            if reply:
                raise CommandError(
                    f"HAProxy at {client.where} refused '{command}': {one_line(reply)}; of "
                    f"{len(self.commands)} commands none was sent there",
                    socket=client.socket,
                )

    def _send(self, client: Client, number: int) -> None:
        raw, rest = self.commands[number], self.commands[number + 1 :]
        try:
            if raw.patience:
                # HAProxy interrupts it when the configuration's `stats timeout` has passed.
                client.keep_open(raw.patience)
            text = client.say(raw.command, patience=raw.patience)
        except SocketError as exc:
            sent = isinstance(exc, BrokenOff) and exc.started > 0
            unsent = rest if sent else [raw, *rest]
            unknown = [raw.shown] if sent and raw.changes else []
            raise SocketError(
                f"{exc}; of {len(self.commands)} commands {number} were carried out there, "
                + (f"'{raw.shown}' has an unknown outcome, " if unknown else "")
                + f"{len(unsent)} were not sent",
                **{**exc.details, "socket": client.socket},
                unknown=unknown,
                not_sent=[item.shown for item in unsent],
            ) from None
        numbered = not client.is_master
        reply = _reply.understand(text, numbered=numbered)
        self._record(client, raw, reply)
        reason = _reply.refusal(raw.words, reply, numbered=numbered)
        if reason is not None:
            raise CommandError(
                f"HAProxy at {client.where} refused '{raw.shown}': {one_line(reason)}; of "
                f"{len(self.commands)} commands {number} were carried out there, {len(rest)} were "
                "not sent",
                refused=[{"command": raw.shown, "reply": reply.text}],
                not_sent=[item.shown for item in rest],
                socket=client.socket,
            )
        if raw.changes:
            client.applied.append(raw.shown)

    def _record(self, client: Client, raw: _reply.Raw, reply: _reply.Reply | None) -> None:
        self.replies.append(
            {
                "socket": client.socket,
                "command": raw.shown,
                "sent": reply is not None,
                "changes": raw.changes,
                "reply": None if reply is None else reply.text,
                "lines": [] if reply is None else reply.text.splitlines(),
                "severity": None if reply is None else reply.severity,
            }
        )
