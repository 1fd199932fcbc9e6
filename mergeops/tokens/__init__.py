"""Tokens of a merge: which there are, and which row of which input each of them gets.

spec.py        what a recipe may say about the tokenizer
vocabulary.py  the tokens of one input, from its tokenizer.json
embeddings.py  which of its tensors have a row for each token
merged.py      the tokens of the result
rows.py        for each input: where the rows of the result's embeddings come from
layout.py      all of that, decided before any weight is read
files.py       config.json and tokenizer files that say the same
"""
