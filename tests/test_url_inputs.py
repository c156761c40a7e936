"""URLs as input, against servers on this machine: addresses, redirects, limits, tries."""

import contextlib
import http.server
import io
import ipaddress
import pickle
import random
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from zeroshot.errors import UnreadableImageError
from zeroshot.images.reading import read
from zeroshot.inputs.remote import connection, fetch as urls
from zeroshot.inputs.remote.addresses import is_public
from zeroshot.inputs.remote.fetch import Fetch, Url
from zeroshot.inputs.resolve import find
from zeroshot.inputs.source import Source
from zeroshot.inputs.tables import InputOptions

HERE = Fetch(allow_private=True, timeout=5, connect=2, silence=2)


def png(seed=0):
    data = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    PIL.Image.fromarray(values).save(data, "PNG")
    return data.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path; keeps what was asked."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        what, _, rest = self.path.strip("/").partition("/")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, f"do_{what.partition('?')[0].partition('.')[0]}")(rest)

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def do_good(self, rest):
        self.answer(200, png())

    def do_page(self, rest):
        self.answer(200, b"<!doctype html><p>log in first")

    def do_gone(self, rest):
        self.answer(404, b"no")

    def do_to(self, rest):
        self.answer(302, Location=rest.replace("%7C", "/"))

    def do_nowhere(self, rest):
        self.answer(302)

    def do_loop(self, rest):
        self.answer(301, Location="/loop")

    def do_busy(self, rest):
        """503, as often as the path says, then a picture."""
        seen = sum(path == self.path for path, _ in self.server.asked)
        if seen <= int(rest):
            self.answer(503, Retry_After=0)
        else:
            self.answer(200, png())

    def do_later(self, rest):
        self.answer(429, Retry_After=3600)

    def do_large(self, rest):
        self.answer(200, bytes(3 << 20))

    def do_endless(self, rest):
        """Says nothing of a size, and never ends."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(bytes(1 << 16))

    def do_liar(self, rest):
        """Promises more than comes."""
        self.answer(200, png(), Content_Length=len(png()) + 10)

    def do_chunked(self, rest):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        for start in range(0, len(png()), 50):
            part = png()[start : start + 50]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n" if rest != "broken" else b"")

    def do_silent(self, rest):
        self.server.stop.wait(10)

    def do_drip(self, rest):
        """A byte now and then, in the head or in the body."""
        self.send_response(200)
        if rest == "body":
            self.send_header("Content-Length", "100000")
            self.end_headers()
        else:
            self.flush_headers()
            self.wfile.write(b"X-Slow: ")
        while not self.server.stop.wait(0.05):
            self.wfile.write(b"x")

    def do_gzip(self, rest):
        self.answer(200, png(), Content_Encoding="gzip")

    def do_rude(self, rest):
        self.wfile.write(b"\x00\xff nonsense\r\n\r\n")
        self.close_connection = True

    def do_hangup(self, rest):
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.asked, server.stop = [], threading.Event()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.stop.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(urls, "BACKOFF", 0.01)


def refusal(url, fetch=HERE):
    with pytest.raises(UnreadableImageError) as caught:
        Url(url, fetch).read()
    return str(caught.value)


# Addresses


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("0.0.0.0", "0.1.2.3", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1"),
        *("203.0.113.9", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b:1::808:808", "2002:7f00:1::1", "2002:a00:1::", "100::1"),
        *("2001:db8::1", "2001::1", "3fff::1", "4000::1", "5f00::1"),
    ],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1"),
        *("2606:4700::1111", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8", "64:ff9b::808:808"),
        "2002:808:808::1",
    ],
)
def test_addresses_that_are_public(address):
    assert is_public(address)


def test_public_implies_global_as_python_has_it():
    rng = np.random.default_rng(0)
    for number in rng.integers(0, 1 << 32, 3000):
        ip = ipaddress.IPv4Address(int(number))
        assert not is_public(str(ip)) or ip.is_global


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::1]"),
        *("[::ffff:127.0.0.1]", "0.0.0.0"),
    ],
)
def test_this_machine_is_not_asked_by_any_name(server, host):
    said = refusal(f"http://{host}:{server.server_port}/good", Fetch())
    assert "no public address; --allow-private-urls" in said or "no host" in said
    assert server.asked == []


def test_the_address_that_was_checked_is_the_one_connected_to(server, monkeypatch):
    """A name server that says something else the second time is not asked a second time."""
    answers = [("93.184.216.34", 1), ("127.0.0.1", server.server_port)]
    asked, connected = [], []

    def resolve(host, port, *more, **options):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", answers[len(asked) - 1])]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", lambda self, place: connected.append(place))
    monkeypatch.setattr(socket.socket, "sendall", lambda self, data: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Url("http://rebind.example/x", Fetch()).read()
    assert (asked, connected) == (["rebind.example"], [("93.184.216.34", 1)])


def test_private_addresses_among_public_ones_are_passed_over(monkeypatch):
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in ("10.0.0.1", "8.8.8.8", "127.0.0.1", "9.9.9.9")
    ]
    tried = []

    def connect(self, place):
        tried.append(place[0])
        raise ConnectionRefusedError(111, "refused")

    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: found)
    monkeypatch.setattr(socket.socket, "connect", connect)
    before = random.getstate()
    assert "refused" in refusal("http://both.example/", replace(HERE, allow_private=False))
    assert tried == ["8.8.8.8", "9.9.9.9"] * urls.TRIES
    assert random.getstate() == before  # the waits draw from no generator that a user seeded


# What comes


@pytest.mark.parametrize("path", ["good", "good?a=b&c=%20d", "chunked", "to/|good", "busy/2"])
def test_pictures_that_come(server, path):
    assert read(Source("x", Url(f"{server.url}/{path}", HERE))).id == read(png()).id


def test_nothing_of_this_machine_is_sent(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    Url(f"{server.url}/to/|good", HERE).read()
    for _, headers in server.asked:
        assert set(headers) == {"Host", "User-Agent", "Accept", "Accept-Encoding"}
        assert headers["User-Agent"] == "zeroshot"
    assert len(server.asked) == 2


def test_odd_characters_are_quoted(server):
    Url(f"{server.url}/good/ ü?ä b#fragment", HERE).read()
    assert [path for path, _ in server.asked] == ["/good/%20%C3%BC?%C3%A4%20b"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("gone", "HTTP 404 Not Found"),
        ("nowhere", "HTTP 302 without an address to go to"),
        ("loop", "more than 5 redirects"),
        ("busy/3", "HTTP 503 Service Unavailable"),
        ("later", "HTTP 429 Too Many Requests"),
        ("gzip", "the server sent 'gzip', which was not requested"),
        ("liar", "cut off: "),
        ("chunked/broken", "IncompleteRead"),
        ("rude", "'127.0.0.1': "),
        ("hangup", "'127.0.0.1': Remote end closed connection without response"),
        ("to/ftp:||example.org|x.png", "'ftp://example.org/x.png', which is no http or https"),
        ("to/file:|||etc|passwd", "'file:///etc/passwd', which is no http or https address"),
        ("to/http:||a:b@127.0.0.1|good", "a user name or a password, which are never sent"),
        ("to/http:||127.0.0.1:99999|good", "no valid URL: "),
    ],
)
def test_answers_that_are_refused(server, path, reason):
    assert reason in refusal(f"{server.url}/{path}")


def test_what_may_go_well_is_tried_again_and_nothing_else(server):
    for path in ("busy/9", "gone", "hangup", "good"):
        with contextlib.suppress(UnreadableImageError):
            Url(f"{server.url}/{path}", HERE).read()
    counts = {path: 0 for path, _ in server.asked}
    for path, _ in server.asked:
        counts[path] += 1
    assert counts == {"/busy/9": 3, "/gone": 1, "/hangup": 3, "/good": 1}


def test_a_redirect_is_checked_as_the_first_address_was(server, monkeypatch):
    """The first server counts as public here; where it leads to does not."""
    public = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(connection, "is_public", lambda address: address == "127.0.0.1")
    assert Url(f"{public}/to/|good", Fetch()).read() == png()
    for target in ("127.0.0.2", "[::1]", "169.254.169.254", "10.0.0.1"):
        said = refusal(f"{public}/to/http:||{target}:{server.server_port}|good", Fetch())
        assert "no public address" in said
    assert sum(path == "/good" for path, _ in server.asked) == 1


def test_size_limits(server):
    small = replace(HERE, max_bytes=1 << 20)
    for path in ("large", "endless"):
        assert refusal(f"{server.url}/{path}", small) == "larger than 1 MiB (--url-max-mb)"
    assert len(Url(f"{server.url}/large", HERE).read()) == 3 << 20


@pytest.mark.parametrize("path", ["silent", "drip/body", "drip/head"])
def test_time_is_limited_however_slowly_bytes_come(server, path):
    started = time.monotonic()
    said = refusal(f"{server.url}/{path}", replace(HERE, timeout=0.6))
    assert "'127.0.0.1': not there after 0.6 s" in said
    assert time.monotonic() - started < 5
    server.stop.set()


def test_silence_is_limited(server):
    said = refusal(f"{server.url}/silent", replace(HERE, silence=0.1, timeout=9))
    assert said == "'127.0.0.1': too slow"
    server.stop.set()


def test_wrong_content(server):
    with pytest.raises(UnreadableImageError, match="a web page, not a picture"):
        read(Source("x", Url(f"{server.url}/page", HERE)))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://", "which is no http or https address"),
        ("http://[::1/x", "no valid URL"),
        ("http://127.0.0.1:port/", "no valid URL"),
        ("http://" + "a" * 70 + ".example/", "no valid URL"),
        ("http://user:secret@127.0.0.1/", "never sent"),
        ("http://a.invalid/x.png", "'a.invalid'"),
        ("http://127.0.0.1:1/x.png", "'127.0.0.1': "),
        ("http://a\0b/x.png", ""),
        ("http://127.0.0.1/a\r\nHost: evil", "'127.0.0.1': "),
    ],
)
def test_urls_that_lead_nowhere(url, reason):
    assert reason in refusal(url)


def test_certificates_are_checked(server):
    said = refusal(server.url.replace("http", "https") + "/good")
    assert "'127.0.0.1': " in said


def test_offline(server):
    said = refusal(f"{server.url}/good", replace(HERE, offline=True))
    assert said == "a URL needs the network (--offline)"
    assert server.asked == []


def test_found_beside_files(server, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    options = InputOptions(fetch=HERE)
    given = [f"{server.url}/good", tmp_path / "a.png", f"{server.url}/gone"]
    found = find(given, options=options).sources
    assert [s.path for s in found] == [str(g) for g in given]
    assert server.asked == []  # finding fetches nothing
    source = pickle.loads(pickle.dumps(found[0]))
    assert source == found[0]
    assert source.content.stamp is None
    assert read(source).id == read(png()).id
    lines = io.StringIO(f"{server.url}/good\n")
    assert find("-", lines, options).sources == (found[0],)
