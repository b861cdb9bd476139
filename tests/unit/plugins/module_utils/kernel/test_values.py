# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Values of parameters: what the kernel takes and what is equal, type by type."""

from __future__ import annotations

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._kernel.parameters.values import (
    Kind,
    Rejected,
    kernel_value,
    kind_of_value,
    known_kind,
    read_value,
    same,
    wanted_value,
)

TAKEN = [
    ("bool", True, "Y"),
    ("bool", 0, "N"),
    ("bool", "Yes", "Y"),
    ("bool", "t", "Y"),
    ("bool", "false", "N"),
    ("bool", "on", "Y"),
    ("bool", "OFF", "N"),
    ("bint", "Y", "1"),
    ("bint", 0, "0"),
    ("invbool", "n", "N"),
    ("int", 16, "16"),
    ("int", "0x10", "16"),
    ("int", "0X10", "16"),
    ("int", "010", "8"),
    ("int", "+16", "16"),
    ("int", "16\n", "16"),
    ("int", "16\0junk", "16"),
    ("int", "-0", "0"),
    ("int", -2147483648, "-2147483648"),
    ("short", "-32768", "-32768"),
    ("uint", "+1", "1"),
    ("uint", 4294967295, "4294967295"),
    ("byte", "0xff", "255"),
    ("hexint", "0x00000a", "10"),
    ("ullong", 18446744073709551615, "18446744073709551615"),
    ("ulong", 18446744073709551615, "18446744073709551615"),
    ("long", -9223372036854775808, "-9223372036854775808"),
    ("array of int", [1, "0x2", -3], "1,2,-3"),
    ("array of byte", "1,2,3\n", "1,2,3"),
    ("array of bool", "1,n", "Y,N"),
    ("array of charp", "", ""),
    ("array of charp", ["a b", ""], "a b,"),
    ("charp", " a b ", " a b "),
    ("charp", "x\n", "x\n"),
    ("string", "", ""),
]

REFUSED = [
    ("bool", "2"),
    ("bool", "yes please"),
    ("bool", "10"),
    ("bool", 10),
    ("bool", "0x1"),
    ("bool", "of"),
    ("bool", 0.5),
    ("bool", float("nan")),
    ("array of bool", ["Y", "nope"]),
    ("bool", "-1"),
    ("bool", " 1"),
    ("bool", '"1"'),
    ("bool", "o"),
    ("bool", "\n"),
    ("bool", ""),
    ("int", "08"),
    ("int", "16\n\n"),
    ("int", " 16"),
    ("int", "16 "),
    ("int", "1_000"),
    ("int", "0o10"),
    ("int", "0b10"),
    ("int", "1e3"),
    ("int", "16k"),
    ("int", "0x"),
    ("int", "-+5"),
    ("int", "\u0661\u0666"),
    ("int", ""),
    ("int", 1.5),
    ("int", True),
    ("int", 2147483648),
    ("int", [1]),
    ("uint", "-1"),
    ("uint", "-0"),
    ("uint", 4294967296),
    ("ushort", 65536),
    ("byte", 256),
    ("ullong", 18446744073709551616),
    ("array of int", "9,9,bad,9"),
    ("array of int", "1 ,2"),
    ("array of int", "1, 2"),
    ("array of int", ","),
    ("array of int", "1,"),
    ("array of int", ""),
    ("array of int", []),
    ("array of ushort", [21, None]),
    ("array of ushort", [[21]]),
    ("array of bool", []),
    ("array of bool", [None]),
    ("array of charp", []),
    ("array of charp", ["a", None]),
    ("array of charp", ["a", ["b"]]),
    ("array of charp", [{"a": 1}]),
    ("array of charp", ["a,b"]),
    ("charp", "x" * 1025),
    ("string", "x" * 4096),
    ("string", {"a": 1}),
]


@pytest.mark.parametrize(("word", "value", "text"), TAKEN)
def test_what_the_kernel_takes_is_written_in_one_spelling(word, value, text):
    kind = Kind(word, "modinfo")
    wanted = wanted_value(kind, value, 64)
    assert wanted.text == text
    assert same(kind, wanted, read_value(kind, text + "\n", 64))


@pytest.mark.parametrize(
    ("word", "value", "rule"),
    [
        ("array of ushort", [], "takes at least one element"),
        ("array of ushort", [21, None], "takes one value as element 2, not None"),
        ("array of charp", ["a", "b,c"], "takes a value without a comma as element 2, not 'b,c'"),
        ("array of byte", "9,bad", "takes a whole number from 0 to 255 as element 2, not 'bad'"),
        ("array of int", [1, 2, 3, 4], "takes at most 3 elements, not 4"),
        ("string", "abcd", "takes a text of at most 3 bytes"),
    ],
)
def test_a_refusal_names_the_element_and_the_limit(word, value, rule):
    with pytest.raises(Rejected) as error:
        wanted_value(Kind(word, "modinfo", 3), value, 64)
    assert str(error.value) == rule


@pytest.mark.parametrize("value", ["1" * 5000, "-" + "1" * 5000, "0x" + "f" * 5000, "0" + "7" * 5000])
def test_a_number_of_any_length_is_out_of_range_and_no_error_to_read(value):
    with pytest.raises(Rejected, match=f"takes a whole number from {-(1 << 63)} to {(1 << 63) - 1}$"):
        wanted_value(Kind("long", "modinfo"), value, 64)
    assert wanted_value(Kind("opaque", "sysfs"), value[:4000], 64).shown == value[:4000]
    read = read_value(Kind("opaque", "sysfs"), value + "\n", 64)
    assert read.shown == value and same(Kind("opaque", "sysfs"), read, read)


@pytest.mark.parametrize(("text", "shown"), [("yes please", True), ("10", True), ("0x1", False), ("of", False)])
def test_words_of_others_are_read_as_the_kernel_reads_them(text: str, shown: bool) -> None:
    assert kernel_value(Kind("bool", "modinfo"), text, 64).shown is shown


def test_leading_zeros_do_not_make_a_number_long():
    assert wanted_value(Kind("int", "modinfo"), "0x" + "0" * 40 + "1f", 64).text == "31"


@pytest.mark.parametrize(("word", "value"), REFUSED)
def test_what_the_kernel_refuses_is_refused(word, value):
    with pytest.raises(Rejected):
        wanted_value(Kind(word, "modinfo"), value, 64)


def test_the_width_of_a_long_is_the_kernels():
    assert wanted_value(Kind("long", "modinfo"), 2147483647, 32).key == 2147483647
    with pytest.raises(Rejected, match="takes a whole number from -2147483648 to 2147483647$"):
        wanted_value(Kind("long", "modinfo"), 2147483648, 32)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Y\n", "bool"),
        ("-1\n", "number"),
        ("0x00000a\n", "number"),
        ("0,170,0\n", "array of number"),
        ("[default] performance powersave \n", "selector"),
        ("contig-zones\n", "opaque"),
        ("\n", "opaque"),
        ("(null)\n", "opaque"),
    ],
)
def test_a_type_is_seen_from_the_value_where_nothing_is_installed(text, word):
    assert kind_of_value(text) == Kind(word, "sysfs")


def test_a_type_without_known_rules_is_judged_by_its_value():
    assert known_kind("portnr", "1234\n") == Kind("number", "sysfs")
    assert known_kind("uint", "1234\n") == Kind("uint", "modinfo")
    assert known_kind(None, None) == Kind("opaque", "sysfs")


def test_a_selector_is_its_chosen_word():
    kind = Kind("selector", "sysfs")
    read = read_value(kind, "default [performance] powersave \n", 64)
    assert read.shown == "performance"
    assert same(kind, read, wanted_value(kind, "Performance", 64))


def test_a_text_that_was_never_set_is_null_and_not_the_word():
    kind = Kind("charp", "modinfo")
    assert read_value(kind, "(null)\n", 64).shown is None
    assert not same(kind, read_value(kind, "(null)\n", 64), wanted_value(kind, "x", 64))


def test_texts_differ_by_case_and_by_a_newline_that_was_written():
    kind = Kind("charp", "modinfo")
    assert not same(kind, read_value(kind, "lz4\n", 64), wanted_value(kind, "LZ4", 64))
    assert not same(kind, read_value(kind, "lz4\n\n", 64), wanted_value(kind, "lz4", 64))
