"""The distribution's name, version and extras, however it was installed."""

import json
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import zeroshot
from zeroshot.packaging import extras, version
from zeroshot.packaging.extras import how_to_install

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOLDERS = ("zeroshot", "docs", "examples", "tests", "tools", "benchmarks")
READ = {".py", ".pyi", ".md", ".html", ".ipynb"}
FROM_AN_INDEX = re.compile(r"zeroshot(-vision)?\[|pip install( -\S+)* ['\"]?zeroshot\b")
"""Our name where pip would look for it on the package index."""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution into the path, as an installer writes it."""

    def run(origin=None, quote="'"):
        folder = tmp_path / "site" / "zeroshot_vision-9.8.7.dist-info"
        folder.mkdir(parents=True)
        needs = [f"Requires-Dist: {name}" for name in PROJECT["dependencies"]]
        needs += [
            f"Requires-Dist: {name}; extra == {quote}{extra}{quote}"
            for extra, names in EXTRAS.items()
            for name in names
        ]
        lines = ["Metadata-Version: 2.4", f"Name: {PROJECT['name']}", "Version: 9.8.7", *needs]
        (folder / "METADATA").write_text("\n".join(lines) + "\n")
        if origin is not None:
            (folder / "direct_url.json").write_text(json.dumps(origin))
        monkeypatch.syspath_prepend(tmp_path / "site")

    return run


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "check out"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("")
    return folder


def from_folder(folder, **more):
    return {"url": folder.as_uri(), "dir_info": more}


def test_an_extra_of_a_checkout(install, checkout):
    install(from_folder(checkout))
    assert how_to_install("data") == f"pip install '.[data]' in {checkout}"


def test_an_editable_install_stays_editable(install, checkout):
    install(from_folder(checkout, editable=True))
    assert how_to_install("data") == f"pip install -e '.[data]' in {checkout}"


WHEEL = {"url": "file:///tmp/x.whl", "archive_info": {}}
GIT = {"url": "https://host/x.git", "vcs_info": {"vcs": "git", "commit_id": "0"}}


@pytest.mark.parametrize("origin", [None, WHEEL, GIT, from_folder(Path("/nowhere"))])
@pytest.mark.parametrize("extra", EXTRAS)
def test_without_a_checkout_packages_are_named(install, origin, extra):
    install(origin)
    assert shlex.split(how_to_install(extra)) == ["pip", "install", *EXTRAS[extra]]


def test_either_quote_in_the_metadata(install):
    install(quote='"')
    assert how_to_install("video") == f"pip install '{EXTRAS['video'][0]}'"


def test_a_source_tree_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(extras, "NAME", "zeroshot-not-installed")
    assert how_to_install("data") == "pip install '.[data]' in the checkout of zeroshot"
    assert runpy.run_path(version.__file__)["__version__"] == version.UNINSTALLED


def test_the_version_is_the_distributions(install):
    install()
    assert runpy.run_path(version.__file__)["__version__"] == "9.8.7"


def test_the_command_says_the_version(printed):
    assert printed("--version") == (0, f"zeroshot {zeroshot.__version__}\n", "")


def test_the_name_is_declared():
    assert PROJECT["name"] == extras.NAME


def test_messages_name_extras_that_there_are():
    text = "\n".join(path.read_text("utf-8") for path in (ROOT / "zeroshot").rglob("*.py"))
    named = set(re.findall(r"how_to_install\('(\w+)'\)", text))
    assert named == EXTRAS.keys() - {"test", "dev", "docs"}


def test_nothing_sends_to_another_project_on_the_index():
    pages = [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    for folder in FOLDERS:
        pages += [path for path in (ROOT / folder).rglob("*") if path.suffix in READ]
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in pages
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if FROM_AN_INDEX.search(line)
    ]
    assert not wrong, "\n".join(wrong)


DEVELOPMENT = {"test", "dev", "docs"}


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_the_table_of_extras_has_all_of_them(page):
    text = (ROOT / page).read_text("utf-8")
    table = text.split("| extra |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == EXTRAS.keys() - DEVELOPMENT


def test_the_constraints_are_within_what_is_declared():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    users = [line for name, own in EXTRAS.items() if name not in DEVELOPMENT for line in own]
    for line in [*PROJECT["dependencies"], *users]:
        requirement = Requirement(line)
        version = pinned[re.sub(r"[-_.]+", "-", requirement.name).lower()]
        assert version in requirement.specifier, line
