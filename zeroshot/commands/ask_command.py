"""`zeroshot ask` and `zeroshot read`.

As `cli`, nothing heavy is imported here.
"""

from pathlib import Path
from typing import Annotated

import typer

from zeroshot.commands.options import Images, on_pictures, option
from zeroshot.commands.runner import Rows
from zeroshot.errors import UserError


@on_pictures
def ask(
    run: Rows,
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGES...] [QUESTION]",
            help="Pictures, then the question, unless --question or --questions asks.",
        ),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option("--question", help="A question about every picture; several are allowed."),
    ] = None,
    questions: Annotated[
        Path | None,
        option(
            "--questions",
            env="QUESTIONS",
            help="Questions of each picture: JSON lines, path, question.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "--model",
            env="MODEL",
            help="A model that answers: ViLT, BLIP, BLIP-2, GIT, LLaVA and their like. Without "
            "one, --models or --encoder answers by matching statements.",
        ),
    ] = None,
    top_k: Annotated[
        int, option("--top-k", env="TOP_K", help="Answers to each question.", min=1, max=50)
    ] = 1,
    answers: Annotated[
        str | None,
        option(
            "--answers",
            env="ANSWERS",
            help="By matching, the answers to choose from: red,green, or a file. With --regions, "
            "the names of the model's outputs, one a line.",
        ),
    ] = None,
    among: Annotated[
        str | None,
        option(
            "--among",
            env="AMONG",
            help="By matching, what may be in the pictures: cat,dog, or a file. For questions "
            "whether something is there, and how many.",
        ),
    ] = None,
    present: Annotated[
        float,
        option(
            "--present",
            env="PRESENT",
            help="Share of the softmax over --among from which a name is there.",
        ),
    ] = 0.1,
    regions: Annotated[
        Path | None,
        option(
            "--regions",
            env="REGIONS",
            help="An .npz of regions that a detector saw, for LXMERT and VisualBERT.",
        ),
    ] = None,
) -> None:
    """Answer questions about pictures."""
    from zeroshot import prompts
    from zeroshot.datasets.questions import read_questions
    from zeroshot.tasks.vqa.ask_task import AskJob

    named, asked = list(images or []), list(question or [])
    each = read_questions(questions) if questions is not None else {}
    if not asked and not each:
        if len(named) < 2:
            raise UserError('ask needs pictures and a question: zeroshot ask photos/ "Is it day?"')
        asked = [named.pop()]
    if asked and each:
        raise UserError("--question asks about every picture, --questions about each: give one")
    job = AskJob(
        run.model_set(),
        each or tuple(asked),
        model,
        top_k,
        prompts.load_labels(answers) if answers is not None else (),
        prompts.load_labels(among) if among is not None else (),
        present,
        regions,
    )
    run.show(job, run.inputs(named or list(each)))


@on_pictures
def read(
    run: Rows,
    images: Images,
    model: Annotated[
        str,
        option("--model", env="READER", help="A picture encoder with a text decoder (TrOCR)."),
    ] = "hf:microsoft/trocr-base-printed",
) -> None:
    """Read the line of text that each picture shows."""
    from zeroshot.tasks.captioning.trained_task import ReadJob

    run.show(ReadJob(run.model_set(), model), run.inputs(images))
