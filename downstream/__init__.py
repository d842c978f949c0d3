"""What the models are good for: training and measuring them on data. Never imported by `import tinyvit_zoo`."""
