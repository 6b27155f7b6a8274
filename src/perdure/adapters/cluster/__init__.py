"""Ways to know of other nodes, and to reach them."""
