"""docs/images/serve.png, the page with the example scenes: `python tools/page_picture.py`.

Needs chromium, its driver and selenium, as tests/browser.py says.
"""

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium.webdriver.common.keys import Keys

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import browser, wait  # noqa: E402
from tests.serving import running  # noqa: E402

WORDS = "a blue star"
WIDTH, HEIGHT = 1180, 720
DONE = "return [...document.querySelectorAll('.card img')].every((i) => i.alt && i.naturalWidth)"


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as cache,
        running(ROOT / "examples" / "scenes", cache) as (server, _),
        browser(WIDTH, HEIGHT, motion=False) as driver,
    ):
        driver.get(server.page)
        wait(driver, lambda: driver.find_elements("css selector", ".card"), "the images")
        driver.find_element("id", "words").send_keys(WORDS, Keys.ENTER)
        wait(driver, lambda: driver.find_elements("css selector", ".score"), "the hits")
        driver.find_element("id", "describe-all").click()
        wait(driver, lambda: driver.execute_script(DONE), "the captions")
        driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        time.sleep(0.5)
        image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    target = ROOT / "docs" / "images" / "serve.png"
    image.quantize(256).save(target, optimize=True)


if __name__ == "__main__":
    main()
