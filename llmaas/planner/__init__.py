"""The planner: one pure function from events and time to actions.

Law: pure. Nothing in this package reads a clock, a file, a socket or a model; time is an argument. ``service`` carries
the actions out in real time, ``replay`` in virtual time.
"""

from llmaas.old_paths import keep_old_names

keep_old_names(__name__)
