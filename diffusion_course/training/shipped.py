"""The checkpoints and studies that ship with the course, and how a model is trained that cannot be had."""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.download import repository_data


@dataclass(frozen=True)
class Shipped:
    """SHA-256 of data/checkpoints/SLUG.safetensors, or of another file below data/.

    A model has the paper, the arguments of its recipe, the models that it begins with, and its data, where
    these are not the usual ones; what is left open is decided by the preset of the machine that trains it.
    """

    sha256: str
    paper: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    init: str | None = None
    data: str | None = None
    file: str | None = None

    def begins_with(self, usual: str | None) -> str | None:
        """The models that it begins with at a preset that usually begins with others, or with none."""
        return usual and (self.init or usual)


# of the variants of Latte that are compared; they begin with nothing
COMPARED = {"words": 21, "classes": 0, "images": 0, "dim": 96, "depth": 8}
SHIPPED = {
    "ddpm": Shipped("1442ba7fb92a9a12decf9d9240650c8247dd6def47e08c2b40dcdc4eb3697729", "ddpm"),
    "ddpm_improved": Shipped("3fc31c326455d7e19941182266ea0f65a3125c8f6c7414506fb47264a67eb7b9", "ddpm",
                             {"cosine": True, "learned_variance": True}),
    "ddim_guidance": Shipped("b85cc22bbc48b45ad2a89f37df12b121d91ab3dc9a2a3490b7d08f5f96f29eea",
                             "ddim_guidance"),
    "score_sde": Shipped("7a8223be647ec8b49dd96db2e7ed8cff3eb6ee5946a6bea02d01031608858cbd", "score_sde"),
    "rectified_flow": Shipped("91272dbe678f90f72d293fa04ba013d32f19a37e337ce68b8807ab76b1ab1b24",
                              "rectified_flow"),
    "rectified_flow_2": Shipped("deeae7be27b95a240a7dcfa6a4e588560a2ee63a8704716c744c7a8e3c99faf3",
                                "rectified_flow", {"teacher": "rectified_flow"}),
    "rectified_flow_distilled_1": Shipped("c7d397d8117faf0664cbb881c0fbdda47c7271632d2cce2aa64b52b3709cd506",
                                          "rectified_flow", {"teacher": "rectified_flow", "distill": True}),
    "rectified_flow_distilled": Shipped("82862f0b5831670716d642e318296ec029f060139dc61fd448bcd34b57967246",
                                        "rectified_flow", {"teacher": "rectified_flow_2", "distill": True}),
    "edm": Shipped("dd7c7f403b7b5a70e48d4c717135adcebf8b8370270c3ea42cac00dbcf779fbf", "edm"),
    "vae-mm": Shipped("91a39b68c8fde92e9175765039f5c394ada98b21ce674699f1057bea97c7e99b",
                      "autoencoder_kl"),
    "vq-mm": Shipped("1d29f9591cc32299b708b5f1b7c5bf9c7d53378dd567a0d943dcfa74baaf72af",
                     "vqgan"),
    "dit-class": Shipped("a000f8a67ee4c28424af2c8f35162cbaac19052d69aff2e89ba87c9faf034a40",
                         "dit", {"autoencoder": "vae-mm", "patch": 2}),
    "imagen": Shipped("1f1b7a34e2a845d418b70d1031bfdc6b9205aaeb843004b00710e06daed96b27",
                      "imagen"),
    "img-mm": Shipped("dbfa6b8d4bba9d452331c9a5ff9fbdc051cb8c70ba8101da4f8a37e381e6f6d9",
                      "latent_diffusion", {"autoencoder": "vae-mm"}),
    "vid-mm": Shipped("cddc24f4bc2a278fd198f454be33c559e9146687190e1040ca46f0e0924c0e2e",
                      "video_diffusion_models"),
    "vid-mm-text": Shipped("df0edcdfdfd881514770266d0b2c16986d59d7b1a81d784378ff00393451e98f",
                           "video_diffusion_models", {"words": 21}, "img-mm,vid-mm"),
    "fdm-mm": Shipped("a2047ad4024df82175a851cbbfd9f5b49906ab4f0adc97940b364992385b5d30",
                      "flexible_diffusion", {"given": 0.9}),
    "video-vae-mm": Shipped("90aa5f10e6767763f926da23ff5b8595e25e2c034761cf2cb2d3b1b061deb6bb",
                            "video_autoencoder"),
    "video-ldm-mm": Shipped("f43cbad1a12c16a3ae3d0847550f1931749a862e0650bbf622d1bf59ab7c37b2",
                            "video_ldm"),
    "dit-mm": Shipped("88dfdb0bf5fc0ae474770350dce473e20c772c7a06441fc145919f184e272b78",
                      "dit", {"autoencoder": "vae-mm", "patch": 2, "dim": 128, "depth": 6},
                      data="bouncing_mnist"),
    "latte-mm": Shipped("5988cd757d439be45383e6e93512d3c371641bffce3f798a04bd72b98acd2e8f",
                        "latte"),
    "latte-interleaved": Shipped("59e3ccafa584eee1f1903eb3b4c7a283cfaeb71c96cb5e6b659d4e986012e96a",
                                 "latte", COMPARED, "none"),
    "latte-late": Shipped("b69ea6a2e966844853d924ede43250bffadfa48700c470c54379f5c61ca76cda",
                          "latte", COMPARED | {"variant": "late"}, "none"),
    "latte-serial": Shipped("63ec655bbc413a9f8e7290ff6fa6e40386682330d8cb2d1c4f9654d104011574",
                            "latte", COMPARED | {"variant": "serial", "depth": 6}, "none"),
    "latte-parallel": Shipped("9c5a1c9fc23720e56106d00699ca2e7fab0f4907d05756b4d358dd80fbdd6046",
                              "latte", COMPARED | {"variant": "parallel"}, "none"),
    "latte-joint": Shipped("b1e655b0b0f59d8d6ff11174966d31b3f113a8182150c21ab1089d30898a67ec",
                           "latte", COMPARED | {"variant": "joint"}, "none"),
    "latents": Shipped("9e0b5c805980a923bd1e73a19878451927a919028e38d908b4f7252239848ef2",
                       file="results/latents.json"),
    "cascades": Shipped("f2398f9810136c18fc046a187f26c9c26c182650d18ee6a908245c0e8bc3a125",
                        file="results/cascades.json"),
    "ddpm_variants": Shipped("e96bd700932ac52d0ac1ba946c0a1a00570565e21aed42df283a343d44bcd569",
                             file="results/ddpm_variants.json"),
    "samplers": Shipped("dc32e5dc13dc8a4a389124f3027e785dca2a416688321e986a8eceffe53b870a",
                        file="results/samplers.json"),
    "video_ldm": Shipped("1ad7dfdb8f6822ee0c814f26fb9fb1c57f63413ff2bde24b5eb1aa836cc5ae4c",
                         file="results/video_ldm.json"),
    "latte_variants": Shipped("6a533db2e4f942d509adfa4958511d4aac326b0ad30eced4d0c4502b42089ed9",
                              file="results/latte_variants.json"),
    "fifo": Shipped("f508af0ae3070f5abe9681a3cf5a0856c0791e2595058d412823d9e58110b8b5",
                    file="results/fifo.json"),
    "costs": Shipped("54d041cd12fd0867d062244c81175bd31f7259c815757622654f747886319ed3",
                     file="results/costs.json"),
    "frame_probe": Shipped("25eec117d81b186c9ea5d528f434a37650781f097276234fe182a79ec8bd9d50"),
    "video_probe": Shipped("ba3a7e1dbff9c51382df5a36dd2f55df670d2c11be42ef2f9a0372896d7767a2"),
    "leaderboard": Shipped("32dc02ee0c37a66c84bdbe4d5994fb64921cfcd72eff87c9575a031a7f0f6112",
                           file="results/leaderboard.jsonl"),
    "digit_probe": Shipped("811d3e6c2f839d023255265c9176466507aad60ff8e7fd2af73a2614199d1847"),
}


def models() -> dict[str, Shipped]:
    """What ships of models, by name."""
    return {slug: one for slug, one in SHIPPED.items() if one.paper}


def file_of(slug: str) -> str:
    """The place of a checkpoint or study below data/."""
    return (slug in SHIPPED and SHIPPED[slug].file) or f"checkpoints/{slug}.safetensors"


def shipped(slug: str) -> Path:
    """Where the repository keeps the checkpoint or study of that name."""
    return (repository_data() or Path("data")) / file_of(slug)
