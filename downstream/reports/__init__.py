"""Printed and written results of evaluators: text, tables, and figures."""

from tinyvit_zoo.common.extras import needs_extra

with needs_extra('eval'):  # before the work whose results would be drawn
    import matplotlib.figure  # noqa: F401
    import sklearn  # noqa: F401
