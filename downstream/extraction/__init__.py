"""A backbone over images, once for each, with the same bytes whoever computes them."""
