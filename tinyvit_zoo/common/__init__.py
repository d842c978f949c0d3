"""Small things that every room needs and none owns. Imports nothing of ours."""
