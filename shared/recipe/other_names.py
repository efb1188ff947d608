"""Names that other projects give to a key of the recipe, for errors that lead to the right one.

From PEFT's `LoraConfig`, the transformers `TrainingArguments`, and the argument files of
LLaMA-Factory and LLaVA. Lower case.
"""

from typing import Final

OTHER_NAMES: Final = {
    # PEFT
    "rank": "lora.r",
    "lora_r": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.targets",
    "use_rslora": "lora.rslora",
    "use_dora": "lora.dora",
    "init_lora_weights": "lora.init",
    # transformers
    "output_dir": "output",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "per_device_train_batch_size": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "micro_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulation",
    "lr": "train.learning_rate",
    "lr_scheduler_type": "train.schedule",
    "warmup_steps": "train.warmup_ratio",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "torch_dtype": "train.precision",
    "save_total_limit": "train.keep_checkpoints",
    "metric_for_best_model": "train.best_metric",
    "load_best_model_at_end": "train.best_metric",
    "early_stopping_patience": "train.early_stopping",
    "hub_model_id": "train.push_to_hub",
    "dataloader_num_workers": "data.workers",
    "dataloader_prefetch_factor": "data.prefetch",
    "attn_implementation": "model.attention",
    "use_cpu": "train.device",
    # LLaMA-Factory
    "model_name_or_path": "model.name",
    "dataset": "data.train",
    "eval_dataset": "data.validation",
    "media_dir": "data.image_root",
    "dataset_dir": "data.image_root",
    "cutoff_len": "data.max_length",
    "lora_rank": "lora.r",
    "lora_target": "lora.targets",
    "finetuning_type": "train.tune",
    "flash_attn": "model.attention",
    "quantization_bit": "model.quantization",
    "preprocessing_num_workers": "data.workers",
    # LLaVA
    "data_path": "data.train",
    "image_folder": "data.image_root",
    "model_max_length": "data.max_length",
    "vision_tower": "model.vision_path",
    "version": "model.template",
    "load_in_4bit": "model.quantization",
    "bits": "model.quantization",
}
