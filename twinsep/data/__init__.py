"""Songs to train and score on: data sets in folders, training batches, checks, generated songs."""
