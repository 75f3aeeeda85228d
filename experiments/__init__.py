"""The papers' tables, run again at a size that two cores manage. Each file is one command."""
