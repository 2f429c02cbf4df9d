"""Engines: one folder per training library, each behind the Protocol of `base.py`; `registry.py` names them."""
