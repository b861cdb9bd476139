# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store of builds: who waits for whom, what is pruned and what never is."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import InvalidInput, NoEffect
from ansible_collections.tapvirt.host.plugins.module_utils._core.options import parse_age
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build import build, prune, signing
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store, as_owner
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.signature.der import Certificate

DAY = 86400
KEYS = [letter * 64 for letter in "abcdef"]
# Holds the lock of a key in another process, as a build does, until its standard input ends.
HOLD = """
import sys
from ansible_collections.tapvirt.host.plugins.module_utils._systemtap.module_build.store import Store
with Store(sys.argv[1]).locked(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def keep(store: Store, key: str, days: float, size: int = 1000) -> pathlib.Path:
    """A build that was last asked for so many days ago."""
    folder = pathlib.Path(store.folder(key))
    folder.mkdir(parents=True)
    module = folder / "x.ko"
    module.write_bytes(b"m" * size)
    row = {"name": "tapvirt_" + key[0], "kernel": "6.1", "path": str(module), "key": key}
    row["sha256"] = hashlib.sha256(module.read_bytes()).hexdigest()
    (folder / "build.json").write_text(json.dumps(row))
    used = time.time() - days * DAY
    os.utime(folder, (used, used))
    return folder


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Store:
    return Store(str(tmp_path / "store"))


def names(rows: t.Iterable[t.Mapping[str, t.Any]]) -> list[str]:
    return [row["key"][0] for row in rows]


def files(store: Store) -> list[str]:
    found = pathlib.Path(store.directory)
    return sorted(str(path.relative_to(found)) for path in found.rglob("*"))


def test_age_prunes_what_nobody_asked_for(store: Store) -> None:
    for key, days in zip(KEYS[:3], (40, 31, 29)):
        keep(store, key, days)
    before = files(store)
    planned = prune.prune(store, "30d", None, check_mode=True)
    assert files(store) == before
    plan, result = prune.prune(store, "30d", None, check_mode=False)
    assert planned[1] == result
    assert names(result["removed"]) == ["a", "b"]
    assert [change.what for change in plan] == ["tapvirt_a", "tapvirt_b"]
    assert result["removed"][0]["reason"] == "nobody asked for it for 40 days"
    assert result["freed_bytes"] > 2000 and result["kept_bytes"] > 1000
    assert store.kept() == ["c" * 64]
    assert store.read("c" * 64) is not None
    again = prune.prune(store, "30d", None, check_mode=False)
    assert (list(again[0]), again[1]["freed_bytes"], again[1]["kept_bytes"]) == ([], 0, result["kept_bytes"])


def test_size_prunes_the_longest_unused_first_and_no_more_than_needed(store: Store) -> None:
    for key, days in zip(KEYS[:4], (1, 4, 2, 3)):
        keep(store, key, days, size=10_000)
    _plan, result = prune.prune(store, None, 25_000, check_mode=False)
    assert names(result["removed"]) == ["b", "d"]
    assert result["kept_bytes"] <= 25_000
    assert sorted(store.kept()) == ["a" * 64, "c" * 64]
    assert prune.prune(store, None, 25_000, check_mode=False)[1]["removed"] == []


def test_a_module_that_is_asked_for_stays(store: Store) -> None:
    for key in KEYS[:2]:
        keep(store, key, 40)
    assert store.use(KEYS[1]) is not None
    assert store.use(KEYS[2]) is None
    _plan, result = prune.prune(store, "30d", 0, check_mode=False)
    assert (names(result["removed"]), store.kept()) == (["a"], [KEYS[1]])


def test_what_is_being_built_or_read_is_not_touched(store: Store) -> None:
    keep(store, KEYS[0], 40)
    keep(store, KEYS[1], 40)
    half = pathlib.Path(store.directory) / ".work" / KEYS[2]
    half.mkdir(parents=True)
    (half / "x.c").write_text("half a build")
    os.utime(half, (0, 0))
    with Holding(store, KEYS[0]), Holding(store, KEYS[2]):
        checked = prune.prune(store, "30d", None, check_mode=True)[1]
        result = prune.prune(store, "30d", None, check_mode=False)[1]
        assert checked == result
        assert (names(result["removed"]), sorted(names(result["in_use"]))) == (["b"], ["a", "c"])
        assert store.kept() == [KEYS[0]] and half.exists()
    result = prune.prune(store, "30d", None, check_mode=False)[1]
    assert sorted(names(result["removed"])) == ["a", "c"]
    assert [row["reason"] for row in result["removed"] if row["name"] is None] == ["a build that was killed left it"]
    assert not half.exists()
    assert files(store) == [".lock", ".work"]


class Holding:
    """Another process is at a key."""

    def __init__(self, store: Store, key: str) -> None:
        self._argv = [sys.executable, "-c", HOLD, store.directory, key]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "held\n"

    def __exit__(self, *_error: object) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def test_what_comes_into_use_after_the_look_stays(store: Store) -> None:
    keep(store, KEYS[0], 40)
    (entry,) = prune.read_entries(store)
    with Holding(store, KEYS[0]):
        assert not prune.remove(store, entry)
    assert store.use(KEYS[0]) is not None
    assert not prune.remove(store, entry)
    assert store.read(KEYS[0]) is not None
    (entry,) = prune.read_entries(store)
    assert prune.remove(store, entry)
    assert store.kept() == []


def test_other_files_of_a_store_are_not_touched(store: Store) -> None:
    keep(store, KEYS[0], 40)
    for name in (".cache/x", ".root/boot/x", "notes.txt", "builds.log", "abc/x", ".work/other/x"):
        path = pathlib.Path(store.directory) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept\n")
        os.utime(path.parent, (0, 0))
    prune.prune(store, "0s", 0, check_mode=False)
    kept = [path for path in pathlib.Path(store.directory).rglob("*") if path.is_file()]
    assert len(kept) == 6 and store.kept() == []
    assert store.row() == {"directory": store.directory, "builds": 1, "modules": 0}


def test_an_empty_store_has_nothing_to_prune(store: Store) -> None:
    assert prune.prune(store, "1w", 0, check_mode=False)[1]["removed"] == []
    assert not os.path.exists(store.directory)


@pytest.mark.parametrize(("text", "seconds"), [("30d", 30 * DAY), ("12h", 43200), ("2w", 14 * DAY), ("90s", 90)])
def test_ages(text: str, seconds: int) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["30", "d", "1.5d", "-1d", "30 days", ""])
def test_other_ages_are_refused(store: Store, text: str) -> None:
    keep(store, KEYS[0], 4000)
    with pytest.raises(InvalidInput, match="older_than"):
        prune.prune(store, text, None, check_mode=False)
    assert store.kept() == [KEYS[0]]


def test_an_age_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(InvalidInput, match="for older_than: The age must have at most 20 digits"):
        parse_age("9" * 5000 + "d")


@pytest.mark.parametrize("path", ["", None, "relative", "FILE", "FILE/x"])
def test_the_path_of_a_store_is_that_of_a_directory(path: str | None, tmp_path: pathlib.Path) -> None:
    (tmp_path / "FILE").write_text("", encoding="ascii")
    directory: t.Any = str(tmp_path / path) if path and path.startswith("FILE") else path
    with pytest.raises(InvalidInput, match="for store: "), as_owner(directory, check_mode=True):
        pass


def test_a_key_is_worked_on_by_one_at_a_time_though_its_lock_is_removed(store: Store) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _time in range(30):
            with store.locked(KEYS[0]):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    def remove_run_directory() -> None:
        for _time in range(200):
            with store.unused(KEYS[0]) as unused:
                if unused:
                    most.append(len(inside) + 1)
            time.sleep(0.0002)

    threads = [threading.Thread(target=task) for task in (work, work, work, remove_run_directory)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_no_more_is_compiled_at_once_than_there_are_processors(store: Store) -> None:
    inside: list[int] = []
    most: list[int] = []

    def compile_something() -> None:
        with store.slot():
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    count = os.cpu_count() or 1
    threads = [threading.Thread(target=compile_something) for _number in range(4 * count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 4 * count
    assert max(most) <= count


def test_a_signed_copy_has_a_key_of_its_own_and_the_version_of_its_build() -> None:
    details = Certificate("x", "ab", "01", 1)
    first, second = (signing.Signer("/k", "/c", fingerprint * 64, details) for fingerprint in "12")
    key = build.signed_key(KEYS[0], first)
    assert len(key) == 64 and key not in (KEYS[0], build.signed_key(KEYS[0], second), build.signed_key(KEYS[1], first))
    assert key[: build.VERSION_CHARS] == KEYS[0][: build.VERSION_CHARS]


# ---- doors: what another user may put into a store -------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root works in the stores of others")
OTHER = 4321
RunModule = t.Callable[..., t.Dict[str, t.Any]]


@pytest.fixture
def foreign() -> t.Iterator[Store]:
    """A store of another user, with a build that is old enough to go, where that user can enter."""
    with tempfile.TemporaryDirectory(prefix="tapvirt-") as top:
        os.chmod(top, 0o755)
        store = Store(os.path.join(top, "store"))
        keep(store, KEYS[0], 40)
        for path in (pathlib.Path(store.directory), *pathlib.Path(store.directory).rglob("*")):
            os.chown(path, OTHER, OTHER)
        yield store


def plant(path: pathlib.Path, make: t.Callable[[pathlib.Path], object]) -> None:
    """Make something as the other user."""
    path.parent.mkdir(exist_ok=True)
    make(path)
    os.chown(path.parent, OTHER, OTHER)
    os.chown(path, OTHER, OTHER, follow_symlinks=False)


@needs_root
def test_links_in_a_store_of_another_user_do_no_harm(
    foreign: Store, run_module: RunModule, tmp_path: pathlib.Path
) -> None:
    """A task of root that prunes has that user's rights only."""
    target = tmp_path / "shadow"
    target.write_text("precious")
    target.chmod(0o600)
    victim = tmp_path / "victims" / KEYS[1]
    victim.mkdir(parents=True)
    os.utime(victim, (0, 0))
    directory = pathlib.Path(foreign.directory)
    plant(directory / ".lock" / KEYS[0], lambda path: path.symlink_to(target))
    plant(directory / ".work", lambda path: path.symlink_to(victim.parent))
    args = {"store": foreign.directory, "older_than": "1s"}
    for check in (True, False):
        done = run_module("stap_store", args, check=check)
        assert "is not used for locks: it is not a regular file" in done["msg"], done
    (directory / ".lock" / KEYS[0]).unlink()
    done = run_module("stap_store", args)
    assert done.get("failed") and victim.exists(), done
    (directory / ".work").unlink()
    done = run_module("stap_store", args)
    assert (done["changed"], names(done["removed"])) == (True, ["a"])
    assert {path.stat().st_uid for path in directory.rglob("*")} == {OTHER}
    assert (target.read_text(), victim.exists()) == ("precious", True)


@needs_root
def test_locks_that_root_left_in_the_store_of_another_user_are_removed(
    foreign: Store, run_module: RunModule, tmp_path: pathlib.Path
) -> None:
    """Those that are held, links and files with other names stay."""
    target = tmp_path / "precious"
    target.touch()
    locks = pathlib.Path(foreign.directory) / ".lock"
    locks.mkdir(exist_ok=True)
    os.chown(locks, OTHER, OTHER)
    for name in (KEYS[0], "slot-0", "slot-1", "notes"):
        (locks / name).touch(0o644)
    (locks / "slot-2").symlink_to(target)
    args = {"store": foreign.directory, "older_than": "1s"}
    before = sorted(os.listdir(locks))
    with open(locks / "slot-1", "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        planned = run_module("stap_store", args, check=True)
        assert (planned.get("msg"), names(planned["removed"])) == (None, ["a"])
        assert sorted(os.listdir(locks)) == before
        done = run_module("stap_store", args)
    assert (done.get("msg"), names(done["removed"])) == (None, ["a"])
    assert sorted(os.listdir(locks)) == ["notes", "slot-1", "slot-2"]
    assert target.exists()


@needs_root
def test_nothing_is_built_in_a_store_of_another_user(
    foreign: Store, run_module: RunModule, tmp_path: pathlib.Path
) -> None:
    script = tmp_path / "x.stp"
    script.write_text("probe begin { exit() }\n")
    done = run_module("stap_module", {"script": str(script), "kernel": "6.1", "store": foreign.directory})
    assert (
        f"The user {OTHER} owns {foreign.directory} and controls the store, but this task runs as root. "
        f"Run the task with become_user: {OTHER}." in done["msg"]
    )


def test_a_store_that_everybody_can_write_to_is_refused(store: Store, run_module: RunModule) -> None:
    keep(store, KEYS[0], 40)
    os.chmod(store.directory, 0o777)
    done = run_module("stap_store", {"store": store.directory, "older_than": "1s"})
    assert (
        f"Invalid value {store.directory!r} for store: Every user can write to the store (mode 0777). Run chmod o-w "
        in done["msg"]
    )
    assert store.kept() == [KEYS[0]]


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("target"), os.mkfifo], ids=["link", "fifo"])
def test_the_log_of_builds_is_a_regular_file(
    make: t.Callable[[pathlib.Path], None], store: Store, tmp_path: pathlib.Path
) -> None:
    directory = pathlib.Path(store.directory)
    directory.mkdir()
    make(directory / "builds.log")
    with pytest.raises(OSError):
        store.log({"key": KEYS[0]})
    assert store.row()["builds"] == 0
    assert os.listdir(directory) == ["builds.log"]


def test_an_entry_that_cannot_be_removed_keeps_no_other(store: Store) -> None:
    bad = pathlib.Path(store.directory) / ".work" / KEYS[0]
    bad.parent.mkdir(parents=True)
    bad.touch()
    os.utime(bad, (1, 1))
    keep(store, KEYS[1], 40)
    with pytest.raises(NoEffect, match=rf"store: \.work/{KEYS[0]} \(.*The others were removed") as caught:
        prune.prune(store, "30d", None, check_mode=False)
    assert names(caught.value.fields["removed"]) == [KEYS[1][0]] and store.kept() == []


@pytest.mark.parametrize("path", [["x"], {}, "a\0b"])
def test_a_damaged_row_is_no_build(store: Store, path: t.Any) -> None:
    folder = keep(store, KEYS[0], 1)
    (folder / "build.json").write_text(json.dumps({"path": path, "sha256": "0"}))
    assert store.read(KEYS[0]) is None


def test_a_link_is_not_an_entry_of_a_store(store: Store, tmp_path: pathlib.Path) -> None:
    entry = keep(Store(str(tmp_path / "other")), KEYS[0], 40)
    pathlib.Path(store.directory).mkdir()
    (pathlib.Path(store.directory) / KEYS[0]).symlink_to(entry)
    assert prune.prune(store, "1s", None, check_mode=False)[1]["removed"] == []
    assert entry.exists()


@pytest.mark.parametrize("mask", [0, 0o002])
def test_no_level_of_a_store_can_be_written_by_others(mask: int, store: Store) -> None:
    before = os.umask(mask)
    try:
        with store.locked(KEYS[0]), build.work_directory(store, KEYS[0]):
            found = {path: path.stat().st_mode & 0o777 for path in pathlib.Path(store.directory).rglob("*")}
    finally:
        os.umask(before)
    assert len(found) == 4 and not any(mode & 0o022 for mode in found.values()), found
