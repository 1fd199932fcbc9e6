"""Tokens of a merge: which there are, and which row of which input each of them gets.

vocabulary.py         the tokens of one input, and its tensors with a row for each of them
merged.py             the tokens of the result
rows.py               for each input: where the rows of the result's embeddings come from
vocabulary_layout.py  all of that, decided before any weight is read
written_files.py      config.json and tokenizer files that say the same
template.py           the chat template that the merge keeps

What a recipe may say about the tokenizer is in recipe/tokenizer.py.
"""
