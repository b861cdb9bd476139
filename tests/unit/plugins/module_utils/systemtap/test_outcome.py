# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import json
import pathlib
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise import outcome
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.supervise.supervisor import Sites, Supervisor

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures" / "systemtap"
STEXT = 0xFFFFFFFFA1E00000
CALL = 'kernel.function("vfs_read@fs/read_write.c:549").call'
RETURN = 'kernel.function("vfs_read@fs/read_write.c:549").return'
PROBES: list[dict[str, t.Any]] = [
    {"point": CALL, "asked": 'kernel.function("vfs_read").call', "place": "_stext+0x430990", "helper": False},
    {"point": CALL, "asked": 'kernel.function("vfs_read").return', "place": "_stext+0x430990", "helper": True},
    {"point": RETURN, "asked": 'kernel.function("vfs_read").return', "place": "_stext+0x430990", "helper": False},
    {"point": "end", "asked": "end", "place": None, "helper": False},
]


def sites() -> list[dict[str, t.Any]]:
    return Sites((FIXTURES / "kprobes_list.txt").read_text().splitlines()).added_since(Sites([]))


def contract_of(**changed: t.Any) -> dict[str, t.Any]:
    output = (FIXTURES / "staprun_output.txt").read_text()
    given: dict[str, t.Any] = {"errors": "", "output": output, "probes": PROBES, "schema": {}, "state": {}}
    given.update(changed)
    state = {
        "state": "done",
        "armed_seconds": 0.5,
        "sites": sites(),
        "bytes": 2000,
        "kept": 2000,
        "stop": "duration",
        **given["state"],
    }
    build = {"probes": given["probes"], "schema": given["schema"]}
    return outcome.contract(build, state, given["output"], "", given["errors"], STEXT, 100)


def test_a_good_run() -> None:
    result = contract_of()
    assert result["outcome"] == "ok"
    assert result["probes"]["asked"] == result["probes"]["armed"] == result["probes"]["proved"] == 2
    assert result["hits"] == 942
    assert [row["hits"] for row in result["probes"]["points"]] == [471, 471]
    count, histogram = result["records"]
    assert count == {"kind": "count", "key": "vfs_read", "count": 471}
    assert sum(bucket[2] for bucket in histogram["buckets"]) == histogram["count"] == 471


def test_a_probe_that_was_hit_was_armed() -> None:
    result = contract_of(state={"sites": []}, probes=[PROBES[0], PROBES[3]])
    assert (result["outcome"], result["probes"]["armed"], result["probes"]["proved"]) == ("ok", 1, 0)


def test_an_armed_probe_that_the_kernel_does_not_show_is_missing() -> None:
    result = contract_of(output="", state={"sites": [site for site in sites() if site["kind"] == "k"]})
    assert result["outcome"] == "partial_arm"
    assert result["probes"]["missing"] == [RETURN]
    gone = [dict(site, rest=["[GONE]"]) if site["kind"] == "r" else site for site in sites()]
    assert contract_of(output="", state={"sites": gone})["outcome"] == "partial_arm"


def test_a_place_is_compared_by_address() -> None:
    elsewhere = [dict(site, address="ffffffffa2230a94") for site in sites()]
    assert contract_of(output="", state={"sites": elsewhere})["probes"]["armed"] == 0


def test_a_place_in_a_module_is_compared_by_name() -> None:
    point = 'module("kvm_amd").function("svm_invoke_exit_handler@arch/x86/kvm/svm/svm.c:3404").call'
    probes = [{"point": point, "asked": point, "place": "kvm_amd:svm_invoke_exit_handler+0", "helper": False}]
    line = "ffffffffc06d9874  k  svm_invoke_exit_handler+0x4  kvm_amd [FTRACE]"
    armed = Sites([line, line]).added_since(Sites([line]))
    assert contract_of(probes=probes, state={"sites": armed})["probes"]["proved"] == 1
    other = Sites([line.replace("kvm_amd", "kvm_intel")]).added_since(Sites([]))
    assert contract_of(probes=probes, state={"sites": other})["probes"]["proved"] == 0


@pytest.mark.parametrize(
    ("errors", "state", "expected"),
    [
        (
            "ERROR: probe overhead (900 cycles) exceeded threshold (100 cycles) in last 1000 cycles\n",
            {"rc": 1},
            "overloaded",
        ),
        (
            "ERROR: Skipped too many probes, check MAXSKIPPED or try again with stap -t for more details.\n",
            {"rc": 1},
            "skipped",
        ),
        ("WARNING: Number of errors: 0, skipped probes: 50\n", {}, "skipped"),
        ("WARNING: Number of errors: 0, skipped probes: 2\n", {}, "ok"),
        (
            "ERROR: division by 0 near operator '/' at <input>:1:1\nWARNING: Number of errors: 1, skipped probes: 0\n",
            {},
            "script_error",
        ),
        ("WARNING: There were 12 transport failures.\n", {}, "lost_output"),
        ("", {"bytes": 5000}, "lost_output"),
        ("", {"signals_sent": 2}, "timeout"),
        ("", {"state": "killed"}, "timeout"),
        ("", {"stop": "signal"}, "timeout"),
        ("", {"rc": -9, "stop": "script"}, "timeout"),
        ("", {"write_error": "No space left on device"}, "lost_output"),
    ],
)
def test_the_outcome_follows_from_messages_and_state(errors: str, state: dict[str, t.Any], expected: str) -> None:
    assert contract_of(errors=errors, state=state)["outcome"] == expected


def test_a_module_that_was_not_loaded() -> None:
    state = {"state": "done", "stop": "script", "bytes": 0}
    messages = outcome.read_messages("ERROR: Couldn't insert module '/x.ko': Operation not permitted\n", 1)
    assert outcome.classify_outcome(state, messages, outcome.Arming(1, 0, 0, []), None, False)[0] == "refused"
    late = outcome.classify_outcome(
        dict(state, stop="load"), outcome.read_messages("", 0), outcome.Arming(1, 0, 0, []), None, False
    )
    assert late[0] == "timeout"
    killed = dict(state, state="killed")
    outcome_of, reason = outcome.classify_outcome(
        killed, outcome.read_messages("", 0), outcome.Arming(1, 0, 0, []), None, False
    )
    assert outcome_of == "timeout" and "before the probes were armed: its supervisor was killed" in reason


def test_no_hit_is_an_outcome_of_its_own() -> None:
    assert (
        contract_of(
            output="----- probe hit report: \nend, (x), hits: 1, cycles: 1min/1avg/1max, from: end, index: 3\n"
        )["outcome"]
        == "zero_hits"
    )
    # A module without a report of hits does not say.
    assert contract_of(output="{}\n")["hits"] is None
    assert contract_of(output="text\n")["outcome"] == "ok"


def test_records_are_held_against_the_schema() -> None:
    schema = {"count": {"key": "string", "count": "integer"}}
    text = '{"kind":"count","key":"a","count":1}\nplain text\n{"kind":"other"}\n{"kind":"count","key":"b"}\n{broken\n'
    records, count, wrong = outcome.parse_records(text, schema, 10)
    assert records == [{"kind": "count", "key": "a", "count": 1}] and count == 1
    assert len(wrong) == 3
    assert contract_of(output=text, schema=schema)["outcome"] == "script_error"
    assert outcome.parse_records(text, {}, 1)[1] == 3


def test_a_record_that_a_result_cannot_hold_is_left_out() -> None:
    nested = '{"kind":"a","deep":' + "[" * 990 + "]" * 990 + "}"
    shallow = '{"kind":"a","deep":' + "[" * 20 + "]" * 20 + "}"
    bad = [
        nested,
        nested.replace("[" * 990, "[" * 40).replace("]" * 990, "]" * 40),
        '{"a":' + "9" * 5000 + "}",
        '{"a":1e999}',
        '{"a":NaN}',
        '{"a":"\\ud800"}',
        '{"\\udfff":1}',
    ]
    records, count, wrong = outcome.parse_records("\n".join([*bad, shallow]), {}, 10)
    assert (count, len(wrong)) == (1, len(bad)) and records[0]["kind"] == "a", wrong
    assert wrong[0] == wrong[1] == "a record with more than 32 levels of brackets"
    result = contract_of(output=nested + "\n")
    assert (result["outcome"], result["reason"]) == ("script_error", "the script printed " + wrong[0])


def test_a_record_ends_with_its_line() -> None:
    text = '{"kind":"a","key":"x\u2028y\x85z"}\r\n'
    assert outcome.parse_records(text, {}, 10) == ([{"kind": "a", "key": "x\u2028y\x85z"}], 1, [])


def test_a_boolean_is_no_integer() -> None:
    assert outcome.parse_records('{"kind":"a","n":true}', {"a": {"n": "integer"}}, 10)[1] == 0


def test_equal_messages_are_kept_once() -> None:
    messages = outcome.read_messages("WARNING: a\nWARNING: a\nERROR: b\nERROR: b\nplain\nplain\n", 1)
    assert (messages.warnings, messages.errors, messages.others) == (["a"], ["b"], ["plain"])


@pytest.mark.parametrize(
    ("errors", "rc", "expected"),
    [
        ("WARNING: a\nERROR: b\n", 0, ("ok", ["a", "ERROR: b"])),
        ("WARNING: a\nERROR: probe overhead exceeded threshold\n", 0, None),
        ("ERROR: b\n", 1, ("script_error", ["b"])),
        ("ERROR: b\n", -9, ("script_error", ["b"])),
        ("ERROR: b\n", None, ("script_error", ["b"])),
        ("staprun:main:1: ERROR: b\n", 0, ("script_error", ["b"])),
        (
            "ERROR: b\nWARNING: Number of errors: 1, skipped probes: 0\n",
            0,
            ("script_error", ["b", "Number of errors: 1, skipped probes: 0"]),
        ),
    ],
)
def test_a_line_of_a_scripts_own_warning_is_no_error(
    errors: str, rc: int | None, expected: tuple[str, list[str]] | None
) -> None:
    result = contract_of(errors=errors, state={} if rc is None else {"rc": rc})
    expected = expected or ("ok", ["a", "ERROR: probe overhead exceeded threshold"])
    assert (result["outcome"], result["messages"]) == expected


# The order and the words of runtime/linux/kprobes.c and translate.cxx: the total holds what the lines before it count.
MISSED = """\
WARNING: Skipped due to missed kretprobe/1 on 'kprobe.function("hrtimer_nanosleep").return': 1131
WARNING: Number of errors: 0, skipped probes: 1131
"""


def test_the_total_of_skipped_probes_holds_the_lines_of_each_probe() -> None:
    assert contract_of(errors=MISSED)["skipped"] == 1131
    # The total may be lost: then the lines are what is known.
    assert (
        contract_of(errors=MISSED.splitlines()[0] + "\n" + MISSED.splitlines()[0].replace("1131", "9"))["skipped"]
        == 1140
    )


@pytest.mark.parametrize(
    "errors",
    [
        # warn("a\nb") of a script, and what a command of system() printed.
        "WARNING: a\nb\n",
        "WARNING: a\nNumber of errors: 7, skipped probes: 900\nThere were 9 transport failures\n",
        "ls: cannot access '/no': No such file or directory\n",
        "WARNING: the file a.ERROR: b\nWARNING deduplication table full\n",
    ],
)
def test_a_line_without_the_prefix_of_an_error_is_no_error(errors: str) -> None:
    result = contract_of(errors=errors)
    assert (result["outcome"], result["errors"], result["skipped"]) == ("ok", 0, 0), result
    assert result["messages"], "it is shown all the same"


def test_an_error_of_staprun_itself_is_one() -> None:
    errors = "stapio:init_ctl_channel:70: ERROR: Internal buffer overflow. Please file a bug report.\n"
    result = contract_of(errors=errors)
    assert (result["outcome"], result["reason"]) == (
        "script_error",
        "Internal buffer overflow. Please file a bug report.",
    )


def test_an_overload_after_many_errors_is_one() -> None:
    errors = "".join(f"ERROR: division by 0 in line {line}\n" for line in range(30))
    overload = "probe overhead (900 cycles) exceeded threshold (100 cycles) in last 1000 cycles"
    result = contract_of(errors=errors + "ERROR: " + overload)
    assert result["outcome"] == "overloaded" and overload in result["reason"], result["reason"]
    assert len(result["messages"]) == 20


def test_a_status_that_no_message_explains_is_no_good_run() -> None:
    result = contract_of(state={"rc": 1}, errors="poll: Bad address\n")
    assert (result["outcome"], result["reason"]) == (
        "script_error",
        "staprun ended with status 1 and printed no error; poll: Bad address",
    )


def test_lines_that_begin_as_records_do_are_counted_while_they_come_in_pieces(tmp_path):
    job = {"name": "x", "limit": 100, "load": 5, "duration": 1, "grace": 1, "sites": 2}
    (tmp_path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    supervised = Supervisor(str(tmp_path))
    for piece in (b'{"a"', b": 1}\n", b'words {\n{"b": 2}', b"\n", b"{", b"}"):
        supervised.keep_output(io.BytesIO(), piece)
    supervised.write_progress()
    assert json.loads((tmp_path / "progress.json").read_text(encoding="utf-8"))["records"] == 3
