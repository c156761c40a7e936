"""Couple two encoders that never met: `python examples/couple.py`.

The pocket set's image encoder has seen no text, its text encoder no picture. Pairs of a picture's
row and its caption's row are all that joins them; here those pairs come with the set. To couple
your own encoders, encode your captioned pictures and write the two arrays as `anchors.safetensors`
beside a `models.toml` (docs/models.md).
"""

from pathlib import Path

import zeroshot
from zeroshot.images.reading import open_image
from zeroshot.methods.auto import Auto

SCENES = Path(__file__).parent / "scenes"
LABELS = ["red heart", "blue star", "green ring"]


def main() -> None:
    pocket = zeroshot.load("pocket")
    anchors = pocket.anchors  # images [a d], texts [a e]: row i of both belongs together
    coupled = Auto().fit(anchors.images, anchors.texts)  # judged on anchors set aside
    print(*coupled.report_.lines(), sep="\n")

    pair = pocket.coupled
    pictures = sorted(SCENES.glob("[123]-*.png"))
    images = pair.image_encoder.encode_images([open_image(p) for p in pictures])
    texts = pair.text_encoder.encode_texts(LABELS)
    scores = coupled.scores(images, texts[:, None])  # [n c]
    for picture, best in zip(pictures, scores.argmax(1).tolist(), strict=True):
        print(f"{picture.name}: {LABELS[best]}")


if __name__ == "__main__":
    main()
