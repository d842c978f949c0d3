"""The demo's pictures, figures and comparison."""
