"""Figures and tables of what evaluators found."""
