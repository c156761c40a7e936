"""Pictures beside rows: names that never leave the folder, nothing lost, nothing followed."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from zeroshot.errors import UserError
from zeroshot.tasks.localization.drawing import draw_boxes, draw_regions, palette_png
from zeroshot.tasks.localization.image_folder import ImageFolder, file_name
from zeroshot.tasks.localization.name_tags import PADDING, Tags, beside, readable, shortened

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


def apart(boxes):
    return all(
        a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


@pytest.mark.parametrize("size", [(640, 480), (90, 60), (300, 12), (12, 300)])
def test_names_do_not_cover_each_other(size):
    """Of 60 boxes anywhere, all tags are within the image and apart, and some find no place."""
    rng = np.random.default_rng(1)
    image = Image.new("RGB", size)
    tags = Tags(ImageDraw.Draw(image), ImageFont.load_default(size=13), size)
    placed = 0
    for i in range(60):
        x, y = (
            sorted(rng.uniform(0, size[0], 2).tolist()),
            sorted(rng.uniform(0, size[1], 2).tolist()),
        )
        text = "a dog" * (1 + i % 3)
        placed += tags.put(text, (0, 0, 0), beside((x[0], y[0], x[1], y[1]), tags.size(text)))
    assert placed == len(tags.taken) < 60
    assert apart(tags.taken)
    for left, top, right, bottom in tags.taken:
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_what_finds_no_place_is_in_the_legend():
    """Twelve names for one box: eight places within the image at most, a line for each other."""
    grey, box = Image.new("RGB", (400, 300), (128, 128, 128)), (0, 0, 400, 300)
    alone = draw_boxes(grey, [box], [0], ["cat"], [0.9])
    many = draw_boxes(grey, [box] * 12, [0] * 12, ["cat"] * 12, [0.9] * 12)
    assert many.height > alone.height
    assert alone.size == draw_boxes(grey, [box], [0], ["dog"], [0.1]).size


def test_names_are_readable_and_cut():
    draw, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), ImageFont.load_default(size=13)
    assert readable((240, 228, 66)) != readable((0, 114, 178))
    assert shortened("cat", 100, draw, font) == "cat"
    cut = shortened("cat " * 99, 100, draw, font)
    assert cut.endswith("...")
    assert draw.textlength(cut, font=font) <= 100
    assert Tags(draw, font, (9, 9)).size("x")[1] > 2 * PADDING
