"""One trainer for the entropy model, DPAR and the LlamaGen baseline (Section 4.1)."""
