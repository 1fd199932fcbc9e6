"""Weights that are stored as codes: which scheme it is, and the numbers that the codes stand for.

recognition.py  is it quantised, how, and is it read here or refused
pairing.py      which tensors are codes, which are their scales, and what they look like as numbers
codes.py        the arithmetic, range by range
"""
