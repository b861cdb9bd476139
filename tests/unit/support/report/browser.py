# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real browser without a window."""

from __future__ import annotations

import html
import json
import pathlib
import re
import shutil
import subprocess
import typing as t

PROGRAMS = ("chromium-headless-shell", "chromium", "google-chrome")
_RESULT = re.compile(r'<pre id="test-result">(.*?)</pre>', re.DOTALL)
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]


class Browser:
    """Opens pages of this machine; no other address can be reached from them."""

    def __init__(self, program: str, folder: pathlib.Path) -> None:
        self._argv = [program, *_OPTIONS, f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND"]

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        quiet: t.Any = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run([*self._argv, *argv], timeout=120, check=False, **quiet)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    def ask(self, page: str, script: str, path: pathlib.Path, *, real_time: bool = False) -> t.Any:
        """Return what a script returns that runs in the page once it is loaded, which is then written to ``path``.

        What the page throws, or writes to its console, is an AssertionError. The script may return a promise, unless
        clocks shall go at their real pace.
        """
        # The page is not changed; what asks comes behind its end.
        wait, later = ("", "") if real_time else ("await", "async")
        asking = f"""<script>
        addEventListener("load", {later} () => {{
          const told = document.createElement("pre");
          told.id = "test-result";
          try {{ told.textContent = JSON.stringify({wait} ({later} () => {{ {script} }})()); }}
          catch (error) {{ told.textContent = JSON.stringify(String(error)); }}
          document.body.append(told);
        }});
        </script>"""
        path.write_text(page + asking, encoding="utf-8")
        pace = [] if real_time else ["--virtual-time-budget=20000"]
        done = self._run("--dump-dom", "--window-size=1280,1000", *pace, path.as_uri())
        lines = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        assert not lines, lines
        found = _RESULT.search(done.stdout)
        assert found, "the script gave no result"
        return json.loads(html.unescape(found[1]))

    def look(self, path: pathlib.Path, picture: pathlib.Path, width: int, height: int, *options: str) -> None:
        """Keep a picture of a page in a window of this size."""
        self._run(f"--screenshot={picture}", f"--window-size={width},{height}", *options, path.as_uri())


def installed() -> str | None:
    """Return the path of a browser, if there is one."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)
