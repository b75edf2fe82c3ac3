"""Find, list, check, load and copy recipes and pool entries. No torch, no network."""

from hmdc_hub.catalog.entries import (
    MODELS,
    Entry,
    copy_model,
    copy_recipe,
    find,
    find_recipe,
    list_models,
    list_recipes,
)
from hmdc_hub.catalog.load import (
    dump_recipe,
    load_model,
    load_recipe,
    looks_like_override,
    read_recipe_file,
    recipe_from_dict,
    stored_recipe_text,
)
from hmdc_hub.catalog.protocols import protocol_name, protocol_overrides
from hmdc_hub.catalog.published import read_published_recipe
from hmdc_hub.catalog.reference import json_schema, model_json_schema, recipe_reference
from hmdc_hub.catalog.yaml12 import Document, decode, parse, plain, read_value, read_yaml, show, write_yaml
