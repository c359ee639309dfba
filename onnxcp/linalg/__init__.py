"""Weights-only decompositions: SVD, Tucker-2 and CP, and the rules that choose a rank.

Numpy and scipy only; nothing here knows of graphs. A ``kernel`` is the weight of one group, of
shape ``(T, S, *k)``: output channels, input channels, spatial sizes; a plain matrix has no ``k``.
Results are float64 whatever the precision of the input.
"""
