# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pure: what rules of others do to proxied connections, as checks. Private to the collection."""

from __future__ import annotations

import re
import typing as t

from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_filters as filters
from ansible_collections.clearproxy.haproxy.plugins.module_utils import _kernel_render as render
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_check import (
    FAILED,
    GROUPS,
    OK,
    UNKNOWN,
    Check,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_checks_rules import (
    is_guarded,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_desired import (
    IPTABLES_BACKENDS,
    Desired,
)
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_snapshot import Snapshot
from ansible_collections.clearproxy.haproxy.plugins.module_utils._kernel_survey import (
    Decision,
    Seen,
    Survey,
    Unseen,
)

# What rules of others do with the packets


def filter_checks(survey: Survey, snapshot: Seen[Snapshot], desired: Desired) -> t.Iterator[Check]:
    for family in desired.families:
        rulesets = survey.rulesets
        decisions = [entry for entry in survey.decisions if entry.family == family]
        reason = ""
        if isinstance(rulesets, Unseen):
            reason = rulesets.reason
        elif isinstance(snapshot, Unseen):
            reason = snapshot.reason
        elif not decisions:
            reason = "no server is known, and no interface has a neighbour"
        if reason or isinstance(rulesets, Unseen) or isinstance(snapshot, Unseen):
            for name in GROUPS["filters"]:
                yield Check(name, UNKNOWN, family, "", reason)
            continue
        guarded = is_guarded(snapshot, desired, family)
        uid = _worker_uid(survey)
        each = [_Ways(rulesets, desired, entry, guarded, uid) for entry in decisions]
        for name, (look, expected, remedy) in _FILTERS.items():
            yield _worst(name, family, [(way, look(way)) for way in each], expected, remedy)


def _worker_uid(survey: Survey) -> int | None:
    if isinstance(survey.instances, Unseen):
        return None
    uids = {worker.uid for entry in survey.instances for worker in entry.workers}
    return uids.pop() if len(uids) == 1 else None


class _Ways:
    """The way of one connection's packets through the rules of others."""

    def __init__(
        self,
        rulesets: t.Sequence[filters.Ruleset],
        desired: Desired,
        entry: Decision,
        guarded: bool,
        uid: int | None,
    ) -> None:
        self.rulesets = rulesets
        self.marked_at = render.mark_priority(desired)
        # Ours come first there, and accept.
        self.mangle_is_ours = desired.firewall in IPTABLES_BACKENDS and desired.position == "first"
        self.server = entry.server
        self.request = filters.Packet(
            entry.family,
            entry.client,
            entry.server,
            oif=entry.interface,
            dport=entry.port,
            state="new",
            uid=uid,
        )
        self.answer = filters.Packet(
            entry.family,
            entry.server,
            entry.client,
            iif=entry.interface,
            sport=entry.port,
            mark=desired.mark,
            validated=guarded,
        )

    def masquerade(self) -> filters.Verdict:
        return filters.verdict_of(
            self.rulesets, "postrouting", self.request, filters.SNAT, kind="nat"
        )

    def output(self) -> filters.Verdict:
        first = filters.verdict_of(self.rulesets, "output", self.request, filters.DROP)
        if first[0] is not False:
            return first
        return filters.verdict_of(self.rulesets, "postrouting", self.request, filters.DROP)

    def prerouting(self) -> filters.Verdict:
        return filters.verdict_of(
            self.rulesets,
            "prerouting",
            self.answer,
            filters.DROP,
            marked_at=self.marked_at,
            skip=lambda ruleset, chain: (
                self.mangle_is_ours
                and bool(re.fullmatch(r"ip6?tables(-nft|-legacy)? mangle", ruleset.name))
            ),
        )

    def _input(self, state: str) -> filters.Verdict:
        answer = filters.with_state(self.answer, state)
        return filters.verdict_of(self.rulesets, "input", answer, filters.DROP)

    def input(self) -> filters.Verdict:
        return self._input("established")

    def notrack(self) -> filters.Verdict:
        """Connections that are not tracked, or in one direction only, and an input that wants to know them."""
        inward = filters.verdict_of(
            self.rulesets, "prerouting", self.answer, filters.NOTRACK, marked_at=self.marked_at
        )
        outward = filters.verdict_of(self.rulesets, "output", self.request, filters.NOTRACK)
        if inward[0] is False and outward[0] is False:
            return False, ""
        if self._input("established")[0] is True:
            # Dropped anyhow, which is the other check's to say.
            return False, ""
        # An answer whose request was not tracked is invalid for a tracker.
        state = "untracked" if inward[0] is not False else "invalid"
        dropped, rule = self._input(state)
        if dropped is False:
            return False, ""
        why = (inward[1] if inward[0] is not False else outward[1]) or "a rule"
        certain = dropped and (inward[0] or outward[0])
        return (True if certain else None), f"{why}; then {rule}"


_FILTERS: dict[str, tuple[t.Callable[[_Ways], filters.Verdict], str, str]] = {
    "prerouting_filter": (
        _Ways.prerouting,
        "no rule of others drops the servers' answers as they come in",
        "accept packets with our mark before the rule, or give tproxy_rules the server-facing "
        "interfaces if the rule looks up the source with the mark",
    ),
    "input_filter": (
        _Ways.input,
        "the input filter accepts the servers' answers, whose destination is the client's address",
        "accept packets with our mark (iptables: -m mark --mark MARK/MASK -j ACCEPT) before the rule",
    ),
    "notrack": (
        _Ways.notrack,
        "connections to servers are tracked, or the input filter accepts them untracked",
        "accept packets with our mark in the input filter, or leave both directions tracked",
    ),
    "output_filter": (
        _Ways.output,
        "no rule drops what leaves with a client's address",
        "exempt what HAProxy sends to the servers from the rule",
    ),
    "masquerade": (
        _Ways.masquerade,
        "the source of connections to servers stays the client's",
        "exempt connections to the servers (iptables: -m owner --uid-owner HAPROXY -j ACCEPT) "
        "before the rule",
    ),
}


def _worst(
    name: str,
    family: str,
    verdicts: t.Sequence[tuple[_Ways, filters.Verdict]],
    expected: str,
    remedy: str,
) -> Check:
    for wanted, status in ((True, FAILED), (None, UNKNOWN)):
        for way, (answer, rule) in verdicts:
            if answer is wanted:
                observed = rule if status == FAILED else f"cannot tell what this rule does: {rule}"
                return Check(
                    name,
                    status,
                    family,
                    way.server,
                    observed,
                    expected,
                    remedy if status == FAILED else "",
                )
    return Check(name, OK, family, "", "no such rule", expected)
