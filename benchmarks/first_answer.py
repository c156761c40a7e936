"""What a command costs that has been run before: CPU seconds, beside the import of torch.

    python benchmarks/first_answer.py [--models MODELS.toml --photos FOLDER] [--runs 5]

Each command is run once to fill a cache of its own, and then `--runs` times; user CPU seconds of
whole processes, medians, with `python -c "import torch"` between them. The rows of all runs must be
equal. Without `--models`, the bundled pocket set and examples/scenes alone.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SCENES = Path(__file__).parent.parent / "examples" / "scenes"
TORCH = [sys.executable, "-c", "import torch"]
GOALS = {"classify": 1.5, "search": 1.5, "caption": 4.0}
"""Times the import of torch."""


def seconds(command, environment):
    """User CPU seconds of a command, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, done.stdout


def commands(models, photos, labels):
    """The arguments of each command, by its name."""
    one = sorted(p for p in photos.iterdir() if p.suffix in (".png", ".jpg"))[0]
    return {
        "classify": ["classify", photos, "--labels", labels, "--models", models],
        "search": ["search", "a dog in the grass", photos, "--models", models],
        "caption": ["caption", one, "--models", models],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    sets = {"pocket": commands("pocket", SCENES, "red heart,blue star")}
    if given.models:
        sets[given.models.stem] = commands(given.models, given.photos, "dog,boat,street,kitchen")
    print(f"user CPU seconds, medians of {given.runs}; times is of the import of torch")
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"ZEROSHOT_CACHE": cache, "OMP_NUM_THREADS": "1"}
        seconds(TORCH, environment)
        for name, cases in sets.items():
            for case, arguments in cases.items():
                command = [sys.executable, "-m", "zeroshot", *map(str, arguments), "--json"]
                first, expected = seconds(command, environment)
                ours, torch = [], []
                for _ in range(given.runs):
                    took, printed = seconds(command, environment)
                    assert printed == expected, f"{case}: other rows than in the first run"
                    ours.append(took)
                    torch.append(seconds(TORCH, environment)[0])
                own, reference = statistics.median(ours), statistics.median(torch)
                print(
                    f"{name:8} {case:9} {own:5.2f}  torch {reference:5.2f}  {own / reference:4.2f} "
                    f"times (goal {GOALS[case]})  first run {first:5.2f}",
                    flush=True,
                )
        listing = [seconds([sys.executable, "-m", "zeroshot", "methods"], environment)[0]]
        listing += [
            seconds([sys.executable, "-m", "zeroshot", "methods"], environment)[0]
            for _ in range(given.runs)
        ]
        print(f"methods {statistics.median(listing[1:]):5.2f} (goal 0.5)")


if __name__ == "__main__":
    main()
