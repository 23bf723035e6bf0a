"""Settings files, stages, rendered pages, profiles and the command line."""
