"""Weights that are stored as codes: which scheme it is, and the numbers that the codes stand for.

recognition.py       is it quantised, how, and is it read here or refused
codes_and_scales.py  which tensors are codes, which are their scales, and the numbers they stand for
codes.py             the arithmetic, range by range
"""
