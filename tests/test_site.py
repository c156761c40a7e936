"""The site: built strictly from docs/, its links, the hosts it asks, and how it reads."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from tests.browser import browser, hosts, needs_axe, needs_browser, violations, wait

ROOT = Path(__file__).parent.parent
FIVE = ["index", "tutorial", "cli", "methods/gda", "recipes/own-pairs"]


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.append(given["src"])
        if tag == "link" and given.get("href"):
            self.loads.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html"]
    built = subprocess.run(
        [*command, "-c", "docs/_site", "-d", str(out / ".doctrees"), ".", str(out)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_page_is_on_the_site(site):
    sources = [*ROOT.glob("docs/**/*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    missing = [
        str(source.relative_to(ROOT))
        for source in sources
        if not (site / source.relative_to(ROOT)).with_suffix(".html").exists()
    ]
    assert missing == []


def test_links_lead_to_what_is_there(site, pages):
    wrong = []
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            target, anchor = urldefrag(link.split("?")[0] if "://" not in link else link)
            if urlsplit(target).scheme:
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            if file.is_dir():
                file /= "index.html"
            other = pages.get(file)
            if not file.exists() or (anchor and other and unquote(anchor) not in other.ids):
                wrong.append(f"{path.relative_to(site)}: {link}")
    assert wrong == []


def test_no_page_loads_anything_from_another_host(site, pages):
    loads = {load for page in pages.values() for load in page.loads}
    assert {load for load in loads if urlsplit(load).netloc} == set()
    styles = "\n".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//[^)\s]+", styles) == []


def test_every_equation_is_mathml(site):
    for source in ROOT.glob("docs/**/*.md"):
        text = source.read_text("utf-8")
        built = (site / source.relative_to(ROOT)).with_suffix(".html").read_text("utf-8")
        assert built.count('<div class="equation"') == text.count("```math\n"), source.name
        assert "merror" not in built, source.name
    for source in ROOT.glob("docs/methods/*.md"):
        if source.stem != "README":
            assert "```math\n" in source.read_text("utf-8"), f"{source.name} has no equation"


@needs_browser
def test_the_search_needs_no_server_and_no_network(site):
    with browser() as driver:
        driver.get((site / "docs" / "search.html").as_uri().replace("docs/search", "search"))
        driver.get((site / "search.html").as_uri() + "?q=abstain")
        found = wait(
            driver,
            lambda: driver.find_elements("css selector", "#search-results li a"),
            "results of the search",
        )
        assert any("calibration" in link.get_attribute("href") for link in found)
        assert hosts(driver) == set()


@needs_browser
@needs_axe
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_no_violation(site, width, scheme):
    with browser(width, 844, scheme, motion=False) as driver:
        found = {}
        for page in FIVE:
            driver.get((site / "docs" / f"{page}.html").as_uri())
            wait(driver, lambda: driver.find_elements("tag name", "h1"), page)
            found[page] = violations(driver)
            wide = driver.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, f"{page} is {wide} pixels wide at {width}"
        assert {page: v for page, v in found.items() if v} == {}
