"""The web page at ``/``: chat, and what the app's contexts do, live."""
