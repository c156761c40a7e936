"""Ask a running server over HTTP: `python examples/client.py [ADDRESS] [IMAGE]`.

ADDRESS is what `zeroshot serve` prints, with its token. Without one, a server of the example scenes
is started. Only the standard library is needed here: any language that speaks HTTP can do the same.
"""

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from urllib.request import Request, urlopen

SCENES = Path(__file__).parent / "scenes"


class Client:
    """The API of one server."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self.base = f"{parts.scheme}://{parts.netloc}"
        [self.token] = parse_qs(parts.query).get("token", [""])

    def _open(self, path: str, body: Any, **headers: str) -> Any:
        headers |= {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"}
        return urlopen(Request(self.base + path, json.dumps(body).encode(), headers))

    def ask(self, path: str, **body: Any) -> Any:
        """The answer as JSON."""
        with self._open(path, body) as answer:
            return json.load(answer)

    def words(self, image: str) -> Iterator[str]:
        """A caption, piece by piece, as it is written."""
        with self._open("/v1/caption", {"image": image}, Accept="text/event-stream") as lines:
            event = ""
            for line in lines:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event == "word":
                    yield json.loads(value)["text"]


def show(client: Client, path: Path) -> None:
    image = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    print(f"{path.name}: ", end="")
    for word in client.words(image):
        print(word, end="", flush=True)
    print()
    row = client.ask("/v1/classify", image=image, labels=["red heart", "blue star"])
    print("label:", row["labels"][0]["label"], row["labels"][0]["score"])
    for hit in client.ask("/v1/search", query={"image": image}, top_k=3)["data"]:
        print(f"alike: {hit['score']:.3f} {Path(hit['path']).name}")
    [one] = client.ask("/v1/embeddings", input="a red heart")["data"]
    print("embedding of a text:", len(one["embedding"]), "numbers")


def main(address: str | None = None, image: str = str(SCENES / "1-red-heart.png")) -> None:
    if address is not None:
        show(Client(address), Path(image))
        return
    import zeroshot

    with zeroshot.serve(SCENES, models="pocket") as server:
        server.wait_until_indexed()
        show(Client(server.page), Path(image))


if __name__ == "__main__":
    main(*sys.argv[1:])
