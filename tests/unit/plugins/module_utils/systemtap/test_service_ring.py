# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A flight recorder's files: whatever is written, bounded; a line that fits is whole; nothing else is touched."""

from __future__ import annotations

import os

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise.ring import Ring, list_files
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = 5000 if os.environ.get("TAPVIRT_SOAK") else 200


def content(directory):
    return b"".join(open(file.path, "rb").read() for file in list_files(directory))


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(st.lists(st.binary(max_size=300).map(lambda data: data.replace(b"\n", b"") + b"\n"), max_size=8)),
    st.integers(1, 200),
    st.integers(2, 5),
)
def test_the_newest_output_is_kept_within_the_bounds(tmp_path_factory, starts, file_bytes, files):
    """Every start of a tracer writes some lines; what is left is the end of it all."""
    directory = str(tmp_path_factory.mktemp("ring") / "deep" / "ring")
    written = b""
    for lines in starts:
        ring = Ring(directory, file_bytes, files)
        ring.open()
        for line in lines:
            ring.write(line)
            written += line
            sizes = [file.size_bytes for file in list_files(directory)]
            assert len(sizes) <= files and max(sizes) <= file_bytes
        ring.close()
        assert ring.dropped_bytes == 0
    kept = content(directory)
    assert written.endswith(kept)
    # Nothing is thrown away before it must be: a file ends early only for a line that does not fit into it.
    longest = max([len(line) for lines in starts for line in lines], default=0)
    assert len(kept) >= min(len(written), (files - 1) * (file_bytes - min(longest, file_bytes)))


def test_lines_stay_whole(tmp_path):
    ring = Ring(str(tmp_path), 100, 3)
    ring.open()
    ring.write(b"".join(b"%09d\n" % number for number in range(95)) + b"half")
    ring.write(b" a line\n")
    ring.close()
    for file in list_files(str(tmp_path)):
        with open(file.path, "rb") as stream:
            text = stream.read()
        assert text.endswith(b"\n") and all(len(line) in (9, 11) for line in text.splitlines())
    assert content(str(tmp_path)).endswith(b"000000094\nhalf a line\n")


def test_smaller_bounds_are_kept_from_the_start(tmp_path):
    ring = Ring(str(tmp_path), 100, 9)
    ring.open()
    ring.write(b"x" * 900)
    ring.close()
    (tmp_path / "notes.txt").write_text("not ours", encoding="ascii")
    smaller = Ring(str(tmp_path), 50, 2)
    smaller.open()
    smaller.write(b"y" * 60)
    smaller.close()
    assert [file.size_bytes for file in list_files(str(tmp_path))] == [50, 10]
    assert (tmp_path / "notes.txt").exists()


def test_what_a_full_disk_does_not_take_is_counted(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.fail("this system has no /dev/full")
    ring = Ring(str(tmp_path), 100, 3)
    ring.open()
    file = list_files(str(tmp_path))[0]
    descriptor = os.open("/dev/full", os.O_WRONLY)
    own = next(fd for fd in map(int, os.listdir("/proc/self/fd")) if _is(fd, file.path))
    os.dup2(descriptor, own)
    ring.write(b"lost\n")
    assert ring.dropped_bytes == 5
    ring.close()
    ring.write(b"kept\n")
    assert (ring.dropped_bytes, content(str(tmp_path))) == (5, b"kept\n")
    os.close(descriptor)


def _is(descriptor, path):
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == path
    except OSError:
        return False
