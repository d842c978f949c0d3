"""Printed and written results of evaluators: text, tables, and figures."""
