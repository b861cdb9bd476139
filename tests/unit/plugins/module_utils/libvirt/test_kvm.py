# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that exists and does not work is reported; a missing one is not."""

from __future__ import annotations

import pathlib

from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.connection.kvm import kvm_warning


def test_a_node_without_kvm_behind_it_is_reported() -> None:
    """The kernel answers for real: /dev/null takes no ioctl, as a node of another driver."""
    warning = kvm_warning("/dev/null")
    assert warning is not None
    assert warning.startswith("/dev/null exists, but KVM_CREATE_VM fails: Inappropriate ioctl for device. libvirt ")


def test_a_node_without_a_driver_is_reported(tmp_path: pathlib.Path) -> None:
    """An absent module gives ENODEV or ENXIO; a directory is what any user can make and nobody can open."""
    warning = kvm_warning(str(tmp_path))
    assert warning is not None
    assert f"{tmp_path} exists, but opening it fails: Is a directory." in warning


def test_no_node_is_no_trouble(tmp_path: pathlib.Path) -> None:
    assert kvm_warning(str(tmp_path / "kvm")) is None
