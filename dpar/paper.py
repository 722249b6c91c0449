"""Numbers that the paper prints and several parts of the package use."""

DOWNSAMPLE, VOCAB_SIZE, NUM_CLASSES = 16, 16384, 1000


IMAGENET_IMAGES = (1_281_167, 50_000)
"""Images for training, and held out."""


PAPER_MAX_LENGTH = 4
"""The longest patch of the paper's models, in tokens."""


PAPER_THRESHOLD = {256: 7.8, 384: 7.9}
"""The entropy threshold of the paper's models by resolution in pixels, in nats."""


PAPER_PATCHES = {256: 141.8, 384: 280.2}
"""Mean patches per image that it gives, at which all of Table 8 comes out (Table 2 rounds them as steps)."""


PAPER_PARAMETERS = {  # millions, Tables 1 and 2
    "DPAR-B": 120, "DPAR-L": 352, "DPAR-XL": 789, "DPAR-XXL": 1400,
    "LlamaGen-B": 111, "LlamaGen-L": 343, "LlamaGen-XL": 775, "LlamaGen-XXL": 1400,
}  # fmt: skip


PAPER_GMACS = {  # 1e9, Table 8
    ("LlamaGen-B", 256): 24.98, ("LlamaGen-L", 256): 83.26, ("LlamaGen-XL", 256): 192.69,
    ("LlamaGen-B", 384): 56.21, ("LlamaGen-L", 384): 187.35, ("LlamaGen-XL", 384): 433.57,
    ("DPAR-B", 256): 19.21, ("DPAR-L", 256): 56.74, ("DPAR-XL", 256): 125.52,
    ("DPAR-B", 384): 40.92, ("DPAR-L", 384): 117.92, ("DPAR-XL", 384): 258.53,
}  # fmt: skip


PAPER_DISAGREES = {
    "DPAR-B": "the paper contradicts itself: Table 1 prints 120 M parameters, but the layers that its Sections "
    "3.2.2-3.2.4 describe (and its Table 8 counts to 0.1 %) have 115.02 M",
}
