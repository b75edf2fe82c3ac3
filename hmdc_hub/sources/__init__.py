"""Source datasets: from an id in a recipe, or an object of this process, to uint8 images by class.

`load_source` is the way in, `read_images` that for a single split. `datasets`, huggingface_hub, torchvision and
scikit-learn are imported when a source of theirs is opened, never before.
"""

from hmdc_hub.sources.checks import file_keys, held_out_count, undividable
from hmdc_hub.sources.detection import Detection, describe
from hmdc_hub.sources.load import (
    LabelledImages,
    SourceIndex,
    index_source,
    load_source,
    open_reader,
    read_images,
    resolve_source,
)
from hmdc_hub.sources.objects import register_dataset
from hmdc_hub.sources.pixels import Levels, fill
from hmdc_hub.sources.reader import Encoded, Reader, SourceFacts, SplitSlice, locate
from hmdc_hub.sources.source import ClassSortedImages, Source, left_out_notes, make_source, source_notes
