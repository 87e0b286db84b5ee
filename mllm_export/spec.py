"""What a model is: its parts, sizes, preprocessing and prompt; nothing about targets."""

from __future__ import annotations

from typing import Literal

from mllm_export.errors import SpecError
from mllm_export.records import record

IMAGE_ID = -200
"""The id that stands for one image in a row of token ids. Source: LLaVA's IMAGE_TOKEN_INDEX."""

IMAGE_EMBEDS = "image_embeds"
"""What every vision graph gives, in any format: f32[T, D], or f32[1, E] of an encoder alone."""


@record
class ImageSpec:
    """How one picture becomes pixels f32[3, size_px, size_px]."""

    size_px: int
    fit: Literal["pad", "crop", "stretch"]
    """pad: square of the longer side, then resize; crop: shorter side resized, centre cut."""
    resample: Literal["bicubic", "bilinear", "lanczos"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pad_rgb: tuple[int, int, int]

    def __post_init__(self) -> None:
        """Refuse what no picture could be prepared with."""
        if self.size_px <= 0 or min(self.std) <= 0:
            raise SpecError(f"image size {self.size_px} px, std {self.std}: all must be positive")


@record
class ConvStages:
    """Convolutions in front of the transformer: a stem at half the size, stages at 1/4 and 1/8.

    Source: timm, models/vitamin.py, VitCfg.
    """

    stem_width: int
    widths: tuple[int, int]
    """Channels of the two stages."""
    blocks: tuple[int, int]
    """Blocks of the two stages; the first of each halves the size."""


@record
class EncoderSpec:
    """A vision tower: pixels [B, 3, S, S] to features [B, tokens_out, width]."""

    kind: str
    """A file in export/encoders."""
    image: ImageSpec
    patch_px: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]
    norm_eps: float
    select_layer: int
    """Index into hidden states as transformers counts them: 0 the embedding, -1 the last layer."""
    keep_prefix: bool
    """True keeps the CLS token (feature 'cls_patch')."""
    prefix_tokens: int = 1
    conv: ConvStages | None = None
    """Convolutions instead of one patch embedding."""
    position_grid: int | None = None
    """Side of the stored table of positions: None as `grid`, another number to be resized to it,
    0 for a tower without positions."""
    name: str = ""
    """What tells it from the model's other encoders: in tensor names, rules of recipes and
    inputs of graphs. Empty for the only one."""

    def __post_init__(self) -> None:
        """Check that the sizes fit each other."""
        if self.width % self.heads:
            raise SpecError(f"encoder width {self.width} is not a multiple of {self.heads} heads")
        if not 0 <= self.run_layers <= self.layers:
            raise SpecError(
                f"select layer {self.select_layer} of a tower with {self.layers} layers"
            )
        if self.image.size_px < self.patch_px:
            raise SpecError(f"patch of {self.patch_px} px in an image of {self.image.size_px} px")

    @property
    def run_layers(self) -> int:
        """How many layers run until the selected hidden state stands."""
        below_zero = self.select_layer < 0
        return self.layers + self.select_layer + 1 if below_zero else self.select_layer

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image.size_px // self.patch_px

    @property
    def tokens_out(self) -> int:
        """Feature rows per image."""
        return self.grid**2 + (self.prefix_tokens if self.keep_prefix else 0)


@record
class FusionSpec:
    """Features of several encoders [B, T, width of each] to one [B, tokens_out, out_width]."""

    kind: str
    """A file in export/fusions."""
    tokens_out: int
    out_width: int


@record
class ProjectorSpec:
    """Image features [B, tokens_in, in_width] to embeddings [B, tokens_out, out_width]."""

    kind: str
    """A file in export/projectors."""
    in_width: int
    out_width: int
    tokens_in: int
    tokens_out: int


@record
class ImageInput:
    """One input of the vision graph: pixels f32[1, 3, S, S] of one preprocessing."""

    name: str
    image: ImageSpec

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the input."""
        return (1, 3, self.image.size_px, self.image.size_px)


@record
class VisionSpec:
    """From one picture to image embeddings: encoders side by side, fusion, projector."""

    encoders: tuple[EncoderSpec, ...]
    projector: ProjectorSpec
    fusion: FusionSpec | None = None
    """None where there is one encoder."""

    def __post_init__(self) -> None:
        """Check that the parts fit end to end."""
        names = [encoder.name for encoder in self.encoders]
        if not names or (len(names) > 1) != (self.fusion is not None):
            raise SpecError(f"{len(names)} encoders, fusion {self.fusion}: several need one")
        if len(names) > 1 and (len(set(names)) < len(names) or "" in names):
            raise SpecError(f"several encoders need a name each, these are {names}")
        width, tokens = self._features
        if self.projector.in_width != width:
            raise SpecError(
                f"projector takes width {self.projector.in_width}, the tower gives {width}"
            )
        if self.projector.tokens_in != tokens:
            raise SpecError(
                f"projector takes {self.projector.tokens_in} tokens, the tower gives {tokens}"
            )

    @property
    def _features(self) -> tuple[int, int]:
        if self.fusion is None:
            return self.encoders[0].width, self.encoders[0].tokens_out
        return self.fusion.out_width, self.fusion.tokens_out

    @property
    def image_inputs(self) -> tuple[ImageInput, ...]:
        """One for each preprocessing, in the encoders' order; encoders may share one."""
        images = tuple(dict.fromkeys(encoder.image for encoder in self.encoders))
        if len(images) == 1:
            return (ImageInput(name="pixel_values", image=images[0]),)
        first = {image: next(e.name for e in self.encoders if e.image == image) for image in images}
        return tuple(ImageInput(name=f"pixel_values_{first[i]}", image=i) for i in images)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each image input, by name, in order."""
        return {one.name: one.shape for one in self.image_inputs}

    def input_of(self, encoder: EncoderSpec) -> int:
        """Which of the image inputs an encoder reads."""
        return [one.image for one in self.image_inputs].index(encoder.image)


@record
class RopeScaling:
    """Scaling of rotary positions, in transformers' words."""

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float
    original_context_tokens: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None


@record
class StateSpec:
    """What a layer without attention carries from token to token, whatever the context.

    Source: state-spaces/mamba, mamba_ssm/modules/mamba_simple.py.
    """

    inner_width: int
    """Channels of the convolution and the recurrence."""
    state_size: int
    """Values that each channel carries on."""
    conv_kernel: int
    """Tokens that the convolution sees, the present one included."""
    time_step_rank: int

    @property
    def values(self) -> int:
        """Of one layer and sequence: the convolution's past, and the recurrence."""
        return self.inner_width * (self.conv_kernel - 1 + self.state_size)


@record
class DecoderSpec:
    """The language model's sizes."""

    kind: str
    """A file in export/decoders."""
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab: int
    context_tokens: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_head: bool
    """True: the output head is the token embedding; the checkpoint stores no head."""
    rotary_dim: int = 0
    """Values at the front of each head that positions turn; 0 for the whole head."""
    layout: str = ""
    """Which of its published namings the checkpoint has, where a kind has several."""
    state: StateSpec | None = None
    """What layers without attention carry; then there are no heads, and positions turn nothing."""

    def __post_init__(self) -> None:
        """Check that heads divide as grouped-query attention needs."""
        if not 0 <= self.rotary_dim <= self.head_dim:
            raise SpecError(f"positions turn {self.rotary_dim} values of {self.head_dim} per head")
        if not self.kv_heads:
            if self.state is None or self.heads:
                raise SpecError(f"{self.heads} heads, no KV heads, state {self.state}")
        elif self.heads % self.kv_heads:
            raise SpecError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly")


@record
class TokenizerSpec:
    """Where the tokenizer is and which ids are special."""

    kind: str
    """A file in export/tokenizers."""
    file: str
    """File name of the vocabulary inside the checkpoint folder."""
    vocab: int
    bos_id: int
    eos_id: int
    unk_id: int
    pad_id: int | None
    add_bos: bool
    normalizer: Literal["", "NFC"] = ""
    """Form of Unicode that a text is brought to before it is cut into tokens."""
    decoding: Literal["sentencepiece", "bytes"] = "sentencepiece"
    """How ids become text. sentencepiece: without the blank in front of the first word, a mark
    for each byte that is not UTF-8; bytes: as they stand, a mark for each run of such bytes."""


@record
class PromptSpec:
    """A conversation template of one user turn.

    The text is `before + images + question + after`; an image is `<image>` and a line break.
    It is cut at `<image>`; the pieces are tokenized apart; an image is `IMAGE_ID` between them.
    """

    name: str
    before: str
    after: str
    between_turns: str
    stop_strings: tuple[str, ...]
    stop_ids: tuple[int, ...]
    image_marker: str = "<image>"
    after_image: str = "\n"
    images_first: bool = False
    """Images stand before the whole template, and the question is trimmed and without markers."""

    def text(self, question: str, images: int = 1) -> str:
        """The whole prompt with a marker per image; a marker already in `question` is kept.

        Raises: SpecError when `question` holds a number of markers other than `images`.
        """
        there = question.count(self.image_marker)
        if there and there != images:
            raise SpecError(
                f"the prompt holds {there} {self.image_marker} markers for {images} images; "
                "leave the markers out, or write one per image"
            )
        if self.images_first:
            lead = (self.image_marker + self.after_image) * images
            asked = question.replace(self.image_marker, "").strip()
            return f"{lead}{self.before}{asked}{self.after}"
        lead = "" if there else (self.image_marker + self.after_image) * images
        return f"{self.before}{lead}{question}{self.after}"


@record
class ModelSpec:
    """Everything a reader of the paper would want to know."""

    family: str
    """A file in export/families."""
    name: str
    encoders: tuple[EncoderSpec, ...]
    projector: ProjectorSpec
    decoder: DecoderSpec
    tokenizer: TokenizerSpec
    prompt: PromptSpec
    fusion: FusionSpec | None = None
    """How features of several encoders are joined; None where there is one."""

    def __post_init__(self) -> None:
        """Check that the parts fit end to end."""
        projector = self.vision.projector
        if projector.out_width != self.decoder.width:
            raise SpecError(
                f"projector gives width {projector.out_width}, "
                f"the decoder takes {self.decoder.width}"
            )

    @property
    def vision(self) -> VisionSpec:
        """All that stands in the tower's graph."""
        return VisionSpec(encoders=self.encoders, projector=self.projector, fusion=self.fusion)

    @property
    def image_tokens(self) -> int:
        """Decoder positions that one image takes."""
        return self.projector.tokens_out
