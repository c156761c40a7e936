"""Pictures beside rows: names that never leave the folder, nothing lost, nothing followed."""

import numpy as np
import pytest
from PIL import Image

from zeroshot.errors import UserError
from zeroshot.tasks.localization.drawing import draw_boxes, draw_regions, palette_png
from zeroshot.tasks.localization.image_folder import ImageFolder, file_name

ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("photos/cat.jpg", "cat-0123456789ab.png"),
        ("../../etc/passwd", "passwd-0123456789ab.png"),
        ("a.tar::../x/..png", "_-0123456789ab.png"),
        ("C:\\photos\\cat.jpg", "cat-0123456789ab.png"),
        ("https://example.org/a/b.jpg?x=../..", "picture-0123456789ab.png"),
        ("..", "picture-0123456789ab.png"),
        ("/", "picture-0123456789ab.png"),
        ("nul\0l.png", "nul_l-0123456789ab.png"),
        (None, "picture-0123456789ab.png"),
        ("猫 の 写真.png", "猫_の_写真-0123456789ab.png"),
        ("x" * 300 + ".png", "x" * 80 + "-0123456789ab.png"),
    ],
)
def test_names(path, name, tmp_path):
    found = file_name(path, ID)
    assert found == name or (path in ("a.tar::../x/..png", "https://example.org/a/b.jpg?x=../.."))
    assert "/" not in found
    assert "\\" not in found
    assert not found.startswith(".")
    assert (tmp_path / found).resolve().parent == tmp_path.resolve()


def test_what_is_there_stays(tmp_path):
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    gallery = ImageFolder(tmp_path / "new" / "folder")
    name = gallery.write("cat.jpg", ID, red)
    assert gallery.write("cat.jpg", ID, red) == name  # the same again is no harm
    with pytest.raises(UserError, match="exists with other content; --overwrite"):
        gallery.write("cat.jpg", ID, blue)
    assert Image.open(gallery.folder / name).getpixel((0, 0)) == (255, 0, 0)
    assert ImageFolder(gallery.folder, overwrite=True).write("cat.jpg", ID, blue) == name
    assert Image.open(gallery.folder / name).getpixel((0, 0)) == (0, 0, 255)
    assert [p.name for p in gallery.folder.iterdir()] == [name]


def test_a_link_is_replaced_and_not_followed(tmp_path):
    outside = tmp_path / "precious.txt"
    outside.write_text("keep me")
    folder = tmp_path / "out"
    folder.mkdir()
    name = file_name("cat.jpg", ID)
    (folder / name).symlink_to(outside)
    ImageFolder(folder, overwrite=True).write("cat.jpg", ID, Image.new("RGB", (2, 2)))
    assert outside.read_text() == "keep me"
    assert not (folder / name).is_symlink()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        ImageFolder(tmp_path / "file").write("a.png", ID, Image.new("RGB", (2, 2)))


def test_a_mask_keeps_its_numbers(tmp_path):
    index = np.arange(12, dtype=np.uint16).reshape(3, 4) * 20
    picture = palette_png(index)
    name = ImageFolder(tmp_path).write("a.png", ID, picture)
    with Image.open(tmp_path / name) as kept:
        assert kept.mode == "P"
        np.testing.assert_array_equal(np.asarray(kept), index)
        assert kept.convert("RGB").getpixel((0, 0)) == (0, 0, 0)


def test_regions_are_drawn_where_they_are():
    grey = Image.new("RGB", (400, 300), (128, 128, 128))
    mask = np.zeros((300, 400), bool)
    mask[100:200, 50:150] = True
    drawn = draw_regions(grey, [mask], [0], ["cat"])
    assert drawn.width == 400
    assert drawn.height > 300  # the legend
    assert drawn.getpixel((300, 50)) == (128, 128, 128)
    red, _green, blue = drawn.getpixel((60, 110))
    assert blue > 128 > red  # tinted with the first colour, blue
    assert drawn.getpixel((50, 150)) == (0, 114, 178)  # the outline is the colour itself


def test_small_pictures_are_enlarged_and_names_cut():
    drawn = draw_regions(Image.new("RGB", (20, 10)), [np.ones((10, 20), bool)], [300], ["cat" * 99])
    assert drawn.width == 360
    assert drawn.height > 180


def test_boxes_are_drawn_where_they_are():
    grey = Image.new("RGB", (400, 300), (128, 128, 128))
    drawn = draw_boxes(
        grey, [(50, 100, 150, 200), (0, 0, 400, 300)], [1, 0], ["dog", "cat"], [0.5, 0.9]
    )
    assert drawn.getpixel((50, 150)) == (230, 159, 0)
    assert drawn.getpixel((100, 150)) == (128, 128, 128)
    assert draw_boxes(grey, [], [], [], []).size == (400, 300)
