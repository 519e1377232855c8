"""The pictures of the viewer in docs/images, from a real browser: `python tools/viewer_pictures.py RESULT`.

RESULT is a folder of `cmb-jax predict`, such as demo_output/sub-0001. Needs the extra `dev` and a Chromium on
the machine. A copy of the result is read by two invented readers; RESULT itself is left as it is. Prints how
long the first picture took (by the clock, and in processor time, which other programs on the machine hardly
lengthen) and how much memory the page holds.
"""

import argparse
import itertools
import shutil
import statistics
import tempfile
import threading
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from cmb_jax.cli.view import open_server

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--disable-quic"]
OPENED = 5  # times, each in a context of its own
READERS = {"AB": "mmxmmmpm5mmum", "CD": "mmmmmmpmxmmmm"}  # keys, used over and over


def picture(page: Page, name: str) -> None:
    page.wait_for_timeout(700)
    path = IMAGES / f"viewer-{name}.png"
    page.screenshot(path=path)
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=192).save(path, optimize=True)


def read_all(page: Page, reader: str) -> None:
    page.click("#reader")
    page.fill("#initials", reader)
    page.keyboard.press("Enter")
    page.wait_for_function("name => document.getElementById('reader').textContent.includes(name)", arg=reader)
    rows = page.locator(".row")
    rows.first.click()
    for key in itertools.islice(itertools.cycle(READERS[reader]), rows.count()):
        page.keyboard.press(key)
        page.keyboard.press("j")
    page.wait_for_function("() => document.getElementById('save').textContent.startsWith('Saved')")


def take(page: Page) -> None:
    for reader in READERS:
        read_all(page, reader)
    page.locator(".row").nth(3).click()
    picture(page, "planes")
    page.keyboard.press("i")
    page.keyboard.press("v")
    for _ in range(4):
        page.keyboard.press("+")
    picture(page, "minip")
    page.keyboard.press("f")
    picture(page, "phase")
    for key in ("s", "t", "0", "g"):
        page.keyboard.press(key)
    page.check("[name=status][value=rejected]", force=True)
    page.locator(".row").nth(4).click()
    page.click("#display summary")
    picture(page, "regions")
    page.keyboard.press("g")
    page.click("#display summary")
    page.keyboard.press("o")
    page.click("#compare")
    picture(page, "readers")
    page.keyboard.press("Escape")


def measure(browser: Browser, address: str) -> None:
    """Print time to the first picture, and memory before and after all images were looked at."""
    clock, processor = [], []
    for _ in range(OPENED):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        before = processor_time(browser)
        page.goto(address)
        page.wait_for_selector("html[data-ready]")
        clock.append(float(page.evaluate("document.documentElement.dataset.ready")) / 1000)
        processor.append(processor_time(browser) - before)
        first = heap(page)
        for key in ("f", "i", "s", "g", "l"):
            page.keyboard.press(key)
            page.wait_for_timeout(1500)
        last = heap(page)
        context.close()
    for name, values in (("by the clock", clock), ("of processor time", processor)):
        print(f"first picture, from disk, seconds {name}: median {statistics.median(values):.1f}, "
              f"{min(values):.1f} to {max(values):.1f} in {OPENED} runs")  # fmt: skip
    print(f"JavaScript heap, garbage included: {first:.0f} MB, {last:.0f} MB after all images were looked at")


def processor_time(browser: Browser) -> float:
    """Seconds that all of the browser's processes have used, the one that draws in software included."""
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    return sum(each["cpuTime"] for each in processes)


def heap(page: Page) -> float:
    return page.evaluate("performance.memory.usedJSHeapSize") / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    result = parser.parse_args().result
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as driver:
        copy = Path(scratch) / "result"
        shutil.copytree(result, copy, ignore=shutil.ignore_patterns("verdicts", "truth"))
        server = open_server(copy)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        measure(browser, (copy / "viewer.html").as_uri())
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.goto(server.address)
        page.wait_for_selector("html[data-connected]")
        take(page)
        tablet = browser.new_page(viewport={"width": 820, "height": 1180}, has_touch=True)
        tablet.goto(server.address)
        tablet.wait_for_selector("html[data-connected]")
        picture(tablet, "tablet")
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()
