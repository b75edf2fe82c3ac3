"""Source datasets: from an id in a recipe to uint8 images by class.

`load_source` is the way in. `datasets`, huggingface_hub, torchvision and scikit-learn are imported when a source of
theirs is opened, never before.
"""

from hmdc_hub.sources.bank import ClassBank, Source, left_out_notes, make_source, source_notes
from hmdc_hub.sources.describe import Detection, describe
from hmdc_hub.sources.load import SourceIndex, index_source, load_source, open_reader, resolve_source
from hmdc_hub.sources.reader import Facts

__all__ = [
    "ClassBank",
    "Detection",
    "Facts",
    "Source",
    "SourceIndex",
    "describe",
    "index_source",
    "left_out_notes",
    "load_source",
    "make_source",
    "open_reader",
    "resolve_source",
    "source_notes",
]
