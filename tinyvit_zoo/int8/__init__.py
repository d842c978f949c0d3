"""int8 by onnxruntime's static quantization: calibrated on images, and compared with float32 on others."""

from .check import Agreement, Check, Comparison, same_class
from .images import calibration_images, check_images
from .model import quantize_model
from .processor import has_int8_instructions
from .quantize import Quantized, quantize_file

__all__ = [
    'Agreement',
    'Check',
    'Comparison',
    'Quantized',
    'calibration_images',
    'check_images',
    'has_int8_instructions',
    'quantize_file',
    'quantize_model',
    'same_class',
]
