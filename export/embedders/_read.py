"""What every layout of an encoder alone shares: image sizes, weight maps."""

from __future__ import annotations

from collections.abc import Mapping

from mllm_export.checkpoint import Checkpoint
from mllm_export.config import Config
from mllm_export.embedder import EmbedderSpec
from mllm_export.errors import UnsupportedModelError
from mllm_export.export.clip_images import read_image_spec
from mllm_export.export.embedder_parts import HEADS, TEXT_TOWERS
from mllm_export.export.parts import ENCODERS
from mllm_export.spec import EncoderSpec
from mllm_export.weights import Drop, Shape, Take, WeightMap


def read_encoder(checkpoint: Checkpoint, kind: str) -> EncoderSpec:
    """All layers and all rows, at the size and constants of preprocessor_config.json."""
    encoder, config = ENCODERS[kind], checkpoint.config
    published = encoder.image(config, "crop")
    image = read_image_spec(checkpoint.path, "crop") or published
    return encoder.read_spec(config, image, -1, True)


def text_section(config: Config) -> Config:
    """`text_config`; all of it is default where transformers left it out."""
    if "text_config" in config:
        return config.section("text_config")
    return Config({}, f"{config.file}: text_config")


def activation(config: Config, default: str) -> str:
    """hidden_act of a text tower.

    Raises: UnsupportedModelError for one that no text tower here has.
    """
    found = config.text("hidden_act", default)
    if found not in {"quick_gelu", "gelu", "gelu_pytorch_tanh"}:
        raise UnsupportedModelError(f"{config.file}: hidden_act '{found}' of the text tower")
    return found


def weight_map(
    spec: EmbedderSpec,
    prefix: str = "",
    text_prefix: str = "",
    names: Mapping[str, str] | None = None,
    drops: tuple[Drop, ...] = (),
    scalars: tuple[str, ...] = (),
) -> WeightMap:
    """Takes of image tower, head, text tower and the score's scalars.

    `names` gives the published name of a head's parameter where it is another.
    """
    other = names or {}
    head = HEADS[spec.head].parameters(spec.encoder, spec.embed_width)
    takes = [
        *_takes("tower", prefix, ENCODERS[spec.encoder.kind].parameters(spec.encoder)),
        *(
            Take(part="head", parameter=n, source=other.get(n, prefix + n), shape=tuple(s))
            for n, s in head.items()
        ),
    ]
    if spec.text is not None:
        parameters = TEXT_TOWERS[spec.text.kind].parameters(spec.text)
        takes += _takes("text", text_prefix, parameters)
    return WeightMap(
        takes=tuple(takes),
        drops=(*drops, *(Drop(pattern=n, why="a number of bundle.json") for n in scalars)),
    )


def _takes(part: str, prefix: str, parameters: Mapping[str, Shape]) -> list[Take]:
    return [
        Take(part=part, parameter=n, source=prefix + n, shape=tuple(s))
        for n, s in parameters.items()
    ]
