"""The whole job, from a recipe to a published set, for Python and for the command line.

Nothing here prints, exits or reads arguments. Names are imported on first use: reading a recipe needs no torch.
"""
