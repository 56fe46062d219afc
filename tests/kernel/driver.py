# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs one of the kernel side's modules on the host that this process is in: JSON in, JSON out."""

from __future__ import annotations

import importlib
import json
import sys

PLUGINS = "ansible_collections.clearproxy.haproxy.plugins"


def main() -> None:
    request = json.load(sys.stdin)
    error = importlib.import_module(f"{PLUGINS}.module_utils._errors").Error
    module = importlib.import_module(f"{PLUGINS}.modules.{request['module']}")
    try:
        answer = module.run(request["options"], check_mode=request["check"])
    except error as exc:
        answer = {"msg": str(exc), **exc.details}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
