"""Text for a network: a small encoder that learns with it, or a large frozen one.

The small one is the transformer of Vaswani et al. 2017, normalised before each layer; the frozen one follows
Imagen (Saharia et al. 2022, sec. 2.1).  Every caption has L tokens, so that the null caption of guidance has
the shape of all others: L times the padding token 0 for the small one, the encoding of "" for the frozen one.
"""
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..layers.attention import Attention
from ..layers.embeddings import LabelToken

ENCODERS = {  # config.model_type: the class that is only the text encoder; the rest are BERT-like, AutoModel
    "t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel",
}


def mean_word(h: Tensor, real: Tensor) -> Tensor:
    """The mean of h [B, L, D] over its real places [B, L], or over all places where none is real: [B, D]."""
    keep = (real | ~real.any(dim=1, keepdim=True))[..., None]  # [B, L, 1]
    return (h * keep).sum(dim=1) / keep.sum(dim=1)


class TextBlock(nn.Module):
    """Pre-norm transformer block: h [B, L, D], bias [B, 1, L, L] -> like h."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int = 4):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h), bias=bias)
        return h + self.mlp(self.norm2(h))


class TextEncoder(nn.Module):
    """Token numbers [B, L] of `vocabulary` words, 0 for padding -> tokens [B, L, dim], for the second door.

    A padded place sees only itself and is seen by no word: its output is learned, one for each place, and
    the same in every caption.  A caption of nothing else is the null caption.
    """

    def __init__(self, dim: int, vocabulary: int, length: int, layers: int = 2, heads: int = 4):
        super().__init__()
        self.dim, self.length = dim, length
        self.words = nn.Embedding(vocabulary, dim)
        self.places = nn.Parameter(torch.randn(length, dim))
        self.blocks = nn.ModuleList([TextBlock(dim, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.dtype != torch.int64 or tokens.shape[1:] != (self.length,):
            raise ValueError(f"tokens must be int64 [B, {self.length}], got {tokens.dtype} "
                             f"{list(tokens.shape)}; pad or cut captions to length={self.length}, with 0")
        h = self.words(tokens) + self.places                   # [B, L, D]
        real = tokens != 0
        seen = real[:, None, :] & real[:, :, None] | torch.eye(self.length, dtype=torch.bool, device=h.device)
        bias = torch.zeros_like(seen, dtype=h.dtype).masked_fill(~seen, float("-inf"))
        for block in self.blocks:
            h = block(h, bias[:, None])                        # [B, 1, L, L]: the same for every head
        # Padding is not zeroed: a cross-attention without a mask gives a zero key the fixed score 0, but
        # learns to look past a learned one, or to rest on it; and dropped captions train these very tokens.
        return self.norm(h)

    def pooled(self, tokens: Tensor) -> Tensor:
        """The mean over the words of a caption, [B, dim]."""
        return mean_word(self(tokens), tokens != 0)


class Projected(nn.Module):
    """Encodings of PretrainedText [B, L, dim_in] -> tokens [B, L, dim], for the second door.

    A padded place is zero before and the bias after, which is learned; see TextEncoder for why that is good.
    """

    def __init__(self, dim_in: int, dim: int):
        super().__init__()
        self.dim_in, self.dim, self.out = dim_in, dim, nn.Linear(dim_in, dim)

    def forward(self, text: Tensor) -> Tensor:
        if text.ndim != 3 or text.shape[2] != self.dim_in:
            raise ValueError(f"text must be encodings [B, L, {self.dim_in}], got {list(text.shape)}; "
                             "make them with PretrainedText(...).encode(captions)")
        return self.out(text)

    def pooled(self, text: Tensor) -> Tensor:
        """The mean over the words of a caption, [B, dim]."""
        return mean_word(self(text), text.any(dim=2))


class Pooled(nn.Module):
    """A caption as one vector [B, dim], for the first door: {"text": lambda dim: Pooled(encoder, dim)}.

    shared   the encoder stands in the second door too, so that its weights are counted and saved there
    """

    def __init__(self, encoder: TextEncoder | Projected, dim: int, shared: bool = False):
        super().__init__()
        self.out, self.encoder = nn.Linear(encoder.dim, dim), None if shared else encoder
        self.other = (encoder,) if shared else ()              # in a tuple it is no part of this module

    def forward(self, text: Tensor) -> Tensor:
        encoder, = self.other or (self.encoder,)
        return self.out(encoder.pooled(text))


def tokens_for(classes: int = 0, words: int = 0, length: int = 12, dim: int = 64) -> nn.ModuleDict:
    """For the second door: tokens of a `label`, of a `text`, or nothing."""
    if classes:
        return nn.ModuleDict({"label": LabelToken(classes, dim)})
    return nn.ModuleDict({"text": TextEncoder(dim, words, length)} if words else {})


def vectors_for(classes: int = 0, words: int = 0, length: int = 12) -> dict[str, Callable[[int], nn.Module]]:
    """For the first door: what makes a `label`, a `text`, or nothing, a vector of so many channels."""
    if classes:
        return {"label": partial(nn.Embedding, classes + 1)}
    return {"text": lambda dim: Pooled(TextEncoder(64, words, length), dim)} if words else {}


def null_of(classes: int = 0, words: int = 0, length: int = 12) -> dict[str, Tensor]:
    """The null condition for either door, of one sample."""
    if classes:
        return {"label": torch.tensor(classes)}
    return {"text": torch.zeros(length).long()} if words else {}


class PretrainedText(nn.Module):
    """A frozen T5, CLIP or BERT-like encoder of the package `transformers`: captions -> [B, L, dim].

    Encode the captions of a data set once, and train on the encodings (see Projected).

    name    a folder with config.json, *.safetensors and a tokenizer, or a name on the Hugging Face hub;
            pickled weights and foreign code are refused (a T5 with only a spiece.model needs sentencepiece)
    length  tokens of every caption, L; longer ones are cut (77 is the most CLIP reads)
    """

    def __init__(self, name: str | Path, length: int = 77):
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise ImportError("PretrainedText needs the package transformers: "
                              "pip install diffusion-course[text]") from error
        offline = os.environ.get("DIFFUSION_COURSE_OFFLINE", "") not in ("", "0")
        safe = {"trust_remote_code": False, "local_files_only": offline}
        try:
            config = transformers.AutoConfig.from_pretrained(name, **safe)
            self.tokenizer = transformers.AutoTokenizer.from_pretrained(name, **safe)
            kind = ENCODERS.get(config.model_type, "AutoModel")
            model, info = getattr(transformers, kind).from_pretrained(
                name, use_safetensors=True, output_loading_info=True, **safe)
        except OSError as error:
            hub = "the cache of the Hugging Face hub" if offline else "the Hugging Face hub"
            where = f"{Path(name).resolve()}" + ("" if Path(name).is_dir() else f" (no folder) and in {hub}")
            raise FileNotFoundError(f"name={str(name)!r} must have config.json, a tokenizer and weights as "
                                    "*.safetensors (pickled ones are refused); looked in "
                                    f"{where}: {error}") from error
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if missing or kind == "AutoModel" and config.is_encoder_decoder:
            raise ValueError(f"name={str(name)!r} is no text encoder (missing weights: {missing}); "
                             "choose a T5, a CLIP or one like BERT")
        words, rows = len(self.tokenizer), model.config.vocab_size
        if words < rows / 2:                                   # without its files it knows a few marks only
            raise ValueError(f"the tokenizer of name={str(name)!r} has {words} tokens, its model {rows}; "
                             "put tokenizer.json and its companions beside the weights")
        limit = min(self.tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", length))
        if length > limit:
            raise ValueError(f"length={length} is more than {str(name)!r} can read; choose at most {limit}")
        self.length, self.dim = length, model.config.hidden_size
        self.model = model.float().requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PretrainedText":
        return super().train(False)                            # frozen: no dropout, whoever holds it

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """[B, L, dim]; zero at padded places."""
        batch = self.tokenizer(captions, padding="max_length", truncation=True, max_length=self.length,
                               return_tensors="pt").to(self.model.device)
        real = batch["attention_mask"]                         # [B, L]
        h = self.model(input_ids=batch["input_ids"], attention_mask=real).last_hidden_state
        return h.masked_fill(real[..., None] == 0, 0)

    def null(self, batch: int = 1) -> Tensor:
        """The encoding of "", [batch, L, dim]."""
        return self.encode([""]).expand(batch, -1, -1)
