# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A deadline for calls of libvirt that have none."""

from __future__ import annotations

import threading

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.deadline import call_with_deadline


def test_a_call_that_does_not_end_is_left_after_its_deadline() -> None:
    ending, aborted = threading.Event(), threading.Event()
    with pytest.raises(TapvirtError, match=r"Saving web1 did not end within 0\.1 s, and libvirt did not abort it\."):
        call_with_deadline(0.1, "Saving web1", ending.wait, aborted.set, grace_seconds=0.1)
    assert aborted.wait(30)
    ending.set()
    # One that ends because it was asked to, with time to do so.
    call_with_deadline(0.1, "web1", lambda: stop.wait(60), (stop := threading.Event()).set)
