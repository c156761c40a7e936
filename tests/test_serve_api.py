"""The API: the rows of the command line, OpenAI's shape, events, the document against answers."""

import json
import subprocess
import threading
from pathlib import Path

import numpy as np
import openai
import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from tests.serving import HEART, SCENES, STAR, data_uri, events, running, sentence
from zeroshot.model_set.model_set import resolve
from zeroshot.model_set.spec import find_set
from zeroshot.models import load_text_encoder

LABELS = ["red heart", "blue star", "green ring"]


def by_command(zeroshot, server, monkeypatch, *arguments):
    """The rows of a command that shares the server's cache."""
    monkeypatch.setenv("ZEROSHOT_CACHE", str(server.state.engine.cache.root))
    code, rows, err = zeroshot(*arguments, "--models", "pocket", "--json")
    assert code == 0, err
    return rows


def without_path(row):
    return {name: value for name, value in row.items() if name != "path"}


def close(first, second):
    """Equal rows, but for the last digits of numbers: a batch's size may change these."""
    if isinstance(first, float):
        return first == pytest.approx(second, rel=1e-4, abs=1e-6)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(close, first, second))
    return first == second


ROWS = {
    "classify": ({"labels": LABELS}, ["--labels", ",".join(LABELS)]),
    "classify?method": (
        {"labels": LABELS, "method": "autoclip", "top_k": 1, "templates": "openai"},
        ["--labels", ",".join(LABELS), "--method", "autoclip", "-k", "1", "--templates", "openai"],
    ),
    "classify?multi": (
        {"labels": LABELS, "multi": True, "against": ["a ring"], "threshold": 0.25},
        ["--labels", ",".join(LABELS), "--multi", "--against", "a ring", "--threshold", "0.25"],
    ),
    "caption": ({}, []),
    "caption?options": (
        {"method": "magic", "options": {"k": 5, "max_tokens": 6}, "prompt": "a large"},
        ["--method", "magic", "-o", "k=5", "-o", "max_tokens=6", "--prompt", "a large"],
    ),
    "detect": (
        {"labels": ["heart", "star"], "threshold": 0.4},
        ["--labels", "heart,star", "--threshold", "0.4"],
    ),
    "segment": (
        {"labels": ["heart", "star"], "background": ["a white background"]},
        ["--labels", "heart,star", "--background", "a white background"],
    ),
    "ask": (
        {"question": ["Is there a heart?", "Is there a star?"], "top_k": 2},
        ["--question", "Is there a heart?", "--question", "Is there a star?", "--top-k", "2"],
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_that_of_the_command_line(served, zeroshot, monkeypatch, name):
    """As JSON, as the body, and by the id of a served image."""
    server, client = served
    given, flags = ROWS[name]
    command = name.partition("?")[0]
    [row] = by_command(zeroshot, server, monkeypatch, command, HEART, *flags)
    address = f"/v1/{command}"
    sent = client.post(address, json={"image": data_uri(HEART), **given})
    assert sent.status_code == 200, sent.text
    assert close(without_path(sent.json()), without_path(row))
    assert sent.json()["path"] is None
    served_row = client.post(address, json={"id": row["id"], **given}).json()
    assert close(without_path(served_row), without_path(row))
    assert served_row["path"] == str(HEART)
    fields = {k: json.dumps(v) if isinstance(v, dict | bool) else v for k, v in given.items()}
    body = client.post(
        address, params=fields, content=HEART.read_bytes(), headers={"content-type": "image/png"}
    )
    assert close(body.json(), sent.json())


def test_search_gives_the_rows_of_the_command_line(served, zeroshot, monkeypatch):
    server, client = served
    flags = ["--plus", STAR, "--minus", "a green ring", "-k", "4", "--min-score", "-0.2"]
    rows = by_command(zeroshot, server, monkeypatch, "search", "a red heart", SCENES, *flags)
    star = next(id for id, i in server.state.folders.snapshot.place.items() if i == 1)
    given = {"plus": {"id": star}, "minus": ["a green ring"], "top_k": 4, "min_score": -0.2}
    found = client.post("/v1/search", json={"query": "a red heart", **given}).json()["data"]
    assert found == rows
    image = client.post("/v1/search", json={"query": {"image": data_uri(STAR)}, "top_k": 3})
    expected = by_command(
        zeroshot, server, monkeypatch, "search", "--image", STAR, SCENES, "-k", "3"
    )
    same = [(row["path"], row["score"]) for row in image.json()["data"]]
    assert same == [(row["path"], row["score"]) for row in expected]


def test_embeddings_are_those_of_the_command_line_to_the_last_digit(
    served, zeroshot, monkeypatch, tmp_path
):
    """By the openai client (base64), by curl (numbers), of images and of captions."""
    server, client = served
    captions = {HEART: "a red heart on grass", STAR: "one blue star"}
    pairs = tmp_path / "pairs.csv"
    lines = [f"{path.name},{text}\n" for path, text in captions.items()]
    pairs.write_text("path,caption\n" + "".join(lines))
    rows = by_command(zeroshot, server, monkeypatch, "embed", pairs, "--image-root", SCENES)
    rows = {str(SCENES / Path(row["path"]).name): row["embedding"] for row in rows}
    user = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token)
    inputs = [data_uri(STAR), "one blue star", data_uri(HEART)]
    answer = user.embeddings.create(model="pocket", input=inputs)
    found = [np.array(one.embedding, dtype=np.float32) for one in answer.data]
    assert found[0].tolist() == np.array(rows[str(STAR)], dtype=np.float32).tolist()
    assert found[2].tolist() == np.array(rows[str(HEART)], dtype=np.float32).tolist()
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 3
    encoder = load_text_encoder(find_set("pocket").encoder)
    text = encoder.encode_texts(["one blue star"])[0].numpy()
    np.testing.assert_allclose(found[1], text, atol=1e-6)
    command = [
        *("curl", "-sS", f"{server.url}/v1/embeddings", "-H", "content-type: application/json"),
        *("-H", f"authorization: Bearer {server.token}", "-d"),
        json.dumps({"image": data_uri(HEART), "model": "pocket"}),
    ]
    by_curl = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert by_curl["data"][0]["embedding"] == rows[str(HEART)]
    again = client.post("/v1/embeddings", json={"input": "one blue star", "model": "pocket"})
    assert np.array(again.json()["data"][0]["embedding"], np.float32).tolist() == found[1].tolist()
    infinity = {"input": [data_uri(HEART)], "modality": "image", "encoding_format": "float"}
    assert client.post("/v1/embeddings", json=infinity).json()["data"] == by_curl["data"]


def test_the_words_of_a_stream_are_those_of_the_row(served):
    _, client = served
    for options in ({}, {"method": "magic", "prompt": "a small", "options": {"k": 3}}):
        given = {"image": data_uri(STAR), **options}
        stream = {"accept": "text/event-stream"}
        with client.stream("POST", "/v1/caption", json=given, headers=stream) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            told = list(events(response))
        names = [name for name, _ in told]
        assert names == ["word"] * (len(told) - 1) + ["row"]
        assert len(names) > 4
        words = "".join(value["text"] for name, value in told if name == "word")
        row = told[-1][1]
        assert words == row["caption"]
        assert close(row, client.post("/v1/caption", json=given).json())


def test_a_stream_that_fails_says_so(served):
    _, client = served
    given = {"image": data_uri(STAR), "method": "ensemble"}
    stream = {"accept": "text/event-stream"}
    with client.stream("POST", "/v1/caption", json=given, headers=stream) as response:
        [(name, value)] = events(response)
    assert (name, value["status"]) == ("error", 400)
    assert "does not caption" in value["message"]


def test_a_trace_has_every_choice(served):
    _, client = served
    row = client.post("/v1/caption", json={"image": data_uri(STAR), "trace": True}).json()
    text = "".join(step["candidates"][0]["text"] for step in row["trace"])
    assert text.removesuffix("<|endoftext|>").split() == row["caption"].split()


def test_a_method_that_needs_all_images_is_refused(served):
    _, client = served
    given = {"image": data_uri(HEART), "labels": LABELS, "method": "zpe"}
    answer = client.post("/v1/classify", json=given)
    assert answer.status_code == 400
    assert "all images together" in sentence(answer)


def test_models_says_what_the_set_can_do(served):
    _, client = served
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "pocket"
    assert model["can"]["detect"]
    assert not model["can"]["explain"]
    assert "anchors" in model["cannot"]["explain"]
    assert model["captioners"] == {"magic": True}


@pytest.fixture(scope="module")
def coupled(tmp_path_factory):
    """The pocket set's own pair of encoders, which has no patches."""
    models = resolve("pocket", encoder="coupled")
    with running(SCENES, tmp_path_factory.mktemp("coupled"), models=models) as both:
        yield both


def test_what_the_set_cannot_do_is_501_with_the_reason(coupled):
    answer = coupled[1].post("/v1/segment", json={"image": data_uri(HEART), "labels": ["heart"]})
    assert answer.status_code == 501
    assert "no dual encoder" in sentence(answer)


def test_a_coupling_searches_as_the_command_line_does(coupled, zeroshot, monkeypatch):
    """Twice: the second time the images are in the joint space already."""
    server, client = coupled
    flags = ["--encoder", "coupled", "-k", "5"]
    for words in ("a red heart", "a green ring"):
        rows = by_command(zeroshot, server, monkeypatch, "search", words, SCENES, *flags)
        found = client.post("/v1/search", json={"query": words, "top_k": 5}).json()["data"]
        assert close(found, rows)


def test_a_coupling_explains_its_hits(coupled, served):
    given = {"query": "a blue star", "top_k": 2, "explain": 3}
    first = coupled[1].post("/v1/search", json=given).json()["data"][0]
    assert first["path"] == str(STAR)
    assert len(first["because"]) == 3
    assert {"anchor", "share", "captions", "path"} == set(first["because"][0])
    refused = served[1].post("/v1/search", json=given)
    assert refused.status_code == 501
    assert "anchors" in sentence(refused)


# The document


def validator(schema, document):
    return Draft202012Validator({**schema, "components": document["components"]})


REAL = {
    "/v1/classify": {"labels": LABELS},
    "/v1/caption": {"trace": True, "prompt": "a"},
    "/v1/detect": {"labels": ["heart"]},
    "/v1/segment": {"labels": ["heart", "star"]},
    "/v1/ask": {"question": ["Is there a heart?"]},
}


def test_real_answers_are_as_the_document_says(served, coupled):
    _, client = served
    document = client.get("/openapi.json").json()
    validate(document)
    coupled = coupled[1]
    assert document == coupled.get("/openapi.json").json()
    asked = [client.post(p, json={"image": data_uri(HEART), **v}) for p, v in REAL.items()]
    asked += [
        client.post("/v1/embeddings", json={"input": ["a", {"image": data_uri(HEART)}]}),
        client.post("/v1/embeddings", json={"input": "a", "encoding_format": "base64"}),
        client.post("/v1/search", json={"query": "a heart", "minus": [{"text": "a star"}]}),
        client.get("/v1/models"),
        client.get("/openapi.json"),
        client.get("/healthz"),
        client.post("/v1/classify", json={"image": data_uri(b"no image"), "labels": LABELS}),
        client.post("/v1/classify", json={"id": "0" * 64, "labels": LABELS}),
        coupled.post(
            "/v1/classify", json={"image": data_uri(HEART), "labels": LABELS, "explain": 2}
        ),
        coupled.post("/v1/search", json={"query": "a heart", "explain": 1}),
        coupled.post("/v1/segment", json={"image": data_uri(HEART), "labels": LABELS}),
    ]
    statuses = []
    for response in asked:
        request, status = response.request, response.status_code
        statuses.append(status)
        operation = document["paths"][request.url.path][request.method.lower()]
        kind = response.headers["content-type"]
        schema = operation["responses"][str(status)]["content"][kind]["schema"]
        validator(schema, document).validate(response.json())
        if response.is_success and request.method == "POST":
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            validator(schema, document).validate(json.loads(request.content))
    assert set(statuses) == {200, 415, 404, 501}
    covered = {response.request.url.path for response in asked} | {"/metrics"}
    assert covered == set(document["paths"])


def test_the_document_has_the_options_of_the_tasks(served):
    """Help, limits and choices are those of the options; what names files is left out."""
    document = served[1].get("/openapi.json").json()
    body = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]
    fields = body["schema"]["properties"]
    assert fields["top_k"]["minimum"] == 1
    assert "Labels per image, best first" in fields["top_k"]["description"]
    assert set(fields["score"]["enum"]) >= {"softmax", "sigmoid", "cosine"}
    assert not {"shots", "bank", "prior", "hierarchy", "calibration", "views"} & fields.keys()
    told = json.dumps(document["paths"])
    assert ".txt" not in told
    assert ".json file" not in told


def test_metrics_count(served):
    _, client = served
    before = client.get("/metrics").text
    client.post("/v1/classify", json={})
    after = client.get("/metrics").text
    line = 'zeroshot_requests_total{route="/v1/classify",status="400"}'

    def count(text):
        return sum(int(x.rpartition(" ")[2]) for x in text.splitlines() if x.startswith(line))

    assert count(after) == count(before) + 1
    assert "zeroshot_queue_length 0" in after


def test_a_busy_server_says_when_to_come_back(tmp_path):
    """A queue of one: while the models work, the next waits, and the one after is refused."""
    with running(SCENES, tmp_path, queue=1) as (server, client):
        held, go = threading.Event(), threading.Event()

        def work(items):
            held.set()
            go.wait(30)
            return items

        batcher = server.state.engine.batcher
        batcher.submit("held", work, 1)
        held.wait(10)
        waiting = batcher.submit("other", work, 1)
        refused = client.post("/v1/embeddings", json={"input": "a"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "ask again" in sentence(refused)
        go.set()
        assert waiting.result(10) == 1
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200


def test_small_answers_do_not_wait_for_an_acknowledgement(tmp_path, monkeypatch):
    """With Nagle's algorithm each answer takes 40 ms, as its head and its body are two writes."""
    import socket

    from zeroshot.serving.web.guard import ImpatientProtocol

    seen = []
    real = ImpatientProtocol.connection_made

    def made(self, transport):
        wire = transport.get_extra_info("socket")
        seen.append(wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        real(self, transport)

    monkeypatch.setattr(ImpatientProtocol, "connection_made", made)
    with running(SCENES, tmp_path) as (_, client):
        assert client.get("/healthz").status_code == 200
    assert seen
    assert all(seen)


def test_what_is_in_flight_is_answered_when_the_server_stops(tmp_path):
    with running(SCENES, tmp_path) as (server, client):
        answers = []
        given = {"image": data_uri(HEART)}

        def ask():
            answers.append(client.post("/v1/caption", json=given).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while server.state.served.in_flight < 4 and not answers:
            pass
        server.close()
        for thread in threads:
            thread.join()
    assert answers == [200] * 4
