"""
The port: who may talk to it, what it answers, the feed, health and metrics, and the page.

It shows what the board and the jobs hold and hands operators' requests to the agent. Nothing a client does may slow,
stop or fail a copy.
"""
