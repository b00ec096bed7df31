"""Small torch modules with the attribute names that authors gave theirs: what a layout is tested against."""
