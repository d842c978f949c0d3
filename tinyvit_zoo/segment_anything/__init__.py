"""Segment Anything on this package's encoders: prompts to masks, and the two ONNX files."""

from .decoder import PromptedDecoder
from .export import ExportedSam, export_sam
from .prompts import Prompt
from .segmenter import Segmented, Segmenter, overlay, png

__all__ = ['ExportedSam', 'Prompt', 'PromptedDecoder', 'Segmented', 'Segmenter', 'export_sam', 'overlay', 'png']
