"""`dedupe`: copies among images, which to keep, and no matrix of all pairs."""

import csv
import json
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageEnhance, ImageOps

import zeroshot as product
from tests.moving import write
from zeroshot.images.likeness import fit, hash_of, thumbnail_of, whole
from zeroshot.ranking import near_groups
from zeroshot.ranking.near_groups import has_neighbour, leaders
from zeroshot.report.dedupe_page import dedupe_page

SCENES = Path(__file__).parent.parent / "examples" / "scenes"


def textured(seed, size=(240, 180)):
    """A picture with something at each place: coarse noise in colour."""
    noise = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def alike(a, b):
    first, second = thumbnail_of(a), thumbnail_of(b)
    return float(whole(hash_of(first), hash_of(second)[None])[0]), fit(first, second)


# Pixels


@pytest.mark.parametrize(
    "change",
    [
        ImageOps.mirror,
        ImageOps.flip,
        lambda image: image.transpose(Image.Transpose.ROTATE_90),
        lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        lambda image: image.resize((80, 60)),
        lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    ],
)
def test_a_copy_of_the_whole_is_the_whole(change):
    assert alike(textured(0), change(textured(0)))[0] > 0.98


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.crop((20, 10, 200, 150)),
        lambda image: image.crop((60, 40, 230, 170)),
        lambda image: image.rotate(4, Image.Resampling.BICUBIC),
        lambda image: ImageOps.mirror(image.crop((20, 10, 200, 150))),
    ],
)
def test_a_part_fits_somewhere(change):
    seen, fitted = alike(textured(0), change(textured(0)))
    assert seen < 0.96
    assert fitted > 0.9


def test_other_pictures_do_neither():
    for seed in range(1, 12):
        seen, fitted = alike(textured(0), textured(seed))
        assert seen < 0.7
        assert fitted < 0.8


def test_what_shows_nothing_is_compared_by_its_colour():
    white, grey = (Image.new("RGB", (50, 40), color) for color in ("white", "#777"))
    assert alike(white, white) == (0.0, 1.0)
    assert alike(white, grey) == (0.0, 0.0)
    assert alike(white, textured(0)) == (0.0, 0.0)


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2)])
def test_any_shape_is_compared(size):
    assert alike(textured(0, size), textured(0))[1] <= 1
    assert alike(textured(0, size), textured(0, size))[1] >= 0


# Groups


def by_loops(rows, threshold):
    unit = torch.nn.functional.normalize(rows, dim=1).double()
    leader = []
    for i in range(len(rows)):
        heads = [j for j in range(i) if leader[j] == j and unit[i] @ unit[j] >= threshold - 1e-6]
        leader.append(heads[0] if heads else i)
    return leader


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 40), st.sampled_from([0.3, 0.8, 0.97]), st.integers(1, 50), st.integers(0, 99)
)
def test_groups_are_those_of_the_loops(count, threshold, tile, seed):
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(8, 6, generator=random)[torch.randint(8, (count,), generator=random)]
    rows = rows + 0.3 * torch.randn(rows.shape, generator=random)
    assert leaders(rows, threshold, tile=tile).tolist() == by_loops(rows, threshold)
    near = (
        torch.nn.functional.normalize(rows) @ torch.nn.functional.normalize(rows).T
    ) >= threshold
    near.fill_diagonal_(False)
    assert has_neighbour(rows, threshold, tile).tolist() == near.any(1).tolist()


def test_a_chain_is_no_group():
    angles = torch.arange(5) * 0.3
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    assert leaders(rows, 0.95).tolist() == [0, 0, 2, 2, 4]
    middle_first = rows[[2, 0, 1, 3, 4]]
    assert leaders(middle_first, 0.95).tolist() == [0, 1, 0, 0, 4]


def test_pixels_that_disagree_keep_rows_apart():
    rows = torch.ones(4, 3)
    asked = []

    def agree(one, others):
        asked.append((one, others.tolist()))
        return others % 2 == one % 2

    assert leaders(rows, 0.9, agree).tolist() == [0, 1, 0, 1]
    assert asked == [(0, [1, 2, 3]), (1, [3])]


def test_no_matrix_of_all_pairs(monkeypatch):
    monkeypatch.setattr(near_groups, "TILE", 64)
    cells = []
    product_of = torch.Tensor.__matmul__

    def counted(a, b):
        made = product_of(a, b)
        cells.append(made.numel())
        return made

    monkeypatch.setattr(torch.Tensor, "__matmul__", counted)
    rows = torch.randn(1000, 8)
    has_neighbour(rows, 0.9)
    leaders(rows, 0.9)
    assert max(cells) <= 64 * 64
    assert sum(cells) < 1.2 * 1000 * 1000  # each pair once in each of two passes


def test_rows_that_are_all_alike_do_not_fill_the_memory():
    tracemalloc.start()
    assert set(leaders(torch.ones(6000, 4), 0.9).tolist()) == {0}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5_000_000


# The command


@pytest.fixture
def photos(tmp_path):
    """Two pictures, copies of the first of each kind, and one of the second."""
    folder = tmp_path / "photos"
    folder.mkdir()
    first, second = textured(0), textured(1)
    first.save(folder / "a.png")
    (folder / "again.png").write_bytes((folder / "a.png").read_bytes())
    first.save(folder / "poor.jpg", quality=20)
    first.resize((120, 90)).save(folder / "small.png")
    ImageOps.mirror(first).save(folder / "mirrored.png")
    second.save(folder / "z.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    return folder


def test_copies_are_found_and_one_is_kept(photos, zeroshot):
    code, rows, err = zeroshot("dedupe", photos, "--models", "pocket", "--json")
    assert code == 3
    found = {Path(row["path"]).name: row for row in rows}
    assert len(rows) == len(found) == 7
    assert "error" in found.pop("broken.jpg")
    assert [name for name, row in found.items() if row["keep"]] == ["a.png", "z.png"]
    assert found["z.png"]["group"] is None
    assert found["z.png"]["reason"] == "no copies"
    assert found["again.png"]["kind"] == "exact"
    assert found["again.png"]["reason"] == f"the same content as {photos / 'a.png'}"
    for name in ("poor.jpg", "small.png", "mirrored.png"):
        row = found[name]
        assert (row["kind"], row["group"]) == ("near", 1)
        assert row["copy_of"] == str(photos / "a.png")
        assert row["cosine"] >= 0.5
        assert row["correlation"] >= 0.96
    assert (found["small.png"]["width"], found["small.png"]["height"]) == (120, 90)
    assert "240 x 180 pixels against 120 x 90" in found["small.png"]["reason"]
    assert found["poor.jpg"]["bytes"] == (photos / "poor.jpg").stat().st_size
    assert "bytes against" in found["poor.jpg"]["reason"]
    assert "1 group, 4 images to leave out" in err
    assert found["a.png"]["schema"] == "zeroshot.dedupe/1"


def test_the_largest_is_kept_wherever_it_stands(tmp_path):
    textured(0, (120, 90)).save(tmp_path / "a.png")
    textured(0, (480, 360)).save(tmp_path / "b.png")
    textured(0).save(tmp_path / "c.png")
    results = product.dedupe(tmp_path, "pocket")
    assert [r.keep for r in results] == [False, True, False]
    assert results[1].reason == "the most pixels of 3: 480 x 360"


def test_of_exact_copies_the_first_is_kept(tmp_path):
    image = SCENES / "1-red-heart.png"
    for name in ("b.png", "a.png"):
        (tmp_path / name).write_bytes(image.read_bytes())
    results = product.dedupe([tmp_path / "b.png", tmp_path / "a.png"], "pocket")
    assert [(r.keep, r.kind) for r in results] == [(True, None), (False, "exact")]
    assert results[0].reason == "the first of 2 with as many pixels and bytes"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_without_copies_all_are_kept(count):
    images = [textured(seed) for seed in range(count)]
    results = product.dedupe(images, "pocket")
    assert [(r.keep, r.group, r.reason) for r in results] == [(True, None, "no copies")] * count


def test_pixels_tell_what_embeddings_do_not():
    """With the least cosine at zero all images are neighbours; none of them is a copy."""
    images = [textured(seed) for seed in range(4)]
    results = product.dedupe(images, "pocket", threshold=0.0, whole_threshold=0.0)
    assert all(r.keep for r in results)


def test_thresholds_decide(photos):
    near = [r.kind for r in product.dedupe(photos, "pocket", threshold=1.0, whole_threshold=1.0)]
    assert near.count("near") == 0
    assert near.count("exact") == 1


def test_an_image_that_is_gone_when_it_is_looked_at_fails(tmp_path, monkeypatch):
    from zeroshot.tasks.duplicates import dedupe as task

    for name in ("a.png", "b.png", "c.png"):
        textured(0).save(tmp_path / name, compress_level="abc".index(name[0]))
    look = task._look

    def unlucky(place, source):
        if source.path.endswith("b.png"):
            Path(source.path).unlink()
        return look(place, source)

    monkeypatch.setattr(task, "_look", unlucky)
    *good, bad = product.dedupe(tmp_path, "pocket")
    assert [Path(r.path).name for r in good] == ["a.png", "c.png"]
    assert sum(r.keep for r in good) == 1
    assert bad.error is not None
    assert bad.path.endswith("b.png")


def test_videos_are_refused(tmp_path, zeroshot):
    write(tmp_path / "a.mp4", [textured(0), textured(1)])
    code, [row], _ = zeroshot("dedupe", tmp_path / "a.mp4", "--models", "pocket", "--json")
    assert code == 3
    assert "a video" in row["error"]["message"]


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_rows_go_to_files(photos, tmp_path, suffix, printed):
    out = tmp_path / f"copies.{suffix}"
    assert printed("dedupe", photos, "--models", "pocket", "--out", out)[0] == 3
    if suffix == "parquet":
        import pyarrow.parquet as parquet

        rows = parquet.read_table(out).to_pylist()
        assert {type(row["group"]) for row in rows} == {int, type(None)}
    elif suffix == "csv":
        rows = list(csv.DictReader(out.read_text().splitlines()))
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 7
    assert [row.get("copy_of") for row in rows].count(str(photos / "a.png")) == 4
    code, _, err = printed("dedupe", photos, "--models", "pocket", "--out", out)
    assert code == 2
    assert "exists; --overwrite replaces it" in err


def test_text_cannot_say_which_to_keep(photos, tmp_path, printed):
    code, _, err = printed("dedupe", photos, "--models", "pocket", "--out", tmp_path / "a.txt")
    assert code == 2
    assert "use .csv" in err


def test_the_page_shows_groups(photos, tmp_path, printed):
    (photos / "a.png").rename(photos / "<b>&.png")
    page = tmp_path / "copies.html"
    assert printed("dedupe", photos, "--models", "pocket", "--html", page)[0] == 3
    text = page.read_text()
    assert "1 group, 4 images to leave out" in text
    assert "Group 1: 5 images" in text
    assert text.count("<img ") == 5
    assert "<b>&.png" not in text
    assert "&lt;b&gt;&amp;.png" in text
    assert text.index("<b>keep</b>") < text.index("near copy")
    assert "1 image could not be read" in text
    assert "No copies" in dedupe_page([])


def test_images_in_memory_have_no_bytes():
    data = BytesIO()
    textured(0).save(data, "PNG")
    first, second = product.dedupe([textured(0), data.getvalue()], "pocket")
    assert (first.bytes, second.bytes) == (None, len(data.getvalue()))
    assert second.keep  # as many pixels, and the only one with bytes
    assert first.copy_of is None
