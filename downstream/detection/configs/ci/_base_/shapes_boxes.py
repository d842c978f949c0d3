"""The data set of shapes for detectors without masks."""

_base_ = './shapes.py'

train_pipeline = _base_.train_pipeline
train_pipeline[1].update(with_mask=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_pipeline = _base_.test_pipeline
test_pipeline[2].update(with_mask=False)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
