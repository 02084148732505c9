"""Trials: arms compared, from files alone; no model is loaded and torch is never imported."""
