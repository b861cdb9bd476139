# Copyright (c) The tapvirt.host authors
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of the role fleet_report, opened in a real browser."""

from __future__ import annotations

import html
import importlib.resources
import os
import pathlib
import shutil
import typing as t

import pytest
from ansible_collections.tapvirt.host.tests.unit.support.report import fleet
from ansible_collections.tapvirt.host.tests.unit.support.report.browser import Browser
from ansible_collections.tapvirt.host.tests.unit.support.report.render import lay_out, render

MANY = 1000 if os.environ.get("TAPVIRT_SOAK") else 60
MOST_BYTES = 3_000_000
PICTURES = {
    "wide": (1280, 2000, ()),
    "telephone": (390, 1600, ()),
    "dark": (1280, 2000, ("--blink-settings=preferredColorScheme=0",)),
}
_AXE = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")
_VISIBLE = (
    "const seen = (s) => [...document.querySelectorAll(s)].filter((e) => e.checkVisibility()).map((e) => e.dataset.h);"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(fleet.fleet(MANY), tmp_path_factory.mktemp("fleet"))[0]


def laid_out(page: str) -> str:
    """Return the page with all its sections laid out, not only those that the window shows."""
    assert "content-visibility:auto" in page
    return page.replace("content-visibility:auto", "content-visibility:visible", 1)


def test_the_page_is_no_larger_than_it_may_be_and_needs_nothing_else(page: str) -> None:
    assert len(page.encode()) < MOST_BYTES * MANY / 1000
    assert "http" not in page
    assert "src=" not in page and "@import" not in page and "url(" not in page


def test_a_crowded_page_of_a_thousand_hosts_has_bounds() -> None:
    page = lay_out(fleet.crowded(1000))
    assert len(page.encode()) < MOST_BYTES
    assert f'<tr data-h="{fleet.SLOW}" data-w>' in page


def test_nothing_is_wrong_with_the_page_for_those_who_do_not_see_it(
    page: str, browser: Browser, tmp_path: pathlib.Path
) -> None:
    script = (
        _AXE.replace("</script>", "<\\/script>")
        + """
    const found = await axe.run(document, {resultTypes: ["violations"]});
    return [found.passes.length, found.violations.map((v) => [v.id, v.nodes[0].html, v.nodes[0].failureSummary])];
    """
    )
    opened = laid_out(page)
    for scheme in ("light", "dark"):
        styles = opened.replace("prefers-color-scheme:dark", "min-width:0") if scheme == "dark" else opened
        passed, violations = browser.ask(styles, script, tmp_path / f"{scheme}.html")
        assert violations == []
        assert passed > 15


def test_the_filter_leaves_the_hosts_that_are_looked_for(page: str, browser: Browser, tmp_path: pathlib.Path) -> None:
    script = f"""{_VISIBLE}
    const box = document.getElementById("filter"), findingsOnly = document.getElementById("findings-only");
    const all = seen("#hosts tbody tr").length;
    box.value = "HOST0007"; box.dispatchEvent(new Event("input"));
    const count = document.getElementById("count").textContent;
    const one = [seen("#hosts tbody tr"), seen("#traces tbody tr[data-h]"), count];
    box.value = ""; box.dispatchEvent(new Event("input"));
    const again = seen("#hosts tbody tr").length;
    box.value = "more"; box.dispatchEvent(new Event("input"));
    const words = document.querySelectorAll("#kernels tbody tr:not([hidden])").length;
    box.value = "host0007"; box.dispatchEvent(new Event("input"));
    const kernels = document.querySelectorAll("#kernels tbody tr:not([hidden])").length;
    box.value = ""; box.dispatchEvent(new Event("input"));
    findingsOnly.click();
    const stands = seen("#hosts tbody tr");
    return {{all, one, again, words, kernels, stands}};
    """
    found = browser.ask(page, script, tmp_path / "page.html")
    assert found["all"] == found["again"] == MANY
    hosts, traced, count = found["one"]
    assert hosts == [fleet.SLOW]
    assert traced == [fleet.SLOW] * 2, "in the heat map, and in the time line"
    assert " of " in count
    assert (found["words"], found["kernels"]) == (0, 1), "a row of several hosts is found by their names alone"
    standing = {fleet.SLOW, fleet.LOST, fleet.UNREADY, fleet.DRIFTED, fleet.OVERLOADED, fleet.OTHER_TABLE}
    assert set(found["stands"]) == standing | {fleet.BROKEN_DOMAIN, fleet.PENDING_DOMAIN}


def test_a_head_sorts_its_column_by_number_and_back(page: str, browser: Browser, tmp_path: pathlib.Path) -> None:
    script = f"""{_VISIBLE}
    const heads = document.querySelectorAll("#traces table thead th");
    const button = [...heads].find((h) => h.textContent === "99 %").firstChild;
    button.click();
    const up = seen("#traces table.sortable:first-of-type tbody tr");
    const sorted = button.parentNode.getAttribute("aria-sort");
    button.click();
    const down = seen("#traces table.sortable:first-of-type tbody tr");
    return {{up, sorted, down}};
    """
    found = browser.ask(page, script, tmp_path / "page.html")
    assert found["sorted"] == "ascending"
    assert found["up"][0] != fleet.SLOW
    assert found["down"][0] == fleet.SLOW
    assert set(found["up"]) == set(found["down"])


def test_values_with_notes_sort_as_numbers_and_what_does_not_exist_comes_last(
    browser: Browser, tmp_path: pathlib.Path
) -> None:
    row = {"module": "kvm", "name": "nx", "changed": True}
    values: dict[str, dict[str, t.Any]] = {
        "host9": row | {"before": 9, "after": 9, "pending": ["a reboot"]},
        "host10": row | {"before": 1, "after": 200000},
        "host1": row | {"before": 1, "after": 10},
    }
    hosts = {name: {"fleet_report_parameters": {"params": [param]}} for name, param in values.items()}
    hosts["host2"] = {"fleet_report_parameters": {"params": [row | {"name": "mp", "before": 1, "after": 1}]}}
    script = f"""{_VISIBLE}
    const sorted = (text) => {{
      const heads = document.querySelectorAll("#parameters table thead th");
      [...heads].find((h) => h.textContent === text).firstChild.click();
      return seen("#parameters tbody tr");
    }};
    return [sorted("kvm.nx"), sorted("kvm.nx"), sorted("Host")];
    """
    up, down, by_name = browser.ask(lay_out(hosts), script, tmp_path / "page.html")
    assert up == ["host9", "host1", "host10", "host2"]
    assert down == ["host10", "host1", "host9", "host2"]
    assert by_name == ["host1", "host2", "host9", "host10"]


def test_a_strip_is_coloured_and_paper_has_what_is_folded(page: str, browser: Browser, tmp_path: pathlib.Path) -> None:
    script = """
    dispatchEvent(new Event("beforeprint"));
    const strips = [...document.querySelectorAll("[data-s]")];
    const folded = [...document.querySelectorAll("details")];
    return [strips.filter((e) => e.style.background.includes("linear-gradient")).length, strips.length,
            folded.filter((e) => e.open).length, folded.length];
    """
    coloured, strips, opened, folded = browser.ask(page, script, tmp_path / "page.html")
    assert coloured == strips > MANY
    assert opened == folded > 0


def test_the_slow_host_is_at_the_top_of_what_is_seen_first(page: str, browser: Browser, tmp_path: pathlib.Path) -> None:
    script = f"""
    const places = [...document.querySelectorAll(".findings li, .plots figure.out")];
    return places.filter((e) => e.dataset.h === "{fleet.SLOW}")
      .map((e) => [e.textContent.includes("stands out"), e.getBoundingClientRect().top]);
    """
    found = browser.ask(page, script, tmp_path / "page.html")
    assert len(found) == 2
    (in_words, words_top), (drawn, drawing_top) = found
    assert in_words and words_top < 1000
    assert drawn and drawing_top < 1500


def test_pictures_of_the_page(page: str, browser: Browser, tmp_path: pathlib.Path) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    kept = os.environ.get("TAPVIRT_ARTIFACTS")
    for name, (width, height, options) in PICTURES.items():
        picture = tmp_path / f"report-{name}.png"
        browser.look(tmp_path / "page.html", picture, width, height, *options)
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 20_000, "it is empty"
        if kept:
            pathlib.Path(kept).mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, kept)


@pytest.mark.parametrize("width", [360, 1280])
def test_no_window_has_to_be_scrolled_sideways(page: str, browser: Browser, tmp_path: pathlib.Path, width: int) -> None:
    # A frame stands for the window: the shell has a least width of its own.
    frame = f'<iframe srcdoc="{html.escape(laid_out(page))}" width="{width}" height="800"></iframe>'
    script = """
    const inside = document.querySelector("iframe").contentDocument.documentElement;
    return [inside.scrollWidth, inside.clientWidth];
    """
    wide, room = browser.ask(f"<!doctype html><title>frame</title>{frame}", script, tmp_path / "outer.html")
    assert wide <= room
