"""Before a run: its memory planned from settings alone, and runs described by recipes."""
