"""Who may ask the server, and how much: each line of the list, and what malformed requests get."""

import io
import json
import os
import random
import socket
import struct
import tarfile
import threading
import time
import zlib

import httpx
import pytest
from PIL import Image

from tests.serving import HEART, PLAIN, SCENES, STAR, data_uri, get, running, sentence
from zeroshot import serve
from zeroshot.errors import UserError, ZeroshotError
from zeroshot.serving.mcp_tools import ImageTools
from zeroshot.serving.web import api_routes, bodies, guard

LABELS = ["red heart", "blue star"]


def raw(server, text, seconds=20, half=False):
    """What the server answers to bytes."""
    with socket.create_connection(("127.0.0.1", server.state.rules.port), timeout=seconds) as wire:
        wire.sendall(text if isinstance(text, bytes) else text.encode())
        if half:
            wire.shutdown(socket.SHUT_WR)
        parts = []
        try:
            while part := wire.recv(65536):
                parts.append(part)
                wire.settimeout(1)
        except TimeoutError:  # the connection stays open for another request
            if not parts:
                raise
        return b"".join(parts)


def ask_as(server, **headers):
    """The status of a harmless request with other headers."""
    given = {"authorization": f"Bearer {server.token}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return get(f"{server.url}/v1/models", headers=given)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", "[::1", "a b"]
)
def test_another_host_name_is_421(served, host):
    server, _ = served
    answer = ask_as(server, host=host.format(port=server.state.rules.port))
    assert answer.status_code in ((421, 400) if host in ("", "a b", "[::1") else (421,))


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "[::1]", "127.0.0.1"])
def test_names_of_this_machine_are_known(served, name):
    server, _ = served
    assert ask_as(server, host=f"{name}:{server.state.rules.port}").status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "x"])
def test_a_foreign_origin_is_403(served, origin):
    server, client = served
    given = {"origin": origin.format(port=server.state.rules.port)}
    assert client.get("/v1/models", headers=given).status_code == 403
    own = {"origin": server.url}
    assert client.get("/v1/models", headers=own).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_cross_site_requests_are_403(served, site):
    _, client = served
    given = {"sec-fetch-site": site}
    assert client.post("/v1/search", json={"query": "a"}, headers=given).status_code == 403
    assert client.get("/v1/models", headers=given).status_code == 403
    to_page = given | {"sec-fetch-mode": "navigate"}
    assert client.get("/", headers=to_page).status_code == 200
    assert client.post("/", headers=to_page).status_code == 403
    assert client.get("/api/state", headers=to_page).status_code == 403


@pytest.mark.parametrize("token", [None, "wrong", "ümlaut", "Bearer", "{token}x"])
def test_no_or_a_wrong_token_is_401(served, token):
    server, _ = served
    value = None if token is None else f"Bearer {token.format(token=server.token)}"
    headers = {} if value is None else {"authorization": value.encode()}
    for path in ("/v1/models", "/api/state", "/metrics", "/openapi.json", "/thumb/" + "0" * 64):
        answer = get(server.url + path, headers=headers)
        assert answer.status_code == 401
        sentence(answer)
    page = get(server.url + "/", headers=headers)
    assert page.status_code == 401
    assert "zeroshot serve" in page.text
    for path in ("/healthz", "/page.css", "/icon.svg"):
        assert get(server.url + path, headers=headers).status_code == 200


def test_the_token_of_the_address_becomes_a_strict_cookie(served):
    server, _ = served
    answer = get(server.page + "&t=%2B%3Aa+dog")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?t=%2B%3Aa+dog"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    with httpx.Client(base_url=server.url, cookies=answer.cookies, verify=PLAIN) as client:
        assert client.get("/api/state").status_code == 200
    wrong = get(f"{server.url}/?token=wrong")
    assert wrong.status_code == 401
    assert "set-cookie" not in wrong.headers


def test_headers_of_every_answer(served):
    server, client = served
    answers = [client.get(path) for path in ("/", "/v1/models", "/nothing", "/page.js", "/healthz")]
    answers += [get(server.url + "/v1/models"), client.post("/v1/search", content=b"{")]
    answers.append(client.options("/v1/models", headers={"origin": "http://evil.example"}))
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/thumb/../../etc/passwd",
        "/thumb/..%2f..%2fetc%2fpasswd",
        "/thumb/%2e%2e/%2e%2e/etc/passwd",
        "/thumb//etc/passwd",
        "/thumb/" + "0" * 64,
        "/thumb/" + "0" * 63,
        "/thumb/1-red-heart.png",
        "/page.css/../../openapi.py",
        "/static/page.js",
        "/anchor?id=../../etc/passwd",
        "/api/image?key=1-red-heart.png",
        "/%00",
    ],
)
def test_nothing_but_ids_names_a_file(served, path):
    server, _ = served
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.state.rules.port}\r\n"
    request += f"Authorization: Bearer {server.token}\r\nConnection: close\r\n\r\n"
    head, _, body = raw(server, request).partition(b"\r\n\r\n")
    assert head.split()[1] == b"404"
    assert b"root:" not in body


def test_a_body_is_counted_while_it_streams(tmp_path):
    with running(SCENES, tmp_path, max_upload_mb=0.1) as (server, client):

        def endless():
            for _ in range(3000):
                yield b"x" * 10_000

        for path, kind in (
            ("/api/upload", "image/png"),
            ("/v1/classify?labels=a", "image/png"),
            ("/v1/search", "application/json"),
        ):
            try:
                answer = client.post(path, content=endless(), headers={"content-type": kind})
            except httpx.HTTPError:  # the server stopped reading, and the client noticed first
                continue
            assert answer.status_code == 413
            sentence(answer)
        head = f"POST /api/upload HTTP/1.1\r\nHost: 127.0.0.1:{server.state.rules.port}\r\n"
        head += f"Authorization: Bearer {server.token}\r\nContent-Length: 30000000\r\n\r\nx"
        assert raw(server, head).split()[1] == b"413"
        large = io.BytesIO()
        Image.effect_noise((500, 500), 90).save(large, "PNG")
        given = {"image": data_uri(large.getvalue()), "labels": LABELS}
        assert client.post("/v1/classify", json=given).status_code == 413
        small = {"image": data_uri(HEART), "labels": LABELS}
        assert client.post("/v1/classify", json=small).status_code == 200


def png_of(width, height):
    """The head of an image that large; its pixels are missing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "an empty file"),
        (b"%PDF-1.4", "a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "an SVG drawing"),
        (b"<!doctype html><script>alert(1)</script>", "a web page"),
        (b"\xff\xd8\xff broken", "JPEG"),
        (png_of(50_000, 50_000), "megapixels"),
        (png_of(60_000, 10), "too narrow"),
    ],
)
def test_what_is_no_image_is_415_with_the_reason(served, data, reason):
    _, client = served
    as_body = client.post("/api/upload", content=data)
    as_json = client.post("/v1/caption", json={"image": data_uri(data)})
    streamed = client.post(
        "/v1/caption", json={"image": data_uri(data)}, headers={"accept": "text/event-stream"}
    )
    for answer in (as_body, as_json, streamed):
        assert answer.status_code == 415
        assert reason in sentence(answer)


@pytest.mark.parametrize(
    "image",
    [
        "http://127.0.0.1:1/a.png",
        "https://example.com/a.png",
        "file:///etc/passwd",
        str(HEART),
        "data:text/html;base64,PGI+",
        "data:image/png,%89PNG",
        "data:image/png;base64,????",
    ],
)
def test_no_address_and_no_path_is_read(served, image):
    _, client = served
    given = {"image": image, "labels": LABELS}
    assert client.post("/v1/classify", json=given).status_code == 400
    search = client.post("/v1/search", json={"query": {"image": image}})
    assert search.status_code == 400
    embedding = client.post("/v1/embeddings", json={"image": image})
    assert embedding.status_code == 400


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("classify", {"labels": str(SCENES / "labels.txt")}),
        ("classify", {"labels": LABELS, "shots": "/etc"}),
        ("classify", {"labels": LABELS, "bank": ["/etc"]}),
        ("classify", {"labels": LABELS, "calibration": "/etc/passwd"}),
        ("classify", {"labels": LABELS, "hierarchy": "/etc/x.json"}),
        ("classify", {"labels": LABELS, "templates": "/etc/passwd"}),
        ("classify", {"labels": LABELS, "templates": "../../../../etc/hostname"}),
        ("classify", {"labels": LABELS, "templates": "/etc"}),
        ("classify", {"labels": LABELS, "templates": "/nowhere"}),
        ("segment", {"labels": LABELS, "templates": "/etc/passwd"}),
        ("detect", {"labels": LABELS, "templates": "~/.profile"}),
        ("detect", {"labels": LABELS, "draw": "/tmp/out"}),
        ("detect", {"labels": LABELS, "model": "hf:./somewhere"}),
        ("detect", {"labels": LABELS, "background": "/tmp/x.txt"}),
        ("segment", {"labels": LABELS, "masks": "/tmp/out"}),
        ("segment", {"labels": LABELS, "examples": "/tmp"}),
        ("segment", {"labels": LABELS, "resolution": 100_000}),
        ("caption", {"lm": "hf:evil/model"}),
        ("caption", {"model": "hf:evil/model", "method": "native"}),
        ("caption", {"method": "magic", "options": {"k": 50_000}}),
        ("caption", {"method": "magic", "options": {"k": [1]}}),
        ("ask", {"question": ["what?"], "answers": "/etc/x.txt"}),
        ("ask", {"question": ["what?"], "regions": "/etc/x.npz"}),
        ("ask", {"question": ["what?"], "model": "hf:evil/model"}),
    ],
)
def test_no_request_names_a_file_a_folder_or_a_model(served, name, given):
    _, client = served
    answer = client.post(f"/v1/{name}", json={"image": data_uri(HEART), **given})
    assert answer.status_code == 400
    sentence(answer)


def test_what_a_request_names_is_never_a_file(served, tmp_path):
    """Templates of every spelling: the answer is the same whether there is such a file or not."""
    _, client = served
    secret = tmp_path / "secret"
    secret.write_text("my secret\n")
    (tmp_path / "{}").write_text("my secret\n")
    (tmp_path / "{}.json").write_text('["my secret"]')
    given = {"image": data_uri(HEART), "labels": LABELS}
    for name in ("secret", "{}", "{}.json"):
        for path in ("/v1/classify", "/v1/detect", "/v1/segment"):
            there = client.post(path, json=given | {"templates": f"{tmp_path}/{name}"})
            absent = client.post(path, json=given | {"templates": f"{tmp_path}/x{name}"})
            assert there.status_code == absent.status_code == (400 if name == "secret" else 200)
            assert "my secret" not in there.text
            assert "is no file" not in absent.text
    refused = client.post("/v1/classify", json=given | {"templates": "opena"})
    assert "openai, simple, none, waffle, or one template with {}" in sentence(refused)
    allowed = client.post("/v1/classify", json=given | {"templates": "waffle:7"})
    assert allowed.status_code == 200


def test_labels_that_look_like_files_are_labels(served, tmp_path, monkeypatch):
    (tmp_path / "labels.txt").write_text("secret\n")
    monkeypatch.chdir(tmp_path)
    given = {"image": data_uri(HEART), "labels": ["labels.txt", "imagenet"]}
    answer = served[1].post("/v1/classify", json=given)
    assert {one["label"] for one in answer.json()["labels"]} == {"labels.txt", "imagenet"}


def test_thumbnails_are_upright_and_carry_nothing(tmp_path):
    """GPS, camera and XMP are gone, and the turn that EXIF asks for is made."""
    folder = tmp_path / "photos"
    folder.mkdir()
    image = Image.new("RGB", (60, 30), "red")
    exif = image.getexif()
    exif[0x0112], exif[0x010F] = 6, "A camera of mine"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    image.save(folder / "a.jpg", exif=exif, comment=b"my street", xmp=b"<x>my name</x>")
    with running(folder, tmp_path / "cache") as (server, client):
        [id] = server.state.folders.snapshot.matrix.ids
        for width in (96, 1600):
            data = client.get(f"/thumb/{id}?w={width}").content
            small = Image.open(io.BytesIO(data))
            assert small.format == "WEBP"
            assert small.height > small.width
            assert not small.getexif()
            assert not small.info.keys() & {"exif", "xmp", "icc_profile", "comment"}
            assert not [w for w in (b"camera", b"street", b"my name", b"GPS") if w in data]


def test_links_that_lead_out_are_not_shown(tmp_path):
    folder, outside = tmp_path / "photos", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (folder / "in.png").write_bytes(HEART.read_bytes())
    (outside / "secret.png").write_bytes(STAR.read_bytes())
    (folder / "link.png").symlink_to(outside / "secret.png")
    (folder / "linked").symlink_to(outside)
    (folder / "same.png").symlink_to(folder / "in.png")
    with tarfile.open(outside / "pack.tar", "w") as tar:
        tar.add(STAR, "secret.png")
    (folder / "pack.tar").symlink_to(outside / "pack.tar")
    with running(folder, tmp_path / "cache") as (server, client):
        assert sorted(server.state.folders.snapshot.names) == ["in.png", "same.png"]
        failures = client.get("/api/failures").json()["failures"]
        assert {one["name"] for one in failures} == {"link.png", "linked", "pack.tar"}
        assert {one["reason"] for one in failures} == {
            "a link that leads out of the served folders"
        }


READS = [
    ("/v1/caption", lambda id: {"id": id}),
    ("/v1/classify", lambda id: {"id": id, "labels": LABELS}),
    ("/v1/detect", lambda id: {"id": id, "labels": LABELS}),
    ("/v1/embeddings", lambda id: {"input": [{"id": id}]}),
    ("/v1/search", lambda id: {"query": {"id": id}}),
    ("/api/find", lambda id: {"terms": [{"id": id}]}),
]


@pytest.mark.parametrize("how", ["link", "other"])
def test_a_file_that_was_replaced_is_not_read(tmp_path, monkeypatch, how):
    """Before the folder is looked at again: by pixels, by rows, by embeddings, by an assistant."""
    monkeypatch.setattr("zeroshot.serving.folders.SECONDS", 1000.0)
    folder, secret = tmp_path / "photos", tmp_path / "secret.png"
    folder.mkdir()
    (folder / "in.png").write_bytes(HEART.read_bytes())
    secret.write_bytes(STAR.read_bytes())
    with running(folder, tmp_path / "cache") as (server, client):
        [id] = server.state.folders.snapshot.matrix.ids
        (folder / "in.png").unlink()
        if how == "link":
            (folder / "in.png").symlink_to(secret)
        else:
            (folder / "in.png").write_bytes(STAR.read_bytes())
        reason = "leads out" if how == "link" else "has changed since it was indexed"
        thumb = client.get(f"/thumb/{id}?w=640")
        for answer in (thumb, *(client.post(path, json=given(id)) for path, given in READS)):
            assert answer.status_code in (400, 415), answer.text
            assert reason in sentence(answer)
        tools = ImageTools(server.state.engine, server.state.folders)
        with pytest.raises(ZeroshotError, match=reason):
            tools.look_at("in.png")


@pytest.mark.parametrize("token", [None, ""])
def test_other_machines_need_a_token_of_the_user(token):
    with pytest.raises(UserError, match="--token"):
        serve(SCENES, "pocket", host="0.0.0.0", token=token)


def test_a_server_for_others_knows_its_addresses(tmp_path):
    from zeroshot.cache.embedding_cache import EmbeddingCache

    store = EmbeddingCache(tmp_path)
    given = {"host": "0.0.0.0", "token": "mine", "allow_hosts": ["Photos.Home"]}
    with serve(SCENES, "pocket", cache=store, **given) as server:
        port = server.state.rules.port
        at = f"http://127.0.0.1:{port}/v1/models"

        def status(host):
            return get(at, headers={"host": host, "authorization": "Bearer mine"}).status_code

        assert status(f"photos.home:{port}") == 200
        assert status(f"192.168.1.7:{port}") == 200
        assert status(f"evil.example:{port}") == 421


def test_without_a_token_the_other_rules_hold(tmp_path):
    with running(SCENES, tmp_path, token=None) as (server, client):
        assert server.page == server.url + "/"
        assert client.get("/v1/models").status_code == 200
        assert client.get("/").status_code == 200
        assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 421
        assert client.get("/v1/models", headers={"sec-fetch-site": "cross-site"}).status_code == 403


def test_a_port_in_use_is_said(served):
    with pytest.raises(UserError, match=r"cannot listen at 127\.0\.0\.1 port \d+"):
        serve(SCENES, "pocket", port=served[0].state.rules.port)


@pytest.mark.parametrize("folder", ["nowhere", str(HEART), ""])
def test_a_folder_that_is_none_is_said(folder):
    with pytest.raises(UserError, match="is no folder"):
        serve(folder, "pocket")


# Robustness


def leaks(server):
    """Threads and open files of this process."""
    return threading.active_count(), len(os.listdir("/proc/self/fd"))


def settle(server, before, seconds=20):
    """Wait until no more threads and files are there than before; what there are."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        now = leaks(server)
        if server.state.served.in_flight == 0 and now <= before:
            return now
        time.sleep(0.1)
    return leaks(server)


def test_clients_that_vanish_leave_nothing_behind(served):
    """200 of them: before their body is sent, while it waits, while a caption is written."""
    server, client = served
    client.post("/v1/classify", json={"image": data_uri(HEART), "labels": LABELS})
    for _ in range(8):  # threads that stay, as they are needed again
        client.post("/v1/caption", json={"image": data_uri(HEART)})
    body = json.dumps({"image": data_uri(HEART)}).encode()
    before = leaks(server)
    head = f"Host: 127.0.0.1:{server.state.rules.port}\r\nAuthorization: Bearer {server.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    rng = random.Random(0)
    wires = []
    for i in range(200):
        wire = socket.create_connection(("127.0.0.1", server.state.rules.port), timeout=10)
        accept = "Accept: text/event-stream\r\n" if i % 3 == 0 else ""
        text = f"POST /v1/caption HTTP/1.1\r\n{head}{accept}\r\n".encode() + body
        cut = len(text) if i % 2 else rng.randrange(1, len(text))
        wire.sendall(text[:cut])
        wires.append(wire)
        if len(wires) == 40:
            for one in wires:
                one.close()
            wires = []
    after = settle(server, before)
    assert after[0] <= before[0] + (os.cpu_count() or 1) + 4  # the pool of asyncio.to_thread
    assert after[1] <= before[1] + 2
    assert server.state.engine.batcher.waiting == 0
    answer = client.post("/v1/caption", json={"image": data_uri(HEART)})
    assert answer.status_code == 200


def test_slow_clients_are_let_go(served, monkeypatch):
    monkeypatch.setattr(guard, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.5)
    server, client = served
    port = server.state.rules.port
    begin = time.monotonic()
    assert raw(server, f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n") == b""
    assert raw(server, b"") == b""
    head = f"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100\r\n"
    head += f"Authorization: Bearer {server.token}\r\nConnection: close\r\n\r\n{{"
    answer = raw(server, head)
    assert answer.split()[1] == b"408"
    assert time.monotonic() - begin < 15
    assert client.get("/healthz").status_code == 200


def test_a_client_that_does_not_read_holds_nobody_up(served):
    server, client = served
    wires = []
    for _ in range(20):
        wire = socket.create_connection(("127.0.0.1", server.state.rules.port), timeout=10)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = (
            f"Host: 127.0.0.1:{server.state.rules.port}\r\nAuthorization: Bearer {server.token}\r\n"
        )
        wire.sendall(f"GET /openapi.json HTTP/1.1\r\n{head}\r\n".encode() * 20)
        wires.append(wire)
    begin = time.monotonic()
    assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    assert time.monotonic() - begin < 10
    for wire in wires:
        wire.close()


VALUES = [
    *(None, True, False, 0, -1, 1e308, 10**400, 0.5, "", " ", "a", "\ud800", "\0", "x" * 5000),
    *([], [[]], [None], ["a", "a"], ["a"] * 2000, {}, {"a": 1}, {"k": {"k": 1}}, ["{}"], "'; DROP"),
    *("<script>alert(1)</script>", "../../etc/passwd", "data:image/png;base64,", "http://x/"),
]
PATHS = {
    "/v1/classify": ("image", "id", "labels", "templates", "method", "options", "score", "top_k"),
    "/v1/caption": ("image", "id", "method", "options", "preset", "prompt", "trace"),
    "/v1/detect": ("image", "id", "labels", "threshold", "overlap", "regions"),
    "/v1/segment": ("image", "id", "labels", "background", "method", "threshold"),
    "/v1/ask": ("image", "id", "question", "top_k", "answers", "among", "present"),
    "/v1/search": ("query", "plus", "minus", "top_k", "min_score", "explain"),
    "/v1/embeddings": ("input", "image", "model", "encoding_format", "dimensions", "modality"),
    "/api/find": ("terms", "facet", "min_score", "offset", "limit"),
    "/api/facets": ("labels", "nothing", "threshold"),
    "/api/export": ("keys", "format", "terms"),
}


def malformed():
    """500 requests that are wrong in one way each: bytes, fields, types, values."""
    rng = random.Random(7)
    good = {"image": data_uri(HEART)}
    for path in PATHS:
        for body in (
            b"",
            b"{",
            b"[]",
            b"null",
            b"\xff\xfe",
            b"[" * 100_000,
            b'{"a":NaN}',
            b"1" * 5000,
        ):
            yield path, body, "application/json"
        yield path, b"{}", "text/html"
        yield path, b"a=1", "application/x-www-form-urlencoded"
        yield path, json.dumps({"surprise": 1}).encode(), "application/json"
    while True:
        path = rng.choice(list(PATHS))
        fields = PATHS[path]
        given = dict(good) if "image" in fields and path != "/v1/embeddings" else {}
        if "labels" in fields and path != "/api/facets":
            given["labels"] = LABELS
        for name in rng.sample(fields, rng.randint(1, 2)):
            given[name] = rng.choice(VALUES)
        yield path, json.dumps(given).encode(), "application/json"


def test_500_malformed_requests_get_a_sentence(served, capfd):
    """No crash: 4xx with one sentence, or 200 where the request happens to be right."""
    _, client = served
    statuses = {}
    requests = malformed()
    wrong = 0
    while wrong < 500:
        path, body, kind = next(requests)
        answer = client.post(path, content=body, headers={"content-type": kind})
        statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
        if answer.status_code == 200:
            continue
        assert 400 <= answer.status_code < 500, (path, body[:300], answer.text)
        sentence(answer)
        wrong += 1
    assert statuses[400] > 300
    assert capfd.readouterr().err == ""
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "text",
    [
        b"\0" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v1/search HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"\x16\x03\x01\x02\x00",
    ],
)
def test_what_is_no_http_is_400(served, text):
    server, client = served
    answer = raw(server, text, half=True)
    assert answer == b"" or answer.split()[1] in (b"400", b"421", b"431")
    assert client.get("/healthz").status_code == 200


def test_a_fault_of_the_server_is_no_secret_of_its_own(served, monkeypatch, capfd):
    def fail(*given):
        raise RuntimeError("a secret path /home/me")

    monkeypatch.setattr(api_routes, "metrics_page", fail)
    answer = served[1].get("/metrics")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "a secret path" in capfd.readouterr().err


def test_requests_add_only_so_much_to_the_disk(tmp_path):
    with running(SCENES, tmp_path) as (server, client):
        server.state.engine._for_requests._left = 1000
        size = server.state.engine.cache.info().bytes
        for i in range(20):
            texts = [f"text {i} {j}" for j in range(20)]
            assert client.post("/v1/embeddings", json={"input": texts}).status_code == 200
        assert server.state.engine.cache.info().bytes < size + 20_000
