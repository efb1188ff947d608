"""MedAlign in lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval): the model, and a task of ours."""
