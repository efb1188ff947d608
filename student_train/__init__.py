"""Stage two: LoRA fine-tuning of a Med-LVLM that streams the teacher's targets from the store."""
