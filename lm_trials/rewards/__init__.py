"""Rewards: scores of stories that a model can be trained for, what cheats them, and preference pairs made with them."""
