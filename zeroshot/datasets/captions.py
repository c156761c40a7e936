"""Pictures that people captioned: COCO's, Karpathy's and Flickr's files, JSON lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeroshot.datasets.text_files import below, read_json, read_rows, read_table, read_text
from zeroshot.errors import UserError
from zeroshot.inputs.source import Source

BESIDE = ("captions.jsonl", "captions.json")
"""Where captions are looked for in a folder of pictures."""
KINDS = (
    ".json of COCO (images, annotations) or Karpathy (dataset_coco.json), .jsonl with path and "
    "references, .csv with image,caption, or .token of Flickr"
)

Named = tuple[str, str, tuple[str, ...]]
"""Where it stands, the picture's name, its captions."""


@dataclass(frozen=True)
class CaptionDataset:
    """Pictures and what people said of each."""

    sources: tuple[Source, ...]
    references: tuple[tuple[str, ...], ...]


def find_caption_file(folder: Path) -> Path:
    """The file of captions in a folder of pictures; UserError says which are looked for."""
    for name in BESIDE:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"'{folder}' holds no {' or '.join(BESIDE)}; name the captions with --truth FILE: {KINDS}"
    )


def read_caption_dataset(truth: Path, folder: Path, split: str | None = None) -> CaptionDataset:
    """The pictures that `truth` names, below `folder`, in its order, with their captions.

    Args:
        split: of Karpathy's files: train, restval, val or test.

    Raises:
        UserError: another kind of file, a picture outside the folder or named twice, one without
            captions, or a split that the file does not have.
    """
    found: dict[str, tuple[str, ...]] = {}
    for where, name, captions in read_captions_by_name(truth, split):
        path = below(folder, name, where)
        if path in found:
            raise UserError(f"{where}: '{name}' has captions already; give all of them in one row")
        if not captions:
            raise UserError(f"{where}: '{name}' has no captions")
        found[path] = captions
    if not found:
        raise UserError(f"'{truth}' names no pictures")
    return CaptionDataset(tuple(map(Source, found)), tuple(found.values()))


def read_captions_by_name(truth: Path, split: str | None = None) -> Iterator[Named]:
    """Pictures by name with their captions, wherever the pictures are."""
    name = truth.name.lower().removesuffix(".gz")
    if name.endswith(".json"):
        held = read_json(truth)
        match held:
            case {"images": list(images), "annotations": list(annotations)}:
                rows = _of_coco(images, annotations, str(truth))
            case {"images": list(images)}:
                return _of_karpathy(images, str(truth), split)
            case _:
                raise UserError(f"'{truth}' is no file of captions; known are {KINDS}")
    elif name.endswith(".jsonl"):
        rows = _of_lines(truth)
    elif name.endswith(".csv") or _is_table(truth):
        rows = _together(_of_table(truth))
    elif name.endswith((".token", ".txt")):
        rows = _together(_of_flickr(truth))
    else:
        raise UserError(f"'{truth}' is no file of captions; known are {KINDS}")
    if split is not None:
        raise UserError(f"'{truth}' has no splits, so --split {split} chooses nothing")
    return rows


def texts(values: object, where: str) -> tuple[str, ...]:
    """A text or a list of them; UserError for anything else."""
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise UserError(f"{where}: expected captions as a list of texts")
    if any(not value.strip() for value in values):
        raise UserError(f"{where} has an empty caption")
    return tuple(value.strip() for value in values)


def references_in(row: dict[str, Any], where: str) -> tuple[str, ...] | None:
    """What a row of JSON lines says that people said: `references`, `captions`, or `caption`."""
    for key in ("references", "captions", "caption"):
        if key in row:
            return texts(row[key], where)
    return None


def _of_lines(truth: Path) -> Iterator[Named]:
    for where, row in read_rows(truth):
        name, captions = row.get("path", row.get("file")), references_in(row, where)
        if not isinstance(name, str) or captions is None:
            raise UserError(f"{where}: expected path (or file) and references (or captions)")
        yield where, name, captions


def _of_coco(images: list[Any], annotations: list[Any], file: str) -> Iterator[Named]:
    captions: dict[object, list[str]] = {}
    for image in images:
        match image:
            case {"id": int() | str() as key, "file_name": str()} if key not in captions:
                captions[key] = []
            case _:
                raise UserError(
                    f"'{file}': an image needs an id of its own and a file_name: {image!r:.80}"
                )
    for annotation in annotations:
        match annotation:
            case {"image_id": int() | str() as key, "caption": str(caption)} if key in captions:
                captions[key] += texts(caption, f"'{file}', image {key}")
            case _:
                raise UserError(
                    f"'{file}': an annotation needs the image_id of one of the images and a "
                    f"caption: {annotation!r:.80}"
                )
    for image in images:
        yield f"'{file}'", image["file_name"], tuple(captions[image["id"]])


def _of_karpathy(images: list[Any], file: str, split: str | None) -> Iterator[Named]:
    splits = set()
    for image in images:
        match image:
            case {"filename": str(name), "split": str(own), "sentences": list(sentences)}:
                splits.add(own)
            case _:
                raise UserError(
                    f"'{file}': an image needs filename, split and sentences: {image!r:.80}"
                )
        if own == split:
            where = f"'{file}', image '{name}'"
            said = [s.get("raw") if isinstance(s, dict) else s for s in sentences]
            yield where, str(Path(str(image.get("filepath", ""))) / name), texts(said, where)
    if split not in splits:
        raise UserError(
            f"'{file}' has the splits {', '.join(sorted(splits)) or 'none'}; choose with --split"
        )


def _is_table(truth: Path) -> bool:
    return read_text(truth).split("\n", 1)[0].strip().lower() == "image,caption"


def _of_table(truth: Path) -> Iterator[tuple[str, str, str]]:
    for where, row in read_table(truth):
        name, caption = row.get("image") or row.get("path"), row.get("caption")
        if not name or not caption:
            raise UserError(f"{where}: expected the columns image,caption")
        yield where, name, caption


def _of_flickr(truth: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(read_text(truth).split("\n"), 1):
        if not line.strip():
            continue
        where = f"'{truth}' line {number}"
        key, tab, caption = line.partition("\t")
        name, mark, _ = key.rpartition("#")
        if not tab or not mark:
            raise UserError(f"{where}: expected NAME#NUMBER, a tab and a caption")
        yield where, name, caption


def _together(rows: Iterable[tuple[str, str, str]]) -> Iterator[Named]:
    """Rows of one caption each, gathered by picture."""
    first: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for where, name, caption in rows:
        first.setdefault(name, where)
        captions.setdefault(name, []).extend(texts(caption, where))
    for name, said in captions.items():
        yield first[name], name, tuple(said)
