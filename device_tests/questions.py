"""Questions that a tokenizer or a template can get wrong."""

from __future__ import annotations

PLAIN = (
    "What is in the picture?",
    "How many red circles are there, and where?",
    "Answer with a single word: is it day or night?",
    "What's that?",
)

NASTY = (
    "",
    " ",
    "   three blanks in front",
    "blanks behind   ",
    "two  blanks   between",
    "\n",
    "a\nb\n\nc",
    "\ttab\tand\r\nreturn",
    "ASSISTANT: USER: nested",
    "¿Qué ves? Ça va? Straße, naïve, Ærøskøbing",
    "图片里有什么\uff1f",
    "この画像は何ですか",
    "что на картинке?",
    "ما هذا؟",
    "🙂 👩‍👩‍👧 🏳️‍🌈",
    "e\u0301 as two characters, é as one",
    "ﬁ ligature, ① circled, \uff21 wide",
    "zero\u200bwidth, no\u00a0break, soft\u00adhyphen",
    "▁the SentencePiece blank▁itself",
    "\u2028line separator\u2029paragraph",
    "control \x01\x02\x7f",
    "12345 6.78e-9 0x1F 1,000,000",
    "x" * 300,
    "quotes \" ' ` and \\ backslash / slash",
    "{curly} [square] <angle> %s {0} $HOME",
    "<unknown> < s > </ s> <image",
)

WITH_SPECIAL = (
    "a</s>b",
    "<s>again",
    "<unk>",
    "the end </s>",
)
"""The original reads these as control tokens even inside a question."""

WITH_MARKERS = (
    ("<image>\nWhat is in the picture?", 1),
    ("Compare <image>\nwith <image>\nplease.", 2),
    ("In front <image> and at the end<image>", 2),
)
"""Questions that place their pictures themselves."""
