"""Three hundred broken inputs in one run: each is one row with a reason, and nothing is harmed.

They are made from the example scenes, the same ones every time. Good pictures stand between them
and have to come through.
"""

import io
import json
import os
import random
import socket
import struct
import sys
import tarfile
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import pytest

from zeroshot import cli
from zeroshot.errors import UnreadableImageError
from zeroshot.images.reading import read

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SCENES = sorted((Path(__file__).parent.parent / "examples" / "scenes").glob("*.png"))
FORMATS = {
    "PNG": "png",
    "JPEG": "jpg",
    "WebP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
}
TOTAL = 300


@dataclass(frozen=True)
class Case:
    """One broken input: what is named, the one row that fails, and the rows that do not."""

    given: str
    bad: str
    good: tuple[str, ...] = ()


def scene(number, format="PNG"):
    data = io.BytesIO()
    with PIL.Image.open(SCENES[number % len(SCENES)]) as image:
        image.convert("RGB").save(data, format)
    return data.getvalue()


def unreadable(data):
    """Whether its pixels cannot be read; Pillow warns of other damage, as of a tag that is cut."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            read(data)
    except UnreadableImageError:
        return True
    return False


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width, height, *more):
    """A PNG of a few hundred bytes that would expand to `width x height` pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(100_000), 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + chunk(b"IEND", b"")


def bombs():
    """Files that say they are enormous, and a PNG whose texts and colour profile expand."""
    sides = [
        (30_000, 30_000),
        (100_000, 100_000),
        (2**31 - 1, 2**31 - 1),
        (65_000, 2),
        (20_000, 20_000),
    ]
    yield from (("png", png_bomb(*side)) for side in sides)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000), 9))
    yield "png", png_bomb(50_000, 50_000, text)
    yield "png", scene(0)[:33] + text + scene(0)[33:]
    yield "gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + scene(0, "GIF")[13:]
    yield (
        "bmp",
        b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 40_000, 40_000, 1, 24, 0) + bytes(9),
    )
    webp = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    yield "webp", b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp
    tags = [(256, 60_000), (257, 60_000), (258, 8), (259, 1), (262, 1), (273, 8), (278, 60_000)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    yield "tif", b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    jpeg = bytearray(scene(0, "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = b"\xff\xff\xff\xff"
    yield "jpg", bytes(jpeg)


WRONG = [
    *(("jpg", b"just words\n"), ("png", b"<!doctype html><p>hello"), ("webp", b"PK\x03\x04zip")),
    *(("gif", b"%PDF-1.7\n"), ("bmp", b"\0\0\0\x20ftypisom"), ("tif", b"<svg xmlns=''/>")),
    *(("jpeg", b"\x7fELF\x02\x01"), ("png", b"version https://git-lfs.github.com/spec/v1\n")),
    *(("jpg", b"\0\0\0\x18ftypheic"), ("png", b""), ("jpg", bytes(4096)), ("png", b"\n")),
    *(("tar", scene(1)), ("csv", scene(1)), ("jsonl", scene(1)), ("parquet", scene(1))),
    *(("tar", b""), ("csv", b""), ("jsonl", b""), ("parquet", b""), ("tgz", b"\x1f\x8b\x08")),
    *(("tar.zst", b"\x28\xb5\x2f\xfd"), ("tsv", b"\0\0"), ("exe", b"MZ\x90\0"), ("", b"text")),
]


def member(name, kind=tarfile.REGTYPE, content=b"", link="", **more):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    info.size = len(content) if kind == tarfile.REGTYPE else 0
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def tar_of(*members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", errors="surrogateescape") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


BAD_NAMES = [
    *("../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"),
    *("../" * 40 + "evil.png", "//host/share/evil.png", "a/b/../../../evil.png", "..//evil.png"),
    *("/dev/sda.png", "/proc/self/mem.png", "./../evil.png", "~/../evil.png", "\\\\..\\evil.png"),
]


def bad_members():
    """Members that are no picture's file, whatever they hold."""
    yield from (member(name, content=scene(2)) for name in BAD_NAMES)
    for link in ("/etc/passwd", "../../x", "evil.png", "good.png"):
        yield member("evil.png", tarfile.SYMTYPE, link=link)
        yield member("evil.png", tarfile.LNKTYPE, link=link)
    for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE):
        yield member("evil.png", kind, devmajor=1, devminor=5)
    yield member("evil.png", content=b"x", pax_headers={"GNU.sparse.realsize": "999999999999"})
    yield member("good.png", content=scene(4))  # for the second time


BAD_PATHS = [
    *("../secret.png", "/etc/passwd", "x/../../secret.png", "/dev/zero", "/proc/self/mem"),
    *("file:///etc/passwd", "ftp://example.org/a.png", "zip://a::s3://b/c", "memory://x/a.png"),
    *(
        "xy://",
        "../" * 60 + "etc/passwd",
        "..",
        "a/../..",
        "gopher://127.0.0.1/",
        "sftp://h/x.png",
    ),
]
BAD_URLS = [
    *("http://127.0.0.1/a.png", "http://localhost:1/a.png", "https://169.254.169.254/latest/"),
    *("http://[::1]/a.png", "http://0x7f.1/a.png", "http://2130706433/", "http://10.0.0.1/a.png"),
    *("http://[::ffff:192.168.0.1]/", "http://", "http://:80/"),
    *(
        "https://127.0.0.1:99999/",
        "http://[bad/",
        "http://" + "a" * 300 + "/",
        "http://100.64.0.1/",
    ),
]


class Maker:
    """Writes broken inputs below `broken/`, numbered, with good pictures around them."""

    def __init__(self):
        self.random = random.Random(6)
        self.cases: list[Case] = []
        os.mkdir("broken")

    def name(self, suffix):
        number = f"broken/{len(self.cases):03d}"
        return f"{number}.{suffix}" if suffix else number

    def file(self, suffix, content):
        name = self.name(suffix)
        Path(name).write_bytes(content)
        self.cases.append(Case(name, name))

    def truncations(self, count):
        for number in range(count):
            format, suffix = list(FORMATS.items())[number % len(FORMATS)]
            whole = scene(number, format)
            self.file(suffix, whole[: self.random.randrange(1, len(whole) // 2)])

    def flips(self, count):
        """Flipped bits that leave no picture; many a flip only changes a colour."""
        start = len(self.cases)
        while len(self.cases) < start + count:
            number = len(self.cases)
            format, suffix = list(FORMATS.items())[number % len(FORMATS)]
            data = bytearray(scene(number, format))
            for _ in range(self.random.randrange(1, 40)):
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            if unreadable(bytes(data)):
                self.file(suffix, bytes(data))

    def tar(self, bad_label, *members):
        """A tar file with good pictures around what is bad."""
        name = self.name("tar")
        good, last = member("good.png", content=scene(0)), member("last.png", content=scene(1))
        Path(name).write_bytes(tar_of(good, *members, last))
        self.cases.append(
            Case(name, f"{name}{bad_label}", (f"{name}/good.png", f"{name}/last.png"))
        )

    def broken_tars(self, count):
        """Cut off somewhere, or with a flipped bit in a header."""
        whole = tar_of(*(member(f"{i}.png", content=scene(i)) for i in range(3)))
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            found = [(m.offset, m.offset_data + m.size) for m in tar]
        for number in range(count):
            name = self.name("tar")
            if number % 2:
                place = self.random.randrange(found[0][0] + 1, found[2][1])
                data, kept = whole[:place], sum(end <= place for _, end in found)
            else:
                kept = number // 2 % 3
                broken = bytearray(whole)
                broken[found[kept][0] + self.random.randrange(100)] ^= 1 << self.random.randrange(7)
                data = bytes(broken)
            Path(name).write_bytes(data)
            bad = f"{name}#{kept}" if kept else name
            self.cases.append(Case(name, bad, tuple(f"{name}/{i}.png" for i in range(kept))))

    def table(self, suffix, path):
        """A table whose second row names `path`; the others a good picture."""
        name = self.name(suffix)
        paths = ["good.png", path, "good.png"]
        if suffix == "parquet":
            pq.write_table(pa.table({"path": paths}), name)
        elif suffix == "jsonl":
            Path(name).write_text("".join(json.dumps({"path": p}) + "\n" for p in paths))
        else:
            Path(name).write_text("path\n" + "".join(f'"{p}"\n' for p in paths))
        bad = path if path.startswith(("http://", "https://")) else f"{name}#1"
        self.cases.append(Case(name, bad, ("broken/good.png", "broken/good.png")))

    def cell(self, cell):
        """A Parquet file of pictures with one bad cell."""
        name = self.name("parquet")
        cells = [{"bytes": scene(0), "path": None}, cell, {"bytes": scene(1), "path": None}]
        pq.write_table(pa.table({"image": cells}), name)
        self.cases.append(Case(name, f"{name}#1", (f"{name}#0", f"{name}#2")))

    def broken_tables(self):
        """Rows that do not fit, texts that are none, files that are cut off."""
        good = ("broken/good.png",)
        for suffix, content, bad, kept in [
            ("csv", b"path,caption\ngood.png,x\nonly one\n", "#1", good),
            ("csv", b"path,caption\ngood.png,x\ngood.png,a,b\n", "#1", good),
            ("csv", b'path\ngood.png\n"' + b"x" * (1 << 24) + b"\n", "#1", good),
            ("jsonl", b'{"path": "good.png"}\n{"path": \n', "#1", good),
            ("jsonl", b'{"path": "good.png"}\n[]\n', "#1", good),
            ("jsonl", b'{"path": "good.png"}\n' + b"[" * 200_000 + b"\n", "#1", good),
            ("jsonl", b'{"path": "good.png"}\n{"path": {"a": 1}}\n', "#1", good),
            ("jsonl", b'{"path": "good.png"}\n{"other": 1}\n', "#1", good),
            ("jsonl", b'{"path": "good.png"}\n"' + b"x" * (1 << 24), "#1", good),
        ]:
            name = self.name(suffix)
            Path(name).write_bytes(content)
            self.cases.append(Case(name, f"{name}{bad}", kept))
        whole = io.BytesIO()
        pq.write_table(pa.table({"path": ["good.png"]}), whole)
        for place in (4, 50, len(whole.getvalue()) // 2, len(whole.getvalue()) - 1):
            self.file("parquet", whole.getvalue()[:place])

    def odd_files(self):
        """What a file system can hold beside files."""
        for number in range(3):
            name = self.name("png")
            os.symlink(os.path.basename(name), name)  # to itself
            self.cases.append(Case(name, name))
            one, two = self.name("png"), self.name("png") + ".other"
            os.symlink(os.path.basename(two), one)
            os.symlink(os.path.basename(one), two)
            self.cases.append(Case(one, one))
            dead = self.name("png")
            os.symlink(f"nowhere-{number}", dead)
            self.cases.append(Case(dead, dead))
        pipe = self.name("png")
        os.mkfifo(pipe)
        self.cases.append(Case(pipe, pipe))
        heard = self.name("png")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(heard)
        self.cases.append(Case(heard, heard))
        forbidden = self.name("png")
        Path(forbidden).write_bytes(b"not to be read, and no picture to whom may read all")
        os.chmod(forbidden, 0)
        self.cases.append(Case(forbidden, forbidden))
        for name in (
            "/dev/zero",
            "/dev/null",
            "/dev/full",
            "a\0b.png",
            "x" * 5000,
            "broken/none.png",
        ):
            self.cases.append(Case(name, name))
        folder = self.name("")
        os.mkdir(folder)
        os.symlink(".", f"{folder}/loop")
        os.symlink("../..", f"{folder}/up.png")
        os.symlink("gone", f"{folder}/gone.png")
        os.unlink(f"{folder}/up.png")
        self.cases.append(Case(folder, f"{folder}/gone.png"))

    def odd_names(self, count):
        """File names and members' names that are no UTF-8, with control characters and the like."""
        odd = [
            b"caf\xe9",
            b"\xff\xfe",
            b"\xed\xa0\x80",
            b"a\nb",
            b"a\x1b[31mb",
            b"\xc0\xaf",
            b"%s{}",
        ]
        for number in range(count):
            raw = b"broken/%03d-" % len(self.cases) + odd[number % len(odd)] + b".png"
            Path(os.fsdecode(raw)).write_bytes(scene(number)[: 50 + number])
            self.cases.append(Case(os.fsdecode(raw), os.fsdecode(raw)))


def make():
    """All cases, in folder `broken` of the working directory."""
    maker = Maker()
    Path("broken/good.png").write_bytes(scene(3))
    Path("secret.png").write_bytes(scene(5))
    maker.truncations(42)
    maker.flips(42)
    for suffix, content in WRONG:
        maker.file(suffix, content)
    for suffix, content in bombs():
        maker.file(suffix, content)
        maker.tar(f"/bomb.{suffix}", member(f"bomb.{suffix}", content=content))
    for info, content in bad_members():
        maker.tar("#1", (info, content))
    maker.broken_tars(24)
    for number, path in enumerate(BAD_PATHS):
        maker.table(("csv", "jsonl", "parquet")[number % 3], path)
    for number, url in enumerate(BAD_URLS):
        maker.cases.append(Case(url, url))
        maker.table(("csv", "jsonl", "parquet")[number % 3], url)
    for cell in [
        *(None, {"bytes": b"", "path": None}, {"bytes": None, "path": "../secret.png"}),
        *({"bytes": None, "path": "/etc/passwd"}, {"bytes": scene(0)[:99], "path": "good.png"}),
        *({"bytes": png_bomb(40_000, 40_000), "path": ""}, {"bytes": b"\xff\xd8\xff", "path": "x"}),
    ]:
        maker.cell(cell)
    maker.broken_tables()
    maker.odd_files()
    maker.odd_names(TOTAL - len(maker.cases))
    return maker.cases


# The run


WRITES = {
    *("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"),
    *("os.chmod", "os.chown", "os.utime", "shutil.move", "shutil.copyfile", "shutil.rmtree"),
}
_written: list[str] | None = None


def _watch(event, arguments):
    """An audit hook: paths that this process changes while `_written` is a list."""
    if _written is None:
        return
    if event in WRITES:
        _written.extend(os.fsdecode(a) for a in arguments[:2] if isinstance(a, str | bytes))
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path, mode, flags = arguments
        changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        if set(mode or "") & set("wax+") or (flags or 0) & changing:
            _written.append(os.fsdecode(path))


def tree(*skipped):
    """Everything below the working directory: kind, size, and content of files."""
    found = {}
    for folder, folders, names in os.walk(b"."):
        folders[:] = [name for name in folders if name not in skipped]
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            state = os.lstat(path)
            content = (
                Path(os.fsdecode(path)).read_bytes()
                if state.st_mode & 0o170000 == 0o100000
                else b""
            )
            found[path] = state.st_mode, state.st_size, state.st_mtime_ns, hash(content)
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The cases, the exit code, the rows in order, what was written, the tree before and after."""
    global _written
    home = tmp_path_factory.mktemp("fuzz")
    back = os.getcwd()
    os.chdir(home)
    sys.addaudithook(_watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROSHOT_CACHE", str(home / "cache"))
        cases = make()
        assert cli.run(["embed", str(SCENES[0]), "--models", "pocket", "--json"]) == 0  # imports
        before = tree(b"out", b"cache")
        given = [case.given for case in cases]
        _written = []
        try:
            options = ["--models", "pocket", "--out", "out/rows.jsonl", "--quiet"]
            code = cli.run(["embed", *given, *options])
            written = _written
        finally:
            _written = None
        rows = [json.loads(line) for line in Path("out/rows.jsonl").read_bytes().splitlines()]
        again = cli.run(["embed", *given, *options])
        more = len(Path("out/rows.jsonl").read_bytes().splitlines()) - len(rows)
        yield cases, code, rows, written, before, tree(b"out", b"cache"), (again, more)
    os.chdir(back)


def test_there_are_three_hundred(ran):
    cases = ran[0]
    assert len(cases) == TOTAL
    assert len({case.given for case in cases}) == TOTAL


def test_each_is_one_row_with_a_reason(ran):
    cases, code, rows, *_ = ran
    assert code == 3
    failed = [row["path"] for row in rows if "error" in row]
    assert sorted(failed) == sorted(case.bad for case in cases)
    for row in rows:
        if "error" in row:
            assert row["error"]["type"] == "UnreadableImage"
            assert 3 < len(row["error"]["message"]) < 700, row


def test_no_good_picture_is_lost_or_out_of_order(ran):
    cases, _, rows, *_ = ran
    good = [row for row in rows if "error" not in row]
    assert [row["path"] for row in good] == [path for case in cases for path in case.good]
    assert {row["dim"] for row in good} == {128}
    order = {case.bad: place for place, case in enumerate(cases)}
    places = [order[row["path"]] for row in rows if "error" in row]
    assert places == sorted(places)


def test_nothing_is_written_but_the_output_and_the_cache(ran):
    *_, written, before, after, _ = ran
    home = os.getcwd()
    ours = [os.path.join(home, name) + os.sep for name in ("out", "cache")]
    stray = {
        path
        for path in map(os.path.abspath, written)
        if not f"{path}{os.sep}".startswith(tuple(ours)) and "__pycache__" not in path
    }
    assert stray == set()
    assert written  # the hook sees what is written
    assert after == before


def test_a_second_run_finds_all_of_it_done(ran):
    *_, (again, more) = ran
    assert (again, more) == (0, 0)


# Labels


LONG = "a " + "very " * 90 + "long label"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("red heart,red heart", "has labels more than once: 'red heart'"),
        ("", "one of --labels"),
        (" , ", "has an empty entry"),
        ("red heart,,blue star", "has an empty entry"),
        (f"red heart,{LONG}", "--long-text"),
        ("red heart,\udcff", "is no valid text"),
        ("labels.txt", "has labels more than once: 'red heart'"),
        ("binary.txt", "line 1, character 1 is the byte 0xff, which is not UTF-8"),
        ("empty.txt", "has no labels"),
        ("empty.json", "has no labels"),
        ("broken.json", "is not JSON"),
        ("gone.txt", "no such file 'gone.txt'"),
    ],
)
def test_labels_that_are_none(tmp_path, monkeypatch, capsys, labels, message):
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("red heart\nblue star\nred heart\n")
    Path("binary.txt").write_bytes(b"\xff\0\x80")
    Path("empty.txt").write_bytes(b"\n \n")
    Path("empty.json").write_bytes(b"[]")
    Path("broken.json").write_bytes(b'["a", ')
    options = ["--models", "pocket", "--out", "rows.jsonl"]
    assert cli.run(["classify", str(SCENES[0]), "--labels", labels, *options]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert message in said
    assert "Traceback" not in said
    assert not Path("rows.jsonl").exists()
