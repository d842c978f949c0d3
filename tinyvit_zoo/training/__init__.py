"""Training runs: recipes, the parts that a recipe decides, tasks, the loop, and its state on disk."""
