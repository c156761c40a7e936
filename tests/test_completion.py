"""What a shell completes, by the environment variables through which it asks."""

import os
import subprocess
import sys

import pytest

from zeroshot import methods
from zeroshot.ranking import exact

SETS = ["pocket", "base", "fast", "best"]


def environment(line):
    return {
        "_ZEROSHOT_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }


@pytest.fixture
def complete(printed, monkeypatch):
    """The names that bash offers for the end of a line."""

    def run(line):
        for name, value in environment(line).items():
            monkeypatch.setenv(name, value)
        code, out, err = printed()
        assert (code, err) == (0, "")
        return out.split()

    return run


def doing(task):
    return [name for name in methods.names() if task in methods.describe(name).does]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("zeroshot cap", ["caption"]),
        ("zeroshot --version cap", ["caption"]),
        ("zeroshot models p", ["pull"]),
        ("zeroshot video classify --meth", ["--method"]),
        ("zeroshot classify a.png --score s", ["softmax", "sigmoid"]),
        ("zeroshot caption a.png --models ", SETS),
        ("zeroshot models show p", ["pocket"]),
        ("zeroshot models pull ", SETS),
        ("zeroshot methods zl", ["zlap"]),
        ("zeroshot search a.png --method ", list(exact.CORRECTIONS)),
        ("zeroshot caption a", []),  # then the shell offers files
    ],
)
def test_completion(complete, line, names):
    assert complete(line) == names


@pytest.mark.parametrize("command", ["caption", "classify", "segment"])
def test_methods_are_those_of_the_command(complete, command):
    more = ["native"] if command == "caption" else []
    assert complete(f"zeroshot {command} a.png --method ") == doing(command) + more


def test_eval_and_methods_have_all_methods(complete):
    scored = {*doing("classify"), *doing("caption")}
    assert set(complete("zeroshot eval a --method ")) == scored
    assert complete("zeroshot methods ") == methods.names()


@pytest.mark.parametrize("line", ["zeroshot caption --method m", "zeroshot caption --models "])
def test_completion_imports_nothing_heavy(line):
    code = (
        "import sys\nfrom zeroshot import cli\n"
        "assert cli.run([]) == 0\n"
        "heavy = {'torch', 'numpy', 'huggingface_hub', 'PIL'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment(line)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()


def test_the_script_for_a_shell_is_of_the_command(printed, monkeypatch):
    """However Python was started: the shell completes `zeroshot`."""
    monkeypatch.setenv("_ZEROSHOT_COMPLETE", "source_zsh")
    code, script, _ = printed()
    assert code == 0
    assert "_ZEROSHOT_COMPLETE=complete_zsh zeroshot" in script
    assert "compdef _zeroshot_completion zeroshot" in script
