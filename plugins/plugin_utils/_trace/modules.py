# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's cache of built modules: fetched from a builder once, shipped to many hosts.

Private to the collection.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import typing as t

from ansible import constants
from ansible.errors import AnsibleActionFail
from ansible_collections.tapvirt.host.plugins.module_utils._core.disk import disk_failure
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.tapvirt.host.plugins.module_utils._core.files import open_regular
from ansible_collections.tapvirt.host.plugins.module_utils._core.write import make_directories

from .._transport.module_action import refused

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Fetches(t.Protocol):
    """The part of a connection that brings a file to the controller."""

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Bring it."""


def cache_path(sha256: str) -> str:
    """Return where the controller keeps the module of a hash.

    :raises AnsibleActionFail: it is no hash; what comes from a host never becomes a path unchecked.
    """
    if not _SHA256.fullmatch(sha256):
        raise refused(InvalidInput("module.sha256", sha256, "This is not a digest that stap_module returns."))
    home = constants.config.get_config_value("ANSIBLE_HOME")
    return os.path.join(os.path.expanduser(home), "tapvirt", "modules", sha256 + ".ko")


def has_file(path: str, sha256: str) -> bool:
    """Tell whether a file has this content."""
    try:
        with open_regular(path) as stream:
            return hashlib.sha256(stream.read()).hexdigest() == sha256
    except OSError:
        return False


def fetch_once(connection: Fetches, remote_path: str, sha256: str) -> str:
    """Fetch a module unless the controller has it; return where it is.

    :raises AnsibleActionFail: what arrived is not what was built.
    """
    path = cache_path(sha256)
    if has_file(path, sha256):
        return path
    try:
        make_directories(os.path.dirname(path), 0o700)
        descriptor, temporary = tempfile.mkstemp(prefix=".fetch-", dir=os.path.dirname(path))
        os.close(descriptor)
        try:
            connection.fetch_file(remote_path, temporary)
            if not has_file(temporary, sha256):
                raise AnsibleActionFail(f"The module {remote_path} arrived with another sha256 than it was built with.")
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.unlink(temporary)
    except OSError as error:
        reason = disk_failure(error) or f"Cannot write {path}: {error.strerror}."
        raise AnsibleActionFail(f"The module was built, and the controller cannot keep it. {reason}") from None
    return path
