"""Packages: the folder that a Hub repository will hold, and its card."""

from hmdc_hub.publish.build import package
from hmdc_hub.publish.card import render
from hmdc_hub.publish.facts import Manifest, PackagedFile

__all__ = ["Manifest", "PackagedFile", "package", "render"]
