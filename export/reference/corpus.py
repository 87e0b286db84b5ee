"""The text that the tokenizer learns its pieces from."""

from mllm_export.export.reference.questions import PLURALS
from mllm_export.export.reference.scenes import COLORS, DIGIT, PLACES, SHAPES

# Source: MobileVLM's conversation template "v1" (LLaVA's vicuna_v1)
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PROMPT = SYSTEM + " USER: <image>\n{question} ASSISTANT:"
PROMPT_WEIGHT = 40  # repeats: the prompt's words become whole pieces, as in a large tokenizer
QUESTION_WEIGHT = 4

PLAIN = """
A small model looks at a picture and answers a question about it in a few words.
The picture has a light background with specks, stripes, or a pattern of squares.
Every picture shows between one and four things, and each of them has a color, a place and a size.
Some things are shapes: a circle is round, a square has four corners, and a triangle has three.
A star has five points, a cross has four arms, and a ring is a circle with a hole in the middle.
Other things are digits that people wrote by hand with a pen many years ago.
The top of a picture is above the bottom, and the left side is not the right side.
If nothing in the picture is red, then the number of red shapes is zero.
Can you see the yellow star? Yes, it is near the top right corner of the picture.
How large is the image? It is scaled to fit a canvas and then cut into patches.
Please describe this image in detail, or tell me what is written there.
The quick brown fox jumps over the lazy dog while twelve wizards make toxic brew.
Compilers turn programs into other programs; this one turns a model into files for a phone.
Numbers such as 0, 1, 2, 3, 4, 5, 6, 7, 8 and 9 are written one digit after another.
Is there anything else? No, that was all; thank you for your help!
What time is it? Which day comes after Monday? Who was there, when did they leave, and why?
She said: "We should measure first, because a guess without a number is only a guess."
He replied (after some thought) that the weights were rounded to four bits & nothing broke.
Memory, speed, and quality pull in different directions; choose two of the three.
A gray cat sat under the white table, a pink bird was on the brown roof.
""".strip().split("\n")


def _questions() -> list[str]:
    found = [f"What is in the {place}?" for place in PLACES]
    found += [f"What shape is the {color} object?" for color in COLORS]
    found += [f"What color is the {kind}?" for kind in (*SHAPES, DIGIT)]
    found += [f"Where is the {color} {shape}?" for color in COLORS for shape in SHAPES]
    found += [f"How many {plural} are there?" for plural in (*PLURALS.values(), "shapes")]
    found += [f"How many {color} shapes are there?" for color in COLORS]
    return [*found, "Where is the digit?", "Which digit is shown?"]


def sentences() -> list[str]:
    """Lines to train the tokenizer on: the prompt, every question and answer, plain English."""
    answers = [*COLORS, *SHAPES, *PLACES, *(str(digit) for digit in range(10))]
    answers += [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    prompt = PROMPT.replace("<image>\n{question} ", "")
    return [*[prompt] * PROMPT_WEIGHT, *_questions() * QUESTION_WEIGHT, *answers, *PLAIN]
