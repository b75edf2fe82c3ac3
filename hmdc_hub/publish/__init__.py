"""Packages (the folder that a Hub repository will hold), their card, and pushing them.

Names that ask the Hub are imported on first use, so that packaging does not wait for them.
"""
