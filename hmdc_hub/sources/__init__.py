"""Source datasets: from an id in a recipe, or an object of this process, to uint8 images by class.

`load_source` is the way in, `read_images` that for a single split. `datasets`, huggingface_hub, torchvision and
scikit-learn are imported when a source of theirs is opened, never before.
"""

from hmdc_hub.sources.load import (
    FRACTIONS,
    Detection,
    SourceIndex,
    describe,
    index_source,
    load_source,
    open_reader,
    read_images,
    resolve_source,
)
from hmdc_hub.sources.objects import register_dataset
from hmdc_hub.sources.reader import SourceFacts, SplitSlice, locate
from hmdc_hub.sources.rows import file_keys, held_out_count, undividable
from hmdc_hub.sources.source import ClassSortedImages, Source, SourceSummary, left_out_notes, make_source
