"""The comparison of methods: experiments/plans/methods.py says what is run and tested; here is what was found.

| command | what it makes |
|---|---|
| `python -m experiments.run methods --out DIR` | DIR/cells.json, on the embedded base |
| `python -m experiments.run methods --model SMOLLM2 --out DIR` | the same on a real model |
| `python -m experiments.methods.costs --out DIR` | DIR/costs-MODEL.json: memory and time |
| `python -m experiments.methods DIR ...` | tables and pictures in experiments/results, from these files |
"""
