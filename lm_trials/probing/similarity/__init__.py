"""The similarity probe: one term beside others, and CKA of two models' layers."""
