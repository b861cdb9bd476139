# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import base64
import hashlib
import pathlib
import time
import typing as t
import zlib

import pytest
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import progress as _progress
from ansible_collections.tapvirt.host.plugins.plugin_utils._fleet import status

DIRECTORY = "/run/tapvirt/stap/tapvirt_x_12345678-18eaa"
RUNNING = {
    "state": "running",
    "elapsed_seconds": 4.2,
    "of_seconds": 10.0,
    "bytes": 812,
    "records": 9,
    "armed": 2,
    "sites": 2,
}


def reporter_and_lines(terminal: bool) -> tuple[_progress.ProgressReporter, list[str]]:
    lines: list[str] = []
    return _progress.ProgressReporter("web1", DIRECTORY, terminal, lines.append), lines


def test_a_line_reports_what_is_awaited_and_what_there_is() -> None:
    reporter, lines = reporter_and_lines(terminal=True)
    assert reporter.tell(RUNNING) == pytest.approx(5.8)
    assert lines == ["web1: tapvirt_x_12345678: tracing, 4 of 10 s, 2 of 2 places armed, 9 records, 812 bytes so far"]
    # The next one would come too soon.
    assert reporter.tell({**RUNNING, "elapsed_seconds": 5.0}) == 5.0
    assert len(lines) == 1


def test_a_run_that_waits_for_its_start_ends_later_than_it_has_waited() -> None:
    reporter, lines = reporter_and_lines(terminal=True)
    waiting = {**RUNNING, "state": "waiting", "of_seconds": 4.2, "sites": 0, "records": 0, "bytes": 0}
    assert reporter.tell(waiting) == 10.0
    assert lines == ["web1: tapvirt_x_12345678: waiting for the start, 4 of 4.2 s, 0 bytes so far"]


def test_who_shows_the_whole_run_is_reported_instead() -> None:
    reporter, lines = reporter_and_lines(terminal=True)
    status.CHANNEL.open()
    try:
        reporter.tell(RUNNING)
        reporter.tell({**RUNNING, "elapsed_seconds": 5.0})
        reporter.cut("Connection refused")
        heard = list(status.CHANNEL.heard())
    finally:
        status.CHANNEL.close()
    assert heard == [
        ("web1", f"tracing, {n} of 10 s, 2 of 2 places armed, 9 records, 812 bytes so far") for n in (4, 5)
    ]
    (line,) = lines
    assert line.endswith("the host does not answer: Connection refused"), "that is for the log, too"


def test_a_log_is_not_filled_with_lines() -> None:
    reporter, lines = reporter_and_lines(terminal=False)
    reporter.tell(RUNNING)
    assert lines == []


@pytest.mark.parametrize("progress", [{}, {**RUNNING, "state": "stopping"}, {"state": "of another version"}])
def test_what_is_ending_may_end_at_any_moment(progress: dict[str, t.Any]) -> None:
    reporter, lines = reporter_and_lines(terminal=True)
    assert reporter.tell(progress) == 0.0
    assert lines == []


@pytest.mark.parametrize(
    "progress",
    [
        [],
        5,
        {"state": []},
        {"state": "running"},
        {"state": "running", "elapsed_seconds": "x", "of_seconds": 5},
        {"state": "running", "elapsed_seconds": 1, "of_seconds": [], "sites": 1, "armed": 1, "bytes": 1},
    ],
)
def test_what_makes_no_sense_breaks_nothing(progress: t.Any) -> None:
    assert reporter_and_lines(terminal=True)[0].tell(progress) == 0.0


@pytest.mark.parametrize("odd", [5, [], "x", {"of_seconds": "1"}, {"armed": float("nan")}, {"bytes": 10**400}])
def test_progress_of_another_shape_is_asked_for_again(odd: t.Any) -> None:
    reporter, lines = reporter_and_lines(terminal=True)
    assert reporter.tell({**RUNNING, **odd} if isinstance(odd, dict) else odd) == 0.0
    assert lines == []


def test_what_stands_still_is_not_believed() -> None:
    reporter, _lines = reporter_and_lines(terminal=True)
    assert reporter.tell(RUNNING) > 0
    assert reporter.tell(RUNNING) == 0.0


def test_a_cut_is_reported_once_and_its_end_as_well() -> None:
    reporter, lines = reporter_and_lines(terminal=False)
    reporter.cut("Connection refused\n")
    reporter.cut("Connection refused")
    reporter.tell(RUNNING)
    assert lines == [
        "web1: tapvirt_x_12345678: the run goes on, but the host does not answer: Connection refused",
        "web1: tapvirt_x_12345678: the host answers again",
    ]


def test_a_host_that_no_longer_answers_has_the_result_among_its_leftovers() -> None:
    message = _progress.unreachable_message("/run/x", 70.0)
    assert "collect it with tapvirt.host.stap_run_result and the run_id x." in message
    assert message.endswith(" A later run on the host returns it in previous_leftovers if nobody has.")


def test_what_does_not_return_is_broken_off() -> None:
    begun = time.monotonic()
    with pytest.raises(AnsibleConnectionFailure, match=r"no answer within 0\.2 s"), _progress.at_most(0.2, 0):
        time.sleep(20)
    assert time.monotonic() - begun < 10
    with _progress.at_most(0.01, 60):
        time.sleep(0.05)  # the task has a timeout of its own, which is Ansible's to keep


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("web1.example.org", "web1.example.org.m.txt"),
        ("../../etc/cron.d/x", "%2E.%2F..%2Fetc%2Fcron.d%2Fx.m.txt"),
        ("..", "%2E..m.txt"),
        ("a%2Fb", "a%252Fb.m.txt"),
        ("a b\n", "a%20b%0A.m.txt"),
        ("hôte", "h%C3%B4te.m.txt"),
    ],
)
def test_a_host_is_never_a_path(host: str, name: str) -> None:
    assert _progress.output_path("/out", host, "m") == f"/out/{name}"
    assert pathlib.PurePosixPath("/out", name).parent == pathlib.PurePosixPath("/out")


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(AnsibleActionFail) as caught:
        _progress.output_path("/out", "h" * 300, "m")
    assert caught.value.message == (
        f"Invalid value '/out' for output: The name {'h' * 80}... of the file is too long. "
        "Give the host a shorter name in the inventory."
    )


def chunk(data: bytes, whole: bytes) -> dict[str, t.Any]:
    return {
        "bytes": len(whole),
        "sha256": hashlib.sha256(whole).hexdigest(),
        "chunk_bytes": len(data),
        "data": base64.b64encode(zlib.compress(data)).decode(),
    }


def save_output(
    path: pathlib.Path, chunks: list[dict[str, t.Any]], run: dict[str, t.Any], limit: int = 1 << 20
) -> t.Any:
    rest = iter(chunks[1:])
    return _progress.save_output(str(path), chunks[0], lambda _offset: next(rest), run, limit)


def test_chunks_become_one_file(tmp_path: pathlib.Path) -> None:
    whole = b"one\n" * 1000
    path = tmp_path / "new" / "web1.txt"
    sha256 = hashlib.sha256(whole).hexdigest()
    run = {"bytes": len(whole), "sha256": sha256}
    got = save_output(path, [chunk(whole[:1500], whole), chunk(whole[1500:], whole)], run)
    assert path.read_bytes() == whole
    assert got == {"path": str(path), "bytes": 4000, "sha256": sha256, "truncated": False}


def test_what_was_cut_has_a_sha256_of_its_own(tmp_path: pathlib.Path) -> None:
    got = save_output(tmp_path / "x", [chunk(b"kept", b"kept")], {"bytes": 9, "sha256": "0" * 64})
    assert got["truncated"] and got["sha256"] == hashlib.sha256(b"kept").hexdigest()


@pytest.mark.parametrize(
    ("first", "run", "limit", "message"),
    [
        (chunk(b"other", b"other"), {"bytes": 5, "sha256": "0" * 64}, 100, "another sha256"),
        (chunk(b"half", b"half and half"), {"bytes": 13, "sha256": None}, 100, "another sha256"),
        (
            chunk(b"long", b"long" * 100),
            {"bytes": 400, "sha256": None},
            100,
            "the host has 400 bytes, and max_output_bytes is 100",
        ),
    ],
)
def test_what_is_not_what_it_should_be_is_not_kept(
    tmp_path: pathlib.Path, first: dict[str, t.Any], run: dict[str, t.Any], limit: int, message: str
) -> None:
    (tmp_path / "x").write_bytes(b"before")
    with pytest.raises(AnsibleActionFail, match=message) as caught:
        save_output(tmp_path / "x", [first, chunk(b"", b"")], run, limit)
    error = caught.value.result["error"]
    assert (error["option"], error["value"], error["problem"]) == ("output", str(tmp_path), caught.value.message)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"before"


@pytest.mark.parametrize(
    ("first", "rest", "message"),
    [
        (None, None, "it is missing"),
        ("x", None, "it is 'x', not a dictionary"),
        ({"bytes": "9", "sha256": "0", "data": ""}, None, "bytes is '9', not a whole number"),
        ({"bytes": 9, "sha256": None, "data": ""}, None, "sha256 is missing"),
        ({"bytes": 9, "sha256": "0", "data": "no base64"}, None, "cannot be read"),
        ({"bytes": 9, "sha256": "0", "data": "AAAA"}, None, "cannot be read"),
        (chunk(b"a", b"ab"), None, "it is missing"),
        (chunk(b"a", b"ab"), {"bytes": 9, "sha256": "0", "data": 5}, "data is 5, not a text"),
    ],
)
def test_a_chunk_of_another_shape_is_named(tmp_path: pathlib.Path, first: t.Any, rest: t.Any, message: str) -> None:
    saved = r"^The output of the run cannot be saved in /.*/x: what the host sent cannot be read: .*[^.]\.$"
    with pytest.raises(AnsibleActionFail, match=saved) as caught:
        _progress.save_output(str(tmp_path / "x"), first, lambda _offset: rest, {"bytes": 2, "sha256": None}, 100)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_a_file_is_reported(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AnsibleActionFail, match=r"/file/x: the file cannot be written: Not a directory\.$"):
        save_output(tmp_path / "file" / "x", [chunk(b"", b"")], {"bytes": 0, "sha256": None})
