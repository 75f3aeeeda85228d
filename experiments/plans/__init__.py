"""Plans: what is run, with how many rows, steps and seeds, and how it is tested; written before the runs."""
