"""Jobs: from files and options to a run folder. What the command line, the Python functions and batches all call."""
