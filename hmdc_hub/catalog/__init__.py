"""Find, list, check, load and copy recipes and pool entries. No torch, no network."""

from hmdc_hub.catalog.entries import MODELS, RECIPES, Entry, copy_entry, find, list_entries, shipped_folder
from hmdc_hub.catalog.load import (
    change,
    dump_recipe,
    load_model,
    load_recipe,
    looks_like_override,
    protocol_name,
    protocol_overrides,
    read_recipe_file,
    recipe_from_dict,
    recipe_keys,
    stored_recipe_text,
)
from hmdc_hub.catalog.published import read_published_recipe
from hmdc_hub.catalog.yaml12 import read_yaml, write_yaml
