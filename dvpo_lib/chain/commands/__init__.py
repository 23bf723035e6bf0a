"""Commands of the command line that have much to do."""
