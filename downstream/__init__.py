"""Evaluators: what the models are good for, measured on data. Imported as `tinyvit_zoo.downstream`."""

if __name__ == 'downstream':  # in a checkout; every module would exist twice, and so would what registers itself
    raise ModuleNotFoundError(
        'The evaluators of tinyvit-zoo are imported as tinyvit_zoo.downstream, not as downstream: '
        'write `from tinyvit_zoo.downstream import ...`.'
    )
