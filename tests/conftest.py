# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make this checkout importable as ansible_collections.clearproxy.haproxy, wherever it lies."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def _collections_path() -> Path:
    cache = Path(os.environ.get("CLEARPROXY_CACHE") or Path.home() / ".cache" / "clearproxy")
    path = cache / "pytest" / f"{os.path.basename(REPO)}-{os.stat(REPO).st_ino}"
    link = path / "ansible_collections" / "clearproxy" / "haproxy"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not (link.is_symlink() and Path(os.readlink(link)) == REPO):
        # Renamed into place: several workers may start at once.
        with tempfile.TemporaryDirectory(dir=link.parent) as work:
            new = Path(work) / "new"
            new.symlink_to(REPO)
            new.replace(link)
    return path


sys.path.insert(0, str(_collections_path()))
