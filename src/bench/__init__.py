"""How fast and how exact this repository is, measured beside the plain way that public trajectory-matching code works.

comparison (the parent) starts a worker process for every measurement, so that neither allocator settings nor peak memory
leak from one side to the other; settings and process are shared by both ends and import no torch.
"""
