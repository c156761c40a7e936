"""Linear layers in oneDNN's layout: the same numbers, and the same weights for whoever asks."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from zeroshot.models import names
from zeroshot.models.files.model_files import Files
from zeroshot.models.hf.checkpoint import AutoModelForCausalLM, Checkpoint
from zeroshot.models.towers import packed_linear
from zeroshot.models.towers.packed_linear import PackedLinear, pack

needs_kernels = pytest.mark.skipif(not packed_linear._has_kernels(), reason="not on this processor")


def layer(transposed=False, bias=True, width=520, out=600):
    torch.manual_seed(0)
    made = Conv1D(out, width) if transposed else nn.Linear(width, out, bias=bias)
    if transposed:
        made.bias.data.normal_()
    return made.eval().requires_grad_(False)


def packed_alone(made):
    return pack(nn.Sequential(made), transposed=(Conv1D,))[0]


def double(made, rows):
    """The product in double precision, by numpy."""
    weight = made.weight.numpy().astype(np.float64)
    weight = weight if isinstance(made, Conv1D) else weight.T
    bias = 0 if made.bias is None else made.bias.numpy()
    return rows.numpy().astype(np.float64) @ weight + bias


@needs_kernels
@pytest.mark.parametrize(("transposed", "bias"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (6,), (7, 1), (2, 3, 41), (0,), (3, 0)])
def test_products_equal_double_precision(transposed, bias, shape):
    stored = layer(transposed, bias)
    expected = double(stored, rows := torch.randn(*shape, 520))
    ours = packed_alone(stored)
    assert isinstance(ours, PackedLinear)
    for _ in range(2):  # as it is packed, and after
        out = ours(rows)
        assert out.shape == (*shape, 600)
        assert out.is_contiguous()
        np.testing.assert_allclose(out.numpy(), expected, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("transposed", [False, True])
def test_the_weight_is_held_once_and_comes_back_as_it_was(transposed):
    before = layer(transposed).weight.clone()
    ours = packed_alone(layer(transposed))
    assert torch.equal(ours.weight, before)
    assert "weight" in dict(ours.named_parameters())
    ours(torch.zeros(1, 520))
    assert list(dict(ours.named_parameters())) == ["bias"]
    assert torch.equal(ours.weight, before)
    assert torch.equal(ours.state_dict()["weight"], before)
    with pytest.raises(AttributeError, match="nonsense"):
        ours.nonsense  # noqa: B018


@needs_kernels
@pytest.mark.parametrize("transposed", [False, True])
def test_other_weights_are_loaded_over_packed_ones(transposed):
    ours, other = packed_alone(layer(transposed)), layer(transposed)
    other.weight.mul_(3)
    rows = torch.randn(4, 520)
    ours(rows)
    ours.load_state_dict(other.state_dict())
    np.testing.assert_allclose(ours(rows).numpy(), double(other, rows), atol=6e-5)


@needs_kernels
def test_numbers_of_rows_are_filled_up_to_tiles(monkeypatch):
    sizes = set()

    class Spy:
        def _linear_pointwise(self, rows, *rest):
            sizes.add(len(rows))
            return real._linear_pointwise(rows, *rest)

        def __getattr__(self, name):
            return getattr(real, name)

    real = torch.ops.mkldnn
    monkeypatch.setattr(torch.ops, "mkldnn", Spy())
    ours = packed_alone(layer())
    for count in range(1, 25):
        assert ours(torch.randn(count, 520)).shape == (count, 600)
    assert sizes == {6, 12, 18, 24}


class Tied(nn.Module):
    """A head on the weight of an embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(600, 520)
        self.head = nn.Linear(520, 600, bias=False)
        self.head.weight = self.embedding.weight


@needs_kernels
def test_a_weight_that_others_hold_stays_theirs():
    tied = Tied().requires_grad_(False)
    pack(tied)
    rows = torch.randn(2, 520)
    tied.head(rows)
    assert tied.head.weight is tied.embedding.weight
    tied.embedding.weight.mul_(2)
    np.testing.assert_allclose(tied.head(rows).numpy(), double(tied.head, rows), atol=2e-4)


class Own(nn.Linear):
    """Somebody's own idea of a linear layer."""


@pytest.mark.parametrize(
    "made",
    [
        layer(width=20, out=20),
        layer().half(),
        nn.Linear(520, 600),
        Own(520, 600).requires_grad_(False),
        nn.MultiheadAttention(520, 2).requires_grad_(False).out_proj,
        layer(transposed=True),
    ],
    ids=["small", "half", "trained", "subclass", "attention", "not-named"],
)
def test_what_is_left_as_it_is(made):
    assert pack(nn.Sequential(made))[0] is made


def test_without_the_kernels_all_stays(monkeypatch):
    monkeypatch.setattr(packed_linear, "_has_kernels", lambda: False)
    made = layer()
    assert pack(nn.Sequential(made))[0] is made


@needs_kernels
@pytest.mark.parametrize("tie", [True, False])
def test_a_loaded_language_model_says_the_same(tmp_path, tie):
    shape = {"n_embd": 512, "n_layer": 2, "n_head": 8, "vocab_size": 600, "n_positions": 32}
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config(**shape, tie_word_embeddings=tie)).eval()
    plain.save_pretrained(tmp_path)
    files = Files(names.parse(f"hf:{tmp_path}"), tmp_path, "", (tmp_path / "model.safetensors",))
    checkpoint = Checkpoint(files, torch.device("cpu"), torch.float32)
    model = checkpoint.load_model(AutoModelForCausalLM)
    kinds = {name: type(m) for name, m in model.named_modules()}
    assert kinds["transformer.h.0.attn.c_attn"] is PackedLinear
    assert kinds["lm_head"] is PackedLinear
    assert model.lm_head._shared == tie
    tokens = torch.randint(0, 600, (3, 7))
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens).logits, plain(tokens).logits, atol=1e-5, rtol=0)
