# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""ELF headers and symbols against what nm(1) printed of the same files."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.image import elf
from hypothesis import given, settings
from hypothesis import strategies as st

FIXTURES = next(path for path in pathlib.Path(__file__).parents if path.name == "unit") / "fixtures" / "elf"


def nm_rows(text):
    """Return (address, letter, name) of each line of ``nm -p``; an undefined symbol has address 0."""
    rows = [line.split() for line in text.splitlines()]
    return [(int(row[0], 16) if len(row) == 3 else 0, row[-2], row[-1]) for row in rows]


@pytest.mark.parametrize(("bits", "machine"), [(32, 3), (64, 62)])
def test_header_and_symbols_are_those_that_nm_printed(bits, machine):
    image = (FIXTURES / f"symbols{bits}.o").read_bytes()
    assert elf.read_header(image[:64]) == elf.ElfHeader(bits, "little", machine, 0)
    found = [(symbol.address, symbol.letter, symbol.name) for symbol in elf.symbols(image)]
    assert found == nm_rows((FIXTURES / f"symbols{bits}.nm").read_text())
    assert {letter for _address, letter, _name in found} >= set("TtWwVUDRrbBA")


def test_an_image_without_a_symbol_table_has_no_symbols():
    image = bytearray((FIXTURES / "symbols64.o").read_bytes())
    start = int.from_bytes(image[40:48], "little")
    for index in range(int.from_bytes(image[60:62], "little")):
        if image[start + index * 64 + 4] == 2:
            image[start + index * 64 + 4] = 1
    assert elf.symbols(bytes(image)) == []


@pytest.mark.skipif(not shutil.which("nm"), reason="binutils are not installed")
def test_this_interpreters_symbols_are_those_that_nm_prints():
    program = os.path.realpath(sys.executable)
    argv = ["nm", "-p", "--no-demangle", "--without-symbol-versions", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        argv.remove("--without-symbol-versions")
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
    expected = {(address, name.split("@")[0]) for address, letter, name in nm_rows(done.stdout) if letter in "TtDdBbRr"}
    image = pathlib.Path(program).read_bytes()
    found = {
        (symbol.address, symbol.name.split("@")[0]) for symbol in elf.symbols(image) if symbol.letter in "TtDdBbRr"
    }
    assert found == expected


@pytest.mark.timeout(3600)  # of a soak test
@settings(max_examples=100000 if os.environ.get("TAPVIRT_SOAK") else 500, deadline=None)
@given(
    bits=st.sampled_from([32, 64]),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    length=st.integers(0, 4000),
)
def test_damaged_images_are_refused_or_read(bits, changes, length):
    image = bytearray((FIXTURES / f"symbols{bits}.o").read_bytes()[: max(length, 60)])
    for place, value in changes:
        image[place % len(image)] = value
    try:
        elf.read_header(bytes(image))
        assert len(elf.symbols(bytes(image))) <= len(image)
        elf.program_notes(bytes(image))
    except elf.ElfError:
        pass
