"""The viewer in a real browser: read by keyboard, reload, import the file; and no way out."""

import csv
import importlib.util
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmb_jax.evaluation.statistics import cohen_kappa
from cmb_jax.review.reading import read_readings
from cmb_jax.review.result import load_result
from cmb_jax.review.truth import write_truth
from cmb_jax.review.verdicts import MIMIC_KINDS
from tests.viewer.conftest import make

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120_000  # in milliseconds, for slow machines


class Page:
    """A browser's page with what it asked for and complained of."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 800}, "accept_downloads": True} | options
        )
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda line: self.complaints.append(line.text) if line.type in ("error", "warning") else None,
        )
        self.page.goto(address, wait_until="commit")  # `wait` waits for the program
        self.wait()

    def wait(self):
        self.page.wait_for_selector("html[data-connected]")

    def keys(self, *names):
        for name in names:
            self.page.keyboard.press(name)

    def text(self, selector):
        return self.page.text_content(selector).strip()

    def until(self, selector, words):
        try:
            self.page.wait_for_function(
                "([selector, words]) => document.querySelector(selector).textContent.includes(words)",
                arg=[selector, words],
            )
        except Exception as error:
            raise AssertionError(f"{selector} says {self.text(selector)!r}, never {words!r}") from error

    def until_changed(self, before, least):
        """Wait until the drawn images differ from `before` by `least` gray values on average; give them."""
        deadline = time.monotonic() + SECONDS / 1000
        while np.abs((now := self.pixels()) - before).mean() <= least:
            assert time.monotonic() < deadline, "the images stay as they are"
            self.page.wait_for_timeout(100)
        return now

    def sign(self, reader):
        self.page.click("#reader")
        self.page.fill("#initials", reader)
        self.keys("Enter")
        self.until("#reader", f"Reader {reader}")

    def pixels(self):
        """The drawn images as NiiVue left them, (height, width) gray values."""
        self.page.evaluate("document.getElementById('over').style.visibility = 'hidden'")
        shot = self.page.locator("#view").screenshot()
        self.page.evaluate("document.getElementById('over').style.visibility = ''")
        return gray(shot)

    def saved(self, tmp_path, name="verdicts.json"):
        with self.page.expect_download() as waiting:
            self.page.click("#download")
        waiting.value.save_as(tmp_path / name)
        return tmp_path / name


def gray(png):
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("L"), np.float32)


@pytest.fixture
def open_page(chromium):
    opened = []

    def call(address, **options):
        opened.append(Page(chromium, address, **options))
        return opened[-1]

    yield call
    for each in opened:
        each.context.close()


@pytest.fixture
def page(open_page, made):
    return open_page(made.page.as_uri())


def test_opens_scrolls_windows_toggles(page, made):
    assert page.page.title() == "sub-07_ses-1_swi: microbleeds"
    assert float(page.page.evaluate("document.documentElement.dataset.ready")) < 60_000
    first = page.pixels()
    assert first.std() > 20  # an image, not a blank canvas
    page.until("#place", f"{made.rows[0].z_mm:.1f} mm")
    page.page.locator("#over").focus()
    page.keys("ArrowUp", "ArrowUp")
    page.until("#place", f"{made.rows[0].z_mm + 2 * 2.0:.1f} mm")
    page.page.mouse.move(300, 400)
    page.page.mouse.wheel(0, 80)  # two slices down again
    page.until("#place", f"{made.rows[0].z_mm:.1f} mm")
    assert np.abs(page.pixels() - first).mean() < 0.5
    page.keys("Shift+ArrowUp", "Shift+ArrowUp", "Shift+ArrowUp")
    assert page.pixels().mean() > first.mean() + 3  # brighter
    page.keys("w")
    assert np.abs(page.pixels() - first).mean() < 0.5
    page.keys(" ")
    page.until("#place", "rad")  # phase
    assert np.abs(page.pixels() - first).mean() > 10
    page.keys("i")
    page.until("#place", "minIP")
    assert page.pixels().mean() < first.mean()  # a minimum is no brighter than the slice
    page.keys("s", "v")
    assert page.page.is_checked("[name=layout][value=axial]")
    plain = page.pixels()
    page.keys("g")
    colored = page.until_changed(plain, 3)
    page.keys("g")
    bare = page.until_changed(colored, 3)  # regions on and off
    assert np.abs(bare - plain).mean() < 0.5
    assert page.complaints == []


def test_minimum_is_that_of_the_slab(page, made):
    """The slab of the page against a slow minimum of the array that went in."""
    page.keys("i", "]", "Alt+]")  # as many keyboards type it; 12 mm of 2 mm slices: 5 or 7 about the middle
    page.until("#place", "minIP")
    values = made.scan.swi.data
    for row in made.rows[:4]:
        shown = float(page.text("#place").rpartition("minIP ")[2])
        slab = values[row.i, row.j, max(row.k - 3, 0) : row.k + 4]
        assert shown == pytest.approx(float(slab.min()), abs=1.0)
        page.keys("j")


def test_reads_forty_by_keyboard_and_imports_them(page, made, tmp_path):
    expected = {}
    page.keys("m")  # initials are asked for first
    page.page.fill("#initials", "AB")
    page.keys("Enter")
    page.until("#count", "1 of 40")
    expected[1] = ("microbleed", "", "definite")
    for index in range(2, 41):
        page.keys("j")
        key, word = [
            ("m", ("microbleed", "", "definite")),
            ("p", ("microbleed", "", "possible")),
            ("x", ("mimic", "", "")),
            (str(1 + index % 8), ("mimic", MIMIC_KINDS[index % 8], "")),
            ("u", ("uncertain", "", "")),
        ][index % 5]
        page.keys(key)
        expected[index] = word
    page.until("#count", "40 of 40")
    page.keys("u", "z", "Backspace", "z")  # two changes, two undone
    page.keys("c")
    page.page.keyboard.type("near a vessel")
    page.keys("Escape")

    page.page.reload()
    page.wait()
    page.until("#count", "40 of 40")
    page.keys("a", "Enter")  # a missed one at the cross-hair, which is on candidate 1
    page.keys("z")
    page.page.locator("#over").focus()
    page.keys(*["ArrowUp"] * 3, "a", "Enter")  # 6 mm from it
    page.until("#count", "41 of 41")
    path = page.saved(tmp_path)

    (reading,) = read_readings(path, load_result(made.folder))
    said = {mark.candidate: (mark.verdict, mark.mimic, mark.certainty) for mark in reading.marks}
    assert {key: value for key, value in said.items() if value[0]} == expected
    assert reading.reader == "AB"
    (added,) = reading.added
    row = made.rows[0]
    np.testing.assert_allclose(added.position_mm, (row.x_mm, row.y_mm, row.z_mm + 6), atol=0.02)
    assert json.loads(path.read_text())["marks"][39]["comment"] == "near a vessel"
    truth = write_truth([path], load_result(made.folder), tmp_path / "sub-07_points.csv")
    assert truth.unread == 0
    lines = list(csv.DictReader((tmp_path / "sub-07_points.csv").open()))
    assert sum(line["kind"] == "cmb" for line in lines) == 1 + sum(
        w[0] == "microbleed" for w in expected.values()
    )
    assert page.complaints == []
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "blob"}


PRESS = """(keys) => keys.forEach((key) => document.activeElement.dispatchEvent(
  new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true })))"""


def test_keys_count_as_soon_as_a_dialog_is_closed(page):
    """All in one turn of the browser, which draws nothing between: the focus is where the dialog left it."""
    page.keys("m")
    page.page.fill("#initials", "AB")
    page.page.evaluate(
        "document.querySelector('#reader-dialog form').requestSubmit();"
        f"({PRESS})(['j', 'x', 'j', 'p', 'u', 'z'])"
    )
    page.until("#count", "3 of 40")
    rows = page.page.locator(".row .said").all_text_contents()[:3]
    assert rows == ["Microbleed", "Mimic", "Microbleed, possible"]
    for key, dialog in (("?", "help"), ("o", "readers")):
        page.keys(key)
        page.page.wait_for_selector(f"#{dialog}-dialog[open]")
        before = page.text("#which")
        page.page.evaluate(
            f"document.getElementById('{dialog}-close').focus();"
            f"document.getElementById('{dialog}-dialog').close(); ({PRESS})(['k'])"
        )
        assert page.text("#which") != before
        page.page.wait_for_function("() => document.activeElement.id === 'over'")


def test_verdicts_wait_for_a_slow_server(open_page, served):
    """Initials are not asked for twice while the verdicts that lie there are on their way."""
    page = open_page(served.address)
    held = []
    page.page.route("**/verdicts/GH", lambda route: held.append(route), times=1)
    page.keys("m")
    page.page.fill("#initials", "GH")
    page.keys("Enter")
    page.keys("j", "x", "j", "u", "z", "p")
    assert page.page.locator("dialog[open]").count() == 0
    while not held:
        page.page.wait_for_timeout(20)
    assert page.text("#count") == "0 of 40"
    held[0].continue_()
    page.until("#count", "3 of 40")
    rows = page.page.locator(".row .said").all_text_contents()[:3]
    assert rows == ["Microbleed", "Mimic", "Microbleed, possible"]
    page.until("#save", "Saved in verdicts/GH.json")


def test_lists_sort_filter_and_jump(page, made):
    page.page.check("[name=status][value=rejected]", force=True)
    assert page.page.locator(".row").count() == 5
    assert "where a venous sinus runs" in page.text("#list")
    page.page.check("[name=status][value=all]", force=True)
    page.page.select_option("#sort", "size")
    names = page.page.locator(".row .name").all_text_contents()
    sizes = [made.rows[int(name) - 1].diameter_mm for name in names]
    assert sizes == sorted(sizes, reverse=True)
    page.page.locator(".row").nth(6).click()
    row = made.rows[int(names[6]) - 1]
    page.until("#place", f"{row.x_mm:.1f}, {row.y_mm:.1f}, {row.z_mm:.1f} mm")


def test_nothing_leaves_the_machine(page, made):
    for address in ("https://example.org/x", "http://127.0.0.1:9/x", "file:///etc/passwd"):
        blocked = page.page.evaluate("(url) => fetch(url).then(() => false, () => true)", address)
        assert blocked, address
    loads = """(url) => new Promise((done) => {
      const image = new Image(); image.onload = () => done(true); image.onerror = () => done(false);
      image.src = url; })"""
    assert not page.page.evaluate(loads, made.page.as_uri())
    added = "const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
    assert page.page.evaluate(f"{added} document.body.append(s); window.ran === undefined")
    assert not [url for url in page.requests if not url.startswith(("file://", "blob:"))]


@pytest.mark.parametrize(
    "title", ["<script>alert(1)</script>", "</title></script><img src=x onerror=alert(1)>"]
)
def test_hostile_name(open_page, tmp_path, title):
    page = open_page(make(tmp_path / "result", title=title).page.as_uri())
    assert page.text("#title") == title
    assert page.page.title() == f"{title}: microbleeds"
    assert page.page.locator("#title *").count() == 0
    assert page.page.locator("img").count() == 0
    assert page.complaints == []


def test_server_keeps_every_verdict(open_page, made, served, tmp_path):
    page = open_page(served.address)
    page.sign("CD")
    page.keys("m", "j", "x", "j", "5")
    page.until("#save", "Saved in verdicts/CD.json")
    page.page.reload()
    page.wait()
    page.until("#count", "3 of 40")
    content = json.loads((made.folder / "verdicts" / "CD.json").read_text())
    assert [(mark["candidate"], mark["verdict"]) for mark in content["marks"]] == [
        (1, "microbleed"), (2, "mimic"), (3, "mimic")]  # fmt: skip

    second = open_page(served.address)  # someone else under the same initials
    second.page.click("#reader")
    second.page.fill("#initials", "CD")
    second.until("#initials-text", "CD has 3 verdicts here")
    second.keys("Enter")
    second.until("#count", "3 of 40")
    second.keys("u")
    second.until("#save", "Saved")
    page.keys("p")
    page.until("#notice", "other initials")
    assert (
        json.loads((made.folder / "verdicts" / "CD.json").read_text())["marks"][0]["verdict"] == "uncertain"
    )
    # nothing is lost: the one who was stopped can still take a file away
    mine = json.loads(page.saved(tmp_path).read_text())
    assert (mine["marks"][0]["verdict"], mine["marks"][0]["certainty"]) == ("microbleed", "possible")
    assert all(url.startswith((served.address, "blob:")) for url in page.requests + second.requests)


def test_server_gone(open_page, made, served):
    page = open_page(served.address)
    page.sign("EF")
    page.keys("m")
    page.until("#save", "Saved")
    page.context.set_offline(True)
    page.keys("j", "m")
    page.until("#save", "download the file before you close this page")
    assert "2 of 40" in page.text("#count")
    page.keys("f")
    page.until("#notice", "start cmb-jax view again")
    assert page.page.is_checked("[name=modality][value=swi]")  # and nothing is taken for the phase
    assert len(json.loads((made.folder / "verdicts" / "EF.json").read_text())["marks"]) == 1
    page.context.set_offline(False)  # it answers again: what was kept is sent
    page.until("#save", "Saved")
    page.keys("f")
    page.until("#place", "rad")
    assert len(json.loads((made.folder / "verdicts" / "EF.json").read_text())["marks"]) == 2

    def lose_the_answer(route):
        route.fetch()
        route.abort()

    page.page.route("**/verdicts/**", lose_the_answer, times=1)
    page.keys("j", "m", "j", "x")  # the first is saved, but the page cannot know
    page.until("#save", "Saved")
    assert len(json.loads((made.folder / "verdicts" / "EF.json").read_text())["marks"]) == 4


def test_two_readers_compared_and_settled(open_page, made, served, tmp_path):
    page = open_page(served.address)
    words = {"m": 0, "x": 1, "u": 2}
    table = np.zeros((3, 3))
    reads = {"AB": "mmxmuxmmmx", "CD": "mxxmuumxmm"}
    for a, b in zip(*reads.values(), strict=True):
        table[words[a], words[b]] += 1
    for reader, keys in reads.items():
        page.sign(reader)
        page.page.locator(".row").first.click()
        for key in keys:
            page.keys(key, "j")
        page.until("#save", f"Saved in verdicts/{reader}.json")
    page.keys("o")
    page.page.click("#compare")
    page.until("#comparison", "kappa")
    same = int(np.trace(table))
    assert f"same verdict on {same} of 10 candidates that both judged" in page.text("#comparison")
    assert f"kappa {cohen_kappa(table):.2f}" in page.text("#comparison")
    assert page.page.locator("tr.differ").count() == 10 - same

    page.page.click("#consensus")
    page.until("#reader", "consensus")
    page.until("#count", f"{same} of 45")
    for _ in range(10 - same):
        page.keys("m", "n")
    page.until("#save", "Saved in verdicts/consensus.json")
    (reading,) = read_readings(made.folder / "verdicts" / "consensus.json", load_result(made.folder))
    pairs = zip(*reads.values(), strict=True)
    expected = [
        "microbleed" if a != b else {"m": "microbleed", "x": "mimic", "u": "uncertain"}[a] for a, b in pairs
    ]
    assert [mark.verdict for mark in reading.marks[:10]] == expected

    page.keys("o")
    for name in ("AB", "CD"):
        page.page.uncheck(f"#reader-list input[value={name}]")
    page.page.check("#reader-list input[value=consensus]")
    page.page.click("#truth")
    page.until("#comparison", "cmb-jax train")
    assert (made.folder / "truth" / "sub-07_ses-1_points.csv").is_file()
    assert (made.folder / "truth" / "labels" / "sub-07_ses-1.nii.gz").is_file()


def test_readers_compared_and_settled_from_disk_by_keyboard(open_page, made, tmp_path):
    """Two readers on machines of their own, and a third page with their files alone; nothing is clicked."""
    files = []
    for reader, keys in {"AB": "mxmu", "CD": "mxxu"}.items():
        page = open_page(made.page.as_uri())
        page.page.locator("#reader").press("Enter")
        page.page.keyboard.type(reader)
        page.keys("Enter")
        page.until("#reader", f"Reader {reader}")
        for key in keys:
            page.keys(key, "j")
        page.until("#count", f"{len(keys)} of 40")
        with page.page.expect_download() as waiting:
            page.page.locator("#download").press("Enter")
        waiting.value.save_as(tmp_path / f"{reader}.json")
        files.append(tmp_path / f"{reader}.json")

    page = open_page(made.page.as_uri())
    page.keys("o")
    page.until("#reader-list", "No verdicts are saved here yet")
    with page.page.expect_file_chooser() as chooser:
        page.page.locator("#compare-file").press("Enter")
    chooser.value.set_files(files)
    page.until("#reader-list", "CD (4 read, 0 added)")
    page.page.locator("#compare").press("Enter")
    page.until("#comparison", "same verdict on 3 of 4 candidates that both judged (75 %)")
    page.page.locator("#consensus").press("Enter")
    page.until("#reader", "Reader consensus")
    page.until("#which", "3")  # the one to settle is chosen
    page.keys("x", "5")
    page.until("#count", "4 of 45")
    page.page.reload()
    page.wait()
    page.until("#reader", "Reader consensus")
    page.until("#count", "4 of 40")
    with page.page.expect_download() as waiting:
        page.page.locator("#download").press("Enter")
    waiting.value.save_as(tmp_path / "consensus.json")
    (reading,) = read_readings(tmp_path / "consensus.json", load_result(made.folder))
    said = [(mark.verdict, mark.mimic) for mark in reading.marks if mark.verdict]
    assert said == [("microbleed", ""), ("mimic", ""), ("mimic", MIMIC_KINDS[4]), ("uncertain", "")]
    assert page.complaints == []
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "blob"}


def test_bad_files(page, open_page, made, tmp_path):
    page.sign("AB")
    page.keys("m")
    good = json.loads(page.saved(tmp_path).read_text())
    for change, told in (
        ({"swi_sha256": "0" * 64}, "was read on another scan"),
        ({"detections_sha256": "0" * 64}, "was read on another run of this scan"),
        ({"format": "other"}, "holds no verdicts"),
        ({"format_version": 99}, "another version"),
    ):
        bad = tmp_path / "bad.json"
        bad.write_text(json.dumps(good | change))
        page.page.set_input_files("#file", bad)
        page.until("#notice", told)
    bad.write_text("{")
    page.page.set_input_files("#file", bad)
    page.until("#notice", "is damaged")
    # two readers with one name
    page.keys("o")
    same = tmp_path / "same.json"
    same.write_text(json.dumps(good))
    page.page.set_input_files("#file", same)
    page.until("#comparison", "who is in the list already")


def test_without_storage(chromium, made, tmp_path):
    """Cookies and site data are blocked: reading goes on, and the page says that it keeps nothing."""
    context = chromium.new_context(accept_downloads=True)
    context.add_init_script(
        """for (const name of ['localStorage', 'sessionStorage']) Object.defineProperty(window, name,
        { get() { throw new DOMException('blocked', 'SecurityError'); } })"""
    )
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.goto(made.page.as_uri())
    page.wait_for_selector("html[data-connected]")
    page.keyboard.press("m")
    page.fill("#initials", "AB")
    for key in ("Enter", "j", "x"):
        page.keyboard.press(key)
    page.wait_for_function("() => document.getElementById('count').textContent === '2 of 40'")
    assert page.text_content("#save") == "This browser keeps nothing: download the file."
    with page.expect_download() as waiting:
        page.click("#download")
    waiting.value.save_as(tmp_path / "AB.json")
    (reading,) = read_readings(tmp_path / "AB.json", load_result(made.folder))
    assert [mark.verdict for mark in reading.marks[:2]] == ["microbleed", "mimic"]
    with page.expect_event("dialog") as asked:  # before the only copy is closed
        page.close(run_before_unload=True)
    assert asked.value.type == "beforeunload"
    asked.value.accept()
    context.close()


def test_without_webgl(chromium, made):
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    page.goto(made.page.as_uri())
    page.wait_for_selector("html[data-connected]")
    assert "WebGL 2 is missing or switched off" in page.text_content("#empty")
    assert page.locator(".row").count() == 40
    context.close()


def test_narrow_touch_and_contrast(open_page, made):
    page = open_page(made.page.as_uri(), viewport={"width": 768, "height": 1024}, has_touch=True)
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 768
    assert page.page.evaluate("scrollY") == 0
    box = page.page.locator("#view").bounding_box()
    page.until("#place", "mm")
    before = page.text("#place")
    page.page.touchscreen.tap(box["x"] + box["width"] / 4, box["y"] + box["height"] / 3)
    page.page.wait_for_function(
        "(before) => document.getElementById('place').textContent !== before", arg=before
    )
    sizes = page.page.evaluate(
        "[...document.querySelectorAll('#verdict button, .heading button')].map((b) => b.offsetHeight)"
    )
    assert min(sizes) >= 40
    pairs = page.page.evaluate(COLORS_OF_TEXTS)
    worst = min(pairs, key=lambda pair: contrast(*pair[:2]))
    assert contrast(*worst[:2]) >= 4.5, worst  # WCAG 2.2 AA
    nameless = page.page.evaluate(
        """[...document.querySelectorAll('button, input, select, [role]')].filter((e) => e.type !== 'file')
        .filter((e) => !['status', 'alert'].includes(e.role))
        .filter((e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length
                         || e.getAttribute('aria-labelledby'))).map((e) => e.outerHTML)"""
    )
    assert nameless == []


COLORS_OF_TEXTS = """[...document.querySelectorAll('body *')].filter((e) =>
  e.checkVisibility() && !e.disabled && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
  .map((e) => {
    let under = e, fill = 'rgba(0, 0, 0, 0)';
    while (under && fill === 'rgba(0, 0, 0, 0)') {
      fill = getComputedStyle(under).backgroundColor; under = under.parentElement; }
    return [getComputedStyle(e).color, fill, e.textContent.trim().slice(0, 30)]; })"""


def contrast(first, second):
    """Contrast ratio of two CSS colors by the formula of WCAG 2."""

    def luminance(color):
        channels = [float(v) / 255 for v in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_time_and_memory_are_bounded(page):
    """A page that leaks memory on every slice or image, or works without end, would grow."""
    for key, shown in (("i", "minIP"), ("f", "rad"), ("s", "SWI")):
        page.keys(key)
        page.until("#place", shown)
    for key in ("g", "l"):
        before = page.pixels()
        page.keys(key)
        page.until_changed(before, 0.05)
    session = page.context.new_cdp_session(page.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def used():
        session.send("HeapProfiler.collectGarbage")
        return page.page.evaluate("performance.memory.usedJSHeapSize")

    before, started = used(), page_seconds(session)
    for _ in range(10):
        page.keys("f", "s", "ArrowUp")
    page.until("#place", "SWI")
    assert page_seconds(session) - started < 30
    assert used() < before + 20e6


def page_seconds(session):
    """Processor time of the page's main thread: a busy machine does not lengthen it."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(each["value"] for each in metrics if each["name"] == "ThreadTime")


def test_the_picture_series_of_the_docs(open_page, made, served, tmp_path, monkeypatch):
    """The tool that makes docs/images/viewer-*.png, on this result: two readers, a picture per view."""
    spec = importlib.util.spec_from_file_location("viewer_pictures", ROOT / "tools" / "viewer_pictures.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "IMAGES", tmp_path)
    tool.take(open_page(served.address).page)
    for reader in tool.READERS:
        given = json.loads((made.folder / "verdicts" / f"{reader}.json").read_text())["marks"]
        assert len(given) == 40
    pictures = {
        path.stem: np.asarray(Image.open(path).convert("L"), float) for path in tmp_path.glob("*.png")
    }
    names = ["viewer-minip", "viewer-phase", "viewer-planes", "viewer-readers", "viewer-regions"]
    assert sorted(pictures) == names
    docs = {path.stem for path in (ROOT / "docs" / "images").glob("viewer-*.png")}
    assert docs - {"viewer-tablet"} == set(names)
    for first, second in itertools.combinations(names, 2):
        assert np.abs(pictures[first] - pictures[second]).mean() > 0.5, (first, second)
