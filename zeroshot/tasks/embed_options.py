"""The options of `embed`."""

from dataclasses import dataclass

from zeroshot.tasks.options import option


@dataclass(frozen=True)
class EmbedOptions:
    """What is embedded."""

    captions: bool = option(
        False,
        "Also embed the captions that come with the images, with the text encoder.",
        on_command_line=False,
        recorded="models",
    )
