"""How long a demo takes.

Law: imports nothing: the command reads it for its --help.
"""

FULL_SECONDS = 120
QUICK_SECONDS = 25
