"""`zeroshot mcp` through the protocol's own client: tools, answers, errors, nothing outside."""

import asyncio
import base64
import io
import json
import os
import sys

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from PIL import Image

from tests.serving import HEART, SCENES, STAR


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for path in SCENES.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "broken.jpg").write_bytes(b"nothing")
    (folder / "no text \udcff.png").write_bytes(STAR.read_bytes())
    return folder


@pytest.fixture(scope="module")
def answers(folder, tmp_path_factory):
    """All that the tests ask, in one session with one process."""
    asked = {
        "folders": ("folders", {}),
        "search": ("search_images", {"query": "a blue star", "count": 3}),
        "similar": ("similar_images", {"path": HEART.name, "count": 2}),
        "look": ("look_at", {"path": STAR.name}),
        "every": ("search_images", {"query": "a blue star", "count": 9}),
        "bytes": ("look_at", {"path": "no text \\xff.png"}),
        "describe": ("describe", {"path": STAR.name}),
        "label": ("label", {"path": HEART.name, "labels": ["red heart", "blue star"]}),
        "outside": ("look_at", {"path": "../../../etc/passwd"}),
        "absolute": ("look_at", {"path": str(STAR)}),
        "unreadable": ("describe", {"path": "broken.jpg"}),
        "empty": ("search_images", {"query": " "}),
        "many": ("search_images", {"query": "a", "count": 10_000}),
        "nothing": ("label", {"path": HEART.name, "labels": []}),
    }

    async def talk():
        environment = {**os.environ, "ZEROSHOT_CACHE": str(tmp_path_factory.mktemp("cache"))}
        command = ["-m", "zeroshot", "mcp", str(folder), "--models", "pocket"]
        server = StdioServerParameters(command=sys.executable, args=command, env=environment)
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            told = await session.initialize()
            tools = await session.list_tools()
            found = {name: await session.call_tool(*call) for name, call in asked.items()}
            return told, tools.tools, found

    return asyncio.run(asyncio.wait_for(talk(), 240))


def values(answer):
    """The JSON of an answer's texts."""
    assert not answer.is_error, answer.content
    found = [json.loads(part.text) for part in answer.content]
    return found[0] if len(found) == 1 else found


def test_the_tools_only_read(answers):
    told, tools, _ = answers
    assert told.server_info.name == "zeroshot"
    names = {tool.name for tool in tools}
    assert names == {
        *("folders", "search_images", "similar_images", "look_at", "describe", "label")
    }
    assert all(tool.annotations.read_only_hint for tool in tools)
    assert all(tool.description for tool in tools)


def test_search_similar_and_label(answers, folder):
    _, _, found = answers
    assert values(found["folders"]) == {
        "folders": [folder.name],
        "images": 9,
        "unreadable": 1,
        "models": "pocket",
    }
    hits = values(found["search"])
    assert hits[0]["path"] == STAR.name
    assert len(hits) == 3
    assert values(found["similar"])[0]["path"] == HEART.name
    labels = values(found["label"])
    assert labels[0]["label"] == "red heart"
    assert sum(one["score"] for one in labels) == pytest.approx(1, abs=1e-4)


def test_look_at_gives_the_image(answers):
    [part] = answers[2]["look"].content
    assert part.mime_type == "image/png"
    seen = Image.open(io.BytesIO(base64.b64decode(part.data)))
    with Image.open(STAR) as star:
        assert seen.size == star.size
    assert not seen.info


def test_a_name_that_is_no_text_is_shown_and_found(answers):
    names = [hit["path"] for hit in values(answers[2]["every"])]
    assert len(names) == 9
    assert "no text \\xff.png" in names
    assert answers[2]["bytes"].content[0].data == answers[2]["look"].content[0].data


def test_describe(answers):
    [part] = answers[2]["describe"].content
    assert "blue star" in part.text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("outside", "no served image is called"),
        ("absolute", "no served image is called"),
        ("unreadable", "no served image is called"),
        ("empty", "'query' is empty"),
        ("many", "count is from 1 to 50"),
        ("nothing", "needs 'labels'"),
    ],
)
def test_errors_are_sentences(answers, name, says):
    answer = answers[2][name]
    assert answer.is_error
    assert says in answer.content[0].text
    assert "Traceback" not in answer.content[0].text
