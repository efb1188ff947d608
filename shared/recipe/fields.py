"""Every key of a recipe, its default and its meaning.

The file side (reading, overrides, errors) is `shared.recipe`.

The text below a field is its description: docs/recipe.md, `medalign recipes --keys` and the JSON
schema for editors come from it. Defaults are the published values (docs/method.md; the authors'
training scripts) where there are any.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from shared.vocabulary import AttentionRows, AttentionTarget, Device, Geometry, Truncation

AttentionNormalization = Literal["renormalized", "softmax", "l2"]
WeightSchedule = Literal["constant", "warmup", "linear", "cosine"]
VisionWeights = Literal["checkpoint", "openai"]
AttentionKernel = Literal["sdpa", "eager", "flash_attention_2"]
Quantization = Literal["none", "4bit"]
OnMissing = Literal["error", "compute", "skip"]
RotationKind = Literal["full", "low_rank", "orthogonal", "none"]
LoraInit = Literal["default", "gaussian", "pissa", "olora"]
Tune = Literal["lora", "projector"]
LearningRateSchedule = Literal["cosine", "linear", "constant", "constant_with_warmup"]
Precision = Literal["bf16", "fp32"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


def _no_truth_value(value: object) -> object:
    """YAML's `yes` and `on` are truth values, which Python would count as 1."""
    if isinstance(value, bool):
        raise ValueError("input should be a number")
    return value


def _listed(value: object) -> object:
    """One name stands for a list of one."""
    return [value] if isinstance(value, str) else value


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) != len(values):
        raise ValueError("an entry is given twice")
    return values


Probability = Annotated[
    float, BeforeValidator(_no_truth_value), Field(ge=0.0, le=1.0, allow_inf_nan=False)
]
Weight = Annotated[float, BeforeValidator(_no_truth_value), Field(ge=0.0, allow_inf_nan=False)]
Rate = Annotated[float, BeforeValidator(_no_truth_value), Field(gt=0.0, allow_inf_nan=False)]
Limit = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=-1)]
Count = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=1)]
Names = Annotated[
    list[str], BeforeValidator(_listed), Field(min_length=1), AfterValidator(_distinct)
]
Level = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0, le=255)]
Colour = tuple[Level, Level, Level]
Layers = Annotated[list[Positive], Field(min_length=1), AfterValidator(_distinct)]

# Each normalisation of the attention loss has its own scale, hence its own weight: the authors
# chose 0.03 for `l2`; at a near-uniform teacher over 576 patches the gradient of `l2` is 1/24 of
# that of `renormalized`.
DEFAULT_BETA: dict[AttentionNormalization, float] = {
    "renormalized": 0.00125,
    "l2": 0.03,
    "softmax": 0.03,
}


class Section(BaseModel):
    """A part of the recipe.

    Unknown keys are refused and the values never change after validation.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True
    )


class ModelSection(Section):
    """Which medical vision-language model is the student, and how it is held."""

    name: str = "llava-med-1.5"
    """llava-med-1.5, huatuogpt-vision-7b, huatuogpt-vision-34b, medgemma-1.5-4b, lingshu-7b, a
    folder, or a hub id."""

    path: str | None = None
    """Local folder or hub id of the weights of a named model; null: its published hub id."""

    revision: str | None = None
    """Hub revision (commit, tag) to pin; local folders have none."""

    vision_weights: VisionWeights = "checkpoint"
    """LLaVA-Med: the vision tower inside the checkpoint, or OpenAI's CLIP as the authors load
    it."""

    vision_path: str = "openai/clip-vit-large-patch14-336"
    """Folder or hub id of the tower that vision_weights=openai loads."""

    template: str | None = None
    """Prompt template; null: the family's own (vicuna_v1, huatuo_v1, chatml, ...)."""

    attention: AttentionKernel = "sdpa"
    """Attention kernel of every layer; layer l is tapped the same under each."""

    quantization: Quantization = "none"
    """4bit: QLoRA's frozen base (needs bitsandbytes and a GPU)."""


class DataSection(Section):
    """The question-answer records to train on, and their images."""

    train: str | Names | None = None
    """LLaVA conversation .json, .jsonl or .parquet; or several, which are mixed."""

    weights: list[Rate] | None = None
    """Of several files: how often an epoch takes each one's records. 2 takes each twice, 0.5 a
    half that every epoch draws anew; null: once."""

    validation: str | None = None
    """Same format; gives the evaluation loss and the sample answers."""

    image_root: str | list[str] | None = None
    """Folder that image paths are relative to; null: the data file's own folder. Of several
    training files perhaps one each, and then validation has its own folder."""

    geometry: Geometry = "pad"
    """How the student makes an image square: pad (LLaVA) or centre crop."""

    padding: Colour | None = None
    """Colour around an image that pad makes square, three levels from 0 to 255; null: the one
    that the store's teacher saw, without a store the student's own mean."""

    max_length: Positive = 1024
    """Tokens per sample, image tokens included."""

    truncation: Truncation = "error"
    """Sample over max_length: stop and name it, or cut the end of its last answer (never image
    or question)."""

    group_by_segment: bool = False
    """Order each epoch so that neighbouring samples share a store segment."""

    workers: Count = 2
    """Processes that read images and targets ahead of the model."""

    prefetch: Positive = 4
    """Batches each worker keeps ready."""


class TargetsSection(Section):
    """Where the teacher's targets come from."""

    store: str | None = None
    """The folder that `cache build` wrote."""

    teacher: str | Names | None = None
    """Teacher name, or several (their losses are averaged); null: the store's only one."""

    fingerprint: str | Names | None = None
    """Fingerprint (or its beginning) where one teacher has several namespaces; one per teacher."""

    maps: str | None = None
    """Store of maps for questions (`cache query maps`); losses.attention_target reads them."""

    on_missing: OnMissing = "error"
    """Image without targets: stop, compute now, or train it without the two losses."""

    allow_missing: Count = 0
    """on_missing=skip: how many images may lack targets before the run stops."""

    weights: str | None = None
    """on_missing=compute: the teacher's weights file, folder or hub id."""

    device: Literal["cpu", "cuda"] = "cpu"
    """on_missing=compute: where the teacher runs."""


class LossesSection(Section):
    """L = L_LM + alpha L_vis + beta L_att (Eq. 7)."""

    alpha: Weight = 1.0
    """Weight of L_vis, the visual alignment loss; 0 turns it off."""

    beta: Weight | None = None
    """Weight of L_att; null: the normalization's own (renormalized 0.00125, l2 0.03, softmax
    0.03); 0 turns it off."""

    attention_normalization: AttentionNormalization = "renormalized"
    """renormalized: KL between distributions; softmax: Eq. 5 to the letter; l2: the authors'
    code."""

    attention_target: AttentionTarget = "image"
    """What L_att teaches a question: image: E_a; question: its map of targets.maps, E_a where it
    has none; mixed: the mean of both."""

    attention_rows: AttentionRows = "question"
    """Rows averaged at layer l: every question token after the image, or the last prompt token."""

    layer: Positive | Layers = 20
    """Distillation layer l, 0-based, 1..L-1; several: their losses are averaged."""

    mask_padding: bool = True
    """Leave out patches that show padding only."""

    alpha_schedule: WeightSchedule = "constant"
    """Constant; warmup: 0 to alpha over schedule_ratio of the run; linear, cosine: alpha to 0
    over the run."""

    beta_schedule: WeightSchedule = "constant"
    """The same for beta."""

    schedule_ratio: Probability = 0.1
    """Share of the steps that warmup takes."""

    @model_validator(mode="before")
    @classmethod
    def _pair_beta(cls, values: object) -> object:
        """Write the beta of the normalization, so that the resolved recipe shows a number."""
        if isinstance(values, dict) and values.get("beta") is None:
            normalization = values.get("attention_normalization", "renormalized")
            if isinstance(normalization, str) and normalization in DEFAULT_BETA:
                return {**values, "beta": DEFAULT_BETA[normalization]}
        return values

    @property
    def layers(self) -> tuple[int, ...]:
        """The distillation layers, one or several."""
        return tuple(self.layer) if isinstance(self.layer, list) else (self.layer,)

    @property
    def aligned(self) -> bool:
        """Whether one of the two alignment losses is on."""
        return bool(self.alpha or self.beta)


class RotationSection(Section):
    """W of Eq. 1: X' = (I + W) X on the image tokens that enter layer l."""

    kind: RotationKind = "full"
    """Full (d, d) matrix (the paper), a product of two thin ones, an orthogonal I + W, or no
    rotation."""

    rank: Positive = 64
    """Of low_rank and orthogonal."""

    learning_rate: Rate | None = None
    """null: train.learning_rate."""


class LoraSection(Section):
    """The low-rank adapter, through PEFT."""

    r: Positive = 32
    """Rank; the authors: 32 for questions, 64 for reports."""

    alpha: Positive = 16
    """scale: alpha / r (alpha / sqrt(r) with rslora)."""

    dropout: Probability = 0.05
    """On the adapter's input."""

    targets: Literal["all-linear"] | Names = "all-linear"
    """Modules of the language model: every linear layer but lm_head, or names such as q_proj."""

    rslora: bool = False
    """Rank-stabilised scale."""

    dora: bool = False
    """Weight-decomposed LoRA."""

    init: LoraInit = "default"
    """PEFT's init_lora_weights; pissa and olora are saved as plain LoRA of twice the rank."""


class TrainSection(Section):
    """The optimisation: the authors' scripts, under the transformers Trainer."""

    tune: Tune = "lora"
    """lora: adapter and W; projector: the warm-up of the connector alone, saves a whole model
    folder."""

    epochs: Rate = 6.0
    """Passes over the data (authors: reports 12, SLAKE 6, VQA-RAD 9)."""

    max_steps: Limit = -1
    """Optimiser steps; above 0 it overrides epochs."""

    batch_size: Positive = 1
    """Samples per device and micro-batch."""

    accumulation: Positive = 8
    """Micro-batches per optimiser step (authors: 4 GPUs x 1 x 8 = 32)."""

    learning_rate: Rate = 2e-4
    """Peak."""

    schedule: LearningRateSchedule = "cosine"
    """Of the learning rate."""

    warmup_ratio: Probability = 0.03
    """Share of the steps that raise the learning rate from 0."""

    weight_decay: Weight = 0.0
    """AdamW's."""

    max_grad_norm: Weight = 1.0
    """Gradient clipping; 0 turns it off."""

    precision: Precision = "bf16"
    """Dtype of the frozen model and of the computation; adapter and W keep float32 masters."""

    gradient_checkpointing: bool = False
    """Recompute activations: less memory, a third more time."""

    seed: int = 4
    """Of everything that draws: order, dropout, initial weights (the authors use 4)."""

    device: Device = "auto"
    """auto: a GPU where there is one."""

    logging_steps: Positive = 10
    """Optimiser steps between logged losses."""

    save_steps: Count = 500
    """Optimiser steps between checkpoints; 0: only the end."""

    keep_checkpoints: Positive = 2
    """Older ones are removed."""

    eval_steps: Count = 0
    """Optimiser steps between evaluations on data.validation; 0: none."""

    eval_samples: Count = 0
    """Validation records used; 0: all of them."""

    sample_answers: Count = 3
    """Validation answers generated and logged at each evaluation."""

    best_metric: str | None = None
    """Keep the best checkpoint by this: eval_loss, or a score's name; null: keep the last."""

    early_stopping: Count = 0
    """Evaluations without a better best_metric before the run stops; 0: never."""

    report_to: Annotated[list[Tracker], BeforeValidator(_listed)] = ["tensorboard"]
    """Where the curves go."""

    run_name: str | None = None
    """Shown by those; null: the output folder's name."""

    push_to_hub: str | None = None
    """Hub id the finished adapter is uploaded to; null: nothing leaves the machine."""


class EvaluationSection(Section):
    """What `medalign evaluate` reads; its flags override these."""

    data: str | None = None
    """Test file, same formats as data.train."""

    image_root: str | None = None
    """null: the test file's own folder."""

    methods: Names = ["beam"]
    """Decoding methods (the paper scores MedAlign under beam search)."""

    max_new_tokens: Positive = 128
    """Per answer (authors: 1024 for LLaVA-Med, 128 for HuatuoGPT-Vision)."""

    num_beams: Positive = 5
    """Of beam."""

    batch_size: Positive = 8
    """Questions answered at once; changes no answer."""

    seed: int = 0
    """Of the sampling methods."""


class Recipe(Section):
    """One file for the whole pipeline."""

    output: str = "runs/student"
    """Folder the run writes; it must not hold another run."""

    deepspeed: str | None = "zero2"
    """none, zero0, zero1, zero2, zero3, zero2-offload, zero3-offload, zero3-quantized, or the
    path of a DeepSpeed JSON."""

    model: ModelSection = ModelSection()
    """The student."""

    data: DataSection = DataSection()
    """Records and images."""

    targets: TargetsSection = TargetsSection()
    """The teacher's targets."""

    losses: LossesSection = LossesSection()
    """The three terms."""

    rotation: RotationSection = RotationSection()
    """W."""

    lora: LoraSection = LoraSection()
    """The adapter."""

    train: TrainSection = TrainSection()
    """The optimisation."""

    evaluation: EvaluationSection = EvaluationSection()
    """The scores."""

    @model_validator(mode="after")
    def _no_wish_is_ignored(self) -> "Recipe":
        """Refuse evaluations that could not take place, and weights or folders without a file.

        The run would end without what was asked for.
        """
        train, validation = self.train, self.data.validation
        files = 1 if isinstance(self.data.train, str) else len(self.data.train or ())
        for key, given in (("weights", self.data.weights), ("image_root", self.data.image_root)):
            if isinstance(given, list) and len(given) != files:
                raise ValueError(
                    f"data.{key} lists {len(given)} for {files} training files; give one for each"
                )
        asked = self.losses.attention_target != "image"
        if asked != (self.targets.maps is not None):
            raise ValueError(
                "losses.attention_target and targets.maps go together: name the store of maps, and "
                "set attention_target to question or mixed"
            )
        if train.eval_steps and validation is None:
            raise ValueError(
                "train.eval_steps is set, but data.validation is not: name the validation file"
            )
        if train.best_metric is not None and not train.eval_steps:
            raise ValueError(
                "train.best_metric needs evaluations: set data.validation and train.eval_steps"
            )
        if train.early_stopping and train.best_metric is None:
            raise ValueError("train.early_stopping needs train.best_metric, such as eval_loss")
        return self
