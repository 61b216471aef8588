"""The losses of stages 1 and 2. Those that belong to one network are with it: a bottleneck's in models/bottleneck.py, a prior's in its
method ``loss``.
"""
