"""Scoring: the states of a model, what each scores, tables and files of scores."""
