# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""libvirt_domain, libvirt_domain_info and libvirt_console against libvirt's real QEMU driver, without a daemon."""

from __future__ import annotations

import base64
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import typing as t

import pytest

from ansible_collections.tapvirt.host.plugins.filter.boot_sector import boot_sector

HERE = pathlib.Path(__file__).resolve().parent
DEFINITIONS = sorted((HERE.parents[1] / "fixtures" / "libvirt").glob("*.xml"))
LINE = "hello from the talker"
TALKER = """
<domain type='qemu'>
  <name>{name}</name>
  <description>{description}</description>
  <memory unit='MiB'>{memory}</memory>
  <currentMemory unit='MiB'>{current}</currentMemory>
  <vcpu current='{vcpus}'>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/><source file='{image}'/><target dev='hda' bus='ide'/>
    </disk>
    {devices}
    <serial type='pty'/>
  </devices>
</domain>
"""


class Embed:
    """A root of the embedded driver, modules run on it, and libvirt itself beside them."""

    def __init__(self, root: pathlib.Path, run_module: t.Callable[..., dict[str, t.Any]]) -> None:
        self.root = root
        self.uri = f"qemu:///embed?root={root}/e"
        self._run = run_module
        self.image = root / "talker.img"
        self.image.write_bytes(base64.b64decode(boot_sector(LINE)))

    def module(self, name: str, check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        return self._run(name, {"uri": self.uri, **args}, check=check, timeout=120)

    def converge(self, *domains: dict[str, t.Any], check: bool = False, **args: t.Any) -> dict[str, t.Any]:
        """Converge, and fail if the module does."""
        result = self.module("libvirt_domain", check=check, domains=list(domains), **args)
        assert not result.get("failed"), result["msg"]
        return result

    def libvirt(self, code: str) -> str:
        """Run Python with ``connection`` open on the root, as somebody else would."""
        program = textwrap.dedent(
            """
            import libvirt, sys, threading
            libvirt.registerErrorHandler(lambda *_: None, None)
            libvirt.virEventRegisterDefaultImpl()
            threading.Thread(target=lambda: [libvirt.virEventRunDefaultImpl() for _ in iter(int, 1)], daemon=True).start()
            connection = libvirt.open(sys.argv[1])
            """
        ) + textwrap.dedent(code)
        argv = [sys.executable, "-c", program, self.uri]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout

    def talker(self, name: str = "talker", **changes: t.Any) -> str:
        values = {"memory": 16, "current": 16, "vcpus": 1, "description": "one", "devices": "", **changes}
        return TALKER.format(name=name, image=self.image, **values)


@pytest.fixture
def embed(run_module: t.Callable[..., dict[str, t.Any]]) -> t.Iterator[Embed]:
    # Short: a guest's sockets lie below it.
    root = pathlib.Path(tempfile.mkdtemp(prefix="tv", dir="/tmp"))
    root.chmod(0o755)
    embed = Embed(root, run_module)
    try:
        yield embed
    finally:
        if (root / "e" / "etc").exists():
            embed.libvirt(
                """
                for domain in connection.listAllDomains():
                    if domain.isActive():
                        domain.destroy()
                """
            )
        shutil.rmtree(root)


def changes(result: dict[str, t.Any]) -> list[tuple[str, t.Any, t.Any]]:
    return [(row["what"], row["before"], row["after"]) for row in result["plan"]]


def named_definitions() -> list[dict[str, t.Any]]:
    return [{"name": path.stem, "xml": path.read_text(encoding="utf-8")} for path in DEFINITIONS]


def test_twelve_definitions_converge_once_and_the_plan_is_exact(embed: Embed) -> None:
    wanted = named_definitions()
    planned = embed.converge(*wanted, check=True)
    assert not (embed.root / "e").exists()
    done = embed.converge(*wanted)
    assert changes(planned) == changes(done)
    assert len(done["domains"]) == 12
    assert {row["plan_fidelity"] for row in done["domains"]} == {"exact"}
    again = embed.converge(*wanted)
    assert (again["changed"], again["plan"]) == (False, [])
    # Without our mark, what the XML means decides; it is the same.
    embed.libvirt(
        """
        for domain in connection.listAllDomains():
            domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, "https://github.com/tapvirt/tapvirt.host/domain/1", 2)
        """
    )
    unmarked = embed.converge(*wanted)
    assert unmarked["plan"] == []
    assert {row["plan_fidelity"] for row in unmarked["domains"]} == {"exact"}
