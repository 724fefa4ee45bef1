"""Replay: the planner's interpreter in virtual time. A cost model prices each action; no model and no I/O."""
