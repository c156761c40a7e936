"""Anchor sets: pairs from every kind of list, builds that were killed, edits, hostile files."""

import csv
import io
import json
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import zeroshot
from zeroshot.cli import run
from zeroshot.datasets.pairs import read_pairs
from zeroshot.errors import UnreadableImageError, UserError
from zeroshot.images import find, read
from zeroshot.model_set import anchor_file as files
from zeroshot.model_set.anchor_file import Entry, read_anchors
from zeroshot.model_set.anchor_writer import AnchorWriter, write_anchors
from zeroshot.ops import normalize
from zeroshot.tasks import anchors as task

SCENES = sorted((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))[:4]
CAPTIONS = [("a red heart",), ("a blue star", "a star"), ("a green ring",), ("something",)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four pictures to name, and a place to write in."""
    for scene, captions in zip(SCENES, CAPTIONS, strict=True):
        (tmp_path / "pics").mkdir(exist_ok=True)
        (tmp_path / "pics" / scene.name).write_bytes(scene.read_bytes())
        (tmp_path / "pics" / f"{scene.stem}.txt").write_text("\n".join(captions))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows():
    return [(f"pics/{s.name}", c) for s, c in zip(SCENES, CAPTIONS, strict=True)]


def write_list(kind):
    flat = [(picture, caption) for picture, captions in rows() for caption in captions]
    path = Path(f"pairs.{kind}")
    match kind:
        case "csv" | "tsv":
            mark = "," if kind == "csv" else "\t"
            lines = [mark.join(("Path", "caption")), *(mark.join(row) for row in flat)]
            path.write_text("\n".join(lines))
        case "jsonl":
            lines = [json.dumps({"image": p, "captions": c}) for p, c in rows()]
            path.write_text("\n".join(lines))
        case "parquet":
            import pyarrow
            from pyarrow import parquet

            columns = {"file_name": [p for p, _ in rows()], "texts": [list(c) for _, c in rows()]}
            parquet.write_table(pyarrow.table(columns), path)
        case "coco":
            path = Path("coco.json")
            images = [{"id": i, "file_name": p} for i, (p, _) in enumerate(rows())]
            told = [{"image_id": i, "caption": c} for i, (_, cs) in enumerate(rows()) for c in cs]
            path.write_text(json.dumps({"images": images, "annotations": told}))
        case "karpathy":
            path = Path("karpathy.json")
            images = [
                {
                    "filepath": "pics",
                    "filename": Path(p).name,
                    "sentences": [{"raw": c} for c in cs],
                }
                for p, cs in rows()
            ]
            path.write_text(json.dumps({"images": images}))
        case "tar":
            with tarfile.open(path, "w") as tar:
                for number, (picture, captions) in enumerate(rows()):
                    key = Path(picture).stem
                    beside = (
                        (f"{key}.txt", "\n".join(captions).encode())
                        if number % 2
                        else (f"{key}.json", json.dumps({"caption": captions[0]}).encode())
                    )
                    for name, data in ((f"{key}.png", Path(picture).read_bytes()), beside):
                        told = tarfile.TarInfo(name)
                        told.size = len(data)
                        tar.addfile(told, io.BytesIO(data))
        case "folder":
            path = Path("pics")
    return path


@pytest.mark.parametrize(
    "kind", ["csv", "tsv", "jsonl", "parquet", "coco", "karpathy", "tar", "folder"]
)
def test_every_kind_of_list_gives_the_same_pairs(folder, kind):
    pairs = list(read_pairs(str(write_list(kind))))
    assert [pair.captions for pair in pairs] == CAPTIONS
    for pair, scene in zip(pairs, SCENES, strict=True):
        assert read(pair.source) == read(scene)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "picture,words\nx,y\n", "line 2: expected a column named image, path"),
        ("a.csv", "", "is empty"),
        ("a.csv", "image,caption\n", "has column names and no rows"),
        ("a.jsonl", "[1]\n", "entry 1: expected a JSON object"),
        ("a.jsonl", "{", "line 1: not JSON at character 2"),
        (
            "a.jsonl",
            '{"image": 3, "caption": "a"}',
            "line 1, column 'image': expected the name of an image, got 3",
        ),
        (
            "a.jsonl",
            '{"image": "x.png", "captions": [3]}',
            "line 1, column 'captions': expected a caption",
        ),
        ("a.jsonl", "[" * 100_000, "is not JSON that can be read: it is nested too deeply"),
        ("a.json", "{}", "expected COCO's .* or Karpathy's"),
        ("a.json", '{"images": [{"id": 1}], "annotations": []}', "images, entry 1: expected an id"),
        (
            "a.json",
            '{"images": [{"id": 1, "file_name": 3}], "annotations": []}',
            "images, entry 1: .* a file_name",
        ),
        ("a.tar", "hello", "has no pairs .*: tar file: cut off in the header"),
        ("a.parquet", "hello", "no Parquet"),
        ("a.pkl", "hello", "no file of pairs; pairs are read from .csv"),
    ],
)
def test_lists_that_are_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_pairs(str(tmp_path / name)))


def test_texts_of_a_folder_belong_to_images_as_those_of_a_tar_file(tmp_path):
    content = {
        **{"1.5.png": None, "1.5.txt": "a heart\nred", "1.6.png": None, "1.6.TXT": "a star"},
        **{"a.png": None, "a.jpg": None, "a.txt": "of which?"},
        **{"b.png": None, "b.txt": "one", "b.Txt": "two"},
        **{"in/c.png": None, "in/c.txt": b"caf\xe9", "d.png": None},
        **{"._d.png": None, "._d.txt": "hidden"},
    }
    folder = tmp_path / "pics"
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        data = SCENES[0].read_bytes() if text is None else text
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in content:
            tar.add(folder / name, name)
    inside = {pair.id: pair for pair in read_pairs(str(folder))}
    assert list(inside) == ["1.5.png", "1.6.png", "a.jpg", "a.png", "b.png", "in/c.png"]
    assert inside["1.5.png"].captions == ("a heart", "red")
    assert inside["1.6.png"].captions == ("a star",)
    packed = {pair.id: pair for pair in read_pairs(str(tmp_path / "x.tar"))}
    assert {name.removesuffix(".png") for name, pair in inside.items() if pair.captions} == {
        name for name, pair in packed.items() if pair.captions
    }
    for name in ("a.png", "a.jpg", "b.png", "in/c.png"):
        assert not inside[name].captions
        assert not packed[name].captions
    for pair, said in (("a.png", "2 images"), ("b.png", "'b.Txt' and"), ("in/c.png", "not UTF-8")):
        with pytest.raises(UnreadableImageError, match=said):
            read(inside[pair].source)
    with pytest.raises(UserError, match="no pairs in folder"):
        list(read_pairs(str(folder / "in")))


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_newline_is_part_of_a_caption_and_nan_is_none(tmp_path, kind):
    captions = ["a red\nheart", float("nan"), "nan bread"]
    names = [f"{number}.png" for number in range(3)]
    file = tmp_path / f"x.{kind}"
    match kind:
        case "csv":
            with file.open("w", newline="") as out:
                csv.writer(out).writerow(("path", "caption"))
                csv.writer(out).writerows(
                    (name, "" if text != text else text)
                    for name, text in zip(names, captions, strict=True)
                )
        case "jsonl":
            rows = [{"path": n, "caption": [c]} for n, c in zip(names, captions, strict=True)]
            rows[1]["caption"] = captions[1]
            file.write_text("\n".join(map(json.dumps, rows)))
        case "parquet":
            import pyarrow
            from pyarrow import parquet

            captions[1] = None
            parquet.write_table(pyarrow.table({"path": names, "caption": captions}), file)
    expected = [("0.png", ("a red\nheart",)), ("2.png", ("nan bread",))]
    assert [(pair.id, pair.captions) for pair in read_pairs(str(file))] == expected
    listed = [(Path(s.path).name, s.captions) for s in find(str(file)).sources if any(s.captions)]
    assert listed == expected


def test_a_tar_file_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tarfile.open("a.tar", "w") as tar:
        for name in ("../up.png", "/abs.txt", "k.png"):
            told = tarfile.TarInfo(name)
            told.size = 2
            tar.addfile(told, io.BytesIO(b"xx"))
        link = tarfile.TarInfo("k.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(UserError, match="has no pairs"):
        list(read_pairs("a.tar"))
    assert {p.name for p in tmp_path.iterdir()} == {"a.tar"}


def test_no_list_at_all(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_pairs(str(tmp_path / "a.csv"))
    with pytest.raises(UserError, match=r"a\.jpg beside a\.txt"):
        list(read_pairs(str(tmp_path)))


# Building


def build(*more):
    return run(["anchors", "build", "pics", "--models", "pocket", *more])


def test_a_build_is_a_model_set(folder, capsys):
    assert build("--out", "mine/anchors.safetensors") == 0
    anchors = read_anchors(Path("mine/anchors.safetensors"))
    pocket = zeroshot.load("pocket")
    texts = [normalize(pocket.coupled.text_encoder.encode_texts(list(c)).mean(0)) for c in CAPTIONS]
    torch.testing.assert_close(anchors.texts, torch.stack(texts))
    pictures = [Image.open(s).convert("RGB") for s in SCENES]
    torch.testing.assert_close(
        anchors.images, pocket.coupled.image_encoder.encode_images(pictures), atol=1e-5, rtol=0
    )
    assert [entry.captions for entry in anchors.entries] == CAPTIONS
    assert anchors.entries[0].path == f"pics/{SCENES[0].name}"
    with safe_open("mine/anchors.safetensors", "pt") as held:
        assert held.metadata()["format"] == "zeroshot.anchors/1"  # on disk, wherever the code is
        assert held.metadata()["image_encoder"] == pocket.coupled.image_encoder.name
    line = "classify pics --labels heart,star --models mine --json"
    assert run(line.split()) == 0
    assert "procrustes" in capsys.readouterr().out
    assert build("--out", "mine/anchors.safetensors") == 2
    assert "--overwrite" in capsys.readouterr().err


def test_each_caption_may_be_an_anchor(folder):
    assert build("--captions", "each", "--half") == 0
    anchors = read_anchors(Path("anchors.safetensors"))
    assert len(anchors) == 5
    assert [e.captions[0] for e in anchors.entries] == [c for cs in CAPTIONS for c in cs]
    assert load_file("anchors.safetensors")["images"].dtype == torch.float16
    torch.testing.assert_close(anchors.images[1], anchors.images[2])
    assert task.find_ids(anchors, [SCENES[1].name]).tolist() == [1, 2]


def test_a_picture_that_cannot_be_read_is_left_out(folder, capsys):
    Path("pics", SCENES[2].name).write_bytes(b"no picture")
    assert build() == 3
    assert f"left out {SCENES[2].name}" in capsys.readouterr().err
    assert len(read_anchors(Path("anchors.safetensors"))) == 3


KILLED = """
import os, sys
from zeroshot import cli
from zeroshot.model_set.anchor_writer import AnchorWriter
write = AnchorWriter.write
def killed(self, *rest):
    write(self, *rest)
    if self.count == 2:
        os._exit(9)
AnchorWriter.write = killed
cli.run(sys.argv[1:])
"""


def test_a_killed_build_goes_on(folder, monkeypatch):
    """Killed after two batches of one: the second run encodes what is left alone."""
    line = ["anchors", "build", "pics", "--models", "pocket", "--batch-size", "1"]
    done = subprocess.run([sys.executable, "-c", KILLED, *line], check=False)
    assert done.returncode == 9
    assert not Path("anchors.safetensors").exists()
    from zeroshot.models.hf import image_encoder

    encoded = []
    encode = image_encoder.TransformersImageEncoder.encode_pixels
    monkeypatch.setattr(
        image_encoder.TransformersImageEncoder,
        "encode_pixels",
        lambda self, pixels: encoded.extend(pixels) or encode(self, pixels),
    )
    assert run(line) == 0
    assert len(encoded) == 2
    assert len(read_anchors(Path("anchors.safetensors"))) == 4


# Editing


def small(path, count, seed=0, encoders=None, start=0):
    generator = torch.Generator().manual_seed(seed)
    with AnchorWriter(Path(path), encoders or {}) as file:
        file.write(
            torch.randn(count, 6, generator=generator),
            torch.randn(count, 4, generator=generator),
            [Entry(str(i + start), (f"caption {i + start}",)) for i in range(count)],
        )
    return read_anchors(Path(path))


def test_merge_and_remove(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = small("a.safetensors", 5, 1, {"image_encoder": "x/fp32"})
    second = small("b.safetensors", 3, 2, {"image_encoder": "x/fp16"}, start=5)
    assert (
        run(["anchors", "merge", "a.safetensors", "b.safetensors", "--out", "c.safetensors"]) == 0
    )
    merged = read_anchors(Path("c.safetensors"))
    torch.testing.assert_close(merged.images, torch.cat([first.images, second.images]))
    assert [e.id for e in merged.entries] == [str(i) for i in range(8)]
    assert run(["anchors", "remove", "c.safetensors", "--id", "1", "--id", "6"]) == 0
    left = read_anchors(Path("c.safetensors"))
    kept = torch.tensor([0, 2, 3, 4, 5, 7])
    assert torch.equal(left.texts, merged.texts[kept])
    assert [e.id for e in left.entries] == [str(i) for i in kept.tolist()]
    assert run(["anchors", "remove", "c.safetensors", "--id", "1"]) == 2
    assert "no anchor called 1" in capsys.readouterr().err
    small("d.safetensors", 3, 2, {"image_encoder": "y/fp32"})
    assert (
        run(["anchors", "merge", "a.safetensors", "d.safetensors", "--out", "e.safetensors"]) == 2
    )
    assert "made with the image encoder x/fp32" in capsys.readouterr().err
    assert run(["anchors", "remove", "c.safetensors", "--query", "cat"]) == 2
    assert not Path("e.safetensors").exists()


def test_pairs_are_added_and_found_again(folder, capsys):
    assert build("--out", "mine/anchors.safetensors", "--limit", "3") == 0
    Path("more").mkdir()
    Path("more", "x.png").write_bytes(SCENES[3].read_bytes())
    Path("more", "x.txt").write_text("a yellow moon")
    assert run(["anchors", "add", "mine", "more"]) == 0
    anchors = read_anchors(Path("mine/anchors.safetensors"))
    assert [e.id for e in anchors.entries][-1] == "x.png"
    assert run(["anchors", "remove", "mine", "--query", "a yellow moon", "--top", "1"]) == 0
    assert "x.png" in capsys.readouterr().err
    assert len(read_anchors(Path("mine/anchors.safetensors"))) == 3
    assert run(["anchors", "add", "pocket", "more"]) == 2
    assert "bundled" in capsys.readouterr().err


def test_other_encoders_are_refused(folder, capsys):
    assert build("--out", "mine/anchors.safetensors") == 0
    images, texts = (read_anchors(Path("mine/anchors.safetensors")).images,) * 2
    with AnchorWriter(
        Path("mine/anchors.safetensors"), {"text_encoder": "other/fp32"}, force=True
    ) as f:
        f.write(images, texts, [Entry(str(i)) for i in range(4)])
    assert run(["classify", "pics", "--labels", "heart,star", "--models", "mine"]) == 2
    assert "made with the text encoder other/fp32" in capsys.readouterr().err


def test_import(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    np.savez("a.npz", images=images, anchor_texts=texts)
    Path("a.jsonl").write_text("".join('{"captions": ["x"]}\n' for _ in range(4)))
    assert run(["anchors", "import", "a.npz", "--lines", "a.jsonl", "--out", "b.safetensors"]) == 0
    found = read_anchors(Path("b.safetensors"))
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    np.testing.assert_allclose(found.images.numpy(), unit, rtol=1e-5)
    assert found.captions == ("x",)
    np.savez("c.npz", images=images, texts=texts[:3])
    assert run(["anchors", "import", "c.npz", "--out", "d.safetensors"]) == 2
    assert "4 images and 3 texts" in capsys.readouterr().err
    np.savez("c.npz", images=images, texts=np.full((4, 2), np.nan))
    assert run(["anchors", "import", "c.npz", "--out", "d.safetensors"]) == 2
    np.savez("c.npz", images=images)
    assert run(["anchors", "import", "c.npz", "--out", "d.safetensors"]) == 2
    assert not Path("d.safetensors").exists()


def test_info_says_whether_encoders_couple(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(200, 6, generator=generator)
    images = latent @ torch.randn(6, 12, generator=generator)
    texts = latent @ torch.randn(6, 9, generator=generator)
    for name, order in (("good", torch.arange(200)), ("bad", torch.randperm(200))):
        with AnchorWriter(Path(f"{name}.safetensors"), {}) as file:
            file.write(images, texts[order], [Entry(str(i)) for i in range(200)])
    assert run(["anchors", "info", "good.safetensors"]) == 0
    said = capsys.readouterr()
    assert "these encoders couple" in said.err
    assert "[coupling]" in said.err
    assert "unbiased CKA" in said.out
    assert run(["anchors", "info", "bad.safetensors"]) == 0
    assert "these encoders do not couple" in capsys.readouterr().err
    assert run(["anchors", "info", "good.safetensors", "--no-choose"]) == 0
    assert "couple" not in capsys.readouterr().err


# Files


def test_a_large_file_is_mapped(tmp_path, monkeypatch):
    whole = small(tmp_path / "a.safetensors", 40)
    monkeypatch.setattr(files, "MAPPED_BYTES", 10)
    mapped = read_anchors(tmp_path / "a.safetensors")
    torch.testing.assert_close(normalize(mapped.images), whole.images)
    from zeroshot.methods.asif import ASIF

    images, texts = torch.randn(3, 6), torch.randn(2, 1, 4)
    ours = ASIF(k=7, p=2).fit(mapped.images, mapped.texts).scores(images, texts)
    expected = ASIF(k=7, p=2).fit(whole.images, whole.texts).scores(images, texts)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("mapped", [False, True])
def test_int8_rows(tmp_path, monkeypatch, mapped):
    """Each number is off by half a step at most, a step being the row's largest over 127."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(40, 6, generator=generator), torch.randn(40, 4, generator=generator)
    np.savez("a.npz", images=images.numpy(), texts=texts.numpy())
    assert run(["anchors", "import", "a.npz", "--int8", "--out", "a.safetensors"]) == 0
    kept = load_file("a.safetensors")
    for name, rows in (("images", images), ("texts", texts)):
        step = rows.abs().amax(1, keepdim=True) / 127
        assert kept[name].dtype == torch.int8
        assert ((kept[name] * step - rows).abs() <= step * 0.5001).all()
    if mapped:
        monkeypatch.setattr(files, "MAPPED_BYTES", 10)
    found = read_anchors(Path("a.safetensors"))
    assert found.images.dtype == (torch.int8 if mapped else torch.float32)
    torch.testing.assert_close(normalize(found.images.float()), normalize(kept["images"].float()))
    # an edit writes the others as they were, and what is used of a mapped file is right
    assert run(["anchors", "remove", "a.safetensors", "--id", "3", "--out", "b.safetensors"]) == 0
    others = torch.arange(40) != 3
    assert torch.equal(load_file("b.safetensors")["texts"], kept["texts"][others])
    assert run(["anchors", "import", "a.npz", "--int8", "--half", "--out", "c.safetensors"]) == 2


@pytest.mark.parametrize("form", [[], ["--half"], ["--int8"]])
def test_a_mapped_set_classifies(folder, monkeypatch, capsys, form):
    """Also its scale is found from rows of few bits; ten pairs set aside are needed for it."""
    monkeypatch.setattr(files, "MAPPED_BYTES", 10)
    for number in range(51):
        Path("pics", f"{number}.png").write_bytes(SCENES[number % 4].read_bytes())
        Path("pics", f"{number}.txt").write_text(f"{CAPTIONS[number % 4][0]} {number}")
    assert build("--out", "mine/anchors.safetensors", *form) == 0
    line = f"classify {SCENES[0]} --labels heart,star --models mine --json --method asif -o k=5"
    assert run(line.split()) == 0
    assert "asif" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "no object"),
        (b"{", "not a safetensors file"),
        (b'{"images": 3, "texts": 4}', "images has"),
        (
            b'{"images": {"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 324]}, "texts": '
            b'{"dtype": "F32", "shape": [9, 9], "data_offsets": [0, 324]}}',
            "do not add up",
        ),
        (
            b'{"images": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}, "texts": {}}',
            "do not add up",
        ),
        (
            b'{"images": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": '
            b'[0, 0]}, "texts": {}}',
            "do not add up",
        ),
        (b'{"images": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, "texts": {}}', "F16"),
    ],
)
def test_headers_that_lie(tmp_path, header, message):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(UserError, match=message):
        read_anchors(path)


def test_a_header_longer_than_its_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(UserError, match="longer than the file"):
        read_anchors(path)


def test_lines_that_are_wrong(tmp_path):
    anchors = small(tmp_path / "a.safetensors", 2)
    for text, message in (
        ("3\n{}\n", "line 1: expected a JSON object"),
        ('{"captions": 3}\n', "line 1, column 'captions': expected a list of texts"),
        ("{\n", "line 1: not JSON at character 2"),
    ):
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(UserError, match=message):
            read_anchors(anchors.path)


def test_a_failed_write_leaves_nothing(tmp_path):
    anchors = small(tmp_path / "a.safetensors", 4)
    with pytest.raises(UserError, match="no pair is left"):
        write_anchors(tmp_path / "b.safetensors", [anchors], without=torch.arange(4))
    with AnchorWriter(tmp_path / "b.safetensors", {}) as file:
        file.write(torch.ones(1, 6), torch.ones(1, 4), [Entry("a")])
        with pytest.raises(UserError, match="embeddings of 2 and 4"):
            file.write(torch.ones(1, 2), torch.ones(1, 4), [Entry("b")])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}.{kind}" for name in "ab" for kind in ("jsonl", "safetensors")
    ]


def test_other_arrays_in_the_file_do_no_harm(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"images": torch.ones(2, 3), "texts": torch.ones(2, 3), "more": torch.ones(7)}, path)
    assert len(read_anchors(path)) == 2
