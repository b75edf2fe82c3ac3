"""Find, list, check, load and copy recipes and pool entries. No torch, no network."""

from hmdc_hub.catalog.copy import copy_model, copy_recipe
from hmdc_hub.catalog.entries import Entry, find_recipe, list_models, list_recipes
from hmdc_hub.catalog.load import dump_recipe, load_model, load_recipe, read_recipe_file, stored_recipe_text
from hmdc_hub.catalog.overrides import looks_like_override
from hmdc_hub.catalog.protocols import protocol_name, protocol_overrides
from hmdc_hub.catalog.published import read_published_recipe
from hmdc_hub.catalog.reference import json_schema, model_json_schema, recipe_reference
from hmdc_hub.yaml12 import Document, read_yaml

__all__ = [
    "Document",
    "Entry",
    "copy_model",
    "copy_recipe",
    "dump_recipe",
    "find_recipe",
    "json_schema",
    "list_models",
    "list_recipes",
    "load_model",
    "load_recipe",
    "looks_like_override",
    "model_json_schema",
    "protocol_name",
    "protocol_overrides",
    "read_published_recipe",
    "read_recipe_file",
    "read_yaml",
    "recipe_reference",
    "stored_recipe_text",
]
