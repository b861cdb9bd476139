# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What comes from a host becomes a path on the controller only as a whole hash."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.tapvirt.host.plugins.plugin_utils._trace.modules import cache_path


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 64 + "\n", "0" * 64 + "/../x", "A" * 64])
def test_what_is_no_hash_becomes_no_path(sha256: str) -> None:
    with pytest.raises(AnsibleActionFail, match=r"for module\.sha256: This is not a digest that stap_module returns"):
        cache_path(sha256)


def test_a_hash_is_a_file_of_the_cache() -> None:
    assert cache_path("0" * 64).endswith("/tapvirt/modules/" + "0" * 64 + ".ko")
