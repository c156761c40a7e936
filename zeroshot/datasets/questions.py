"""Questions of each picture, from a file."""

import json
from pathlib import Path

from zeroshot.errors import UserError

__all__ = ["read_questions"]


def read_questions(file: Path) -> dict[str, tuple[str, ...]]:
    """The questions about each picture, by its path, from JSON lines `{"path", "question"}`.

    Paths are relative to the file; a picture may have several lines.

    UserError for anything else, and for a question that is asked twice of one picture.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{file}': {error}") from None
    questions: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"'{file}' line {number} is not JSON: {error}") from None
        match row:
            case {"path": str(name), "question": str(question)} if question.strip():
                path = str(file.parent / name)
            case _:
                raise UserError(f"'{file}' line {number}: expected the texts path and question")
        if question in questions.get(path, ()):
            raise UserError(f"'{file}' line {number}: '{question}' is asked of '{name}' twice")
        questions[path] = (*questions.get(path, ()), question)
    if not questions:
        raise UserError(f"'{file}' has no questions")
    return questions
