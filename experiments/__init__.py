"""The papers' tables, repeated at a size for two CPU cores. Each module is one command."""
