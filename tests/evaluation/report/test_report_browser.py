"""The page as a reader uses it, in a real Chromium that has no network to ask."""

import os
import shutil

import pytest

pytestmark = pytest.mark.slow
# Graphics in software: CI has no GPU. A browser run by root has no sandbox of its own.
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE_MS = 60_000  # to unpack and start the viewer on a busy machine


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("CI has no Chromium: .ci/run installs it")
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, report):
    """The page, and at the end: not a word on the console, and nothing asked for but itself."""
    page, said, asked = browser.new_page(), [], []
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [report.as_uri()]


def column(page, number):
    return page.locator(f"#all-cases tbody tr > :nth-child({number})").all_inner_texts()


def test_tables_sort_by_mouse_and_keyboard(opened):
    opened.locator("body[data-ready]").wait_for()
    dice = opened.locator("#all-cases thead th", has_text="Dice").last
    dice.click()
    opened.locator("#all-cases th[aria-sort=ascending]", has_text="Dice").wait_for()
    shown = [float(text) for text in column(opened, 8)]  # of GTVn
    assert shown == sorted(shown)
    assert len(set(shown)) == 3
    dice.get_by_role("button").press("Enter")
    opened.locator("#all-cases th[aria-sort=descending]", has_text="Dice").wait_for()
    assert [float(text) for text in column(opened, 8)] == sorted(shown, reverse=True)
    centre = opened.locator("#all-cases thead th", has_text="Centre")
    centre.click()
    opened.locator("#all-cases th[aria-sort=ascending]", has_text="Centre").wait_for()
    assert dice.get_attribute("aria-sort") is None
    assert sorted(column(opened, 3)) == column(opened, 3)


@pytest.mark.parametrize("width", [1440, 390])
def test_the_page_fits_the_window_and_its_rows_are_whole(browser, report, width):
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(report.as_uri())
    page.locator("body[data-ready]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    whole = """[...document.querySelectorAll("#all-cases tbody th")].every((id) => {
      const range = document.createRange();
      range.selectNodeContents(id);
      return new Set([...range.getClientRects()].map((line) => Math.round(line.bottom))).size === 1;
    })"""
    assert page.evaluate(whole), "an id breaks into lines"
    assert page.locator("#all-cases input").count() == 0  # no filter over six rows
    page.close()


def drawn(page, expected):
    """Whether the viewer comes to show a picture of which `expected` holds, and the last one it showed."""
    for _ in range(40):
        page.wait_for_timeout(250)
        picture = page.locator("#canvas").screenshot()
        if expected(picture):
            return True, picture
    return False, picture


def test_a_case_opens_and_its_overlays_can_be_switched(opened):
    details = opened.locator("#case-1")
    assert details.get_attribute("open") is None
    opened.get_by_role("link", name="B-2").last.click()
    opened.locator("#case-1[open]").wait_for()
    assert details.get_by_role("img").count() == 5  # a projection and four lesions
    details.get_by_role("button", name="View in three planes").click()
    opened.locator("#viewer-status", has_text="B-2 is shown").wait_for()
    opened.wait_for_timeout(3000)  # until the first picture stands
    first = opened.locator("#canvas").screenshot()
    seen = [first]
    for name in ("PET", "Ground truth", "Prediction"):
        opened.get_by_label(name, exact=True).uncheck()
        changed, picture = drawn(opened, lambda picture: picture not in seen)
        assert changed, name
        seen.append(picture)
    opened.get_by_label("CT window").select_option("-500,1300")
    assert drawn(opened, lambda picture: picture not in seen)[0]
    for name in ("PET", "Ground truth", "Prediction"):
        opened.get_by_label(name, exact=True).check()
    opened.get_by_label("CT window").select_option("-160,240")
    assert drawn(opened, lambda picture: picture == first)[0]
    opened.locator("#canvas").hover()
    opened.mouse.wheel(0, 200)
    assert drawn(opened, lambda picture: picture != first)[0]


def test_without_webgl2_the_page_says_so_and_keeps_the_pictures(browser, report):
    page = browser.new_page()
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(report.as_uri() + "#case-2")
    details = page.locator("#case-2")
    details.get_by_role("button", name="View in three planes").click()
    page.locator("#viewer-status", has_text="no WebGL2").wait_for()
    assert not page.locator("#canvas").is_visible()
    assert details.get_by_role("img").first.is_visible()
    page.close()
