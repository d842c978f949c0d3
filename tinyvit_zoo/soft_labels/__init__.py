"""A teacher's outputs, stored once and read by any student: TinyViT's fast pretraining distillation."""

from .check import Agreement, check_data, check_records, check_teacher, check_views
from .record import Form, SoftLabels
from .save import Estimate, estimate, save
from .store import Epoch, Store, StoreInfo
from .teacher import Teacher

__all__ = [
    'Agreement',
    'Epoch',
    'Estimate',
    'Form',
    'SoftLabels',
    'Store',
    'StoreInfo',
    'Teacher',
    'check_data',
    'check_records',
    'check_teacher',
    'check_views',
    'estimate',
    'save',
]
