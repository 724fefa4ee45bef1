"""The service: the planner's interpreter in real time, on an engine thread, worker threads and a store."""
