"""Settings of an experiment: typed, closed and frozen. The defaults are Section 4.1's."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from dpar.errors import InputError

# Settings for when a training stops, saves or reports, without effect on its computations.
TOKENIZER_PACE = frozenset({"steps", "epochs", "checkpoint_every"})
TRAINING_PACE = frozenset(
    {
        "steps", "epochs", "milestones", "accumulate", "compile", "activation_checkpointing_above", "fsdp_above",
        "checkpoint_every", "validate_every", "log_every", "deterministic",
    }
)  # fmt: skip
Decay = Annotated[float, Field(ge=0, lt=1)]  # of a running mean
Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FARTHEST = 1e6  # scale of guidance, temperature and its inverse: float32 logits stay finite under both
LONGEST_PATCH = 2**31 - 1  # tokens
MOST_CLASSES = 10**6
LEAST_CRITIC_SIDE = 24  # pixels of the images that the tokenizer's adversarial loss needs
IMAGENET = "imagenet"  # as `images.classes`: the names of its 1,000 classes, which come with the package
SMOKE_SUFFIX = ".smoke"  # of the name of an experiment that was cut short to try everything
LONGEST_NAME = 100  # bytes: names are parts of files' names, of which a file system takes 255


def _short(name: str) -> str:
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"a name may have {LONGEST_NAME} bytes, this one has {len(name.encode())}")
    return name


Name = Annotated[str, AfterValidator(_short)]
ModelName = Annotated[Name, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$")]
EntropyKind = Literal["unconditional", "null_class", "distilled"]
EntropyPrecision = Literal["float32", "tf32", "bfloat16"]
Pooling = Literal["max", "mean"]
TableName = Annotated[Name, Field(pattern=r"^[A-Za-z0-9]\w*$")]


def _check_numbers(given: Any, taken: Any) -> None:
    """Refuses switches that are taken for numbers (YAML reads `off` as one), and numbers too large for a tensor."""
    if isinstance(given, bool) and not isinstance(taken, bool):
        raise ValueError("expected a number, not true or false (in YAML also on, off, yes, no)")
    if isinstance(taken, int) and abs(taken) >= 2**63:
        raise ValueError("expected a number of at most 19 digits")
    if isinstance(given, list | tuple) and isinstance(taken, tuple):
        for pair in zip(given, taken, strict=True):
            _check_numbers(*pair)


class Settings(BaseModel):
    """A group of settings: unknown keys are errors, numbers are finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _numbers(cls, given: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        taken = handler(given)
        _check_numbers(given, taken)
        return taken


def _when_given(**field: Any) -> Any:
    """A field that is not written where it is not given: results from before there was one stay up to date."""
    return Field(default=None, exclude_if=lambda value: value is None, **field)


class GeneratedImages(Settings):
    """Numbers of images that the package draws itself."""

    train: int = Field(gt=0, description="images to train on")
    val: int = Field(gt=0, description="held-out images")


class Images(Settings):
    """Source of the images, and their crops."""

    source: Literal["generated", "folder", "parquet", "webdataset"] = Field(
        description="how the images lie: drawn by the package, a folder per class, Parquet files, or tars"
    )
    train: str | None = Field(
        default=None, description="folder, or glob of Parquet files or tars; ** is folders of any depth"
    )
    val: str | None = Field(default=None, description="the same for held-out images")
    held_out: float | None = _when_given(
        gt=0,
        lt=1,
        description="instead of `val`: share of each class of `train` that is held out, by the hash of the names",
    )
    generated: GeneratedImages | None = Field(default=None, description="how many to draw; of source `generated` alone")
    resolution: int = Field(gt=0, description="pixels, the side of the square that is tokenized")
    num_classes: int = Field(gt=0, le=MOST_CLASSES, description="labels are 0 to this less 1")
    classes: str | None = _when_given(
        description="names of the classes in the order of their numbers: a file (JSON list, a line per class, or a "
        "JSON object of the images' names and those to show), or `imagenet`; null = those of the images",
    )
    max_train: int | None = _when_given(
        gt=0, description="training images to use, the first of each class in turn; null = all"
    )
    max_val: int | None = _when_given(
        gt=0, description="held-out images to use, evenly spaced in each class; null = all"
    )
    credits: str | None = _when_given(
        description="whose images they are and under which licence, for the cards of exported models"
    )
    max_unreadable: float = Field(default=0.0, ge=0, le=1, description="share of images that may be skipped")
    allow_shared: bool = Field(
        default=False,
        exclude_if=lambda allowed: not allowed,
        description="whether held-out images may be training images too; else more than 1 % of them are refused",
    )

    @model_validator(mode="after")
    def _source_is_described(self) -> "Images":
        if self.source == "generated":
            if self.generated is None or self.train or self.val or self.held_out:
                raise ValueError("source `generated` needs `generated: {train, val}` and neither `train` nor `val`")
        elif self.generated is not None or not self.train or (self.val is None) == (self.held_out is None):
            raise ValueError(
                f"source `{self.source}` needs the path `train`, and `val` or a share `held_out`, and no `generated`"
            )
        return self

    def path(self, split: str) -> str | None:
        """Where the images of a split are: held-out ones among those for training, where they are a share of them."""
        return self.train if self.held_out is not None else getattr(self, split)


class TokenizerTraining(Settings):
    """The VQ tokenizer's loss and optimizer."""

    steps: int | None = Field(default=None, gt=0, description="length in optimizer steps; this or `epochs`")
    epochs: int | None = Field(default=None, gt=0, description="length in passes over the images; this or `steps`")
    batch_size: int = Field(default=128, gt=0, description="images per step")
    learning_rate: float = Field(default=1e-4, gt=0, description="of Adam")
    cooldown: float = Field(
        default=0.0, ge=0, le=1, description="share of the steps, at the end, in which the rate falls to 0"
    )
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.95), description="of Adam's running means")
    grad_clip: float = Field(default=1.0, gt=0, description="norm of the autoencoder's, and of the critic's gradients")
    codebook_weight: float = Field(default=1.0, description="of the loss that draws codes to the encoder's outputs")
    commitment_weight: float = Field(default=0.25, description="of the loss that draws the encoder's outputs to codes")
    perceptual_weight: float = Field(default=1.0, ge=0, description="of LPIPS; 0 = without")
    perceptual_network: str | None = Field(
        default=None, description="file with LPIPS weights; needed if the weight is not 0"
    )
    adversarial_weight: float = Field(default=0.5, ge=0, description="of the PatchGAN loss; 0 = without")
    adversarial_start: int = Field(default=20_000, ge=0, description="the first step with the PatchGAN loss")
    restart_unused_codes: bool = Field(
        default=False, description="replace codes that fell out of use by latents of the batch"
    )
    crop_range: float = Field(
        default=1.25, ge=1, description="training crops are cut from the image at 1 to this x the shorter side"
    )
    checkpoint_every: int = Field(default=1000, gt=0, description="steps")

    @model_validator(mode="after")
    def _length(self) -> "TokenizerTraining":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        if self.perceptual_weight > 0 and not self.perceptual_network:
            raise ValueError("`perceptual_weight` > 0 needs `perceptual_network`, the file of LPIPS weights")
        return self


class Autoencoder(Settings):
    """The sizes of a VQ autoencoder; the defaults are LlamaGen's VQ-16."""

    vocab_size: int = Field(default=16384, gt=1, le=65536, description="codes in the codebook (V)")
    code_dim: int = Field(default=8, gt=0, description="numbers per code")
    channels: int = Field(default=128, gt=0, description="of the first level")
    multipliers: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        default=(1, 1, 2, 2, 4),
        min_length=1,
        description="channels of each level, in multiples of `channels`; each level but the last halves the sides",
    )
    residual_blocks: int = Field(default=2, gt=0, description="per level of the encoder; the decoder has one more")
    z_channels: int = Field(default=256, gt=0, description="of the encoder's output, before it becomes codes")
    attention: bool = Field(default=True, description="attention at the smallest level")
    groups: int = Field(default=32, gt=0, description="of channels in each normalisation")
    # Deviation: 1 in LlamaGen; the small experiments shuffle pixels, to be fast on a CPU.
    pixel_shuffle: int = Field(
        default=1, gt=0, description="side of the pixel blocks that are channels inside; 1 = LlamaGen"
    )

    @property
    def downsample(self) -> int:
        """Pixels per token, along one side (K)."""
        return self.pixel_shuffle * 2 ** (len(self.multipliers) - 1)

    @model_validator(mode="after")
    def _groups(self) -> "Autoencoder":
        if any(self.channels * multiplier % self.groups for multiplier in self.multipliers):
            raise ValueError(f"`channels` times each of `multipliers` must be a multiple of `groups` ({self.groups})")
        return self


# LlamaGen's tokenizers. The other sizes of both are `Autoencoder`'s defaults.
TOKENIZERS: dict[str, dict[str, Any]] = {
    "VQ-16": {"multipliers": (1, 1, 2, 2, 4)},
    "VQ-8": {"multipliers": (1, 2, 2, 4)},
}


class Tokenizer(Autoencoder):
    """The VQ autoencoder: imported from `weights`, or trained. Sizes next to `variant` replace that tokenizer's."""

    variant: str | None = Field(default=None, description="VQ-16 or VQ-8")
    weights: str | None = Field(default=None, description="an official file such as vq_ds16_c2i.pt; null = train")
    weights_sha256: Sha256 | None = Field(default=None, description="SHA-256 of the file of `weights`")
    training: TokenizerTraining | None = Field(default=None, description="how it is trained, without `weights`")

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_variant(cls, values: Any) -> Any:
        name = values.get("variant") if isinstance(values, dict) else None
        if not isinstance(name, str):
            return values
        if name not in TOKENIZERS:
            raise ValueError(f"there is no tokenizer {name!r}; tokenizers are {', '.join(TOKENIZERS)}")
        return TOKENIZERS[name] | values

    @model_validator(mode="after")
    def _trained_or_imported(self) -> "Tokenizer":
        if (self.weights is None) == (self.training is None):
            raise ValueError("give exactly one of `weights` (import) and `training` (train one)")
        return self

    @property
    def autoencoder(self) -> Autoencoder:
        """The sizes alone, without where the weights come from."""
        return Autoencoder(**{name: getattr(self, name) for name in Autoencoder.model_fields})


class Codes(Settings):
    """Encoding of images as rows of codes, and storage of the rows."""

    format: Literal["parquet", "webdataset"] = Field(default="parquet", description="of the shards")
    crop_ranges: tuple[Annotated[float, Field(ge=1)], ...] = Field(
        default=(1.1, 1.05), min_length=1, description="ADM centre crop to this x the side"
    )
    ten_crop: bool = Field(
        default=True, description="five crops and their mirror images; false: the centre and its mirror"
    )
    train_shards: int = Field(default=256, gt=0, description="files, each the work of a job")
    val_shards: int = Field(default=10, gt=0, description="the same of held-out images")

    @property
    def views(self) -> int:
        """Rows stored for one training image."""
        return len(self.crop_ranges) * (10 if self.ten_crop else 2)


# Table 1, and LlamaGen's own variants. `layers` counts LlamaGen's blocks, or those of DPAR's patch transformer.
VARIANTS: dict[str, dict[str, Any]] = {
    "LlamaGen-B": {"architecture": "llamagen", "width": 768, "heads": 12, "layers": 12},
    "LlamaGen-L": {"architecture": "llamagen", "width": 1024, "heads": 16, "layers": 24},
    "LlamaGen-XL": {"architecture": "llamagen", "width": 1280, "heads": 20, "layers": 36},
    "LlamaGen-XXL": {"architecture": "llamagen", "width": 1536, "heads": 24, "layers": 48},
    "DPAR-B": {
        "architecture": "dpar", "width": 768, "heads": 12, "encoder_layers": 1, "layers": 8, "decoder_layers": 3
    },
    "DPAR-L": {
        "architecture": "dpar", "width": 1024, "heads": 16, "encoder_layers": 1, "layers": 19, "decoder_layers": 4
    },
    "DPAR-XL": {
        "architecture": "dpar", "width": 1280, "heads": 20, "encoder_layers": 1, "layers": 30, "decoder_layers": 5
    },
    "DPAR-XXL": {
        "architecture": "dpar", "width": 1536, "heads": 24, "encoder_layers": 1, "layers": 41, "decoder_layers": 6
    },
}  # fmt: skip


class Transformer(Settings):
    """A row of Table 1 by name (`variant`), or its sizes; sizes next to a name replace that row's."""

    variant: str | None = Field(default=None, description="DPAR-B, DPAR-L, ... or LlamaGen-B, ...")
    architecture: Literal["dpar", "llamagen"] | None = Field(default=None, description="needed without `variant`")
    width: int | None = Field(default=None, gt=0, description="channels of a state")
    heads: int | None = Field(default=None, gt=0, description="of attention; `width` / `heads` is a multiple of 16")
    encoder_layers: int | None = Field(default=None, gt=0, description="DPAR only")
    layers: int | None = Field(default=None, gt=0, description="of LlamaGen, or of DPAR's patch transformer")
    decoder_layers: int | None = Field(default=None, gt=0, description="DPAR only")
    # Deviation: the paper's ablations seem to have run with "2d"; here every cell has Section 3.2.3's scheme at first.
    position: Literal["dynamic", "dynamic_no_redundancy", "2d"] = Field(
        default="dynamic", description="Table 9; DPAR only"
    )
    query_pooling: Pooling = Field(  # as `_when_given`: not written where it is the default
        default="max",
        exclude_if=lambda pooling: pooling == "max",
        description="of a patch's tokens into its first query; DPAR only",
    )
    attention: Literal["auto", "sdpa", "varlen", "xformers", "flex"] = Field(
        default="auto", description="back end of packed attention; DPAR only"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on tokens, attention output and FFN output")
    class_dropout: float = Field(
        default=0.1, ge=0, le=1, description="share of labels that training replaces by the null class, for guidance"
    )

    @model_validator(mode="after")
    def _sizes(self) -> "Transformer":
        if self.variant is not None and self.variant not in VARIANTS:
            raise ValueError(f"there is no variant {self.variant!r}; variants are {', '.join(VARIANTS)}")
        needed = ["architecture", "width", "heads", "layers"]
        if self.is_dpar:
            needed += ["encoder_layers", "decoder_layers"]
        sizes = self.sizes
        missing = [name for name in needed if sizes[name] is None]
        if missing:
            raise ValueError(f"without `variant`, give {', '.join(missing)}")
        if not self.is_dpar and (sizes["encoder_layers"] or sizes["decoder_layers"]):
            raise ValueError("`encoder_layers` and `decoder_layers` belong to architecture dpar")
        if sizes["width"] % sizes["heads"]:
            raise ValueError(f"`width` {sizes['width']} cannot be divided by `heads` {sizes['heads']}")
        if sizes["width"] // sizes["heads"] % 16:
            head_dim = sizes["width"] // sizes["heads"]
            raise ValueError(f"head width {head_dim} (width / heads) must be a multiple of 16 (Eq. 9)")
        return self

    @property
    def sizes(self) -> dict[str, Any]:
        """Architecture, width, heads and layers: the variant's, where not given here."""
        row = VARIANTS.get(self.variant or "", {})
        names = ("architecture", "width", "heads", "encoder_layers", "layers", "decoder_layers")
        return {name: row.get(name) if (given := getattr(self, name)) is None else given for name in names}

    @property
    def is_dpar(self) -> bool:
        """Whether this is DPAR rather than LlamaGen."""
        return self.sizes["architecture"] == "dpar"


class Training(Settings):
    """The optimizer and the length of a training (Section 4.1)."""

    steps: int | None = Field(default=None, gt=0, description="length in optimizer steps; this or `epochs`")
    epochs: int | None = Field(default=None, gt=0, description="length in passes over the images; this or `steps`")
    milestones: tuple[int, ...] = Field(default=(), description="earlier states to keep, in the unit of the length")
    batch_size: int = Field(default=256, gt=0, description="images per step, over all GPUs and micro-batches")
    accumulate: int = Field(default=1, gt=0, description="micro-batches per step")
    learning_rate: float = Field(default=1e-4, gt=0, description="of AdamW, constant")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.95), description="of AdamW's running means")
    weight_decay: float = Field(default=0.05, ge=0, description="of tensors with two or more dimensions")
    grad_clip: float = Field(default=1.0, gt=0, description="largest norm of all gradients together")
    precision: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="of the products; weights are float32"
    )
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay per step of a moving average of the weights, which is kept instead"
    )
    compile: bool = Field(default=False, description="the layers, with PyTorch's compiler")
    activation_checkpointing_above: int | None = Field(
        default=None,
        ge=0,
        description="parameters; larger models keep no activations inside layers but compute them again",
    )
    fsdp_above: int | None = Field(
        default=None, ge=0, description="parameters; larger models are divided over the processes, not copied to each"
    )
    deterministic: bool = Field(
        default=False,
        exclude_if=lambda deterministic: not deterministic,
        description="sums in an order of their own on CUDA, which is slower, so that a resumed training is the same to "
        "the bit there too; on a CPU it is anyway",
    )
    checkpoint_every: int = Field(default=5000, gt=0, description="steps")
    validate_every: int = Field(default=5000, gt=0, description="steps")
    log_every: int = Field(default=100, gt=0, description="steps")

    @model_validator(mode="after")
    def _length(self) -> "Training":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`")
        if self.batch_size % self.accumulate:
            raise ValueError(f"`batch_size` {self.batch_size} cannot be divided by `accumulate` {self.accumulate}")
        length = self.steps or self.epochs or 0
        if any(m >= length or m <= 0 for m in self.milestones) or list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"`milestones` must rise and lie below the length {length}")
        return self

    @property
    def unit(self) -> Literal["step", "epoch"]:
        """The unit of the length and of the milestones."""
        return "step" if self.steps else "epoch"

    @property
    def length(self) -> int:
        """The length in `unit`s."""
        return self.steps or self.epochs or 0


class EntropyModel(Settings):
    """The network whose uncertainty places the boundaries (Eq. 3)."""

    kind: EntropyKind = Field(
        default="unconditional",
        description="without a class token; asked through its null class; or, of gates alone, without a class token "
        "and with the entropy itself as its one output, learned from the experiment's entropy model",
    )
    model: Transformer = Field(default=Transformer(variant="LlamaGen-B"), description="its sizes, of a LlamaGen")
    precision: EntropyPrecision = Field(  # as `_when_given`: not written where it is the default
        default="tf32",
        exclude_if=lambda precision: precision == "tf32",
        description="of the products behind entropies, in scoring and in sampling alike; tf32: float32 numbers on a "
        "GPU's tensor cores, and float32 elsewhere",
    )
    weights: str | None = Field(default=None, description="an official file such as c2i_B_256.pt (null_class only)")
    weights_sha256: Sha256 | None = Field(default=None, description="SHA-256 of the file of `weights`")
    training: Training | None = Field(default=None, description="how it is trained, without `weights`")

    @model_validator(mode="after")
    def _trained_or_imported(self) -> "EntropyModel":
        if (self.weights is None) == (self.training is None):
            raise ValueError("give exactly one of `weights` (import) and `training` (train one)")
        if self.weights and self.kind != "null_class":
            raise ValueError("imported weights are class-conditional: set `kind: null_class`")
        if self.model.is_dpar:
            raise ValueError("the entropy model is a LlamaGen transformer")
        return self

    @property
    def stored_as(self) -> Literal["llamagen", "entropy_regressor"]:
        """The kind of model that its folder holds."""
        return "entropy_regressor" if self.kind == "distilled" else "llamagen"


def gate_folder(gate: str | None) -> str:
    """Where, among the results, the gate of that name lies; the entropy model for None."""
    return "entropy_model" if gate is None else f"gates/{gate}"


class Patchify(Settings):
    """Where patches begin (Section 3.2.1, Algorithm 3; Table 3's switches)."""

    strategy: Literal["dynamic", "static"] = Field(
        default="dynamic", description="patches begin where entropies are above E_Th, or have one length"
    )
    # Deviation: the paper gives E_Th in nats. Nats do not transfer between entropy models and data sets, P_avg does.
    threshold: float | None = Field(default=None, description="E_Th in nats")
    p_avg: float | None = Field(
        default=None, ge=1, description="calibrate E_Th to this mean patch length; or static length"
    )
    max_length: int | None = Field(default=4, gt=0, le=LONGEST_PATCH, description="P_max in tokens; null = none")
    row_boundary: bool = Field(default=True, description="whether each row of tokens begins a patch")

    @model_validator(mode="after")
    def _one_threshold(self) -> "Patchify":
        if self.threshold is not None and self.p_avg is not None:
            raise ValueError("`threshold` (nats) and `p_avg` (calibrated) are both given: give one")
        if self.threshold is None and self.p_avg is None:
            raise ValueError("give `threshold` (nats) or `p_avg` (the mean patch length to calibrate it to)")
        if self.strategy == "static" and self.p_avg is None:
            raise ValueError("strategy `static` needs `p_avg`, the patch length")
        return self

    @property
    def is_dynamic(self) -> bool:
        """Whether entropies decide where patches begin."""
        return self.strategy == "dynamic"


class Sampling(Settings):
    """Sampling of images from a model (Algorithm 2)."""

    num_images: int = Field(default=50_000, gt=0, description="per set of samples")
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, description="a set of samples is drawn with each")
    labels: Literal["balanced", "uniform", "training"] = Field(
        default="balanced",
        description="each class in turn, classes drawn at random, or each as often as the training images have it",
    )
    cfg_scale: float = Field(default=2.0, ge=0, le=FARTHEST, description="scale of guidance; 1 = none")
    cfg_interval: tuple[Share, Share] = Field(  # as `_when_given`: not written where it is the default
        default=(0.0, 1.0),
        exclude_if=lambda interval: interval == (0.0, 1.0),
        description="shares of the sequence between which it is guided; the class alone decides outside",
    )
    temperature: float = Field(default=1.0, ge=1 / FARTHEST, le=FARTHEST, description="divides the logits")
    top_k: int = Field(default=0, ge=0, description="draw from the k likeliest codes; 0 = all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="draw from the likeliest codes of this probability")
    batch_size: int = Field(default=64, gt=0, description="images at a time")
    precision: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="of the model")
    shards: int = Field(default=1, gt=0, description="jobs a set of samples is divided into")
    compile: bool = Field(
        default=False,
        exclude_if=lambda compiled: not compiled,
        description="the steps of `sample_images`, with PyTorch's compiler; an image may change as by other batches",
    )

    @model_validator(mode="after")
    def _ordered(self) -> "Sampling":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"`seeds` repeats one: {list(self.seeds)}")
        if self.cfg_interval[0] >= self.cfg_interval[1]:
            raise ValueError(f"`cfg_interval` must rise: {list(self.cfg_interval)}")
        return self

    @property
    def draw(self) -> dict[str, Any]:
        """The part that `dpar.sampling.sampler.sample` takes."""
        return {name: getattr(self, name) for name in ("cfg_scale", "cfg_interval", "temperature", "top_k", "top_p")}


class Classifier(Settings):
    """The small feature network that stands in for Inception on small images."""

    channels: int = Field(default=32, gt=0, description="of the first layer")
    dims: int = Field(default=64, gt=0, description="of the pooled features")
    steps: int = Field(default=600, gt=0, description="length of its training")
    batch_size: int = Field(default=64, gt=0, description="images per step")
    learning_rate: float = Field(default=3e-3, gt=0, description="the highest, after a rise")


class LinearProbe(Settings):
    """The linear classifier of Table 7, on standardised features."""

    penalty: float = Field(
        default=1e-4, gt=0, description="of half the squared weights, added to the mean cross-entropy in nats"
    )
    iterations: int = Field(default=200, gt=0, description="of L-BFGS, at most")


class Evaluation(Settings):
    """Reference images of the samples, and the network that compares them."""

    extractor: str = Field(
        default="classifier",
        pattern=r"^(classifier|inception|.+\.(pt|ts))$",
        description="`classifier` (trained by the pipeline), `inception`, or a TorchScript file of the user's own: a "
        "program that runs with the user's rights, so give none that you do not trust",
    )
    inception_weights: str | None = Field(default=None, description="file of extractor `inception` (docs/data.md)")
    classifier: Classifier = Field(default=Classifier(), description="of extractor `classifier`")
    linear_probe: LinearProbe = Field(default=LinearProbe(), description="of tables with `linear_probe: true`")
    reference: Literal["train", "val"] | str = Field(default="train", description="a split, or an ADM npz file")
    reference_images: int | None = Field(
        default=None, gt=0, description="of these so many are compared with; null = all"
    )
    dimensions: int | None = _when_given(
        gt=0,
        description="of the features, the first so many are compared, and the distance is not called FID: for a run "
        "with few images; null = all",
    )
    resolution: int | None = Field(
        default=None, gt=0, description="samples are resized to this side first (384 -> 256)"
    )
    splits: int = Field(default=10, gt=0, description="of the Inception Score")
    k: int = Field(default=3, gt=0, description="which neighbour bounds the balls of precision and recall")

    @model_validator(mode="after")
    def _extractor(self) -> "Evaluation":
        if (self.extractor == "inception") != (self.inception_weights is not None):
            raise ValueError("extractor `inception` needs `inception_weights`, and no other may have it")
        return self


class Table(Settings):
    """A table or grid as data: its rows, each times every combination of varied values.

    A row is flat: `model` names an entry of `models`; `milestone` a state of its training (default: the end); keys such
    as `patchify.max_length`, `transformer.position` and `sampling.cfg_scale` replace that setting of the experiment;
    `inference.threshold` replaces a setting of `patchify` for sampling alone, and `inference.gate` the entropy model by
    one of `gates`; `paper.fid` is the paper's number, where its settings are not the row's (where they are,
    `dpar/report/paper_tables.yaml` has it).
    """

    title: str = Field(description="its heading in the report")
    paper: str | None = Field(
        default=None,
        pattern=r"^(table|figure)\d+$",
        description="the table or figure of the paper that this one stands for: the target that makes it",
    )
    base: dict[str, Any] = Field(default={}, description="values of every row that has none of its own")
    rows: tuple[dict[str, Any], ...] = Field(min_length=1, description="a model each, and what departs from it")
    vary: dict[str, tuple[Any, ...]] = Field(
        default={}, description="key -> values: each row is made with every combination of them"
    )
    linear_probe: bool = Field(
        default=False, description="also the accuracy of a linear classifier on the models' states"
    )
    on_request: bool = Field(
        default=False,
        exclude_if=lambda on_request: not on_request,
        description="made only when it is asked for by name: no part of `all`, `all_tables`, the report and Figure 1b",
    )

    @property
    def is_grid(self) -> bool:
        """Whether one row varies in two ways, so that the table can be drawn as a heat map."""
        return len(self.vary) == 2 and len(self.rows) == 1

    @property
    def is_training_curve(self) -> bool:
        """Whether only the length of training varies, so that the table can be drawn as curves (Figure 4)."""
        return list(self.vary) == ["milestone"]


class Picture(Settings):
    """Samples of some cells as a picture, one row per class, uncurated: the first that were drawn (Figures 5-12)."""

    title: str = Field(description="its heading in the report, and its caption")
    rows: tuple[dict[str, Any], ...] = Field(min_length=1, description="cells, written as the rows of a table")
    classes: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="by number, a row each")
    images: int = Field(default=3, gt=0, description="of each class")


# Figures that every experiment has, by the name of their file.
FIGURES = ("samples", "completions", "entropy_maps", "compute")


class Experiment(Settings):
    """One YAML file under config/: everything that a run of the graph depends on."""

    name: Name = Field(pattern=r"^[a-z0-9_]+(\.smoke)?$", description="of its folder under results/")
    seed: Seed = Field(default=0, description="of whatever is drawn at random, but for samples")
    images: Images = Field(description="what is learned from")
    tokenizer: Tokenizer = Field(description="turns images into codes")
    codes: Codes = Field(default=Codes(), description="which crops become codes, and how these are stored")
    entropy_model: EntropyModel = Field(description="says where patches begin")
    gates: dict[ModelName, EntropyModel] = Field(
        default={},
        exclude_if=lambda gates: not gates,
        description="cheaper networks that may place the boundaries in sampling, in the entropy model's stead",
    )
    patchify: Patchify = Field(description="the patch rule of every model that a row does not change")
    models: dict[ModelName, Transformer] = Field(min_length=1, description="name -> sizes; rows of tables name them")
    training: Training = Field(description="how each of the models is trained")
    training_seeds: tuple[Seed, ...] = Field(
        default=(),
        exclude_if=lambda seeds: not seeds,
        description="each row of a table is trained once with each of these; default: once, with `seed`",
    )
    sampling: Sampling = Field(default=Sampling(), description="how images are drawn")
    evaluation: Evaluation = Field(description="what samples are compared with, and by which network")
    tables: dict[TableName, Table] = Field(default={}, description="name -> table: what is trained, drawn and measured")
    figures: dict[TableName, Picture] = Field(default={}, description="name -> figure: samples to be shown")

    @model_validator(mode="after")
    def _fits_together(self) -> "Experiment":
        if self.entropy_model.kind == "distilled":
            raise ValueError("entropy_model.kind `distilled` has nothing to learn from; only `gates` are distilled")
        if len(set(self.training_seeds)) < len(self.training_seeds):
            raise ValueError(f"`training_seeds` repeats one: {list(self.training_seeds)}")
        if self.training_seeds and self.seed not in self.training_seeds:
            raise ValueError(
                f"`training_seeds` {list(self.training_seeds)} must hold the experiment's own `seed`, {self.seed}"
            )
        if taken := {*self.tables, *FIGURES} & {*self.figures} | {*self.tables} & {*FIGURES, "table1", "table8"}:
            raise ValueError(f"{', '.join(sorted(taken))}: a table or figure of this name exists; give it another")
        if self.tables and not self.shown_tables:
            raise ValueError(f"every table is `on_request` ({', '.join(self.tables)}): the report would show none")
        for name, figure in self.figures.items():
            if max(figure.classes) >= self.images.num_classes:
                raise ValueError(
                    f"figures.{name}: class {max(figure.classes)} is not among the {self.images.num_classes} classes, "
                    "which are counted from 0"
                )
        if self.images.resolution % self.tokenizer.downsample:
            raise ValueError(
                f"images.resolution {self.images.resolution} is not a multiple of the tokenizer's downsampling "
                f"{self.tokenizer.downsample} (tokenizer.pixel_shuffle x 2 to the number of multipliers less one)"
            )
        return self

    @property
    def is_smoke(self) -> bool:
        """Whether it is an experiment that was cut short, whose numbers say nothing."""
        return self.name.endswith(SMOKE_SUFFIX)

    @property
    def shown_tables(self) -> list[str]:
        """The tables that a run without a target makes: those that are not on request."""
        return [name for name, table in self.tables.items() if not table.on_request]

    @property
    def requested_tables(self) -> list[str]:
        """The tables that are made only when they are asked for by name."""
        return [name for name, table in self.tables.items() if table.on_request]

    @property
    def networks(self) -> dict[str, EntropyModel]:
        """The networks that can place boundaries, by folder among the results: the entropy model and the gates."""
        return {gate_folder(None): self.entropy_model} | {gate_folder(gate): self.gates[gate] for gate in self.gates}

    def network(self, folder: str) -> EntropyModel:
        """The network of that folder.

        Raises:
            InputError: there is none.
        """
        if folder not in self.networks:
            raise InputError(f"no network {folder} places patches here; there are {', '.join(self.networks)}")
        return self.networks[folder]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens per image."""
        side = self.images.resolution // self.tokenizer.downsample
        return side, side
