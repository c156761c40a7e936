"""What a hostile client, folder or program on the same machine may try, beyond the plain rules."""

import json
import random
import select
import socket
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from tests.serving import HEART, SCENES, STAR, data_uri, events, get, running, sentence
from tests.test_serve_security import LABELS, leaks, raw, settle
from zeroshot import serve
from zeroshot.cache.embedding_cache import EmbeddingCache
from zeroshot.errors import UserError
from zeroshot.serving.folders import ServedFolders, Snapshot
from zeroshot.serving.mcp_tools import ImageTools
from zeroshot.serving.web import bodies, guard
from zeroshot.serving.web.page_routes import alike

JSON = {"content-type": "application/json"}


def head(server, method, path, *lines):
    given = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{server.state.rules.port}"]
    return "\r\n".join([*given, f"Authorization: Bearer {server.token}", *lines, "", ""]).encode()


def within(seconds, condition):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# Who asks


def test_cookies_of_other_programs_do_not_lock_the_user_out(served):
    """Cookies are shared by the ports of a host, and another program's need not be well-formed."""
    server, _ = served
    own = "; ".join(f"{k}={v}" for k, v in get(server.page).cookies.items())
    assert server.token not in own
    for cookie in (f'x={{"a": 1}}; a b=1; {own}', f"{own}; [=]", f'";{own}', f"=;;{own};"):
        assert get(f"{server.url}/api/state", headers={"cookie": cookie}).status_code == 200
    for cookie in (f"x{own}", f"{own}x", own.partition("=")[0], f"x={own}", own.upper()):
        assert get(f"{server.url}/api/state", headers={"cookie": cookie}).status_code == 401


def test_a_token_of_any_signs_opens_the_page(tmp_path):
    with running(SCENES, tmp_path, token="a&b=c;d+%20#?") as (server, _):
        answer = get(server.page)
        assert answer.status_code == 303
        assert get(server.url, cookies=answer.cookies).status_code == 200
    for token in ("ключ", "two words", "line\nbreak"):
        with pytest.raises(UserError, match="without a space"):
            serve(SCENES, "pocket", token=token)


def test_names_that_others_use_may_be_those_of_a_proxy(tmp_path):
    """Any port and TLS, for these names alone; nobody is called 0.0.0.0."""
    given = {"host": "0.0.0.0", "token": "mine", "allow_hosts": ["Photos.Home"]}
    with serve(SCENES, "pocket", cache=EmbeddingCache(tmp_path), **given) as server:
        port = server.state.rules.port
        assert server.url == f"http://127.0.0.1:{port}"

        def status(host, **headers):
            headers = {"host": host, "authorization": "Bearer mine", **headers}
            return get(f"{server.url}/v1/models", headers=headers).status_code

        assert status("photos.home") == 200
        assert status("photos.home:443", origin="https://photos.home:443") == 200
        assert status("photos.home", origin="https://photos.home") == 200
        assert status("photos.home", origin="http://photos.home") == 200
        assert status("photos.home", origin="https://evil.example") == 403
        assert status("127.0.0.1") == 421
        assert status(f"127.0.0.1:{port}", origin=f"https://127.0.0.1:{port}") == 403
        assert status(f"0.0.0.0:{port}") == 421
        assert status("evil.photos.home") == 421


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_the_address_that_is_printed_answers(tmp_path, host):
    with serve(SCENES, "pocket", cache=EmbeddingCache(tmp_path), host=host, token="t") as server:
        assert get(f"{server.url}/healthz").status_code == 200


# What is sent


@pytest.mark.parametrize("width", ["0", "-1", "1e3", "١٢", "0x10", "001600" + "9" * 5000, "1601"])
def test_a_width_is_a_small_number(served, width):
    server, client = served
    id = server.state.folders.snapshot.matrix.ids[0]
    answer = client.get(f"/thumb/{id}", params={"w": width})
    assert answer.status_code == 400
    sentence(answer)


@pytest.mark.parametrize("size", [10, bodies.LARGE])
@pytest.mark.parametrize("depth", [17, 100, 900, 985, 100_000])
def test_json_is_not_deep(served, depth, size):
    _, client = served
    deep = "[" * depth + "]" * depth
    for path, field in (
        ("/v1/embeddings", "model"),
        ("/v1/classify", "id"),
        ("/api/find", "terms"),
    ):
        body = f'{{"{field}": {deep}, "x": "{"x" * size}"}}'
        answer = client.post(path, content=body, headers=JSON)
        assert answer.status_code == 400
        sentence(answer)


@pytest.mark.parametrize("part", ["[]", "{}", "0", '"a"', '{"a":0}'])
def test_json_of_very_many_values_is_not_parsed(served, part):
    body = '{"input": [' + f"{part}," * (26_000_000 // (len(part) + 1)) + "0]}"
    begin = time.monotonic()
    answer = served[1].post("/v1/embeddings", content=body, headers=JSON)
    assert answer.status_code == 413
    assert "values" in sentence(answer)
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    "given",
    [
        {"x" * 1_000_000: 1},
        {"line\nbreak\x1b[31m": 1},
        {"labels": LABELS, "options": {"x" * 5000: [1]}},
        {"labels": LABELS, "options": {"k": "9" * 5000}},
        {"labels": LABELS, "method": "a\r\nb" * 200},
        {"labels": LABELS, "score": "\u2028" * 1000},
        {"labels": LABELS, "templates": "\n" * 4000},
    ],
)
def test_what_a_client_sent_does_not_fill_the_answer(served, given):
    answer = served[1].post("/v1/classify", json={"image": data_uri(HEART), **given})
    assert answer.status_code == 400
    assert sentence(answer).isprintable()


def test_a_request_may_not_ask_for_hours(served):
    """All others wait: labels times templates, and candidates times steps, are bounded."""
    _, client = served
    many = [f"thing {i}" for i in range(1000)]
    given = {"image": data_uri(HEART), "labels": many, "templates": "openai"}
    for path in ("/v1/classify", "/v1/detect", "/v1/segment"):
        assert "80000 prompts" in sentence(client.post(path, json=given))
    options = {"k": 1000, "max_tokens": 60}
    asked = {"image": data_uri(HEART), "method": "magic", "options": options}
    assert "60000 candidates" in sentence(client.post("/v1/caption", json=asked))


def test_a_caption_that_nobody_waits_for_is_not_finished(served, monkeypatch):
    from zeroshot.tasks.captioning.caption_task import CaptionRunner

    server, _ = served
    steps, asked = [], threading.Event()
    real = CaptionRunner.__call__

    def slow(self, sources, meter, written=None):
        def tell(source, text):
            steps.append(text)
            asked.set()
            time.sleep(0.2)
            written(source, text)

        return real(self, sources, meter, tell)

    monkeypatch.setattr(CaptionRunner, "__call__", slow)
    body = json.dumps({"image": data_uri(STAR), "options": {"max_tokens": 40}}).encode()
    lines = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    with socket.create_connection(("127.0.0.1", server.state.rules.port)) as wire:
        wire.sendall(head(server, "POST", "/v1/caption", *lines) + body)
        assert asked.wait(30)
    begin = time.monotonic()
    server.state.engine.texts(["a"]).result(30)
    assert len(steps) < 8
    assert time.monotonic() - begin < 5


def test_more_images_than_the_queue_takes_are_embedded(served):
    """One request does not fill the queue for the others."""
    server, client = served
    count = server.state.engine.batcher.capacity + 40
    answer = client.post(
        "/v1/embeddings", json={"input": [data_uri(HEART), data_uri(STAR)] * (count // 2)}
    )
    assert answer.status_code == 200, answer.text[:200]
    rows = [tuple(one["embedding"]) for one in answer.json()["data"]]
    assert len(rows) == count
    assert len(set(rows)) == 2


def test_a_fault_while_a_caption_is_streamed_is_no_secret(served, monkeypatch, capfd):
    from zeroshot.tasks.captioning.caption_task import CaptionRunner

    def fail(*given):
        raise RuntimeError("a secret path /home/me")

    monkeypatch.setattr(CaptionRunner, "__call__", fail)
    given = {"image": data_uri(STAR)}
    stream = {"accept": "text/event-stream"}
    with served[1].stream("POST", "/v1/caption", json=given, headers=stream) as response:
        [(name, value)] = events(response)
    assert (name, value["status"]) == ("error", 500)
    assert "secret" not in value["message"]
    assert "a secret path" in capfd.readouterr().err


def test_bodies_have_room_together_and_give_it_back(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "ROOM", 1)
    with running(SCENES, tmp_path, max_upload_mb=1) as (server, client):
        most = server.state.rules.max_body
        lines = (f"Content-Length: {most}", "Content-Type: application/json")
        wires = []
        for _ in range(3):  # two have room
            wire = socket.create_connection(("127.0.0.1", server.state.rules.port))
            wire.sendall(head(server, "POST", "/v1/search", *lines) + b" " * (most - 1))
            wires.append(wire)
        answered, _, _ = select.select(wires, [], [], 30)
        answer = answered[0].recv(10_000)
        for wire in wires:
            wire.close()
        assert answer.split()[1] == b"503"
        assert b"retry-after: 1" in answer
        within(20, lambda: server.state.served.in_flight == 0)
        for _ in range(3):
            body = b'{"query": "a"}' + b" " * (most - 20)
            assert client.post("/v1/search", content=body, headers=JSON).status_code == 200


def test_a_client_that_reads_nothing_is_let_go(served, monkeypatch):
    """Its answers are larger than what the system's buffers take."""
    monkeypatch.setattr(guard, "READ_SECONDS", 0.5)
    server, client = served
    wires = []
    for _ in range(3):
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.connect(("127.0.0.1", server.state.rules.port))
        wire.setblocking(False)
        wire.send(head(server, "GET", "/openapi.json") * 300)
        wires.append(wire)
    within(20, lambda: server.state.served.in_flight == 3)
    within(20, lambda: server.state.served.in_flight == 0)
    for wire in wires:
        wire.close()
    assert client.get("/healthz").status_code == 200


def test_a_client_that_reads_slowly_is_served():
    """It may take any time, as long as some of what waits is gone after `READ_SECONDS`."""
    timers, ended = [], []
    protocol = object.__new__(guard.ImpatientProtocol)
    protocol.loop = SimpleNamespace(call_later=lambda seconds, act: timers.append(act))
    sizes = iter([900, 500, 500, 100, 100, 100])
    protocol.transport = SimpleNamespace(
        get_write_buffer_size=lambda: next(sizes), abort=lambda: ended.append(True)
    )
    protocol._wait_for_reader()
    timers.pop()()
    assert (len(timers), ended) == (1, [])
    timers.pop()()
    assert (len(timers), ended) == (1, [])
    timers.pop()()
    assert (timers, ended) == ([], [True])


ODD_METHODS = ("PUT", "DELETE", "OPTIONS", "X", "GET", "GET", *["POST"] * 6)
ODD_PATHS = (
    *("/v1/classify?labels=a&labels=b", "/v1/caption", "/v1/search", "/api/upload", "/api/find"),
    *("/v1/classify", "/v1/", "/v1", "//v1/models", "/v1/models/", "/V1/models", "/api/image"),
    *("/api/duplicates?threshold=nan", "/api/duplicates?threshold=1e999", "/thumb/%2e%2e/%2e%2e"),
    *("/anchor?id=%00", "/api/image?key=%ff%fe", "/page.html", "/page.js/", "/static/..%5c..%5cx"),
    *("/v1/classify?labels=a&labels=b&top_k=1_0x", "/v1/caption?options=%7B%22k%22%3ANaN%7D"),
    *("/v1/classify?labels=%F0%28", "/v1/detect?labels=a&threshold=1e400", "/v1/ask?question="),
    *("/v1/classify?" + "labels=a&" * 3000, "/%E2%80%AE", "/;/", "/?%00=%00", "/api/export?x"),
    *("/thumb/" + "a" * 64 + "?w=" + "9" * 9000, "/v1/embeddings?input=a", "/metrics/../api/state"),
)
ODD_LINES = (
    *("Content-Type: text/html", "Content-Type: ", "Content-Type: image/svg+xml; q=\x01"[:-1]),
    *("Content-Type: application/json; charset=utf-7", "Content-Encoding: gzip", "Range: bytes=0-"),
    *("Accept: text/event-stream", "If-None-Match: *", "Expect: 100-continue", "Cookie: =;=;"),
    *("X-Forwarded-Host: evil.example", "Upgrade: websocket", "Authorization: Basic eDp5"),
    *("Sec-Fetch-Site: cross-site", "Origin: null", "Transfer-Encoding: gzip, chunked"),
    *("Content-Length: 1e3", "Content-Length: +5", "X: " + "y" * 9000, "Connection: upgrade"),
)
ODD_BODIES = (
    *(b"", b"\0", b"{}", b"[]", b'""', b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"\x1f\x8b\x08\0"),
    *(b"PK\x03\x04", b"<svg onload=alert(1)>", b"%PDF-1.4", b"GIF89a", b"\xff\xd8\xff\xda"),
    *(b'{"labels": ["a", "b"], "image": "data:image/png;base64,AAAA"}', b'{"id": "../x"}'),
    *(b'{"a": 1, "a": 2}', b'{"input": "\\ud800"}', b'{"query": {"id": {"id": 1}}}', b"BM" * 99),
)


def test_500_odd_requests_get_a_sentence_and_leave_nothing(served, capfd):
    """Methods, paths, headers and bodies that do not go together, as bytes on a wire."""
    server, client = served
    rng = random.Random(11)
    for _ in range(8):  # threads that stay
        client.post("/v1/caption", json={"image": data_uri(HEART)})
    before, wrong, statuses = leaks(server), 0, {}
    while wrong < 500:
        method, path = rng.choice(ODD_METHODS), rng.choice(ODD_PATHS)
        body = rng.choice(ODD_BODIES)
        lines = [*rng.sample(ODD_LINES, rng.randint(0, 3)), "Connection: close"]
        if not any(line.startswith(("Content-Length", "Transfer")) for line in lines):
            lines.append(f"Content-Length: {len(body)}")
        answer = raw(server, head(server, method, path, *lines) + body, half=True)
        if not answer:  # the connection was closed on what is no HTTP
            continue
        status = int(answer.split()[1])
        statuses[status] = statuses.get(status, 0) + 1
        if status in (100, 200, 303):
            continue
        assert 400 <= status < 500 or status == 501, (method, path, lines, body, answer)
        text = answer.partition(b"\r\n\r\n")[2]
        if text.startswith(b"{"):
            message = json.loads(text)["error"]["message"]
            assert message.isprintable()
            assert len(message) < 1100
        wrong += 1
    assert {400, 403, 404, 405, 415} <= statuses.keys()
    assert capfd.readouterr().err == ""
    after = settle(server, before)
    assert after[0] <= before[0] + 4
    assert after[1] <= before[1] + 2


def test_metrics_have_as_many_lines_whatever_is_asked(served):
    _, client = served
    client.get("/nothing")
    before = len(client.get("/metrics").text.splitlines())
    for i in range(50):
        client.get(f"/thumb/{i:064x}")
        client.get(f"/other/{i}")
    assert len(client.get("/metrics").text.splitlines()) <= before + 1


# What is in the folders

HARD = [
    *("a\nb.png", "-rf.png", '"q".png', "=cmd().png", "\u202egnp.exe.png", " .png", "é.png"),
    *("e\u0301.png", "%2e%2e%2fx.png", "a\\b.png", "<b>.png", "{x}.png", "\x1b[31m.png", "x" * 240),
    "bad\udcff.png",
]


def test_hard_names_are_shown_found_and_exported(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(HARD):
        Image.new("RGB", (8, 8), (9 * i, 99, 9)).save(tmp_path / "x.png")
        (tmp_path / "x.png").rename(folder / (name if name.endswith(".png") else f"{name}.png"))
    with running(folder, tmp_path / "cache") as (server, client):
        shown = client.post("/api/find", json={"limit": 100}).json()["images"]
        assert len({one["key"] for one in shown}) == len(HARD)
        for one in shown:
            assert client.get("/api/image", params={"key": one["key"]}).json()["id"] == one["id"]
            assert client.get(f"/thumb/{one['id']}?w=96").status_code == 200
        asked = {"keys": [one["key"] for one in shown], "format": "jsonl"}
        lines = client.post("/api/export", json=asked).content.decode().splitlines()
        assert [json.loads(line)["path"] for line in lines] == [one["path"] for one in shown]
        assert client.post("/v1/search", json={"query": "a", "top_k": 99}).status_code == 200
        tools = ImageTools(server.state.engine, server.state.folders)
        found = tools.search_images("green", 50)
        assert len(found) == len(HARD)
        assert all(tools.look_at(one["path"])[:4] == b"\x89PNG" for one in found)


def test_folders_of_one_name_are_told_apart(tmp_path):
    for name, image in (("one", HEART), ("two", STAR)):
        (tmp_path / name / "photos").mkdir(parents=True)
        (tmp_path / name / "photos" / "a.png").write_bytes(image.read_bytes())
    folders = [tmp_path / "one" / "photos", tmp_path / "two" / "photos"]
    with running(folders, tmp_path / "cache") as (server, client):
        snapshot = server.state.folders.snapshot
        assert list(snapshot.names) == ["one/photos/a.png", "two/photos/a.png"]
        ids = [client.get(f"/api/image?key={key}").json()["id"] for key in snapshot.keys]
        assert ids == list(snapshot.matrix.ids)


def test_a_folder_that_vanishes_comes_back_and_grows(tmp_path, monkeypatch):
    monkeypatch.setattr("zeroshot.serving.folders.SECONDS", 0.1)
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").write_bytes(HEART.read_bytes())
    with running(folder, tmp_path / "cache") as (server, client):
        served = server.state.folders
        [id] = served.snapshot.matrix.ids
        folder.rename(tmp_path / "moved")
        within(10, lambda: not len(served.snapshot))
        assert "no such folder" in served.progress.message
        assert client.post("/v1/search", json={"query": "a"}).json()["data"] == []
        assert client.get(f"/thumb/{id}").status_code == 404
        (tmp_path / "moved").rename(folder)
        within(10, lambda: len(served.snapshot) == 1)
        assert served.progress.message == ""
        for i in range(30):
            Image.new("RGB", (8, 8), (8 * i, 0, 0)).save(folder / f"{i}.png")
        within(20, lambda: len(served.snapshot) == 31)


def test_a_look_that_fails_is_not_the_last(tmp_path, capfd):
    (tmp_path / "a.png").write_bytes(HEART.read_bytes())
    calls = []

    def embed(sources):
        calls.append(1)
        yield from ()
        raise MemoryError("no room")

    folders = ServedFolders([tmp_path], embed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zeroshot.serving.folders.SECONDS", 0.05)
        folders.start()
        within(10, lambda: len(calls) > 2)
        folders.close()
    assert folders.progress.phase == "failed"
    assert "log says why" in folders.progress.message
    assert "no room" in capfd.readouterr().err


# What is compared


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_groups_of_what_is_alike_are_those_of_every_pair(threshold, monkeypatch):
    from zeroshot.inference.embedding_matrix import EmbeddingMatrix
    from zeroshot.inputs.source import Source

    monkeypatch.setattr("zeroshot.ranking.near_groups.TILE", 7)
    torch.manual_seed(0)
    rows = torch.randn(12, 16).repeat_interleave(5, 0) + 0.25 * torch.randn(60, 16)
    ids = [f"{i // 2 if i < 6 else i}" for i in range(60)]
    sources = [Source(str(i)) for i in range(60)]
    snapshot = Snapshot(1, EmbeddingMatrix(sources, ids, rows, []), [str(i) for i in range(60)])
    unit = torch.nn.functional.normalize(rows)
    near = unit @ unit.T >= threshold
    of_first = {id: ids.index(id) for id in ids}
    found: dict[int, list[int]] = {}
    head: dict[int, int] = {}
    for place in of_first.values():
        heads = [first for first in found if near[first, place]]
        head[place] = heads[0] if heads else place
        found.setdefault(head[place], [])
    for place, id in enumerate(ids):
        found[head[of_first[id]]].append(place)
    expected = {tuple(group) for group in found.values() if len(group) > 1}
    groups = alike(snapshot, threshold)
    assert {tuple(group) for group in groups} == expected
    assert [len(g) for g in groups] == sorted(map(len, groups), reverse=True)


def test_images_that_are_all_alike_do_not_fill_the_memory():
    import tracemalloc

    from zeroshot.inference.embedding_matrix import EmbeddingMatrix
    from zeroshot.inputs.source import Source

    rows = torch.ones(4000, 8)
    names = [str(i) for i in range(4000)]
    snapshot = Snapshot(1, EmbeddingMatrix([Source(n) for n in names], names, rows, []), names)
    assert len(snapshot.place) == 4000
    tracemalloc.start()
    [group] = alike(snapshot, 0.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(group) == 4000
    assert peak < 20_000_000
