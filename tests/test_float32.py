"""The authors' numbers again, in float32: what pictures are scored in."""

import numpy as np
import pytest

from tests.golden import close, recorded
from zeroshot.tasks.classification.arrays import score_arrays

HUNDRED = np.array(100.0)


def classes(z, name="in_W"):
    return z[name][:, None]


CASES = {
    "autoclip": (
        "autoclip_a",
        lambda z: {"images": z["in_X"], "texts": z["in_E"]},
        {},
        "logits_tight",
    ),
    "zpe": (
        "zpe_a",
        lambda z: {"images": z["in_X"], "texts": z["in_E"].transpose(1, 0, 2), "bank": z["in_X0"]},
        {"compat": True},
        "logits",
    ),
    "dn": (
        "dn_a",
        lambda z: {
            "images": z["in_X_raw"],
            "texts": classes(z, "in_W_raw"),
            "bank": z["in_X0_raw"],
        },
        {},
        "sims",
    ),
    "otter": (
        "otter_a",
        lambda z: {"images": z["in_X"], "texts": classes(z), "prior": z["in_class_balance"]},
        {},
        "plan_posthoc_logits",
    ),
    "frolic": (
        "frolic_a",
        lambda z: {"images": z["in_X"], "texts": classes(z)},
        {"compat": True},
        "debiased_zeroshot",
    ),
    "dis": (
        "qbnorm_dis_a",
        lambda z: {"images": z["in_Q"], "texts": classes(z, "in_G"), "bank": z["in_bank"]},
        {"compat": True},
        "sims_dis",
    ),
    "nnn": (
        "nnn_a",
        lambda z: {"images": z["in_Q"], "texts": classes(z, "in_G"), "bank": z["in_bank"]},
        {"k": 16},
        "sims_nnn",
    ),
    "csls": (
        "csls_a",
        lambda z: {"images": z["in_Q"], "texts": classes(z, "in_G")},
        {},
        "sims_csls",
    ),
    "inverted_softmax": (
        "csls_a",
        lambda z: {"images": z["in_Q"], "texts": classes(z, "in_G")},
        {"compat": True},
        "sims_inverted_softmax",
    ),
}
SCALES = {"zpe": 100.0, "otter": 1 / 72}
"""What a score is multiplied by to be in the authors' units."""


@pytest.mark.parametrize("method", CASES)
def test_authors_numbers_in_float32(method):
    file, arrays, options, output = CASES[method]
    z = recorded(file)
    given = {k: v.astype(np.float32) for k, v in arrays(z).items()} | {"logit_scale": HUNDRED}
    scores = score_arrays(given, method, options)["scores"]
    assert scores.dtype == np.float32
    close(scores * SCALES.get(method, 1.0), z[f"out_{output}"], rtol=1e-4)
