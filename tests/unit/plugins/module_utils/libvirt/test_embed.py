# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The root of an embedded driver: whose it may be, and who else can get into its way."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import time

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection import embed

OTHER = 4321


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to another user")
@pytest.mark.parametrize("level", ["", "above"])
def test_a_root_in_the_hands_of_another_user_is_refused(level: str, tmp_path: pathlib.Path) -> None:
    """Its configuration says as whom guests run."""
    path = tmp_path / "above" / "root"
    path.mkdir(parents=True)
    owned = path.parent if level else path
    os.chown(owned, OTHER, OTHER)
    with pytest.raises(InvalidInput) as caught:
        embed.EmbedRoot(str(path)).acquire(time.monotonic())
    assert caught.value.message == (
        f"Invalid value 'qemu:///embed?root={path}' for uri: {OTHER} owns {owned}, but this task runs as root. Run the "
        f"task with become_user: {OTHER}."
    )
    assert os.listdir(path) == []


@pytest.mark.parametrize("mask", [0, 0o002])
def test_nothing_of_a_root_can_be_written_by_others(mask: int, tmp_path: pathlib.Path) -> None:
    root = embed.EmbedRoot(str(tmp_path / "a" / "root"))

    def use() -> None:
        os.umask(mask)
        root.acquire(time.monotonic())
        root.prepare()

    # A process has its root until it ends.
    process = multiprocessing.get_context("fork").Process(target=use)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    modes = {str(path): path.stat().st_mode & 0o777 for path in (tmp_path / "a").rglob("*")}
    assert modes[os.path.join(root.path, ".tapvirt")] == 0o700
    assert modes[os.path.join(root.path, ".tapvirt", "lock")] == 0o600
    assert not any(mode & 0o022 for mode in modes.values()), modes
