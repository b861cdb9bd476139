# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_console on libvirt's real QEMU driver: from the start, through reboots, to the end, and never stolen."""

from __future__ import annotations

import hashlib
import json
import pathlib
import stat
import typing as t

import pytest
from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.console.capture import Observed, Request, plan_start
from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.console.device import Device

if t.TYPE_CHECKING:
    from ansible_collections.tapvirt.host.tests.unit.support.libvirt.embed import Embed

PTY = "<serial type='pty'/>"
REBOOT = bytes([0xB0, 0xFE, 0xE6, 0x64])  # the keyboard controller's reset line
POWER_OFF = bytes([0xBA, 0x04, 0x06, 0xB8, 0x00, 0x20, 0xEF])  # PM1 control of the PIIX4: sleep type 0, enable
HALT = bytes([0xF4, 0xEB, 0xFD])


def disk(line: bytes, after: bytes) -> bytes:
    """Return a boot sector that writes a line to the first serial port and then does something else."""
    begin = bytes([0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0xFC])  # cli; ds = 0; cld
    length = len(line)
    # si = line, cx = its length, dx = 0x3f8; next: lodsb; out dx, al; loop next
    head = [0xB9, length & 0xFF, length >> 8, 0xBA, 0xF8, 0x03, 0xAC, 0xEE, 0xE2, 0xFC]
    address = 0x7C00 + len(begin) + 3 + len(head) + len(after) + len(HALT)
    code = begin + bytes([0xBE, address & 0xFF, address >> 8, *head]) + after + HALT + line
    return code + bytes(510 - len(code)) + b"\x55\xaa"


def logged(embed: Embed, name: str, **changes: t.Any) -> str:
    """Return a domain whose console QEMU itself writes to NAME.log, whoever reads it."""
    return embed.talker(name, **changes).replace(
        PTY, f"<serial type='pty'><log file='{embed.root}/{name}.log'/></serial>"
    )


def state(embed: Embed, name: str) -> str:
    return str(embed.module("libvirt_domain_info", names=[name])["domains"][0]["state"])


def test_a_start_is_read_from_its_first_byte_and_a_second_run_only_reads(embed: Embed) -> None:
    # Said once, right after the start: who comes late hears nothing. The full stop ends it: a carriage return alone
    # would already be a line's end.
    embed.image.write_bytes(disk(b"only once\r\n.", b""))
    embed.converge({"name": "talker", "xml": logged(embed, "talker")})
    log, dest = embed.root / "talker.log", embed.root / "talker.raw"
    args: dict[str, t.Any] = {"name": "talker", "start": True, "until": r"^only once\n\.", "dest": str(dest)}
    planned = embed.module("libvirt_console", check=True, timeout_seconds=60, **args)
    assert (planned["changed"], planned["stopped_by"], planned["bytes"], planned["path"]) == (True, None, 0, None)
    assert state(embed, "talker") == "shutoff"
    assert not log.exists()
    assert not dest.exists()
    done = embed.module("libvirt_console", timeout_seconds=60, **args)
    assert done["plan"] == planned["plan"]
    assert (done["changed"], done["matched"], done["stopped_by"]) == (True, True, "pattern"), done
    assert done["text"].endswith("only once\n.")
    raw = dest.read_bytes()
    assert raw == log.read_bytes()
    assert (done["bytes"], done["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert stat.S_IMODE(dest.stat().st_mode) == 0o600
    for check in (True, False):
        again = embed.module("libvirt_console", check=check, timeout_seconds=0.5, **args)
        assert (again["changed"], again["plan"], again["bytes"]) == (False, [], 0)
        assert again["stopped_by"] == "timeout"
        assert dest.read_bytes() == (raw if check else b"")
    assert state(embed, "talker") == "running"
    lost = embed.module("libvirt_console", name="talker", timeout_seconds=0.5, dest="/proc/nowhere")
    assert "cannot be written" in lost["msg"]
    assert (lost["changed"], lost["stopped_by"]) == (False, "timeout")


def test_what_is_left_of_a_crashed_domain_is_not_destroyed_by_a_look_at_its_console() -> None:
    wanted = Request("talker", None, 1, 1, start=True)
    found = Observed(None, "crashed", True, Device("console0", False))
    with pytest.raises(TapvirtError, match="Domain 'talker' has crashed, and a start would destroy"):
        plan_start(wanted, found)
    assert plan_start(wanted, Observed(None, "crashed", False, found.device)) == ["create_paused", "resume"]


def test_a_paused_domain_goes_on_only_with_start(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": logged(embed, "talker"), "state": "paused"})
    silent = embed.module("libvirt_console", name="talker", timeout_seconds=0)
    assert (silent["bytes"], silent["stopped_by"], silent["changed"]) == (0, "timeout", False)
    heard = embed.module("libvirt_console", name="talker", start=True, max_bytes=5, timeout_seconds=60)
    assert [(row["before"], row["how"]) for row in heard["plan"]] == [("paused", "resume")]
    assert (heard["bytes"], heard["truncated"]) == (5, True)
    assert state(embed, "talker") == "running"


def test_reboots_are_read_through_and_the_end_is_reported(embed: Embed) -> None:
    embed.image.write_bytes(disk(b"once more\r\n", REBOOT))
    (embed.root / "short.img").write_bytes(disk(b"goodbye\r\n", POWER_OFF))
    short = logged(embed, "short").replace("talker.img", "short.img")
    embed.converge({"name": "again", "xml": logged(embed, "again")}, {"name": "short", "xml": short})
    again = embed.module("libvirt_console", name="again", start=True, until="(?:^once more$.*){3}", timeout_seconds=60)
    assert again["matched"], again
    dest = embed.root / "short.raw"
    ended = embed.module("libvirt_console", name="short", start=True, until="never", timeout_seconds=60, dest=str(dest))
    assert (ended["stopped_by"], ended["matched"], ended["changed"]) == ("end", False, True), ended
    assert ended["text"].endswith("goodbye\n")
    assert dest.read_bytes() == (embed.root / "short.log").read_bytes()
    assert state(embed, "short") == "shutoff"


@pytest.mark.scenario
def test_a_console_in_use_is_left_alone_unless_force_is_set(embed: Embed) -> None:
    embed.converge({"name": "talker", "xml": embed.talker(), "state": "running"})
    message = embed.libvirt(
        """
        import json
        from ansible_collections.tapvirt.host.plugins.module_utils._core.errors import TapvirtError
        from ansible_collections.tapvirt.host.plugins.module_utils._libvirt.console.capture import Request, read_console
        domain = connection.lookupByName("talker")
        domain.memoryStats()  # waits until the driver has met its guest again
        results = {}
        def read(label, force, check_mode, seconds=0.5):
            request = Request("talker", None, seconds, 65536, force=force)
            try:
                results[label] = read_console(connection, request, check_mode, False)
            except TapvirtError as error:
                results[label] = {"msg": error.message, **error.fields}
        first = threading.Thread(target=read, args=("first", False, False, 30))
        first.start()
        import time
        time.sleep(1)
        read("second", False, False)
        read("would", True, True)
        assert first.is_alive()
        read("third", True, False)
        first.join()
        print(json.dumps(results))
        """
    )
    results = json.loads(message)
    assert "Another reader has the console. Set force: true to take it over." in results["second"]["msg"]
    assert results["second"]["changed"] is False
    assert (results["would"]["stopped_by"], results["would"]["changed"]) == (None, False)
    assert results["third"]["stopped_by"] == "timeout"
    assert embed.line in results["third"]["text"]
    assert "but the domain still runs. Another reader may have taken the console over." in results["first"]["msg"]
    assert embed.line in results["first"]["text"]


def test_the_device_is_chosen_by_its_alias(embed: Embed) -> None:
    # The same talker on the second port: its address is in the code twice, for the set-up and for the line.
    image = embed.image.read_bytes()
    assert image.count(b"\xba\xf8\x03") == 2
    embed.image.write_bytes(image.replace(b"\xba\xf8\x03", b"\xba\xf8\x02"))
    devices = """
        <serial type='pty'><target port='0'/></serial><serial type='pty'><target port='1'/></serial>
        <channel type='unix'><target type='virtio' name='org.example.0'/></channel>
        <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    """
    embed.converge({"name": "talker", "xml": embed.talker(devices=devices).replace(PTY, "<serial type='null'/>")})
    refused = {
        "serial9": (
            "Invalid value 'serial9' for device: Domain 'talker' has no console, port or channel of this alias. It has "
            "channel0, channel1, serial0, serial1, serial2. Did you mean serial",
        ),
        "channel1": ("This channel is that of the guest agent, which libvirt itself uses.",),
        "serial2": ("The serial is of type 'null', but libvirt can only read a serial of type 'pty'.",),
    }
    for phase in ("off", "on"):
        for alias, words in refused.items():
            wrong = embed.module("libvirt_console", name="talker", start=phase == "off", device=alias)
            assert wrong["failed"]
            for message in words:
                assert message in wrong["msg"]
        if phase == "off":
            assert state(embed, "talker") == "shutoff"
            heard = embed.module(
                "libvirt_console", name="talker", start=True, device="serial1", until=embed.line, timeout_seconds=60
            )
            assert heard["matched"], heard
    quiet = embed.module("libvirt_console", name="talker", device="channel0", timeout_seconds=0.5)
    assert (quiet["bytes"], quiet["stopped_by"]) == (0, "timeout")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            {"timeout_seconds": float("inf")},
            "Invalid value 'inf' for timeout_seconds: The timeout is a number of seconds from 0 to 86400.",
        ),
        ({"timeout_seconds": float("nan")}, "Invalid value 'nan' for timeout_seconds: "),
        (
            {"max_bytes": 0},
            "Invalid value 0 for max_bytes: The size is a number of bytes from 1 to 524288, with dest to",
        ),
        ({"max_bytes": 1 << 20}, "with dest to 16777216."),
        ({"max_bytes": 1 << 25, "dest": "/tmp/x"}, "Invalid value 33554432 for max_bytes: "),
        ({"dest": "raw"}, "Invalid value 'raw' for dest: The destination is the absolute path of a file."),
        ({"dest": "/nowhere/at/all"}, "dest: The directory /nowhere/at does not exist."),
        ({"dest": "/dev/null"}, "for dest: This path exists, and it is not a regular file."),
        ({"dest": "/tmp"}, "for dest: This path exists, and it is not a regular file."),
        ({"until": "("}, "for until: This is not a regular expression: "),
    ],
)
def test_wrong_options_are_reported_before_libvirt_is_asked(
    run_module: t.Callable[..., dict[str, t.Any]], args: dict[str, t.Any], message: str
) -> None:
    result = run_module("libvirt_console", {"uri": "qemu+tcp://127.0.0.1:9/system", "name": "x", "start": True, **args})
    assert message in result["msg"]
    assert "\n" not in result["msg"]


@pytest.mark.parametrize("found", ["1", "5"])
def test_a_driver_without_consoles_is_reported_before_a_start(
    run_module: t.Callable[..., dict[str, t.Any]], tmp_path: pathlib.Path, found: str
) -> None:
    node = tmp_path / "node.xml"
    node.write_text(
        f"""
        <node>
          <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
            <name>guest</name><memory>65536</memory><os><type>hvm</type></os>
            <devices><console type='pty'/></devices><test:runstate>{found}</test:runstate>
          </domain>
          <domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'>
            <name>mute</name><memory>65536</memory><os><type>hvm</type></os>
          </domain>
        </node>
        """,
        encoding="utf-8",
    )
    for check in (True, False):
        result = run_module("libvirt_console", {"uri": f"test://{node}", "name": "guest", "start": True}, check=check)
        if found == "5" or not check:
            assert result["msg"] == "This libvirt driver has no consoles that can be read."
            assert result.get("changed", False) is False
    mute = run_module("libvirt_console", {"uri": f"test://{node}", "name": "mute", "start": True})
    assert mute["msg"] == "Domain 'mute' has neither a console nor a serial port."
