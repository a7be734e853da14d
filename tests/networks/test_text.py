import builtins
import socket
import subprocess
import sys

import pytest
import torch
from conftest import wake
from torch import nn

from diffusion_course.diffusion.denoiser import Denoiser
from diffusion_course.diffusion.guidance import CFG, drop_condition
from diffusion_course.diffusion.predictions import V
from diffusion_course.diffusion.schedules import Cosine
from diffusion_course.networks.dit import DiT
from diffusion_course.networks.text import Pooled, PretrainedText, Projected, TextEncoder
from diffusion_course.networks.unet import UNet

WORDS = "red green blue square circle moves left right".split()
TOKENS = torch.tensor([[3, 1, 4, 0, 0, 0], [5, 2, 6, 7, 1, 3]])  # two captions, the first padded
NULL = torch.zeros(2, 6, dtype=torch.int64)


def encoder(**kwargs):
    return wake(TextEncoder(**{"dim": 16, "vocabulary": 9, "length": 6} | kwargs))


def test_shapes():
    text = encoder()
    assert text(TOKENS).shape == (2, 6, 16) and text.dim == 16 and text.pooled(TOKENS).shape == (2, 16)


def test_it_is_pytorchs_pre_norm_transformer_with_a_padding_mask():
    text = encoder(layers=2)
    layers = []
    for block in text.blocks:
        ours, theirs = block.attention, nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", norm_first=True,
                                                                   batch_first=True)
        theirs.load_state_dict({
            "self_attn.in_proj_weight": torch.cat([ours.q.weight, ours.kv.weight]),
            "self_attn.in_proj_bias": torch.zeros(48),
            "self_attn.out_proj.weight": ours.out.weight, "self_attn.out_proj.bias": ours.out.bias,
            **{f"{name}.{key}": value for name, part in [
                ("linear1", block.mlp[0]), ("linear2", block.mlp[2]),
                ("norm1", block.norm1), ("norm2", block.norm2)]
               for key, value in part.state_dict().items()}})
        layers.append(theirs)
    expected = text.words(TOKENS) + text.places
    for layer in layers:
        expected = layer(expected, src_key_padding_mask=TOKENS == 0)
    expected = text.norm(expected)
    real = TOKENS != 0
    torch.testing.assert_close(text(TOKENS)[real], expected[real], rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing_about_the_words():
    long, short = encoder(length=9), encoder()
    short.load_state_dict(long.state_dict() | {"places": long.places[:6]})
    padded = torch.cat([TOKENS, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(long(padded)[:, :6], short(TOKENS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(long.pooled(padded), short.pooled(TOKENS), rtol=1e-4, atol=1e-5)
    before = short(TOKENS)
    with torch.no_grad():
        short.words.weight[0] += 1.0 * torch.randn(16)         # another padding token
    change = (short(TOKENS) - before).abs().amax(2)
    assert (change[TOKENS != 0] < 1e-6).all() and (change[TOKENS == 0] > 1e-3).all()


def test_a_padded_place_is_the_same_in_every_caption():
    """Even where the padding stands in the middle."""
    text, holes = encoder(), torch.tensor([[3, 0, 4, 0, 1, 0], [0, 5, 0, 0, 0, 2]])
    for tokens in (TOKENS, holes):
        padded = tokens == 0
        torch.testing.assert_close(text(tokens)[padded], text(NULL)[padded])


def test_every_word_sees_every_other_of_its_caption_only():
    text = encoder()
    for place in range(6):
        moved = TOKENS.clone()
        moved[1, place] = 8
        change = (text(moved) - text(TOKENS)).abs().amax(2)
        assert (change[1] > 1e-4).all() and (change[0] < 1e-6).all()


def test_the_order_of_the_words_matters():
    text = encoder()
    turned = TOKENS[:, [2, 1, 0, 3, 4, 5]]                     # words only: padding stays in its place
    assert ((text.pooled(turned) - text.pooled(TOKENS)).abs().amax(1) > 1e-2).all()


def test_the_null_caption_is_finite_learned_and_unlike_any_caption():
    text = encoder()
    null = text(NULL)
    assert null.shape == text(TOKENS).shape and null.isfinite().all()
    torch.testing.assert_close(null[0], null[1])
    assert ((text(TOKENS) - null).abs().amax((1, 2)) > 1e-2).all()
    assert ((text.pooled(TOKENS) - text.pooled(NULL)).abs().amax(1) > 1e-2).all()
    assert torch.cdist(null[0], null[0]).add(torch.eye(6)).min() > 1e-2  # one token for each place
    pooled = text.pooled(torch.cat([TOKENS, NULL]))            # words and null in one batch
    torch.testing.assert_close(pooled, torch.cat([text.pooled(TOKENS), null.mean(1)]))
    (null * torch.randn(16)).sum().backward()
    for p in (text.words.weight.grad[0], text.places.grad):
        assert p.isfinite().all() and p.abs().sum() > 0
    assert not text.words.weight.grad[1:].any()


def test_pooled_is_the_mean_of_the_words():
    text = encoder()
    out = text(TOKENS)
    torch.testing.assert_close(text.pooled(TOKENS), torch.stack([out[0, :3].mean(0), out[1].mean(0)]))
    pooled = Pooled(text, 10)
    torch.testing.assert_close(pooled(TOKENS), pooled.out(text.pooled(TOKENS)))
    shared = Pooled(text, 10, shared=True)                     # it counts and keeps its own layer only
    assert set(shared.state_dict()) == {"out.weight", "out.bias"}
    shared.out.load_state_dict(pooled.out.state_dict())
    torch.testing.assert_close(shared(TOKENS), pooled(TOKENS))


def test_gradients_reach_every_weight():
    text = encoder(vocabulary=8)
    (text(TOKENS) * torch.randn(2, 6, 16)).sum().backward()
    for name, p in text.named_parameters():
        assert (p.grad.abs().sum(-1) > 0).all(), name          # every word, every place, every row


@pytest.mark.parametrize("tokens, got", [
    (TOKENS.int(), "torch.int32"), (TOKENS.float(), "torch.float32"), (TOKENS[:, :5], r"\[2, 5\]"),
    (TOKENS[0], r"\[6\]"), (TOKENS[..., None], r"\[2, 6, 1\]")])
def test_wrong_tokens_raise(tokens, got):
    with pytest.raises(ValueError, match=rf"int64 \[B, 6\], got .*{got}.*pad or cut"):
        encoder()(tokens)


def test_wrong_words_and_widths_raise():
    with pytest.raises(IndexError):
        encoder()(TOKENS + 6)
    with pytest.raises(ValueError, match="multiple of heads"):
        encoder(dim=18)


def test_no_value_is_looked_at():
    """On a GPU that would make the training loop wait; without a device there are no values."""
    text = encoder().to("meta")
    assert text(TOKENS.to("meta")).shape == (2, 6, 16) and text.pooled(TOKENS.to("meta")).shape == (2, 16)


@pytest.mark.parametrize("length", [6, 40])                    # attend has another kernel for 40
def test_half_precision(length):
    text, tokens = encoder(length=length), torch.zeros(4, length, dtype=torch.int64)
    tokens[:2, :6] = TOKENS
    full = text(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(text(tokens).float(), full, rtol=0.1, atol=0.1)
    torch.testing.assert_close(text.bfloat16()(tokens).float(), full, rtol=0.1, atol=0.1)


# --- through the doors of a network

ENCODED = torch.randn(2, 6, 12, generator=torch.Generator().manual_seed(1)) * (TOKENS != 0)[..., None]
ENCODED_NULL = torch.randn(1, 6, 12, generator=torch.Generator().manual_seed(2))
ENCODED_NULL[:, 1:] = 0                                        # one token, as T5's ""


def unet(**doors):
    return wake(UNet(width=16, multipliers=(1, 2), attend=(False, True), **doors))


def dit(module):
    return wake(DiT(dim=32, depth=2, embed={"text": lambda dim: Pooled(module, dim)}))


CASES = {
    "tokens": (lambda: unet(tokens={"text": encoder()}), TOKENS, NULL[0]),
    "pooled": (lambda: dit(encoder()), TOKENS, NULL[:1]),
    "encoded": (lambda: unet(tokens={"text": Projected(12, 16)}), ENCODED, ENCODED_NULL),
    "encoded and pooled": (lambda: dit(Projected(12, 16)), ENCODED, ENCODED_NULL),
}


@pytest.fixture(params=CASES)
def case(request):
    make, text, null = CASES[request.param]
    return make().eval(), text, null


def test_another_word_changes_the_image_of_its_caption_only(case):
    net, text, _ = case
    moved = text.clone()
    moved[1, 2] = moved[1, 3]
    for x in (torch.randn(2, 1, 16, 16), torch.randn(2, 1, 3, 16, 16)):
        t = torch.rand(2)
        change = (net(x, t, text=moved) - net(x, t, text=text)).abs().flatten(1).amax(1)
        assert change[1] > 1e-5 and change[0] < 1e-6


def test_the_words_learn_from_the_image(case):
    net, text, _ = case
    net(torch.randn(2, 1, 16, 16), torch.rand(2), text=text).square().sum().backward()
    module = next(m for m in net.modules() if isinstance(m, TextEncoder | Projected))
    for name, p in module.named_parameters():
        assert p.grad is not None and p.grad.any(), name


def test_guidance_and_dropping_take_the_null_caption(case):
    net, text, null = case
    denoiser = Denoiser(net, Cosine(), V())
    x, t, nulls = torch.randn(2, 1, 16, 16), torch.rand(2), {"text": null}
    with_text, without = denoiser(x, t, text=text), denoiser(x, t, text=null.expand_as(text))
    assert ((with_text - without).abs().flatten(1).amax(1) > 1e-5).all()
    torch.testing.assert_close(CFG(denoiser, 3.0, nulls)(x, t, text=text), 3 * with_text - 2 * without,
                               rtol=1e-4, atol=1e-5)
    assert torch.equal(drop_condition({"text": text}, nulls, 1.0)["text"], null.expand_as(text))
    assert torch.equal(drop_condition({"text": text}, nulls, 0.0)["text"], text)
    some = drop_condition({"text": text.repeat(50, *[1] * (text.ndim - 1))}, nulls, 0.5)["text"]
    dropped = (some == null.expand_as(some)).flatten(1).all(1)
    assert 20 < dropped.sum() < 80 and some.dtype == text.dtype
    assert denoiser.loss(x, text=drop_condition({"text": text}, nulls, 0.5)["text"]).isfinite()


def test_one_encoder_may_stand_in_two_doors():
    text = encoder()
    net = unet(tokens={"text": text}, embed={"text": lambda dim: Pooled(text, dim)})
    assert net(torch.randn(2, 1, 16, 16), torch.rand(2), text=TOKENS).shape == (2, 1, 16, 16)
    assert len({id(p) for p in text.parameters()} - {id(p) for p in net.parameters()}) == 0


def test_projected_padding_is_the_bias_and_a_wrong_width_raises():
    text = Projected(12, 16)
    assert text.dim == 16
    torch.testing.assert_close(text(ENCODED)[0, 3:], text.out.bias.expand(3, 16))
    torch.testing.assert_close(text.pooled(ENCODED)[0], text(ENCODED)[0, :3].mean(0))
    for wrong in (ENCODED[..., :8], ENCODED[0], TOKENS):
        with pytest.raises(ValueError, match=r"encodings \[B, L, 12\], got .* make them with PretrainedText"):
            text(wrong)


# --- encoders of the package transformers, tiny and random, from folders

def tokenizer(transformers, kind):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    first, last = {"t5": ("", "</s>"), "bert": ("[CLS]", "[SEP]")}.get(kind, ("<start>", "<end>"))
    marks = ["<pad>", "<unk>", *filter(None, (first, last))]
    table = {word: i for i, word in enumerate([*marks, *WORDS])}
    words = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(), special_tokens=[(m, table[m]) for m in marks[2:]])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>",
                                                eos_token=last)


def model(transformers, kind):
    sizes = {"vocab_size": 12, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 16, "max_position_embeddings": 32}
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    t = transformers
    if kind.startswith("t5"):
        config = t.T5Config(vocab_size=12, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4,
                            decoder_start_token_id=0)
        return (t.T5EncoderModel if kind == "t5" else t.T5ForConditionalGeneration)(config)
    if kind == "bert":
        return t.BertModel(t.BertConfig(**sizes))
    if kind == "clip":
        return t.CLIPTextModel(t.CLIPTextConfig(**sizes, **ends))
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 16,
              "image_size": 8, "patch_size": 4}
    return t.CLIPModel(t.CLIPConfig(text_config=sizes | ends, vision_config=vision, projection_dim=8))


KINDS = ["t5", "t5 with decoder", "clip", "clip with images", "bert"]
CAPTIONS = ["red square moves left", "blue circle", "circle blue", ""]


@pytest.fixture
def transformers(monkeypatch):
    package = pytest.importorskip("transformers")
    hub = pytest.importorskip("huggingface_hub.utils")

    asked = []                                                 # the package swallows what is raised here

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("a test asked for the network")

    monkeypatch.setenv("DIFFUSION_COURSE_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    package.logging.set_verbosity_error()
    hub.build_hf_headers()                                     # once per process it asks who is calling
    asked.clear()
    yield package
    assert not asked


@pytest.fixture(params=KINDS)
def folder(request, transformers, tmp_path):
    model(transformers, request.param).save_pretrained(tmp_path)
    tokenizer(transformers, request.param.split()[0]).save_pretrained(tmp_path)
    assert [f.name for f in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    return tmp_path


def test_a_frozen_encoder_is_what_transformers_computes(folder, transformers):
    text = PretrainedText(folder, length=7)
    assert (text.dim, text.length) == (16, 7)
    h = text.encode(CAPTIONS)
    assert h.shape == (4, 7, 16) and h.dtype == torch.float32 and not h.requires_grad
    kind = {"t5": "T5EncoderModel", "clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
    config = transformers.AutoConfig.from_pretrained(folder)
    reference = getattr(transformers, kind.get(config.model_type, "BertModel")).from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    for caption, row in zip(CAPTIONS, h):                      # alone and without padding
        inputs = words([caption], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = reference(input_ids=inputs).last_hidden_state[0]
        n = len(expected)
        assert n == len(caption.split()) + (1 if config.model_type == "t5" else 2)
        torch.testing.assert_close(row[:n], expected, rtol=1e-4, atol=1e-5)
        assert not row[n:].any() and row[:n].any(1).all()


def test_a_frozen_encoder_repeats_itself_and_tells_captions_apart(folder):
    text = PretrainedText(str(folder), length=7)
    first = text.encode(CAPTIONS)
    assert nn.ModuleList([text]).train() and not any(m.training for m in text.modules())
    assert torch.equal(text.encode(CAPTIONS), first)
    assert not any(p.requires_grad for p in text.parameters())
    torch.testing.assert_close(text.encode(CAPTIONS[1:2]), first[1:2])
    assert (torch.cdist(first.flatten(1), first.flatten(1)) + torch.eye(4)).min() > 1e-2
    null = text.null(3)
    assert null.shape == (3, 7, 16)
    torch.testing.assert_close(null, first[3:].expand(3, -1, -1))
    cut = PretrainedText(folder, length=4).encode(["red green blue square circle"])
    assert cut.shape == (1, 4, 16) and cut.any(2).all()


def test_frozen_encodings_pass_the_second_door(folder):
    text = PretrainedText(folder, length=7)
    net = unet(tokens={"text": Projected(text.dim, 16)})
    x, t = torch.randn(1, 1, 16, 16).expand(4, -1, -1, -1), torch.full((4,), 0.5)
    out = net(x, t, text=text.encode(CAPTIONS)).flatten(1)
    assert (torch.cdist(out, out) + torch.eye(4)).min() > 1e-4
    guided = CFG(Denoiser(net, Cosine(), V()), 0.0, {"text": text.null()})
    out = guided(x, t, text=text.encode(CAPTIONS))
    torch.testing.assert_close(out, out[:1].expand_as(out), rtol=1e-4, atol=1e-5)


def test_half_precision_weights_are_read_as_float(transformers, tmp_path):
    model(transformers, "bert").half().save_pretrained(tmp_path)
    tokenizer(transformers, "bert").save_pretrained(tmp_path)
    assert PretrainedText(tmp_path, 7).encode(CAPTIONS).dtype == torch.float32


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("honest", [True, False])
def test_pickled_weights_are_refused_and_never_opened(transformers, tmp_path, honest):
    tokenizer(transformers, "bert").save_pretrained(tmp_path)
    net = model(transformers, "bert")
    net.config.save_pretrained(tmp_path)
    torch.save(net.state_dict() if honest else Trap(str(tmp_path / "sprung")), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"safetensors \(pickled ones are refused\)") as error:
        PretrainedText(tmp_path, 7)
    assert str(tmp_path) in str(error.value) and not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["nowhere", "./nowhere", "someone/nowhere", "/not/here"])
def test_what_is_not_there_is_named_with_where_it_was_looked_for(transformers, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"'{name}' must have .*no folder.*in the cache") as error:
        PretrainedText(name)
    assert str((tmp_path / name).resolve()) in str(error.value)


def test_a_folder_that_would_be_silently_wrong_raises(transformers, tmp_path):
    from safetensors.torch import load_file, save_file

    net = model(transformers, "bert")
    net.save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError), match="tokenizer"):  # transformers makes one up: all is unknown
        PretrainedText(tmp_path, 7)
    tokenizer(transformers, "bert").save_pretrained(tmp_path)
    assert PretrainedText(tmp_path, 32).length == 32
    with pytest.raises(ValueError, match="length=33 .* at most 32"):  # the positions of the model
        PretrainedText(tmp_path, 33)
    words = tokenizer(transformers, "bert")
    words.model_max_length = 20
    words.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="length=21 .* at most 20"):
        PretrainedText(tmp_path, 21)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]         # transformers would draw it at random
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing weights: .*layer.1.output.dense.weight"):
        PretrainedText(tmp_path, 7)


def test_a_model_that_reads_and_writes_raises(transformers, tmp_path):
    """Its last hidden states would be those of the decoder."""
    sizes = {f"{part}_{name}": n for part in ("encoder", "decoder")
             for name, n in [("layers", 1), ("attention_heads", 2), ("ffn_dim", 16)]}
    ends = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    net = transformers.BartModel(transformers.BartConfig(vocab_size=12, d_model=16, **sizes, **ends))
    net.save_pretrained(tmp_path)
    tokenizer(transformers, "bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is no text encoder"):
        PretrainedText(tmp_path, 7)


def test_code_from_a_folder_is_never_run(transformers, tmp_path):
    tokenizer(transformers, "bert").save_pretrained(tmp_path)
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}')
    with pytest.raises(ValueError):
        PretrainedText(tmp_path, 7)
    assert not (tmp_path / "sprung").exists()


def test_without_transformers_the_remedy_is_named(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "transformers":
            raise ImportError("No module named 'transformers'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install diffusion-course\[text\]"):
        PretrainedText("anything")


def test_importing_the_file_does_not_import_transformers():
    code = "import sys, diffusion_course.networks.text; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          check=True).stdout.strip() == "False"
