"""One file per kind of tokenizer."""
