"""Segment Anything with a TinyViT encoder as a model of transformers: its classes, folders, and files of MobileSAM.

Importing this package registers `TinyVitSamConfig` with `AutoConfig`, and `TinyVitSamModel` with `AutoModel` and
`AutoModelForMaskGeneration`. Plain `SamModel.from_pretrained` cannot read such a folder: in transformers 5.24 it stops
at the list of windows, where SAM's own encoder has one number.
"""

from .checkpoint import official_sam_state_dict
from .config import TinyVitSamConfig
from .folder import check_sam_folder, convert_sam, load_sam, save_sam
from .model import TinyVitSamModel, new_sam
from .processor import sam_masks, sam_processor

__all__ = [
    'TinyVitSamConfig',
    'TinyVitSamModel',
    'check_sam_folder',
    'convert_sam',
    'load_sam',
    'new_sam',
    'official_sam_state_dict',
    'sam_masks',
    'sam_processor',
    'save_sam',
]
