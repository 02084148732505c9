"""Losses by story and by slice, sampled stories and their scores."""
