# Copyright (c) 2026, the clearproxy.haproxy contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ansible-test calls as pip's bootstrap script, made of the pip that Python bundles."""

from __future__ import annotations

import ensurepip
import sys
from pathlib import Path

wheel = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
sys.path.insert(0, str(wheel))

from pip._internal.cli.main import main  # noqa: E402

sys.exit(
    main(["install", *(a for a in sys.argv[1:] if a not in ("--no-setuptools", "--no-wheel"))])
)
