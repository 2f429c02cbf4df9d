"""The ultralytics embassy: the only place that knows this library.

`library.py` isolates it from its global state and is imported first by every module here; `engine.py` implements
the engine's contract. Every private name used is listed in `tests/test_ultralytics_contract.py`.
"""
