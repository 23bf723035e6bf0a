"""One trainer for all methods, and the table of methods."""
