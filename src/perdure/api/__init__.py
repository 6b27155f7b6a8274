"""The REST API as data: shapes, decoding, projections of the log, operations. Nothing here waits.

The server and the client share it: what one encodes, the other decodes. `operations` is the table
that the router, the client and the OpenAPI document are made of.
"""
