"""`classify --into` and `undo`: where images go, what is listed, and what is never removed."""

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from zeroshot.errors import UserError
from zeroshot.inference.meter import Meter
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Source
from zeroshot.output import manifest
from zeroshot.output.manifest import Manifest, new_name, read_manifest, safe_name
from zeroshot.tasks.sidecars.sorted_images import SortedImages, label_folders, names_for, outside

LABELS = "red square,green heart,blue ring"
COMMON = ["--models", "pocket", "--labels", LABELS, "--into", "sorted"]
NAME = "zeroshot-sorted-20300101-120000-00000000"


def classify(zeroshot, *more, images="p", common=COMMON):
    return zeroshot("classify", images, *common, *more)


def entries(folder="sorted"):
    """All below a folder, but for manifests."""
    found = (str(path.relative_to(folder)) for path in Path(folder).rglob("*"))
    return sorted(name for name in found if not name.endswith(".jsonl"))


def manifests(folder="sorted"):
    return sorted(Path(folder).glob("zeroshot-sorted-*.jsonl"), key=lambda p: p.stat().st_mtime_ns)


def content(folder):
    """Every path below, with what it is."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
    }


def expected(rows, label=lambda row: row["labels"][0]["label"]):
    return sorted({label(r) for r in rows} | {f"{label(r)}/{Path(r['path']).name}" for r in rows})


def put(kind="symlink", images="p", folder="sorted"):
    """Sort images without a model: the first two are cats, the others dogs; what was not made."""
    meter = Meter()
    writer = SortedImages(Manifest(Path(folder), new_name()), {"cat": "cat", "dog": "dog"}, kind)
    for number, source in enumerate(find(images).sources):
        labels = [{"label": "cat" if number < 2 else "dog", "score": 1.0}]
        id = hashlib.sha256(Path(source.path).read_bytes()).hexdigest()
        writer.write(source, {"labels": labels, "abstained": False, "id": id}, meter)
    writer.manifest.close()
    return meter.unwritten


# Where images go


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "copy"])
def test_each_image_is_in_the_folder_of_its_label(zeroshot, folder, kind):
    before = content("p")
    code, rows, err = classify(zeroshot, "--into-as", kind)
    assert code == 0
    assert entries() == expected(rows)
    for row in rows:
        file = Path("sorted", row["labels"][0]["label"], Path(row["path"]).name)
        image = Path(row["path"])
        assert file.is_symlink() == (kind == "symlink")
        assert file.samefile(image) == (kind != "copy")
        assert file.read_bytes() == image.read_bytes()
        if kind == "symlink":
            assert os.readlink(file) == f"../../{row['path']}"
    [path] = manifests()
    assert f"undo {path}" in err
    assert zeroshot("undo", path)[0] == 0
    assert not Path("sorted").exists()
    assert content("p") == before


def test_abstained_and_without_a_label(zeroshot, folder):
    code, rows, _ = classify(
        zeroshot, "--multi", "--threshold", "-0.2", "--against", "x", "--score", "cosine"
    )
    assert code == 2
    code, rows, _ = classify(zeroshot, "--multi", "--threshold", "0.0")
    assert code == 0
    names = {"abstains": 0, "several": 0}
    for row in rows:
        held = [label["label"] for label in row["labels"]]
        names["several"] += len(held) > 1
        names["abstains"] += not held
        found = {p.parent.name for p in Path("sorted").glob(f"*/{Path(row['path']).name}")}
        assert found == (set(held) or {"unlabelled"})
    code, rows, _ = classify(zeroshot, "--multi", "--threshold", "2")
    assert code == 0
    assert len(list(Path("sorted/unlabelled").iterdir())) == 4


def test_a_run_that_abstains(zeroshot, folder):
    given = ["--models", "pocket", "--labels", LABELS]
    assert zeroshot("calibrate", "p", *given, "--out", "c.json")[0] == 0
    code, rows, _ = classify(zeroshot, "--calibration", "c.json", "--abstain", "0.5")
    assert code == 0
    assert {row["abstained"] for row in rows} == {True, False}
    label = lambda r: "unlabelled" if r["abstained"] else r["labels"][0]["label"]  # noqa: E731
    assert entries() == expected(rows, label)


@pytest.mark.parametrize("out", ["r.jsonl", "r.csv", "rows/"])
def test_rows_of_earlier_runs(zeroshot, folder, out):
    plain = COMMON[:4]
    assert classify(zeroshot, "--out", out, common=plain)[0] == 0
    code, _, err = classify(zeroshot, "--out", out)
    assert code == 0
    assert "links or copies of earlier rows that are now in 'sorted': 4" in err
    assert len(entries()) > 4
    first = content("sorted")
    code, _, err = classify(zeroshot, "--out", out)
    assert (code, content("sorted")) == (0, first)
    assert "nothing new in 'sorted'" in err


def test_a_second_run_adds_what_is_new_and_either_can_be_undone(zeroshot, folder):
    os.rename("p/d.png", "d.png")
    put()
    before = content("sorted")
    put()
    assert content("sorted") == before
    os.rename("d.png", "p/d.png")
    put()
    first, second = manifests()
    assert zeroshot("undo", second)[0] == 0
    assert content("sorted") == before
    put()
    _, second = manifests()
    code, _, err = zeroshot("undo", first)  # its folders have links of the second run
    assert code == 3
    assert "sorted/dog': it has 'd.png'" in err
    assert first.exists()
    assert entries() == ["dog", "dog/d.png"]
    assert zeroshot("undo", second)[0] == 0
    assert zeroshot("undo", first)[0] == 0
    assert not Path("sorted").exists()


def test_runs_are_undone_together(zeroshot, folder):
    for name, given in (("sorted", "sorted/"), ("p/other", "p/other")):
        os.rename("p/d.png", "d.png")
        put(folder=name)
        os.rename("d.png", "p/d.png")
        put(folder=name, kind="copy")
        assert zeroshot("undo", given)[0] == 0
        assert not Path(name).exists()


def test_images_of_one_name(zeroshot, folder):
    for name, scene in (("q", "a"), ("r", "a"), ("s", "a")):
        os.mkdir(f"p/{name}")
        shutil.copy(f"p/{scene}.png", f"p/{name}/a.png")
    assert not put()
    links = [p for p in Path("sorted").glob("*/*") if p.name.startswith("a")]
    assert sorted(os.path.relpath(os.path.realpath(p)) for p in links) == [
        *("p/a.png", "p/q/a.png", "p/r/a.png", "p/s/a.png"),
    ]
    assert len({p.parent for p in links}) == 2
    first = content("sorted")
    assert not put()
    assert content("sorted") == first


def test_images_of_a_tar_file(zeroshot, folder, monkeypatch):
    with tarfile.open("x.tar", "w") as tar:
        for name in "abcd":
            tar.add(f"p/{name}.png", f"{name}.png")
    code, _, err = classify(zeroshot, images="x.tar")
    assert code == 2
    assert "'x.tar/a.png' is no file of its own" in err or "x.tar" in err
    assert "--into-as copy" in err
    assert not Path("sorted").exists()
    code, _, _ = classify(zeroshot, "--into-as", "copy", images="x.tar")
    assert code == 0
    for path in Path("sorted").glob("*/*"):
        assert path.read_bytes() == Path("p", path.name).read_bytes()
    first = content("sorted")
    assert classify(zeroshot, "--into-as", "copy", images="x.tar")[0] == 0
    assert content("sorted") == first
    os.rename("x.tar", "y.tar")
    code, _, err = zeroshot("undo", "sorted")
    assert code == 3
    assert "the image that it is a copy of is gone" in err
    assert content("sorted") == first
    os.rename("y.tar", "x.tar")
    assert zeroshot("undo", *manifests())[0] == 0
    assert not Path("sorted").exists()


def test_copies_of_a_table_stay_when_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer = SortedImages(Manifest(Path("sorted"), new_name()), {"cat": "cat"}, "copy")
    Path("t.parquet").write_bytes(b"table")
    for path in ("t.parquet#0", "https://example.com/b.png"):
        row = {
            "labels": [{"label": "cat"}],
            "abstained": False,
            "id": hashlib.sha256(b"i").hexdigest(),
        }
        assert writer.write(Source(path, b"i"), row, Meter())
    writer.manifest.close()
    Path("t.parquet").unlink()
    done = manifest.undo([read_manifest(path) for path in manifests()])
    assert done.removed == {"copy": 1}
    assert any("is gone" in reason for _, reason in done.left)


def test_labels_go_to_label_studio_too(zeroshot, folder):
    assert classify(zeroshot, "--label-studio", "tasks.json", "--limit", "2")[0] == 0
    assert len(json.loads(Path("tasks.json").read_text())) == 2
    assert len(entries()) >= 2


def test_the_folder_is_never_an_input(zeroshot, folder):
    common = [*COMMON[:4], "--into", "p/sorted"]
    assert len(classify(zeroshot, common=common)[1]) == 4
    code, rows, _ = classify(zeroshot, common=common)
    assert (code, len(rows)) == (0, 4)
    assert len(zeroshot("embed", "p", "--models", "pocket")[1]) == 4  # nor for any other command
    some = next(Path("p/sorted").glob("*/*")).parent
    assert zeroshot("embed", str(some), "--models", "pocket")[1]  # unless it is named
    code, _, err = classify(zeroshot, images=str(some), common=common)
    assert code == 2
    assert "name another one" in err
    code, rows, err = classify(zeroshot, images="p/**/*.png", common=common)
    assert (code, len(rows)) == (0, 4)
    assert "left out 4 images in 'p/sorted'" in err


def test_what_lies_outside(tmp_path):
    (tmp_path / "in").mkdir()
    os.symlink("in", tmp_path / "link")
    names = ["in/a.png", "link/a.png", "inner/a.png", "a.png", "in/x/../../b.png", "in\0x/a.png"]
    sources = [Source(str(tmp_path / name)) for name in names]
    assert [s.path for s in outside(sources, tmp_path / "link")] == [
        str(tmp_path / n) for n in ("inner/a.png", "a.png", "in/x/../../b.png", "in\0x/a.png")
    ]


def test_copies_need_the_column_that_says_of_what(zeroshot, folder):
    more = ("--out", "r.csv", "--columns", "path,labels,abstained", "--into-as", "copy")
    code, _, err = classify(zeroshot, *more)
    assert (code, "--into needs more --columns: id" in err) == (2, True)
    assert not Path("sorted").exists()


# Names


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("cat", "cat"),
        ("../x", "_._x"),
        ("..", "__"),
        (".", "_"),
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("/etc/passwd", "_etc_passwd"),
        ("con", "con_"),
        ("NUL.txt", "NUL_.txt"),
        ("com1", "com1_"),
        ("cone", "cone"),
        ("a\0b", "a_b"),
        ("a\nb", "a_b"),
        ("a. ", "a__"),
        ("", "_"),
        ("C:", "C_"),
        ("ä \U0001f600", "ä \U0001f600"),
        ("\ud800", "_"),
        ("\udcff", "\udcff"),
        (".hidden", "_hidden"),
    ],
)
def test_safe_names(label, name):
    assert safe_name(label) == name
    assert safe_name(name) == name
    assert os.path.dirname(os.path.normpath(os.path.join("/x", name))) == "/x"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Cat", "cat"], "'cat' and the label 'Cat' would have the same folder"),
        (["a/b", "a_b"], "'a_b' and the label 'a/b' would"),
        (["é", "e\u0301"], "would have the same folder"),
        (["Unlabelled"], "images without a label"),
        (["x" * 201], "too long"),
        (["ä" * 101], "too long"),
    ],
)
def test_labels_that_have_no_folder_of_their_own(labels, message):
    with pytest.raises(UserError, match=message):
        label_folders(labels)
    assert label_folders(["x" * 200, "ä" * 100])


def test_hostile_labels_stay_inside(zeroshot, folder):
    Path("labels.json").write_text(json.dumps(["../x", "a/b", "con", "/etc", "nul\0"]))
    common = ["--models", "pocket", "--labels", "labels.json", "--into", "sorted"]
    before = sorted(os.listdir())
    code, _, err = classify(zeroshot, common=common)
    assert code == 0
    assert "'_._x' for '../x'" in err
    assert sorted(os.listdir()) == sorted([*before, "sorted"])
    assert {p.parent.parent.name for p in Path("sorted").glob("*/*")} == {"sorted"}
    assert zeroshot("undo", *manifests())[0] == 0


@pytest.mark.parametrize(
    ("path", "data", "name"),
    [
        ("p/a.png", b"", "a.png"),
        ("x.tar\0y/a.png", b"\x89PNG\r\n\x1a\n", "a.png"),
        ("x.parquet#3", b"\xff\xd8\xff", "x.parquet#3.jpeg"),
        ("https://h/a.jpg?x=1", b"\xff\xd8\xff", "a.jpg_x=1.jpeg"),
        ("x.jsonl#1", b"?", "x.jsonl#1.image"),
        ("p/" + "ä" * 150 + ".jpg", b"", "ä" * 98 + ".jpg"),
        ("p/con.jpg", b"", "con_.jpg"),
    ],
)
def test_names_of_images(path, data, name):
    first, second = names_for(path, data)
    assert first == name
    assert first != second
    assert all(len(os.fsencode(n)) <= 255 and safe_name(n) == n for n in (first, second))
    assert os.path.splitext(first)[1] == os.path.splitext(second)[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--multi"], "needs a threshold"),
        (["--compare", "ensemble,center"], "--compare"),
        (["--into", "p/a.png"], "a file of this name"),
        (["--into", "no/sorted"], "no folder 'no' to make it in"),
    ],
)
def test_refusals_come_first(zeroshot, folder, more, message, monkeypatch):
    from zeroshot.tasks.classification.classify_task import Classify

    monkeypatch.setattr(Classify, "open", lambda *x: pytest.fail("a model was loaded"))
    code, _, err = classify(zeroshot, *more)
    assert code == 2
    assert message in err


# What is in the way


@pytest.mark.parametrize("there", ["file", "link", "dangling"])
def test_a_label_folder_that_is_none(folder, there):
    os.mkdir("sorted")
    os.mkdir("other")
    if there == "file":
        Path("sorted", "cat").write_text("mine")
    else:
        os.symlink("../other" if there == "link" else "../gone", "sorted/cat")
    before = content("sorted")
    assert list(put().values()) == [(2, "sorted/cat")]
    after = {k: v for k, v in content("sorted").items() if "/cat" in k}
    assert after == before
    assert not os.listdir("other")
    assert not Path("gone").exists()


def test_files_in_the_way_stay(zeroshot, folder):
    place = Path("sorted/cat")
    place.mkdir(parents=True)
    names = names_for("p/a.png")
    (place / names[0]).write_text("mine")
    assert not put()
    assert (place / names[1]).samefile("p/a.png")
    (place / names[1]).unlink()
    (place / names[1]).write_text("mine")
    [reason] = put()
    assert "is something else" in reason
    assert [(place / name).read_text() for name in names] == ["mine", "mine"]
    assert zeroshot("undo", *manifests())[0] == 3
    assert [(place / name).read_text() for name in names] == ["mine", "mine"]


# Taking back


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "copy"])
@pytest.mark.parametrize("change", ["replaced", "edited", "relinked", "moved", "image gone"])
def test_what_was_changed_stays(zeroshot, folder, kind, change):
    put(kind)
    [path] = manifests()
    file = Path("sorted/cat/a.png")
    image, stays = Path("p", file.name), file
    if change == "replaced":
        file.unlink()
        file.write_bytes(b"mine")
    elif change == "edited" and kind != "symlink":
        with file.open("r+b") as opened:
            opened.write(b"mine")
    elif change == "relinked":
        file.unlink()
        os.symlink("../../p/b.png", file)
    elif change == "moved":
        os.makedirs("sorted/own")
        os.rename(file, "sorted/own/x.png")
        stays = Path("sorted/own/x.png")
    elif change == "image gone":
        image.unlink()
    is_kept = (
        change in ("replaced", "moved")
        or (change == "edited" and kind == "copy")  # a hard link that is edited is the image
        or change == "relinked"
        or (change == "image gone" and kind != "symlink")  # the last copy
    )
    code, _, err = zeroshot("undo", path)
    assert code == (3 if is_kept else 0), err
    assert os.path.lexists(stays) == is_kept
    assert len(list(Path("sorted").rglob("*.png"))) == is_kept
    assert path.exists() == is_kept
    if is_kept:
        assert f"left '{os.path.realpath('sorted')}" in err
        again = zeroshot("undo", path)
        assert again[0] == 3
        assert os.path.lexists(stays)
    assert len(list(Path("p").iterdir())) == (3 if change == "image gone" else 4)


def test_foreign_files_and_folders_stay(zeroshot, folder):
    Path("sorted/cat").mkdir(parents=True)
    put()
    Path("sorted/dog/mine.txt").write_text("mine")
    code, _, err = zeroshot("undo", *manifests())
    assert code == 3
    assert "sorted/dog': it has 'mine.txt'" in err
    assert "sorted/cat': it was there before" in err
    assert entries() == ["cat", "dog", "dog/mine.txt"]
    os.unlink("sorted/dog/mine.txt")
    assert zeroshot("undo", *manifests())[0] == 0
    assert os.listdir("sorted") == ["cat"]


@pytest.fixture
def place(tmp_path):
    """A folder of a manifest, and one beside it that is none of its business."""
    (tmp_path / "sorted" / "cat").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(b"image")
    os.symlink("x", tmp_path / "other" / "link")
    return tmp_path


def written(place, *lines, first=None):
    path = place / "sorted" / f"{NAME}-0000.jsonl"
    lines = [first or {"schema": manifest.SCHEMA}, *lines]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


SHA = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d"
"""Of `image`."""


@pytest.mark.parametrize(
    "path",
    [
        *("../other/link", "cat/../../other/link", "/etc/hostname", "..", "cat/..", "a/b/c", ""),
        *("cat//x", "./cat", "cat\\..\\x", "C:x", "cat/.", "\0", ".hidden", 7, None, ["x"], {}),
        *("x" * 300, f"cat/{'x' * 300}"),
    ],
)
@pytest.mark.parametrize("kind", ["symlink", "copy", "folder"])
def test_a_manifest_that_names_what_no_run_writes(place, zeroshot, path, kind):
    os.symlink("x", place / "sorted" / "cat" / "good")
    good = {"makes": "symlink", "path": "cat/good", "target": "x"}
    bad = {"makes": kind, "path": path, "target": "x", "bytes": 5, "sha256": SHA}
    before = content(place)
    file = written(place, good, bad)
    code, _, err = zeroshot("undo", file)
    assert code == 2
    assert "line 3 names" in err
    file.unlink()
    assert content(place) == before


@pytest.mark.parametrize("kind", ["symlink", "copy"])
def test_a_link_in_the_middle_leads_nowhere(place, zeroshot, kind):
    os.symlink("../other", place / "sorted" / "dog")
    name = {"symlink": "link", "copy": "a.png"}[kind]
    line = {"makes": kind, "path": f"dog/{name}", "target": "x", "bytes": 5, "sha256": SHA}
    file = written(place, {"makes": "folder", "path": "dog"}, line)
    before = content(place)
    code, _, err = zeroshot("undo", file)
    assert code == 3
    assert "its folder is a link now" in err
    assert "dog': it is no folder any more" in err
    assert content(place) == before


def test_the_same_lines_without_the_link_are_taken_back(place, zeroshot):
    shutil.copytree(place / "other", place / "sorted" / "dog", symlinks=True)
    lines = [
        {"makes": "copy", "path": "dog/a.png", "bytes": 5, "sha256": SHA},
        {"makes": "symlink", "path": "dog/link", "target": "x"},
        {"makes": "folder", "path": "dog"},
    ]
    assert zeroshot("undo", written(place, *lines))[0] == 0
    assert os.listdir(place / "sorted") == ["cat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no manifest"),
        ('{"schema": "zeroshot.run/1"}\n', "no manifest"),
        ("[1]\n", "no line of a manifest"),
        ("nothing\n", "no JSON"),
        ('{"schema": "zeroshot.sorted/1"}\n{"makes": "copy"}\n', "line 2 is no line"),
        ('{"schema": "zeroshot.sorted/1"}\n{"makes": "device", "path": "x"}\n', "no run makes"),
        ('{"schema": "zeroshot.sorted/1"}\n{"makes": "folder", "path": "a/b"}\n', "no run makes"),
        ('{"schema": "zeroshot.sorted/1"}\n' + "[" * 100000 + "\n", "line 2 is no JSON"),
    ],
)
def test_what_is_no_manifest(tmp_path, text, message, zeroshot):
    (tmp_path / "m.jsonl").write_text(text)
    code, _, err = zeroshot("undo", tmp_path / "m.jsonl")
    assert code == 2
    assert message in err


def test_a_folder_and_nothing(tmp_path, zeroshot):
    assert "no such file" in zeroshot("undo", tmp_path / "x.jsonl")[2]
    code, _, err = zeroshot("undo", tmp_path)
    assert code == 2
    assert "has no manifest" in err


# Interrupted


@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize("made", [False, True])
def test_a_killed_run_leaves_nothing_that_is_not_listed(tmp_path, monkeypatch, stop, made):
    """Stop before each system call that makes something, or after it."""
    image, root, calls = tmp_path / "a.png", tmp_path / "sorted", iter(range(100))
    image.write_bytes(b"image")

    def dying(real):
        def call(*given, **more):
            number = next(calls)
            if number == stop and not made:
                raise KeyboardInterrupt
            real(*given, **more)
            if number == stop:
                raise KeyboardInterrupt

        return call

    writer, stopped = Manifest(root, NAME), False
    with monkeypatch.context() as patched:
        for name in ("mkdir", "symlink", "link"):
            patched.setattr(os, name, dying(getattr(os, name)))
        try:
            writer.make_folder("cat")
            writer.symlink("cat/a.png", "../../a.png")
            writer.hardlink("cat/b.png", str(image))
            writer.make_folder("dog")
            writer.copy("dog/a.png", b"image", str(image))
        except KeyboardInterrupt:
            stopped = True
    del writer
    assert stopped == (stop < 6)
    files = list(root.glob("*.jsonl"))
    if stop == 0:  # the folder itself, and nothing in it
        assert root.exists() == made
        assert not files
        return
    with files[0].open("ab") as opened:
        opened.write(b'{"makes": "symlink", "pa')
    done = manifest.undo([read_manifest(files[0], of_this_run=True)])
    assert done.left == []
    assert not root.exists()
    assert image.read_bytes() == b"image"


def test_a_run_that_is_going_on_is_not_undone(tmp_path):
    made = Manifest(tmp_path / "sorted", NAME)
    made.make_folder("cat")
    [file] = (tmp_path / "sorted").glob("*.jsonl")
    with pytest.raises(UserError, match="still being written"):
        read_manifest(file)
    made.close()
    assert read_manifest(file).folders == (".", "cat")


def test_an_interrupted_run_says_how_to_undo(zeroshot, folder, monkeypatch):
    from zeroshot.tasks.sidecars.sorted_images import SortedImages

    real, calls = SortedImages.write, []

    def write(self, *given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, *given)

    monkeypatch.setattr(SortedImages, "write", write)
    code, _, err = classify(zeroshot)
    assert code == 130
    [path] = manifests()
    assert f"2 links or copies in 'sorted'; to take back: zeroshot undo {path}" in err
    assert zeroshot("undo", path)[0] == 0
    assert not Path("sorted").exists()
