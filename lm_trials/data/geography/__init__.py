"""Geography: cities, the distances between them, and the texts and data sets that tell of them."""
