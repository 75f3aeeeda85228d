"""What train.py and eval.py share: the methods, the command line, the run directory, the loop, the table."""
