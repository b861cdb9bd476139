# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a value that a host returned."""

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.plugin_utils._transport.edge import ANY, Each, Odd, parse


def test_a_key_that_a_host_chose_is_bounded_and_printable() -> None:
    with pytest.raises(Odd) as caught:
        parse({"\x1b[2J" + "x" * 9000: {"y\n": float("nan")}}, Each(ANY))
    message = str(caught.value)
    assert message.startswith("\\x1b[2Jxxx") and "y\\n is nan" in message
    assert message.isprintable() and len(message) < 200
