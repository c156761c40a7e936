"""Make zeroshot/words.json from WordNet 3.0: `python tools/words.py DICT COPYRIGHT OUT`.

DICT is WordNet's folder of databases (data.noun, index.noun, cntlist.rev ...), COPYRIGHT the text
of its licence, which has to stand on every copy.

A noun is taken if one of its two first senses is a thing and it is not a verb or an adjective
first. The order is that of how often glosses have it, and three times how often tagged texts do.
"""

import json
import re
import sys
from collections import Counter
from pathlib import Path

COUNT = 8000
THINGS = {5, 6, 8, 13, 15, 17, 18, 19, 20, 27}
"""WordNet's files of nouns: animals, artifacts, body, food, places, objects, people, phenomena,
plants, substances."""
LEFT_OUT = {
    *{"any", "some", "great", "used", "other", "breast", "slave", "corpse", "bastard"},
    *{"murderer", "nazi", "nigger", "vagina", "penis"},
    *{"one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "several"},
}


def lines(path: Path) -> list[str]:
    """The lines after the licence."""
    return [line for line in path.read_text().splitlines() if not line.startswith("  ")]


def nouns(folder: Path) -> list[str]:
    """The most common ones first."""
    glosses: Counter[str] = Counter()
    for name in ("noun", "verb", "adj"):
        for line in lines(folder / f"data.{name}"):
            glosses.update(set(re.findall(r"[a-z]+", line.split("|", 1)[1].lower())))
    tagged: Counter[tuple[str, str]] = Counter()
    for line in (folder / "cntlist.rev").read_text().splitlines():
        key, _, count = line.split()
        word, rest = key.split("%")
        tagged[word, rest[0]] += int(count)
    things = {}
    for line in lines(folder / "data.noun"):
        offset, file, _, count, *rest = line.split(" ")
        if int(file) in THINGS:
            things[offset] = rest[: 2 * int(count, 16) : 2]
    found = []
    for line in lines(folder / "index.noun"):
        word, *fields = line.split()
        senses = fields[-int(fields[1]) :][:2]
        often = max(tagged[word, kind] for kind in "123")
        if (
            re.fullmatch("[a-z]{3,14}", word)
            and word not in LEFT_OUT
            and any(word in things.get(sense, []) for sense in senses)
            and 2 * tagged[word, "1"] >= often
        ):
            found.append((glosses[word] + 3 * tagged[word, "1"], word))
    return [word for _, word in sorted(found, reverse=True)]


def main() -> None:
    folder, licence, out = map(Path, sys.argv[1:])
    about = f"The {COUNT} most common nouns of things in WordNet 3.0 (tools/words.py)."
    text = " ".join(licence.read_text().split())
    made = {
        "about": about,
        "source": "WordNet 3.0, Princeton University, https://wordnet.princeton.edu",
        "licence": text,
        "nouns": " ".join(nouns(folder)[:COUNT]),
    }
    out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
