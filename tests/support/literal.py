"""Functions of rows of numbers, written out in plain Python: what oracles are made of."""

import math


def softmax(row, T=1.0):
    exps = [math.exp(x / T) for x in row]
    return [e / sum(exps) for e in exps]


def kl(p, q):
    """KL(p || q)."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
