"""Many nodes on one store, and everything that can come between them.

`frozen` pauses the holder of a session at every moment while another one takes it over; `matrix`
runs real node processes into every fault of every store; `audit` folds what is left.
"""
