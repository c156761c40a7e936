"""The files around a release: one version, the form of the changelog, the workflow, templates."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))


@pytest.fixture
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_one_version(release):
    assert release.cited() == release.version()
    assert "tag is v9.9.9" in release.faults("v9.9.9")[0]


def test_a_release_needs_a_dated_section(release, tmp_path, monkeypatch):
    for name in ("pyproject.toml", "CITATION.cff"):
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    number = release.version()
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n### Added\n\n- x\n")
    assert "has no section" in release.faults(f"v{number}")[0]
    dated = f"# Changelog\n\n## [Unreleased]\n\n## [{number}] - 2030-01-31\n\n### Added\n\n- x\n"
    (tmp_path / "CHANGELOG.md").write_text(dated)
    assert release.faults(f"v{number}") == []
    assert release.changes()[number] == ("2030-01-31", "### Added\n\n- x")


def test_the_changelog_has_the_form_of_keep_a_changelog(release):
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert text.startswith("# Changelog\n")
    assert next(iter(release.changes())) == "Unreleased"
    for name, (_, changes) in release.changes().items():
        kinds = re.findall(r"^### (.+)$", changes, re.MULTILINE)
        assert set(kinds) <= KINDS, name
        assert len(kinds) == len(set(kinds)), name
        before = changes.split("### ")[0]
        assert "\n- " not in f"\n{before}", f"a line of {name} has no heading"


def test_publishing_stores_no_token_and_attests(release):
    jobs = WORKFLOW["jobs"]
    assert WORKFLOW["permissions"] == {}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert jobs["publish"]["environment"] == "release"
    used = [step.get("uses", "") for job in jobs.values() for step in job["steps"]]
    assert any(name.startswith("actions/attest-build-provenance@") for name in used)
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    for path in re.findall(r"(?:python3?|bash) ((?:tools|\.ci)/[\w./]+)", str(jobs)):
        assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")))
def test_issue_templates_ask_for_what_is_needed(path):
    template = yaml.safe_load(path.read_text("utf-8"))
    if path.stem == "config":
        return
    assert {"name", "description", "body"} <= set(template)
    ids = [field["id"] for field in template["body"]]
    assert len(ids) == len(set(ids))
    assert any(field.get("validations", {}).get("required") for field in template["body"])


def test_the_container_copies_what_there_is():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    assert names
    allowed = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert [n for n in names if not (ROOT / n).exists() or f"!{n}" not in allowed] == []
