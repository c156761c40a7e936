"""Every command that couples: the default coupling of a set that names none, and --coupling."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zeroshot import cli
from zeroshot.cache.embedding_cache import NullCache
from zeroshot.datasets.labels import read_labeled_images
from zeroshot.inference.embedding import embed_all
from zeroshot.inference.meter import Meter
from zeroshot.inputs.source import Source
from zeroshot.methods import auto
from zeroshot.methods.evidence import Evidence
from zeroshot.methods.ncm import NCM
from zeroshot.model_set.model_set import resolve
from zeroshot.model_set.spec import POCKET
from zeroshot.tasks.localization.region_detector import pyramid

ROOT = Path(__file__).parent.parent
SCENES = sorted((ROOT / "examples" / "scenes").glob("*.png"))
LABELS = ["--labels", "red heart,blue star,green ring"]
COMMANDS = {
    "classify": [*LABELS, "--templates", "none"],
    "search": ["a red heart"],
    "match": ["--text", "a red heart"],
    "detect": [*LABELS, "--threshold", "0.4"],
    "filter": ["--min-score", "-1"],
    "ask": ["is there a red heart?"],
    "caption": ["--method", "retrieve"],
}


@pytest.fixture(scope="module")
def open_set(tmp_path_factory):
    """The pocket encoders in a set that leaves its coupling open."""
    folder = tmp_path_factory.mktemp("set")
    for name in ("image_encoder", "text_encoder"):
        shutil.copytree(POCKET / name, folder / name)
    for name in ("anchors.safetensors", "anchors.jsonl"):
        shutil.copy(POCKET / name, folder / name)
    (folder / "models.toml").write_text(
        'name = "open"\n[image_encoder]\nmodel = "hf:image_encoder"\n'
        '[text_encoder]\nmodel = "hf:text_encoder"\n'
        '[coupling]\nmethod = "asif"\nanchors = "anchors.safetensors"\n'
    )
    return folder


@pytest.fixture(autouse=True)
def quick_choice(monkeypatch):
    """`auto` tries one coupling only, which is no test of its choice."""
    monkeypatch.setattr(auto, "MAKERS", {"csa": auto._csa})


@pytest.fixture
def run(capsys, tmp_path):
    def run(name, *arguments):
        image = tmp_path / "a.png"
        if not image.exists():
            shutil.copy(SCENES[0], image)
            (tmp_path / "pairs.csv").write_text("path,caption\na.png,a red heart\n")
        given = [str(image)] if name != "filter" else [str(tmp_path / "pairs.csv")]
        first, *more = COMMANDS[name]
        words = [first, *given, *more] if name == "search" else [*given, first, *more]
        capsys.readouterr()
        code = cli.run([name, *words, "--json", *map(str, arguments)])
        said = capsys.readouterr()
        return code, [json.loads(line) for line in said.out.splitlines()], said.err

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_the_choice_on_the_anchors_and_another_that_is_named(run, open_set, name):
    chosen, named = [], []
    for more, found in (((), chosen), (("--coupling", "procrustes"), named)):
        code, rows, said = run(name, "--models", open_set, *more)
        assert code == 0, said
        found.append(json.dumps(rows[0]["models"]))
    assert "CSA(s=" in chosen[0]
    assert "Procrustes(" in named[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_dual_encoder_has_no_coupling(run, name):
    code, _, said = run(name, "--models", "pocket", "--coupling", "csa")
    assert code == 2
    assert "needs no coupling; --encoder coupled" in " ".join(said.split())


@pytest.mark.parametrize("name", ["match", "detect", "ask"])
def test_a_model_that_reads_both_has_no_coupling(run, name):
    code, _, said = run(name, "--models", "pocket", "--coupling", "csa", "--model", "hf:./none")
    assert code == 2
    assert "it couples two encoders, and --model has none" in " ".join(said.split())


def test_explanations_of_the_default(run, open_set):
    """The choice explains itself; what it is chosen for is `ensemble`, which does not."""
    code, rows, _ = run("classify", "--models", open_set)
    assert (code, rows[0]["method"]) == (0, "ensemble")
    code, _, said = run("classify", "--models", open_set, "--explain", 2)
    assert code == 2
    assert "--method or --coupling" in " ".join(said.split())
    code, rows, _ = run("classify", "--models", open_set, "--explain", 2, "--coupling", "auto")
    assert (code, rows[0]["method"], len(rows[0]["because"])) == (0, "csa", 2)


def test_regions_of_a_coupled_pair_are_windows(run, open_set):
    code, rows, _ = run("detect", "--models", open_set)
    with Image.open(SCENES[0]) as image:
        windows = {tuple(round(side) for side in box) for box in pyramid(*image.size)}
    found = {tuple(round(side) for side in thing["box"]) for thing in rows[0]["boxes"]}
    assert (code, rows[0]["method"]) == (0, "regions")
    assert found
    assert found <= windows


@pytest.fixture
def shots(tmp_path):
    for label, files in {
        "red heart": SCENES[:2],
        "blue star": SCENES[2:4],
        "green ring": SCENES[4:5],
    }.items():
        (tmp_path / "shots" / label).mkdir(parents=True)
        for file in files:
            shutil.copy(file, tmp_path / "shots" / label)
    return tmp_path / "shots"


@pytest.mark.parametrize("method", [None, NCM])
@pytest.mark.parametrize("coupled", [True, False])
def test_shots_are_compared_in_the_image_encoders_own_rows(run, open_set, shots, method, coupled):
    """Without a method it is `evidence`; scores are those of the method on rows made here."""
    models = resolve(str(open_set) if coupled else "pocket")
    more = [] if method is None else ["--method", "ncm"]
    name = open_set if coupled else "pocket"
    code, rows, said = run("classify", "--models", name, "--shots", shots, *more)
    assert code == 0, said
    labels = LABELS[1].split(",")
    listed = read_labeled_images(shots, labels)
    if coupled:
        models = models.with_chosen_coupling
    encoder = models.encoder
    image_encoder = encoder.image_encoder if coupled else encoder
    own, mine = (
        embed_all(sources, image_encoder, NullCache(), Meter())
        for sources in (listed.sources, [Source(str(SCENES[0]))])
    )
    joint, images, given = own, mine, ()
    if coupled:
        joint, images, given = encoder.project_images(own), encoder.project_images(mine), (own,)
    texts = encoder.encode_texts(labels)[:, None]
    fitted = (method or Evidence)().fit(joint, torch.tensor(listed.classes), *given)
    extra = {"own_images": mine} if coupled else {}
    expected = fitted.scores(images, texts, **extra).softmax(1)[0]
    assert rows[0]["method"] == ("evidence" if method is None else "ncm")
    found = {x["label"]: x["score"] for x in rows[0]["labels"]}
    np.testing.assert_allclose([found[x] for x in labels], expected.numpy(), rtol=2e-3, atol=1e-5)
