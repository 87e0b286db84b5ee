"""README.md of a bundle for Apple's systems: how an app feeds the tower into the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mllm_export.plan import ArtifactPlan
from mllm_export.spec import IMAGE_EMBEDS

if TYPE_CHECKING:
    from mllm_export.export.artifact import Work
    from mllm_export.spec import ModelSpec

_TEXT = """\
# {name} for {target}

| file | what | runs on |
|---|---|---|
| `tower.mlpackage` | vision tower and projector, {scheme} weights | Core ML, {system} |
| `decoder.gguf` | language model | llama.cpp, built with Metal |
| `tokenizer/` | the checkpoint's own tokenizer; decoder.gguf holds it too | |
| `bundle.json` | sizes, preprocessing, prompt template, SHA-256 of every file | |

One picture becomes {tokens} embeddings of width {width}, which take {tokens} positions of the
decoder. A question about it goes in so, each line where the one before it ended:

{prompt}

`{marker}` itself is no token: the text is cut there, and its pieces are tokenized apart.

## Preprocessing

{preprocessing}

## The call

```swift
import CoreML
import llama

/// Image embeddings into the decoder, in place of tokens. Returns the next free position.
func decode(_ input: MLFeatureProvider, tower: MLModel, into context: OpaquePointer,
            at start: Int32) throws -> Int32 {{
    let output = try tower.prediction(from: input)
    let rows = output.featureValue(for: "{output}")!.multiArrayValue!
    // Float32, {tokens} rows of {width}.
    let count = Int32({tokens})
    var batch = llama_batch_init(count, {width}, 1)
    defer {{ llama_batch_free(batch) }}
    batch.n_tokens = count
    // Core ML may pad rows: the strides say where each one starts.
    let stride = rows.strides[0].intValue
    rows.withUnsafeBufferPointer(ofType: Float.self) {{ values in
        for row in 0..<Int(count) {{
            let from = UnsafeRawPointer(values.baseAddress! + row * stride)
            memcpy(batch.embd + row * {width}, from, {width} * MemoryLayout<Float>.stride)
            batch.pos[row] = start + Int32(row)
            batch.n_seq_id[row] = 1
            batch.seq_id[row]![0] = 0
            batch.logits[row] = 0
        }}
    }}
    guard llama_decode(context, batch) == 0 else {{ throw DecodeError.refused }}
    return start + count
}}

enum DecodeError: Error {{ case refused }}

let settings = MLModelConfiguration()
settings.computeUnits = .all  // .cpuAndNeuralEngine keeps the GPU for the decoder
let compiled = try await MLModel.compileModel(at: bundle.appendingPathComponent("tower.mlpackage"))
let tower = try MLModel(contentsOf: compiled, configuration: settings)
var position: Int32 = {start}
{feed}
```

`n_batch` and `n_ubatch` of the llama.cpp context must be at least {tokens}, or the embeddings go
in several batches, in order. Ask for logits only with the last token of the text behind the image.
{carried}"""

_RECURRENT = """
The decoder carries one state, which cannot be cut back to an earlier position. To ask again about
the same picture, keep `llama_state_seq_get_data` of the moment behind it and put that back.
"""

_TENSOR = """\
// {name}: MLMultiArray of Float16, [1, 3, {size}, {size}], (value / 255 - mean) / std"""

_IMAGE = """\
// {name}: CVPixelBuffer of {size} x {size}, kCVPixelFormatType_32BGRA"""

_FITS = {
    "pad": "Pad to a square with RGB {pad}",
    "crop": "Resize the shorter side, then cut the centre",
    "stretch": "Resize both sides",
}


def write_readme(work: Work, artifact: ArtifactPlan) -> None:
    """Write README.md into the bundle's folder."""
    text = readme(work.plan.spec, work.plan.target, artifact)
    (work.folder / "README.md").write_text(text, encoding="utf-8")


def readme(spec: ModelSpec, target: str, artifact: ArtifactPlan) -> str:
    """The text for one model and target."""
    pieces = _pieces(spec)
    return _TEXT.format(
        output=IMAGE_EMBEDS,
        tokens=spec.image_tokens,
        width=spec.decoder.width,
        name=spec.name,
        target=target,
        scheme=artifact.scheme,
        system=artifact.deployment,
        marker=spec.prompt.image_marker,
        prompt="\n".join(f"    {what}" for what in pieces),
        start="0" if pieces[0] == _picture(spec) else "0  // then the ids in front of the picture",
        preprocessing=_preprocessing(spec, artifact.image_input),
        feed=_feed(spec, artifact.image_input),
        carried="" if spec.decoder.state is None else _RECURRENT,
    )


def _pieces(spec: ModelSpec) -> list[str]:
    """What the decoder is fed for a question about one picture, in order."""
    texts = spec.prompt.text("QUESTION").split(spec.prompt.image_marker)
    found = [f"the id {spec.tokenizer.bos_id}, once"] if spec.tokenizer.add_bos else []
    for number, text in enumerate(texts):
        if number:
            found.append(_picture(spec))
        if text:
            found.append(f"{text!r}  ->  ids")
    return found


def _picture(spec: ModelSpec) -> str:
    return f"the picture  ->  {spec.image_tokens} embeddings"


def _preprocessing(spec: ModelSpec, image_input: bool) -> str:
    """What is done with a picture, for each input."""
    inputs = spec.vision.image_inputs
    told = []
    for one in inputs:
        image = one.image
        mean, std = (", ".join(f"{v:.8g}" for v in vs) for vs in (image.mean, image.std))
        pixels = (
            "The model takes the picture itself and normalises it."
            if image_input
            else f"Then (value / 255 - mean) / std with mean [{mean}] and std [{std}]."
        )
        of = f"`{one.name}`: " if len(inputs) > 1 else ""
        told.append(
            f"{of}{_FITS[image.fit].format(pad=image.pad_rgb)}, {image.resample} resampling to "
            f"{image.size_px} x {image.size_px} pixels, RGB. {pixels}"
        )
    return "\n\n".join(told)


def _feed(spec: ModelSpec, image_input: bool) -> str:
    """Swift that gives the tower its inputs."""
    inputs = spec.vision.image_inputs
    kind = _IMAGE if image_input else _TENSOR
    value = "MLFeatureValue(pixelBuffer: {})" if image_input else "{}"
    pairs = ", ".join(f'"{one.name}": {value.format(one.name)}' for one in inputs)
    return "\n".join(
        (
            *(kind.format(name=one.name, size=one.image.size_px) for one in inputs),
            "let input = try MLDictionaryFeatureProvider(",
            f"    dictionary: [{pairs}])",
            "position = try decode(input, tower: tower, into: context, at: position)",
        )
    )
