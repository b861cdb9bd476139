# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections import Counter

from ansible_collections.tapvirt.host.tests.tools.gates import (
    BUDGETS,
    TEST_KINDS,
    Tally,
    importer_complaints,
    junit_tally,
    sanity_skips,
)

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest">
<testcase name="a"/><testcase name="b"/>
<testcase classname="tests.c" name="c"><failure message="no&#10;really">x</failure></testcase>
<testcase classname="tests.d" name="d"><error message="gone">x</error></testcase>
<testcase name="e"><skipped type="pytest.skip" message="no KVM here">x</skipped></testcase>
<testcase name="f"><skipped type="pytest.skip" message="no KVM here">x</skipped></testcase>
</testsuite></testsuites>
"""


def test_pytest_s_report_is_counted(tmp_path):
    path = tmp_path / "report.xml"
    path.write_text(REPORT)
    reasons = ["tests.c::c: no", "tests.d::d: gone"]
    assert junit_tally(path) == Tally(passed=2, failed=2, skipped=Counter({"no KVM here": 2}), reasons=reasons)


def test_sums_and_the_last_line():
    tally = Tally(passed=1)
    tally.add(Tally(passed=2, failed=1, skipped=Counter({"why": 2})))
    tally.add(Tally(skipped=Counter({"why": 1})))
    assert tally.line() == "3 passed, 1 failed, 3 skipped"


def test_what_ansible_test_skips_is_reported():
    text = (
        'WARNING: Using locale "C.UTF-8" instead of "en_US.UTF-8". Tests may behave unexpectedly.\n'
        'WARNING: Skipping sanity test "compile" on Python 3.14 because it could not be found.\n'
        'Running sanity test "compile" on Python 3.13\n'
        "WARNING: Reviewing previous 1 warning(s):\n"
        'WARNING: Skipping sanity test "compile" on Python 3.14 because it could not be found.\n'
    )
    assert sanity_skips(text) == Counter(
        ['Skipping sanity test "compile" on Python 3.14 because it could not be found.']
    )


def test_the_importer_s_complaints_are_found_wherever_they_are_indented():
    text = "Importing with galaxy-importer\n  WARNING: No changelog found.\nERROR: bad\nINFO: x\nno ERROR: here\n"
    assert importer_complaints(text) == ["WARNING: No changelog found.", "ERROR: bad"]


def test_every_gate_of_a_whole_run_has_a_budget_and_all_are_35_minutes():
    assert [*BUDGETS, "soak"] == TEST_KINDS
    assert sum(BUDGETS.values()) == 35 * 60
