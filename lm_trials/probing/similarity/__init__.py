"""The similarity probe: one term compared with others, and CKA of two models' layers."""
