"""Metrics of texts: numbers of each text of a data set, in tables that training orders and filters by."""
