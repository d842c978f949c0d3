"""What a fine-tuning is made of: recipes, what they make of a model, the state on disk."""
