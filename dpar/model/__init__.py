"""The networks: LlamaGen's transformer and DPAR (Sections 3.2.2-3.2.4)."""
