"""What is published, where, under which digest and on what terms: a table and no more."""

from __future__ import annotations

from dataclasses import dataclass

from curate.errors import UnknownName

_MB = 1_000_000
_DATACOMP = "https://github.com/sagadre/datacomp_baseline_assets/releases/download/v0.1.0-alpha/"
_NSFW = "https://github.com/LAION-AI/CLIP-based-NSFW-Detector/raw/d6bb8fe31fd4aecbfed7dfb62df4fe5858bfc014/"


@dataclass(frozen=True)
class PublishedFile:
    """One file of an asset: where it is and what it must be."""

    file: str
    """Its file name, in the cache and in `$CURATE_ASSETS`."""
    url: str
    digest: str
    """`sha256:HEX`, or `git:HEX`, the git blob id, where the publisher's repository is the only witness."""
    most: int
    """Bytes that it cannot exceed."""
    variant: str = ""
    """What it is called among the files of its asset, where only one of them is wanted."""


@dataclass(frozen=True)
class Asset:
    """Something published: one file, several that count as one, or variants of which a rule wants one."""

    name: str
    files: tuple[PublishedFile, ...]
    licence: str
    source: str

    @property
    def variants(self) -> tuple[str, ...]:
        """The names to choose among; none where all files belong together."""
        return tuple(f.variant for f in self.files if f.variant)

    @property
    def alone(self) -> bool:
        """Whether whoever asks for it gets one file."""
        return len(self.files) == 1 or bool(self.variants)

    def of(self, variant: str | None) -> tuple[PublishedFile, ...]:
        """The files of one variant; all, where there are none. Raises UnknownName for one that is not there."""
        if self.variants and variant not in self.variants:
            hint = f"name one, as in {self.name}:{self.variants[0]}"
            raise UnknownName(f"asset {self.name}", "variant", variant or "", self.variants, hint=hint)
        return tuple(f for f in self.files if not f.variant or f.variant == variant)


def _datacomp(file: str, sha256: str, most: int, variant: str = "") -> PublishedFile:
    return PublishedFile(file, _DATACOMP + file, f"sha256:{sha256}", most, variant)


REGISTRY: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "fasttext-lid",
            (
                PublishedFile(
                    "lid.176.bin",
                    "https://dl.fbaipublicfiles.com/fasttext/supervised-models/lid.176.bin",
                    "sha256:7e69ec5451bc261cc7844e49e4792a85d7f09c06789ec800fc4a44aec362764e",
                    200 * _MB,
                ),
            ),
            "CC BY-SA 3.0",
            "fastText language identification, 176 languages; the file and digest of DataComp's basic filter",
        ),
        Asset(
            "imagenet21k-synsets",
            (
                _datacomp(
                    "imagenet21k_wordnet_ids.txt",
                    "66362bdedf36d933382edca5493fc562dcc17128ce36403c9e730a75f48cb2f2",
                    _MB,
                ),
            ),
            "none known",
            "the ids of ImageNet-21k's 21,843 synsets, for DataComp's text-based filter",
        ),
        Asset(
            "wordnet",
            (
                PublishedFile(
                    "wordnet.zip",
                    "https://github.com/nltk/nltk_data/raw/5db857e6f7df11eabb5e5665836db9ec8df07e28/packages/corpora/wordnet.zip",
                    "git:3c68cd207844f071a5206f7fbed23e5c607ec02f",
                    20 * _MB,
                ),
            ),
            "WordNet 3.0 licence",
            "Princeton WordNet 3.0's database files, as NLTK packs them",
        ),
        Asset(
            "imagenet-targets",
            tuple(
                _datacomp(f"in1k_clip_vit_l14_{i}.pt", sha256, 2_000 * _MB)
                for i, sha256 in enumerate(
                    (
                        "304990fd492f40ba90072b80af78d6e8edcab9d042476ef513e03441cf53743b",
                        "72f008e6aa3bfb54174fa322963215337f843fc90fd642a9dccc815dd9e7ee76",
                        "83c3cc6503b8a50a22cac7023ca6cd61b130ab9725db2a7519f1bec5cabf5493",
                        "83faa289f847799ddcd438e5b74df1cb5973c345674896d10ba31ea48bc63804",
                        "067a45f4a140a93371876510a2fd9198a89ac1d194ae4063a51b45a6da69cadf",
                    )
                )
            ),
            "none known",
            "CLIP ViT-L/14 embeddings of ImageNet-1k's training images, for DataComp's image-based filter",
        ),
        Asset(
            "centroids",
            tuple(
                _datacomp(f"{scale}_centroids_l14.pt", sha256, 400 * _MB, scale)
                for scale, sha256 in (
                    ("small", "23c66a05e49ad77283c1e2b33355c7eb088ac332a944c97ff85d5dfd48a5b251"),
                    ("medium", "028b1721b1d0f139c565b6b0ac99f8a1756f4bae89c36b0ec6d1c6ea9b6f112d"),
                    ("large", "04eeab1069d3540c246cf7ce69323147351a474017fc472e4c50a018ca32240b"),
                    ("xlarge", "3f62e5f8ae3a715ce84e422846fcfce1536d184455ea234790c4a6465c4c6726"),
                )
            ),
            "none known",
            "100,000 k-means centroids of a scale's CLIP ViT-L/14 image embeddings, for the same filter",
        ),
        Asset(
            "nsfw-vit-l-14",
            (
                PublishedFile(
                    "clip_autokeras_binary_nsfw.zip",
                    _NSFW + "clip_autokeras_binary_nsfw.zip",
                    "sha256:905520bb0336accc73ee282c605d926aef90cf14248889d44b9cee50eef71f8a",
                    10 * _MB,
                ),
            ),
            "MIT",
            "LAION-AI/CLIP-based-NSFW-Detector, head on CLIP ViT-L/14 image embeddings",
        ),
        Asset(
            "nsfw-vit-b-32",
            (
                PublishedFile(
                    "clip_autokeras_nsfw_b32.zip",
                    _NSFW + "clip_autokeras_nsfw_b32.zip",
                    "sha256:78715ab9d64485167e8c9ade3b8e6761a17a16c24d114bd47431ac1dab46462b",
                    10 * _MB,
                ),
            ),
            "MIT",
            "LAION-AI/CLIP-based-NSFW-Detector, head on CLIP ViT-B/32 image embeddings",
        ),
        Asset(
            "watermark",
            (
                PublishedFile(
                    "watermark_model_v1.pt",
                    "https://github.com/LAION-AI/LAION-5B-WatermarkDetection/raw/"
                    "d8786e32b8a46bd1c254826dae51f54ab5b1e9e4/models/watermark_model_v1.pt",
                    "git:09db4ad1b059bccc2be67380d321b67f0e9288e9",
                    1_000 * _MB,
                ),
            ),
            "MIT",
            "LAION-AI/LAION-5B-WatermarkDetection, EfficientNet-B3 state dict",
        ),
    )
}
