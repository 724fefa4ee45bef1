"""Replay: the planner's interpreter in virtual time. A cost model prices each action; no model and no I/O."""

from llmaas.old_paths import keep_old_names

keep_old_names(__name__)
