"""The channel protocol, both sides, without sockets: feed a frame, take facts and frames.

`server.ServerSide` is a node's end of one connection, `worker.WorkerSide` a worker's. `table` says
who may say what when; everything else is shapes.
"""
