"""Random convolutional networks, and what has to hold for each of them once it is rewritten.

builder.py tracks shapes; linear.py, merges.py, dense.py, pointwise.py, pooling.py, layout.py and
bodies.py hold the steps a network is built of; graphs.py draws a network from them; checks.py says
what must hold; hunt.py looks for failures until time is up (`python -m tests.fuzz --minutes 30`).
"""
