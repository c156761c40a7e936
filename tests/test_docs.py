"""The documentation runs: commands and Python of every page, on the pocket set, in this process."""

import importlib.util
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import zeroshot
from zeroshot import methods
from zeroshot.cli import run

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
BLOCK = re.compile(r"(?:<!-- ([^\n]+?) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
SET_UP = {"ci: tests", "ci: install"}


@dataclass(frozen=True)
class Block:
    """A code block, and what the comment right before it says."""

    page: Path
    mark: str
    language: str
    text: str


def blocks(language):
    found = [
        Block(page, *match) for page in PAGES for match in BLOCK.findall(page.read_text("utf-8"))
    ]
    return [b for b in found if b.language == language and b.mark not in SET_UP]


def commands():
    """Every `zeroshot` line of the pages, once, with its block."""
    lines = {
        line: block
        for block in blocks("sh")
        for line in block.text.splitlines()
        if line.startswith("zeroshot ")
    }
    return list(lines.items())


def not_run(mark):
    """Whether the mark says why a block does not run here."""
    return mark.startswith(("needs: ", "serves: ", "example: ", "not run: "))


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(page):
    """Run the blocks of a page that make what only its own commands and blocks use."""
    for block in blocks("python"):
        if block.page == page and block.mark.startswith("prepares this page:"):
            exec(block.text, {})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A place to run things in: the examples, the arrays that a page prepares, a cache."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZEROSHOT_CACHE", str(tmp_path / "cache"))
    for block in blocks("python"):
        if block.mark.startswith("prepares:"):
            exec(block.text, {})
    return tmp_path


@pytest.mark.filterwarnings("default::zeroshot.errors.ApproximateWarning")
@pytest.mark.parametrize(
    ("line", "block"),
    [pytest.param(line, b, id=line) for line, b in commands() if not not_run(b.mark)],
)
def test_command_runs(line, block, folder, capsys):
    prepare(block.page)
    first = [block.mark.removeprefix("after: ")] if block.mark.startswith("after: ") else []
    for command in [*first, line]:
        assert run(shlex.split(command)[1:]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=line) for line, b in commands() if not_run(b.mark)]
)
def test_command_that_is_not_run_has_options_that_exist(line):
    words = shlex.split(line)
    known = dict(tool("help_pages").commands())
    name = next(n for n in (" ".join(words[:3]), " ".join(words[:2])) if n in known)
    options = {n for names, *_ in tool("help_pages").parameters(known[name]) for n in names}
    assert {word for word in words if word.startswith("-")} <= options


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "README.md"], ids=lambda p: p.name)
def test_what_does_not_run_says_why(page):
    silent = [
        line
        for mark, language, text in BLOCK.findall(page.read_text("utf-8"))
        if language in ("sh", "bash", "console") and not not_run(mark) and mark not in SET_UP
        for line in text.splitlines()
        if not line.startswith("zeroshot ")
    ]
    assert silent == []


PYTHON = [
    pytest.param(b, id=f"{b.page.name}-{i}")
    for i, b in enumerate(blocks("python"))
    if b.page.name != "CONTRIBUTING.md" and not not_run(b.mark)
]


@pytest.mark.parametrize("block", PYTHON)
def test_python_runs(block, folder):
    prepare(block.page)
    exec(compile(block.text, str(block.page), "exec"), {})


@pytest.mark.parametrize("block", [b for b in blocks("python") if not_run(b.mark)])
def test_python_that_is_not_run_compiles(block):
    compile(block.text, str(block.page), "exec")


def test_the_method_of_contributing_is_one(monkeypatch, tmp_path, capsys, folder):
    source = next(b.text for b in blocks("python") if b.page.name == "CONTRIBUTING.md")
    (tmp_path / "nearest.py").write_text(source, "utf-8")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    try:
        assert run(["methods", "nearest"]) == 0
        assert "exponent of the cosine" in capsys.readouterr().out
        line = "classify examples/scenes --labels red,blue --models pocket --method nearest -o p=2"
        assert run(line.split()) == 0
    finally:
        sys.modules.pop("zeroshot.methods.nearest", None)
        vars(methods).pop("nearest", None)


def headings(page):
    return set(re.findall(r"^## (.+)$", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE))


def test_every_command_has_a_section():
    assert {name for name, _ in tool("help_pages").commands()} <= headings("cli.md")


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_page_with_its_options(name):
    folder = ROOT / "docs" / "methods"
    assert f"| [{name}]({name}.md) |" in (folder / "README.md").read_text("utf-8")
    page = (folder / f"{name}.md").read_text("utf-8")
    for option in methods.describe(name).options:
        assert re.search(rf"^\| `{option.name}` \| {option.default} ", page, re.I | re.M), (
            f"docs/methods/{name}.md lacks {option.name} (default {option.default})"
        )


def test_the_command_page_is_up_to_date():
    pages = tool("help_pages")
    assert pages.PAGE.read_text("utf-8") == pages.page(), "run: make docs"


def test_the_page_of_functions_is_up_to_date():
    pages = tool("function_pages")
    assert pages.PAGE.read_text("utf-8") == pages.page(), "run: make docs"


def test_the_page_of_functions_has_all_of_them():
    assert set(tool("function_pages").NAMES) == set(zeroshot.__all__) - {"video", "__version__"}


def test_the_page_of_models_has_every_set_its_models_and_size():
    from zeroshot.model_set.spec import HUB_SETS

    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for name, spec in HUB_SETS.items():
        models = " | ".join(f"`{model}`" for model in spec.models.values())
        assert f"| `{name}` | {models} | about {spec.megabytes} MB |" in rows


def test_the_page_of_systems_is_the_table():
    from zeroshot.models.systems import systems

    page = (ROOT / "docs" / "systems.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert rows == [f"| {s.name} | {s.about} | `{s.command or s.instead}` |" for s in systems()]


def test_the_page_of_models_has_the_table_of_encoders():
    from zeroshot.model_set.spec import HUB_SETS
    from zeroshot.models.names import parse
    from zeroshot.models.systems import encoder_rows

    page = (ROOT / "docs" / "models.md").read_text("utf-8").splitlines()
    heads, rows = encoder_rows()
    start = page.index(f"| {' | '.join(heads)} |") + 2
    shown = [f"| {family} | `{name}` | {' | '.join(more)} |" for family, name, *more in rows]
    assert page[start : start + len(rows) + 1] == [*shown, ""]
    names = [name for _, name, *_ in rows]
    assert len(set(names)) == len(names)
    assert {spec.encoder for spec in HUB_SETS.values()} - {"hf:openai/clip-vit-base-patch32"} <= {
        *names
    }
    assert [str(parse(name)) for name in names] == names


def test_the_commands_of_systems_exist():
    from zeroshot.models.systems import systems

    pages = tool("help_pages")
    known = dict(pages.commands())
    for system in systems():
        words = shlex.split(system.command or system.instead or "")
        name = next(n for n in (" ".join(words[:3]), " ".join(words[:2])) if n in known)
        command = known[name]
        options = {name for names, *_ in pages.parameters(command) for name in names}
        assert {word for word in words if word.startswith("--")} <= options, system.name


def test_every_array_is_described():
    from zeroshot.tasks.classification.arrays import SHAPES

    text = (ROOT / "docs" / "embeddings.md").read_text("utf-8")
    table = text.split("| array |")[1].split("\n\n")[0]
    assert {name for name in SHAPES if f"`{name}`" not in table} == set()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "examples" / "README.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_the_two_commands_are_one_line_each():
    found = BLOCK.findall((ROOT / "README.md").read_text("utf-8"))
    lines = {mark: text.splitlines() for mark, _, text in found if mark in SET_UP}
    assert {mark: len(text) for mark, text in lines.items()} == {"ci: install": 1, "ci: tests": 1}
