"""Versions, tried: `python tools/tried_versions.py [PYTHON]` and `... --newest 3.12 3.13`.

Installs the lowest version of every direct requirement that the index at hand has, or with
`--newest` the newest of each for some versions of Python, with uv, in a temporary folder, runs
`TESTS`, and writes the outcome into docs/install.md. Takes some minutes and 6 GB of disk each.
"""

import datetime
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "install.md"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DEVELOPMENT = {"test", "dev", "docs"}
TOOLS = ("pytest", "hypothesis", "beartype", "scikit-learn", "sentencepiece")
TESTS = [
    f"tests/test_{name}.py"
    for name in ("cli", "methods", "couplings", "mbr", "store", "report", "images", "tasks")
]


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """One command in the repository; its output is shown only where it fails."""
    environment = {**os.environ, "VIRTUAL_ENV": "", "OMP_NUM_THREADS": "1", "CI": "true"}
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=environment
    )
    if check and done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done


def extras_of_users() -> dict[str, list[str]]:
    extras = PROJECT["optional-dependencies"]
    return {name: own for name, own in extras.items() if name not in DEVELOPMENT}


def declared() -> dict[str, str]:
    """Least version of each requirement for users, by its normalised name."""
    lines = [*PROJECT["dependencies"], *(x for own in extras_of_users().values() for x in own)]
    found = re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", "\n".join(lines), re.MULTILINE)
    return {normalised(name): version for name, version in found}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def frozen(python: Path) -> str:
    """The packages of an environment, one per line, but for zeroshot itself."""
    listed = run(sys.executable, "-m", "uv", "pip", "freeze", "--python", python).stdout
    return "\n".join(line for line in listed.splitlines() if re.match(r"[\w.-]+==", line))


def tried(python: str, resolution: str) -> tuple[dict[str, str], str, str]:
    """Versions that were installed, the last line of pytest, and the version of Python."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "bin" / "python"
        run(sys.executable, "-m", "uv", "venv", "--python", python, folder)
        install = (sys.executable, "-m", "uv", "pip", "install", "--python", own)
        extras = ",".join(sorted(extras_of_users()))
        run(*install, "--resolution", resolution, f".[{extras}]")
        pinned = Path(folder) / "pinned.txt"
        pinned.write_text(frozen(own), "utf-8")
        run(*install, "--constraint", pinned, *TOOLS)
        versions = dict(line.split("==") for line in frozen(own).splitlines())
        version = run(own, "-c", "import platform; print(platform.python_version())").stdout.strip()
        temporary = f"--basetemp={folder}/tests"
        # warnings of old versions about themselves are none of ours
        tests = run(own, "-m", "pytest", "-q", "-W", "default", temporary, *TESTS, check=False)
        print(tests.stdout[-6000:], tests.stderr[-2000:])
        return (
            {normalised(name): version for name, version in versions.items()},
            tests.stdout.strip().splitlines()[-1],
            version,
        )


def table(versions: dict[str, str], outcome: str, python: str) -> str:
    lines = [
        f"Python {python}, {datetime.date.today()}: {outcome.strip('= ')}.",
        "",
        "| package | least version declared | version tried |",
        "|---|---|---|",
    ]
    for name, least in declared().items():
        lines.append(f"| {name} | {least} | {versions.get(name, 'not installed')} |")
    return "\n".join(lines)


def newest(pythons: list[str]) -> str:
    """The newest versions on each Python, and what the tests say."""
    columns = ("Python", "date", "torch", "transformers", "open_clip", "numpy", "tests")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    today = str(datetime.date.today())
    for python in pythons:
        try:
            versions, outcome, version = tried(python, "highest")
        except SystemExit as error:
            reason = str(error).strip().splitlines()[-1].replace("|", " ")
            lines.append(f"| {python} | {today} | | | | | not installed: {reason} |")
            continue
        own = (versions[n] for n in ("torch", "transformers", "open-clip-torch", "numpy"))
        cells = [version, today, *own, outcome.strip("= ")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write(part: str, written: str) -> None:
    """Between the marks of this part of the page."""
    print(written)
    begin, end = f"<!-- begin: {part} -->", f"<!-- end: {part} -->"
    before, _, rest = PAGE.read_text("utf-8").partition(begin)
    after = rest.partition(end)[2]
    PAGE.write_text(f"{before}{begin}\n\n{written}\n\n{end}{after}", "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--newest"]:
        write("newest versions", newest(sys.argv[2:]))
    else:
        python = sys.argv[1] if len(sys.argv) > 1 else "3.11"
        write("least versions", table(*tried(python, "lowest-direct")))
