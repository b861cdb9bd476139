# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests of libvirt modules."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed
from ansible_collections.tapvirt.host.tests.unit.support.libvirt.short_directory import short_directory


@pytest.fixture
def embed(run_module: t.Callable[..., dict[str, t.Any]]) -> t.Iterator[Embed]:
    with short_directory() as root:
        yield Embed(root, run_module)
