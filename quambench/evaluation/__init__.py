"""A model against the untouched float checkpoint, on the same tokens: data, reference, decoding, evidence."""
