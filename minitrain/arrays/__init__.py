"""Arrays: types, blocks, flat vectors with named views."""
