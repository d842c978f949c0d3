"""The command that measures a number of each task, as arguments after `tinyvit-zoo`; see `Entry.jobs`."""

__all__ = [
    'ACCURACY',
    'ARCHITECTURE',
    'COST',
    'COUNT',
    'COUNTS',
    'DATASETS',
    'DETECTION',
    'FEW_SHOT',
    'PROBE',
    'SEGMENTATION',
    'SPEED',
    'STORAGE',
    'TRANSFER',
]

COUNT = 'count'
"""The job of `measure.py`: no data, no weights."""

ACCURACY = {'classification': 'evaluate {name} -d {data} {evaluate}'}
COUNTS = {'model_size': COUNT, 'compute': COUNT}
ARCHITECTURE = {'architecture': COUNT}
STORAGE = {'label_storage': COUNT}
PROBE = {'linear_probe': 'probe {name} -d {data}'}
FEW_SHOT = {f'few_shot_5way_{n}shot': f'fewshot {{name}} -d {{data}} --shots {n}' for n in (5, 20, 50)}
TRANSFER = {'transfer_finetune': 'finetune {finetune} -d {data} -o OUT'}
DETECTION = dict.fromkeys(('object_detection', 'instance_segmentation'), 'detect train {config} -d DIR')
SEGMENTATION = {'semantic_segmentation': 'detect train {config} -d DIR'}
SPEED = {'throughput': 'bench {name} --device cuda -b 64'}
COST = {'training_cost': ''}
DATASETS = {'dataset_stats': ''}
