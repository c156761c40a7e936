"""Systems that the field speaks of by name: the command that runs each, or what supersedes it.

The names are those of surveys of vision and language models. Where weights are public, a system's
name alone says no model (`clip` are hundreds), so that the message gives a command; where none are,
the message says what to take instead, and the exit code is that of what is not available. The page
docs/systems.md is this table.
"""

from dataclasses import dataclass

from zeroshot.errors import NotAvailableError, UserError

__all__ = ["SYSTEMS", "System", "refuse"]


@dataclass(frozen=True)
class System:
    """One system: `command` runs it; without one, `instead` does what it did."""

    name: str
    about: str
    command: str | None = None
    instead: str | None = None
    """A command that runs what supersedes it."""


SYSTEMS = (
    System(
        "CLIP",
        "two encoders in one space",
        "zeroshot classify photos/ --labels cat,dog --encoder open_clip:ViT-B-32/openai",
    ),
    System(
        "CLOOB",
        "the authors publish no weights; trained again by others in a format of their own. "
        "Encoders of open_clip supersede it",
        instead="zeroshot classify photos/ --labels cat,dog --encoder "
        "open_clip:ViT-B-16/laion2b_s34b_b88k",
    ),
    System(
        "ALIGN",
        "Google's weights are not public; Kakao's, trained on COYO, are",
        "zeroshot classify photos/ --labels cat,dog --encoder hf:kakaobrain/align-base",
    ),
    System(
        "DeCLIP",
        "weights of early models lie in personal drives, in no format that loads. Encoders of "
        "open_clip and SigLIP supersede it",
        instead="zeroshot classify photos/ --labels cat,dog --encoder "
        "hf:google/siglip-base-patch16-224",
    ),
    System(
        "LiT",
        "Google's weights are JAX arrays that nothing here loads; a VisionTextDualEncoder of "
        "transformers does load (--encoder hf:./directory). SigLIP supersedes it",
        instead="zeroshot classify photos/ --labels cat,dog --encoder "
        "hf:google/siglip-base-patch16-224",
    ),
    System(
        "FLAVA",
        "a dual encoder and a matching head",
        "zeroshot match pairs.csv --model hf:facebook/flava-full",
    ),
    System(
        "SimVLM",
        "no public weights. GIT, BLIP-2 and CoCa supersede it",
        instead="zeroshot caption photos/ --method native --model hf:microsoft/git-base-coco",
    ),
    System(
        "VirTex",
        "its weights are a picture backbone and a caption decoder of torch.hub, whose code would "
        "have to run. BLIP supersedes its captions",
        instead="zeroshot caption photos/ --method native --model "
        "hf:Salesforce/blip-image-captioning-base",
    ),
    System(
        "Frozen",
        "no public weights. BLIP-2, which also feeds a frozen language model, supersedes it",
        instead='zeroshot ask photos/ "What is this?" --model hf:Salesforce/blip2-opt-2.7b',
    ),
    System(
        "MAPL",
        "no weights were found where its paper says. BLIP-2 supersedes it",
        instead='zeroshot ask photos/ "What is this?" --model hf:Salesforce/blip2-opt-2.7b',
    ),
    System(
        "ClipCap",
        "the released weights in a directory with a clipcap.json",
        "zeroshot caption photos/ --method native --model ./clipcap",
    ),
    System(
        "Flamingo",
        "DeepMind's weights are not public, OpenFlamingo's need code of their own. Idefics2, of "
        "the same design, supersedes it",
        instead='zeroshot ask photos/ "What is this?" --model hf:HuggingFaceM4/idefics2-8b',
    ),
    System(
        "VisualGPT",
        "training code alone is public. ViT-GPT2 supersedes it",
        instead="zeroshot caption photos/ --method native --model "
        "hf:nlpconnect/vit-gpt2-image-captioning",
    ),
    System(
        "VC-GPT",
        "no public weights. ViT-GPT2 supersedes it with training, MaGiC without",
        instead="zeroshot caption photos/ --method native --model "
        "hf:nlpconnect/vit-gpt2-image-captioning",
    ),
    System(
        "FIBER",
        "its checkpoints need code of their own. GroundingDINO supersedes its grounding, BLIP-2 "
        "its answers",
        instead='zeroshot ask photos/ "What is this?" --model hf:Salesforce/blip2-opt-2.7b',
    ),
    System(
        "VisualBERT",
        "answers from regions that the user brings",
        'zeroshot ask photos/ "What is this?" --model hf:uclanlp/visualbert-vqa '
        "--regions regions.npz --answers answers.txt",
    ),
    System(
        "ViLBERT",
        "its weights need code of their own and a detector of their time. ViLT supersedes it",
        instead='zeroshot ask photos/ "What is this?" --model hf:dandelin/vilt-b32-finetuned-vqa',
    ),
    System(
        "LXMERT",
        "answers from regions that the user brings",
        'zeroshot ask photos/ "What is this?" --model hf:unc-nlp/lxmert-vqa-uncased '
        "--regions regions.npz --answers answers.txt",
    ),
    System(
        "BridgeTower",
        "a matching head",
        "zeroshot match pairs.csv --model hf:BridgeTower/bridgetower-base-itm-mlm",
    ),
    System(
        "MaGiC",
        "captions without training",
        "zeroshot caption photos/ --method magic",
    ),
    System(
        "ASIF",
        "two encoders that never met, coupled by examples",
        "zeroshot classify photos/ --labels cat,dog --models ./coupled --method asif",
    ),
    System(
        "OWL-ViT",
        "detection by words",
        "zeroshot detect photos/ --labels cat,remote --model hf:google/owlvit-base-patch32",
    ),
    System(
        "CLIPSeg",
        "segmentation by words",
        "zeroshot segment photos/ --labels cat,remote --model hf:CIDAS/clipseg-rd64-refined",
    ),
    System(
        "GroupViT",
        "segmentation by words",
        "zeroshot segment photos/ --labels cat,remote --model hf:nvidia/groupvit-gcc-yfcc",
    ),
    System(
        "GIT",
        "captions and answers",
        "zeroshot caption photos/ --method native --model hf:microsoft/git-base-coco",
    ),
    System(
        "ViLT",
        "answers, matching, NLVR2",
        'zeroshot ask photos/ "How many cats are there?" --model '
        "hf:dandelin/vilt-b32-finetuned-vqa",
    ),
    System(
        "BLIP",
        "captions, answers, matching",
        'zeroshot ask photos/ "How many cats are there?" --model hf:Salesforce/blip-vqa-base',
    ),
    System(
        "X-CLIP",
        "labels of clips",
        "zeroshot video classify clips/ --labels cooking,running --model "
        "hf:microsoft/xclip-base-patch32",
    ),
    System(
        "TrOCR",
        "lines of text",
        "zeroshot read lines/ --model hf:microsoft/trocr-base-printed",
    ),
)

_BY_NAME = {system.name.lower().replace("-", ""): system for system in SYSTEMS}


def refuse(name: str) -> None:
    """Say of a system's name what runs it here; nothing happens for any other name.

    NotAvailableError for a system without public weights, with what supersedes it; UserError for
    one that has some, since its name alone does not say which.
    """
    system = _BY_NAME.get(name.lower().replace("-", "").replace("_", "").replace(" ", ""))
    if system is None:
        return
    if system.command is None:
        raise NotAvailableError(
            f"{system.name} is not available: {system.about}: `{system.instead}`"
        )
    raise UserError(
        f"'{name}' is a system, of which there may be many models ({system.about}); for example: "
        f"`{system.command}`"
    )
