# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The browser, once for all tests."""

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.report.browser import PROGRAMS, Browser, installed


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = installed()
    if not program:
        pytest.skip(f"none of {', '.join(PROGRAMS)} is installed to open pages in")
    return Browser(program, tmp_path_factory.mktemp("browser"))
