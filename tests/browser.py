"""A real browser for the tests of the page: Debian's chromium and its driver."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

selenium = pytest.importorskip(
    "selenium", reason="the browser is driven by it: pip install selenium"
)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
HOW = "no browser: apt-get install -y --no-install-recommends chromium chromium-driver"
needs_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=HOW)
AXE = Path(os.environ.get("AXE_JS") or "axe.min.js")
needs_axe = pytest.mark.skipif(
    not AXE.is_file(),
    reason="no axe-core: npm pack axe-core, unpack it, and set AXE_JS=package/axe.min.js",
)
SECONDS = 60


@contextmanager
def browser(width=1280, height=900, scheme="light", motion=True):
    """A window of this size; its log and its requests can be read afterwards."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        features += [] if motion else [{"name": "prefers-reduced-motion", "value": "reduce"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        yield driver
    finally:
        driver.quit()


def wait(driver, condition, what):
    """Wait until `condition()` is true; what it gave."""

    def holds(_):
        try:
            return condition()
        except Exception as error:
            if "StaleElement" in type(error).__name__ or "NoSuchElement" in type(error).__name__:
                return False
            raise

    return WebDriverWait(driver, SECONDS, 0.05).until(holds, what)


def violations(driver):
    """What axe-core finds on the page as it is now."""
    driver.execute_script(AXE.read_text("utf-8"))
    found = driver.execute_async_script(
        "const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then("
        "r => done(r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' | '))))"
    )
    return found


def hosts(driver):
    """The hosts that the browser asked."""
    import json
    from urllib.parse import urlsplit

    asked = set()
    for line in driver.get_log("performance"):
        message = json.loads(line["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = urlsplit(message["params"]["request"]["url"])
            if address.scheme in ("http", "https", "ws", "wss"):
                asked.add(address.hostname)
    return asked
