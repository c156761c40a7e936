"""Couple two encoders that were trained separately: `python examples/couple.py`.

The pocket set's image encoder has seen no text, and its text encoder has seen no image. Anchors
link them: pairs of an image embedding and the embedding of its caption. Here the anchors come with
the set. To couple your own encoders, embed your captioned images and write the two arrays as
`anchors.safetensors` beside a `models.toml` (docs/models.md).
"""

from pathlib import Path

import zeroshot
from zeroshot.images.reading import open_image
from zeroshot.methods.auto import Auto

SCENES = Path(__file__).parent / "scenes"
LABELS = ["red heart", "blue star", "green ring"]


def main() -> None:
    pocket = zeroshot.load("pocket")
    anchors = pocket.anchors  # images [a d], texts [a e]; row i of both is one pair
    coupled = Auto().fit(anchors.images, anchors.texts)  # chosen on held-out anchors
    print(*coupled.report_.lines(), sep="\n")

    pair = pocket.coupled
    paths = sorted(SCENES.glob("[123]-*.png"))
    images = pair.image_encoder.encode_images([open_image(path) for path in paths])
    texts = pair.text_encoder.encode_texts(LABELS)
    scores = coupled.scores(images, texts[:, None])  # [n c]
    for path, best in zip(paths, scores.argmax(1).tolist(), strict=True):
        print(f"{path.name}: {LABELS[best]}")


if __name__ == "__main__":
    main()
