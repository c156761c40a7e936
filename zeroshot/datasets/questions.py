"""Texts about images, from JSON lines: questions to answer, prompts that captions begin with."""

from pathlib import Path

from zeroshot.errors import UserError
from zeroshot.inputs.text_files import name_in, read_json_lines, text_in


def read_questions(file: Path) -> dict[str, tuple[str, ...]]:
    """The questions about each image, by its path, from JSON lines `{"path", "question"}`.

    Paths are relative to the file. An image may have several lines.

    Raises:
        UserError: another kind of file, or a question that is asked twice about an image.
    """
    questions: dict[str, tuple[str, ...]] = {}
    for where, row in read_json_lines(file):
        name, question = name_in(row, "path", where), text_in(row, "question", where)
        path = str(file.parent / name)
        if question in questions.get(path, ()):
            raise UserError(f"{where}: '{question}' is asked about '{name}' twice")
        questions[path] = (*questions.get(path, ()), question)
    return questions


def read_prompts(file: Path) -> dict[str, str]:
    """The prompt of each image, by its path, from JSON lines `{"path", "prompt"}`.

    Paths are relative to the file. A prompt may be empty.

    Raises:
        UserError: another kind of file, or two prompts for an image.
    """
    prompts: dict[str, str] = {}
    for where, row in read_json_lines(file):
        name, prompt = name_in(row, "path", where), text_in(row, "prompt", where, empty=True)
        if prompts.setdefault(str(file.parent / name), prompt) != prompt:
            raise UserError(f"{where}: a second prompt for '{name}'")
    return prompts
