"""The service: the planner's interpreter in real time, on an engine thread, worker threads and a store."""

from llmaas.old_paths import keep_old_names

keep_old_names(__name__)
