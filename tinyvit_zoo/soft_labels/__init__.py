"""A teacher's outputs, stored once and read by any student: TinyViT's fast pretraining distillation."""

from .record import Form, SoftLabels
from .store import Epoch, Store, StoreInfo

__all__ = ['Epoch', 'Form', 'SoftLabels', 'Store', 'StoreInfo']
