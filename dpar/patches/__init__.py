"""Where patches begin and end (Section 3.2.1, Algorithm 3): the rule, counts, calibration, packing."""
