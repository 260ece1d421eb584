"""The page as a browser shows it; needs a Chromium on the machine."""

from __future__ import annotations

import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from surgeon.report import write_page, write_several
from tests.test_page import document, folder_of, illustrated

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]
_OVER = """() => {
  const wide = document.documentElement.clientWidth;
  return [...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > wide + 1)
    .map(e => e.outerHTML.slice(0, 80));
}"""


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    parent = tmp_path_factory.mktemp("pages")
    small = folder_of(parent / "small", document())
    large = folder_of(parent / "large", document(12, 50, ("hair", "age"), empty=(3,)))
    write_several([large, large], parent / "several.html")
    return {
        "small": write_page(small),
        "large": write_page(large),
        "illustrated": write_page(illustrated(parent / "illustrated")),
        "several": parent / "several.html",
    }


@pytest.mark.parametrize("name", ["small", "large", "illustrated", "several"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_whole_quiet_and_accessible(browser, pages, name, width, scheme):
    shown = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(pages[name].as_uri())
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    assert shown.evaluate(_OVER) == []
    assert shown.evaluate("() => [...document.images].every(i => i.naturalWidth > 0)")
    faults = Axe().run(shown).response["violations"]
    assert [f"{f['id']}: {f['nodes'][0]['html'][:80]}" for f in faults] == []
    shown.close()
