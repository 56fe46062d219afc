# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs the kernel side's modules, one after the other, on the host that this process is in: JSON in, JSON out."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

PLUGINS = "ansible_collections.clearproxy.haproxy.plugins"


def answer_to(request: dict[str, Any]) -> dict[str, Any]:
    error = importlib.import_module(f"{PLUGINS}.module_utils._errors").Error
    module = importlib.import_module(f"{PLUGINS}.modules.{request['module']}")
    try:
        return dict(module.run(request["options"], check_mode=request["check"]))
    except error as exc:
        return {"msg": str(exc), **exc.details}


def main() -> None:
    json.dump([answer_to(request) for request in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
