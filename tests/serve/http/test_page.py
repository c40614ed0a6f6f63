"""The page in a headless Chromium, against the service itself: from dropped files to the answer, keyboard included."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn

from serve.http.api import PAGE, make_app
from serve.http.host import ModelHost
from serve.http.service import Service
from serve.models.directory import read_directory
from serve.models.settings import Settings
from tests.serve.browser import Browser, program
from tests.serve.conftest import Served, Stored

pytestmark = pytest.mark.slow

READY = "document.querySelector('.verdict') && document.getElementById('answer').getAttribute('aria-busy') === 'false'"
TOKEN = "open sesame"


def serving(settings: Settings, token: str = "") -> tuple[uvicorn.Server, threading.Thread, str]:
    """A service in a thread, and its address."""
    service = Service(settings, read_directory(settings), ModelHost(settings), token)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(service), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    return server, thread, f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def address(served: Served) -> Iterator[str]:
    settings = Settings(checkpoint=str(served.checkpoint), library=str(served.library), max_body_mib=1, max_queries=64)
    server, thread, url = serving(settings)
    yield url
    server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    path = program()
    if path is None:
        pytest.skip("no Chromium")
    found = Browser(path, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@dataclass
class Page:
    """The page, freshly opened."""

    browser: Browser

    def barcode(self, text: str) -> None:
        self.browser.run(f"(dna.value = {json.dumps(text)}, dna.dispatchEvent(new Event('input')))")

    def identify(self) -> str:
        """Press the button; returns the text of the answer."""
        self.browser.run("document.querySelector('.verdict')?.remove()")
        self.browser.run("identify.click()")
        self.browser.wait(READY)
        return self.browser.text("#answer")

    def error(self, field: str) -> str:
        """Press the button; returns the error that appears at a field."""
        self.browser.run("identify.click()")
        place = f"document.getElementById('{field}-error')"
        self.browser.wait(f"{place}.textContent && answer.getAttribute('aria-busy') !== 'true'")
        assert self.browser.run(f"{place}.getAttribute('role')") == "alert"
        return self.browser.text(f"#{field}-error")


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    browser.size(1280, 900)
    browser.errors.clear()
    browser.requests.clear()
    browser.open(address)
    browser.wait("!model.hidden")
    yield Page(browser)
    assert not [one for one in browser.errors if "status of 4" not in one], browser.errors
    assert all(one.startswith((address, "data:", "blob:")) for one in browser.requests)  # nothing from elsewhere


def complete(served: Served) -> Stored:
    return next(one for one in served.specimens() if one.image and one.dna)


def test_photo_and_barcode_to_answer(page: Page, served: Served, tmp_path: Path) -> None:
    one = complete(served)
    (tmp_path / "moth.jpg").write_bytes(one.image)
    browser = page.browser
    browser.choose("#photos", [tmp_path / "moth.jpg"])
    browser.wait("document.querySelector('#thumbs img')?.naturalWidth")
    page.barcode(f">{one.key}\n{one.dna}\n")
    assert browser.run("!stripes.hidden && stripes.width") == len(one.dna)
    text = page.identify()
    for rank in ("order", "family", "genus", "species"):
        assert rank in text
    assert "What the answer rests on" in text and "photo" in text and "Nearest known barcodes" in text
    assert "100% " in browser.text(".evidence") or "100%" in browser.text(".evidence")
    assert browser.run("document.activeElement.id") == "answer-title"
    assert browser.run("document.getElementById('status').textContent")  # said to who cannot see it
    asked = browser.run("document.querySelectorAll('.lineage:not(.ghost) > li:not(.stop)').length")
    assert (asked == 4 and "answer stops here" in text) or "not even this is sure enough" in text
    assert served.checkpoint.parent.name in browser.text("#model")
    browser.run("document.querySelector('.about').open = true")
    assert "sha256" in browser.text(".about")
    browser.run("document.querySelector('.options').open = true")
    browser.run("(threshold.value = 0.5, threshold.dispatchEvent(new Event('input')))")
    assert browser.text("#threshold-told") == "50%"
    browser.run("(document.querySelector('.verdict').remove(), threshold.dispatchEvent(new Event('change')))")
    browser.wait(READY)  # asked again
    assert "50%" in browser.text(".legend")


def test_by_keyboard_alone(page: Page, served: Served) -> None:
    browser = page.browser
    seen = []
    for _ in range(8):
        browser.press("Tab")
        seen.append(browser.run("document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "dna":
            browser.press(complete(served).dna)
        if seen[-1] == "identify":
            browser.press("Enter")
            break
    assert seen == ["A", "photos", "dna", "SUMMARY", "identify"]
    browser.wait(READY)
    unnamed = (
        "[...document.querySelectorAll('input, textarea, button, summary, a')].filter((one) => !(one.labels?.length || "
        "one.getAttribute('aria-label') || one.textContent.trim())).map((one) => one.outerHTML)"
    )
    assert browser.run(unnamed) == []


def test_several_records(page: Page, served: Served) -> None:
    known = [one for one in served.specimens() if one.dna][:3]
    page.barcode("".join(f">{one.key}\n{one.dna}\n" for one in known) + ">bad\nACGTXX\n")
    assert "4 FASTA records" in page.browser.text("#dna-help")
    page.identify()
    rows = page.browser.run("[...document.querySelectorAll('#list tbody tr')].map((row) => row.innerText)")
    assert (
        len(rows) == 4
        and "no nucleotides" in rows[3]
        and all(one.key in row for one, row in zip(known, rows, strict=False))
    )
    page.browser.run("document.querySelectorAll('#list button')[1].click()")
    assert page.browser.run("document.querySelectorAll('#list tbody tr')[1].getAttribute('aria-current')") == "true"
    page.barcode("".join(f">{number}\n{known[0].dna}\n" for number in range(65)))
    assert "python -m serve.bulk" in page.error("dna")


def test_mistakes_are_told_at_their_place(page: Page, served: Served, tmp_path: Path) -> None:
    browser = page.browser
    assert "Give a photo, a barcode, or both" in page.error("form")
    page.barcode("hello, this is no barcode")
    told = page.error("dna")
    assert "no nucleotides" in told and "Allowed" in told
    assert (
        browser.run("dna.getAttribute('aria-invalid')") == "true" and browser.run("document.activeElement.id") == "dna"
    )
    browser.run("clear.click()")
    assert not browser.text("#dna-error") and browser.run("dna.value") == ""
    (tmp_path / "cut.jpg").write_bytes(complete(served).image[:200])
    browser.choose("#photos", [tmp_path / "cut.jpg"])
    browser.wait("document.querySelector('#thumbs li')")
    assert "JPEG" in page.error("photos")
    browser.run("document.querySelector('#thumbs button').click()")
    assert browser.run("document.querySelectorAll('#thumbs li').length") == 0
    (tmp_path / "large.jpg").write_bytes(b"\xff\xd8" + bytes(2 << 20))
    browser.choose("#photos", [tmp_path / "large.jpg"])
    browser.wait("document.querySelector('#thumbs li')")
    assert "1,048,576 bytes" in page.error("form")
    browser.run("clear.click()")
    page.barcode(complete(served).dna)
    browser.run("(subset.value = 'Dragonidae')")
    assert "Dragonidae" in page.error("subset")  # in the options, which open for it


def test_files_are_dropped_anywhere(page: Page, served: Served) -> None:
    one = complete(served)
    photo = base64.b64encode(one.image).decode()
    page.browser.run(
        f"""(() => {{
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob("{photo}"), (letter) => letter.charCodeAt(0));
        data.items.add(new File([bytes], "a.jpg", {{ type: "image/jpeg" }}));
        data.items.add(new File([">x\\n{one.dna}\\n"], "a.fasta"));
        data.items.add(new File(["?"], "a.zip", {{ type: "application/zip" }}));
        document.body.dispatchEvent(new DragEvent("drop", {{ dataTransfer: data, bubbles: true, cancelable: true }}));
        }})()"""
    )
    page.browser.wait("document.querySelector('#thumbs li') && dna.value.startsWith('>x')")
    assert "a.zip" in page.browser.text("#photos-error")
    assert "rests on" in page.identify()


@pytest.mark.parametrize(("width", "dark"), [(390, False), (390, True), (1280, True)])
def test_nothing_sticks_out_and_text_stands_out(
    page: Page, served: Served, tmp_path: Path, width: int, dark: bool
) -> None:
    page.browser.size(width, 844, phone=width < 500, dark=dark)
    page.barcode(complete(served).dna)
    page.identify()
    assert page.browser.run("document.documentElement.scrollWidth") <= width
    assert page.browser.run(CONTRAST) == []
    page.browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


CONTRAST = """(() => {
  const parse = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return { r, g, b, a }; };
  const light = ({ r, g, b }) => [r, g, b].map((one) => one / 255).map((one) => (one <= 0.03928 ? one / 12.92
    : ((one + 0.055) / 1.055) ** 2.4)).reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (node) => { for (let at = node; at; at = at.parentElement) {
    const found = parse(getComputedStyle(at).backgroundColor);
    if (found.a > 0) return found;
  } return parse("255 255 255"); };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest("script")) continue;
    const [one, other] = [light(parse(getComputedStyle(node).color)), light(ground(node))];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${walker.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return poor;
})()"""
"""Texts whose contrast is below WCAG's 4.5 to 1."""


def test_a_service_with_a_token_asks_for_it(browser: Browser, served: Served) -> None:
    server, thread, url = serving(Settings(checkpoint=str(served.checkpoint)), TOKEN)
    try:
        browser.open(url)
        browser.wait("document.readyState === 'complete'")
        page = Page(browser)
        page.barcode(complete(served).dna)
        assert "token" in page.error("form")
        assert browser.run("document.activeElement.id") == "token"
        browser.press(TOKEN)
        assert "species" in page.identify()
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def test_the_page_is_small_and_asks_nobody_else() -> None:
    files = {path.name: path.read_text() for path in PAGE.iterdir()}
    assert sorted(path.rsplit(".", 1)[1] for path in files) == ["css", "html", "js"]
    assert sum(len(text) for text in files.values()) < 50_000
    outside = [line for text in files.values() for line in text.splitlines() if "://" in line]
    assert all("portal.boldsystems.org" in line or "www.w3.org/2000/svg" in line for line in outside)  # a link, a name
