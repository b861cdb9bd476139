# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page about a fleet costs: to write, to send, and until it can be used in a browser."""

from __future__ import annotations

import pathlib
import tempfile
import time

from ansible_collections.tapvirt.host.tests.unit.support.report.browser import Browser, installed
from ansible_collections.tapvirt.host.tests.unit.support.report.fleet import crowded, fleet
from ansible_collections.tapvirt.host.tests.unit.support.report.render import lay_out, render

HOSTS = (30, 200, 1000)
# Until it is loaded and laid out; then how long the filter takes for what it shows to be laid out again.
_TIMES = """
document.body.getBoundingClientRect();
const loaded = performance.now();
const box = document.getElementById("filter");
box.value = "7";
box.dispatchEvent(new Event("input"));
document.body.getBoundingClientRect();
return [loaded, performance.now() - loaded];
"""


def main() -> None:
    """Print a table: seconds of the playbook, kB, milliseconds until the page is there and of its filter.

    The last row is a page that is as full as it can be, laid out without a playbook.
    """
    program = installed()
    print(f"{'hosts':>10} {'playbook s':>12} {'kB':>8} {'loaded ms':>12} {'filter ms':>12}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        pages = {f"{hosts}": render(fleet(hosts), folder) for hosts in HOSTS}
        began = time.monotonic()
        full = lay_out(crowded(HOSTS[-1]))
        pages[f"{HOSTS[-1]} full"] = full, time.monotonic() - began
        for title, (page, wall) in pages.items():
            times = "".join(f" {'no browser':>12}" for _number in range(2))
            if program:
                browser = Browser(program, folder / "browser")
                # The first start of a browser is not the page's.
                runs = [browser.ask(page, _TIMES, folder / "page.html", real_time=True) for _number in range(3)]
                times = "".join(f" {time:>12.0f}" for time in min(runs))
            print(f"{title:>10} {wall:>12.1f} {len(page.encode()) / 1000:>8.0f}{times}")


if __name__ == "__main__":
    main()
