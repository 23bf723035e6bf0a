"""Published problems: readers of their data sets, and the judge of their answers."""
