# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a builder gets debug information by build-id. Private to the collection."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  debuginfod:
    description:
      - Gets debug information by build-id from debuginfod servers instead of from packages. The builder's own debug
        information has priority. Nothing is fetched for a script that needs none, such as one of timers alone.
      - The program C(debuginfod-find) fetches a file where it is installed, otherwise the module does so over HTTP,
        through the proxy of the environment (C(http_proxy), C(https_proxy), C(no_proxy)). A file is used only if it is
        a whole ELF file with the requested build-id. A download that was interrupted starts again. Over HTTP, no
        redirection to another protocol is followed. C(debuginfod-find) follows a circle of redirections until
        O(debuginfod.timeout_seconds) is over.
      - The files are kept in the builder's O(store). C(HOME) and C(DEBUGINFOD_URLS) of the builder are ignored.
    type: dict
    suboptions:
      servers:
        description:
          - The URLs of the servers, such as V(https://debuginfod.debian.net). The first that has a file is used.
        type: list
        elements: str
        required: true
      timeout_seconds:
        description:
          - How long fetching one file may take, in seconds, from all servers together. A server may unpack a large
            package before it sends the first byte. At most 86400.
        type: int
        default: 300
      max_cache_bytes:
        description:
          - The largest size of all files that are kept, as a number of bytes or with a unit as in V(10G). The longest
            unused files are removed for new ones, and by each build that uses the cache. Files that a build uses stay
            while it runs. A file that is larger is not fetched.
          - The debug information of one kernel has from 0.3 to 1.2 GB. 512 MiB of the file system stay free.
        type: bytes
        default: 10G
      max_cache_age:
        description:
          - A file that no build used in this time is removed by the next build that needs the cache. A whole number
            with one of the units C(s), C(m), C(h), C(d) and C(w).
        type: str
        default: 30d
"""

    BUILD_IDS = r"""
options:
  build_id:
    description:
      - The build-id of the traced kernel, which M(tapvirt.host.kernel_facts) returns as C(tapvirt_kernel.build_id) on
        the traced host.
      - With it, the builder's own debug information is refused if it belongs to another build of the same release.
      - Required with O(debuginfod), unless the builder has debug information of its own.
    type: str
  module_build_ids:
    description:
      - The build-ids of kernel modules on the traced host, by the module's name, as M(tapvirt.host.stap_probe_info)
        returns them there. Only those of modules with probed functions are used.
      - Required with O(debuginfod) for each module that a probe point names, unless the point is optional.
    type: dict
"""
